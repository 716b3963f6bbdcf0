//! What holds in a restored copy until somebody adopts it, so that it reaches its target and acts on nobody.
//!
//! # What it needs
//! A hot standby pauses (14 and later) or ends (13) where the WAL tells of limits that are higher than its own: it would stand short of
//! its target and look finished. So it gets the highest of those in `pg_control` and on the path.
//!
//! # What it must not do
//! Take the changes that wait for the original's subscriptions, wait for the original's standbys, run its jobs, write its logs, its pid
//! file or its statistics. Libraries stay loaded, because replay may need their resource managers (15 and later); what they start is
//! switched off by their own settings.

use super::control::Limits;

/// What is switched off, in words, for a plan: one line for a person.
pub const WORDS: &str = "archiving, logical replication, synchronous standbys, event triggers (17 and later), jobs of pg_cron, pg_partman \
                         and TimescaleDB";

/// Libraries that start nothing which reaches out of the server, or are switched off by a setting here.
const KNOWN_LIBRARIES: [&str; 18] = [
    "auto_explain",
    "auth_delay",
    "passwordcheck",
    "pg_cron",
    "pg_hint_plan",
    "pg_partman_bgw",
    "pg_prewarm",
    "pg_qualstats",
    "pg_stat_kcache",
    "pg_stat_statements",
    "pg_wait_sampling",
    "pgaudit",
    "plpgsql",
    "plprofiler",
    "postgis",
    "sepgsql",
    "set_user",
    "timescaledb",
];

/// Settings that lie between a server and the world. What a library does not know is kept as a placeholder, and costs nothing.
pub fn acts_on_nobody(major: u32) -> Vec<(&'static str, &'static str)> {
    let mut quiet = vec![
        ("max_logical_replication_workers", "0"),
        ("synchronous_standby_names", ""),
        ("cron.launch_active_jobs", "off"),
        ("pg_partman_bgw.dbname", ""),
        ("timescaledb.max_background_workers", "0"),
    ];
    if major >= 17 {
        quiet.push(("event_triggers", "off"));
    }
    quiet
}

/// Everything that holds until adoption, for `postgresql.auto.conf`.
pub fn until_adopted(major: u32, limits: Limits, is_apart: bool) -> Vec<(&'static str, String)> {
    let mut settings = limit_settings(limits);
    // Without it a server that shall pause ends instead, and nobody can look.
    settings.push(("hot_standby", "on".into()));
    settings.extend(acts_on_nobody(major).into_iter().map(|(name, value)| (name, value.to_string())));
    if is_apart {
        settings.push(("log_directory", "log".into()));
        // Debian has it in /run, by the name of the cluster.
        if major < 15 {
            settings.push(("stats_temp_directory", "pg_stat_tmp".into()));
        }
    }
    settings
}

/// The limits as settings.
pub fn limit_settings(limits: Limits) -> Vec<(&'static str, String)> {
    vec![
        ("max_connections", limits.max_connections.to_string()),
        ("max_worker_processes", limits.max_worker_processes.to_string()),
        ("max_wal_senders", limits.max_wal_senders.to_string()),
        ("max_prepared_transactions", limits.max_prepared_transactions.to_string()),
        ("max_locks_per_transaction", limits.max_locks_per_transaction.to_string()),
        ("wal_level", if limits.wal_level >= 2 { "logical" } else { "replica" }.into()),
    ]
}

/// Of a value of `shared_preload_libraries`: those of which nobody here knows what they start.
pub fn unknown_libraries(value: &str) -> Vec<String> {
    let names = value.split(',').map(|name| name.trim().trim_matches('"').trim_start_matches("$libdir/").trim_end_matches(".so"));
    names.filter(|name| !name.is_empty() && !KNOWN_LIBRARIES.contains(name)).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_triggers_are_a_setting_since_17() {
        assert!(!acts_on_nobody(16).iter().any(|(name, _)| *name == "event_triggers"));
        assert!(acts_on_nobody(17).contains(&("event_triggers", "off")));
    }

    #[test]
    fn what_nobody_knows_is_named() {
        assert_eq!(unknown_libraries("pg_stat_statements, \"$libdir/bdr\",pglogical.so"), ["bdr", "pglogical"]);
        assert!(unknown_libraries("").is_empty());
    }
}
