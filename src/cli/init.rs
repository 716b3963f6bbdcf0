//! `lastgood init`

use std::path::Path;

use super::context::{self, Global};
use super::guard::{self, Confirm, Desk};
use super::keys::{self, Need};
use super::{error, output};
use crate::clock;
use crate::config::Config;
use crate::postgres::data_directory::{self, RESTORED_MARK};
use crate::postgres::lsn::SystemId;
use crate::postgres::session::{Facts, Session};
use crate::repo::record::ClusterRecord;
use crate::repo::repository::{Cluster, Repository};
use crate::repo::seal::CIPHER;
use crate::repo::seal::create::{self, Sealing};
use crate::repo::seal::keys::Keys;
use crate::repo::seal::slot::{MEMORY_KIB, To};
use crate::repo::{FORMAT_VERSION, RepoError};
use crate::restore::guard::Care;
use crate::restore::replaced::PRODUCTION;
use crate::snapshot::SnapshotError;
use crate::storage::Created;
use crate::storage::fs::DirectoryStorage;
use crate::storage::open::Place;
use crate::upkeep::apart::apart;
use crate::upkeep::rebuild;

/// Make the repository, register the server, and print the settings it needs
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  lastgood init --repo /backup/lastgood --cluster shop\n  lastgood init --apply\n  lastgood init --rebuild"
)]
pub struct Args {
    /// Write the settings with ALTER SYSTEM and reload, instead of printing them
    #[arg(long)]
    apply: bool,
    /// Register this server although the name already stands for another system: after pg_upgrade or initdb
    #[arg(long)]
    new_history: bool,
    /// Write lastgood.json and the cluster's record again, where they are missing or damaged, from the snapshots and WAL that are there
    ///
    /// Needs no server. Nothing is written where a record is whole, nor in an empty place. The label is lost, so the cluster counts as
    /// production afterwards.
    #[arg(long, conflicts_with_all = ["apply", "new_history", "no_encryption"])]
    rebuild: bool,
    /// Make the repository without encryption, whatever the configuration says
    #[arg(long)]
    no_encryption: bool,
    #[command(flatten)]
    confirm: Confirm,
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    if args.rebuild {
        return super::rebuild::run(global).await;
    }
    let config = global.configuration()?;
    // The server first: a repository without a cluster helps nobody.
    let session = context::session(&config).await?;
    let facts = session.facts().await?;
    let directory = config.postgres.data_directory.clone().unwrap_or_else(|| facts.data_directory.clone());
    data_directory::check_apart(&directory, &apart(&config)).map_err(SnapshotError::from)?;
    if let Place::Directory(path) = Place::parse(&config.repository.url)?
        && !args.confirm.dry_run
    {
        DirectoryStorage::new(&path).prepare().map_err(|e| anyhow::anyhow!("make the directory {}: {e}", path.display()))?;
    }
    let keys = if args.no_encryption { Keys::default() } else { keys::keys(&config, Need::Init)? };
    let recipients = recipients(&config, &keys);
    let sealing = (!args.no_encryption && (config.encryption.is_configured() || !keys.is_empty()))
        .then(|| Sealing { readers: readers(&config, &keys, &recipients), key_file: missing_key_file(&config) });
    let storage = context::storage(&config).await?;
    let (repository, created) = match args.confirm.dry_run {
        // Nothing is made to show a plan.
        true => (Repository::open(storage, &keys).await?, Created::AlreadyThere),
        false => Repository::open_or_create(storage, &keys, sealing.as_ref()).await?,
    };
    if let (Some(seal), Some(path), Some(_)) = (repository.vault().seal(), missing_key_file(&config), &sealing)
        && !args.confirm.dry_run
    {
        create::write_writer_file(&path, seal)?;
    }
    let place = repository.storage().place().to_string();
    let cluster = repository.cluster(&config.cluster.name);
    let desk = Desk::of("init", &cluster, global);
    let gate = Gate { desk: &desk, repository: &repository, config: &config, directory: &directory, confirm: &args.confirm };
    let registered = match register(&cluster, &facts, args.new_history, &gate, global.json).await? {
        Ok(Registered::Planned) => return Ok(0),
        Ok(_) if args.confirm.dry_run => {
            output::line("nothing to confirm; nothing was changed");
            return Ok(0);
        }
        Ok(registered) => registered == Registered::New,
        Err(refusal) => {
            output::error(&anyhow::anyhow!(refusal), error::REFUSED, global.json);
            return Ok(error::REFUSED);
        }
    };
    if !facts.in_recovery && directory.join(RESTORED_MARK).try_exists()? {
        // Its settings keep it from archiving on purpose.
        return Err(SnapshotError::NotReleased { dir: directory }.into());
    }
    let settings = settings(global, &config, &facts)?;
    if args.apply {
        apply(&session, &settings).await?;
    }
    if global.json {
        let key_id = repository.vault().seal().map(|seal| seal.key_id().to_string());
        output::json(
            &serde_json::json!({ "event": "result", "place": place, "created": created == Created::New, "key_id": key_id,
            "registered": registered, "system_identifier": facts.system_identifier, "settings": settings, "applied": args.apply }),
        );
        return Ok(0);
    }
    let made = if created == Created::New { "made" } else { "found" };
    output::line(format!("repository {place}: {made}"));
    if !repository.record().conditional_create {
        output::line("  this store has no conditional writes: let only one server archive under one name");
    }
    show_keys(&config, &repository, created);
    let registered = if registered { "registered" } else { "known already" };
    output::line(format!(
        "cluster {}: {registered}, PostgreSQL {}, system {}",
        cluster.name(),
        facts.major(),
        facts.system_identifier
    ));
    show(&settings, args.apply);
    Ok(0)
}

/// Public keys of everybody who shall read a new repository.
fn recipients(config: &Config, keys: &Keys) -> Vec<String> {
    let mut recipients = config.encryption.recipients.clone();
    recipients.extend(keys.identities.iter().map(|identity| identity.to_public().to_string()));
    recipients.sort();
    recipients.dedup();
    recipients
}

fn readers<'a>(config: &Config, keys: &'a Keys, recipients: &'a [String]) -> Vec<To<'a>> {
    let memory_kib = config.encryption.argon2_memory_kib.unwrap_or(MEMORY_KIB);
    let passphrase = keys.passphrase.iter().map(|passphrase| To::Passphrase { passphrase, memory_kib });
    passphrase.chain(recipients.iter().map(|recipient| To::Recipient(recipient))).collect()
}

fn missing_key_file(config: &Config) -> Option<std::path::PathBuf> {
    config.encryption.key_file.clone().filter(|path| !path.exists())
}

fn show_keys(config: &Config, repository: &Repository, created: Created) {
    let Some(seal) = repository.vault().seal() else { return };
    output::line(format!("  encrypted with {CIPHER}, key id {}", seal.key_id()));
    if created == Created::New {
        output::line("  put a way in where no fire and no thief reaches both: lastgood key export --paper");
    }
    if config.encryption.key_id.is_none() {
        output::line(format!("  pin it under [encryption], here and on every host: key_id = \"{}\"", seal.key_id()));
    }
    match &config.encryption.key_file {
        Some(path) => output::line(format!("  archive-push and backup use the key in {}", path.display())),
        None => output::line(
            "  set [encryption] key_file and run this again: without it every archive-push opens the keyring, slowly",
        ),
    }
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registered {
    New,
    Known,
    /// Only shown.
    Planned,
}

/// A change of what a name stands for, which somebody confirms as a restore over that cluster.
#[derive(Debug, serde::Serialize)]
struct Change {
    cluster: String,
    what: String,
    /// Of the record that is changed.
    number: u32,
    system: SystemId,
    label: Option<String>,
    care: Care,
}

/// What a change passes through.
struct Gate<'a> {
    desk: &'a Desk<'a>,
    repository: &'a Repository,
    config: &'a Config,
    directory: &'a Path,
    confirm: &'a Confirm,
}

impl Gate<'_> {
    /// `false` when the change was only to be shown.
    async fn pass(&self, change: &Change, json: bool) -> anyhow::Result<bool> {
        let seal = self.desk.seal_of(change, self.repository, self.config);
        let code = seal.code(clock::now());
        if json {
            output::json(&serde_json::json!({ "event": "plan", "plan": change, "care": change.care, "code": code }));
        } else {
            output::line("plan");
            output::entry("change", &change.what);
            guard::show(&change.care, &code);
        }
        if self.confirm.dry_run {
            return Ok(false);
        }
        let approval = self.desk.pass(self.directory, &change.care, &seal, self.confirm).await?;
        let attempt = self.desk.attempted(change, &approval, &code).await;
        self.desk.ended(attempt, Ok(()), |()| change.what.clone()).await?;
        Ok(true)
    }

    fn takeover(&self, before: &ClusterRecord, facts: &Facts) -> Change {
        let current = before.current().map(|history| history.system_identifier.to_string()).unwrap_or_default();
        let what = format!(
            "{:?} stands for system {current}, and will stand for system {}: the server of {current} archives and backs up no more",
            before.name, facts.system_identifier
        );
        self.change(before, facts, what)
    }

    fn change(&self, before: &ClusterRecord, facts: &Facts, what: String) -> Change {
        let name = before.name.clone();
        let is_production = [before.label.as_deref(), self.config.cluster.label.as_deref()].contains(&Some(PRODUCTION));
        let care = match is_production {
            true => Care::Production { name: name.clone(), why: "this name stands for production".into() },
            false => Care::Code,
        };
        Change {
            cluster: name,
            what,
            number: before.number,
            system: facts.system_identifier,
            label: self.config.cluster.label.clone(),
            care,
        }
    }
}

/// Adds the server to the cluster's record; `Ok(Err)` says why it is refused.
async fn register(
    cluster: &Cluster,
    facts: &Facts,
    new_history: bool,
    gate: &Gate<'_>,
    json: bool,
) -> anyhow::Result<Result<Registered, String>> {
    let config = gate.config;
    let mut passed = None;
    loop {
        let before = cluster.record().await?;
        if before.is_none() && rebuild::has_objects(cluster).await? {
            let (place, name) = (cluster.storage().place().into(), cluster.name().into());
            return Ok(Err(RepoError::NoRecord { place, name }.to_string()));
        }
        let known = before.as_ref().filter(|r| r.current().is_some_and(|h| h.system_identifier == facts.system_identifier));
        if let Some(record) = known {
            // The guard looks at the label in the repository too, from every host.
            if config.cluster.label.is_none() || config.cluster.label == record.label {
                return Ok(Ok(Registered::Known));
            }
            if record.label.as_deref() == Some(PRODUCTION) && passed != Some(record.number) {
                let label = config.cluster.label.as_deref().unwrap_or_default();
                let what = format!("{:?} is labelled production, and will be labelled {label:?}", record.name);
                if !gate.pass(&gate.change(record, facts, what), json).await? {
                    return Ok(Ok(Registered::Planned));
                }
                passed = Some(record.number);
            }
            if gate.confirm.dry_run {
                return Ok(Ok(Registered::Known));
            }
            let label = config.cluster.label.clone();
            let relabelled = ClusterRecord { number: record.number + 1, label, written: clock::now(), ..record.clone() };
            if cluster.put_record(&relabelled).await? {
                return Ok(Ok(Registered::Known));
            }
            continue;
        }
        if let Some(record) = &before
            && !new_history
        {
            let known: Vec<String> = record.histories.iter().map(|h| h.system_identifier.to_string()).collect();
            return Ok(Err(format!(
                "{:?} is already the name of system {}, and this server is system {}; choose another name with --cluster, or, \
                     when this server took its place after pg_upgrade or initdb, add --new-history",
                cluster.name(),
                known.join(", "),
                facts.system_identifier
            )));
        }
        if let Some(record) = before.as_ref().filter(|record| passed != Some(record.number)) {
            if !gate.pass(&gate.takeover(record, facts), json).await? {
                return Ok(Ok(Registered::Planned));
            }
            passed = Some(record.number);
        }
        if gate.confirm.dry_run {
            return Ok(Ok(Registered::Known));
        }
        let mut histories = before.as_ref().map(|r| r.histories.clone()).unwrap_or_default();
        histories.push(super::rebuild::life(facts));
        let record = ClusterRecord {
            format: FORMAT_VERSION.into(),
            number: before.as_ref().map_or(1, |r| r.number + 1),
            name: cluster.name().into(),
            // A label is taken off by name, and not by leaving it out.
            label: config.cluster.label.clone().or(before.as_ref().and_then(|r| r.label.clone())),
            histories,
            abandoned: before.as_ref().map(|r| r.abandoned.clone()).unwrap_or_default(),
            successors: before.map(|r| r.successors).unwrap_or_default(),
            written: clock::now(),
            behind: None,
        };
        if cluster.put_record(&record).await? {
            return Ok(Ok(Registered::New));
        }
    }
}

/// A setting of the server: as it is, and as it should be.
#[derive(Debug, serde::Serialize)]
struct Setting {
    name: &'static str,
    now: String,
    wanted: String,
    restart: bool,
    change: bool,
}

fn settings(global: &Global, config: &Config, facts: &Facts) -> anyhow::Result<Vec<Setting>> {
    let command = global.server_command(config, "archive-push %p")?;
    let wal_level = if facts.wal_level == "minimal" { "replica" } else { &facts.wal_level };
    let archive_mode = if facts.archive_mode == "off" { "on" } else { &facts.archive_mode };
    let timeout = if facts.archive_timeout_s == 0 { "60".to_string() } else { facts.archive_timeout_s.to_string() };
    let mut wanted = vec![
        ("wal_level", facts.wal_level.clone(), wal_level.to_string(), true),
        ("archive_mode", facts.archive_mode.clone(), archive_mode.to_string(), true),
        ("archive_command", facts.archive_command.clone(), command, false),
        ("archive_timeout", facts.archive_timeout_s.to_string(), timeout, false),
    ];
    if !facts.archive_library.is_empty() {
        // With both, 15 calls the library alone, and 16 and later archive nothing.
        wanted.insert(2, ("archive_library", facts.archive_library.clone(), String::new(), false));
    }
    let setting = |(name, now, wanted, restart): (&'static str, String, String, bool)| {
        // With archive_mode off the server shows the command as disabled, whatever it is.
        let change = now != wanted;
        Setting { name, now, wanted, restart, change }
    };
    Ok(wanted.into_iter().map(setting).collect())
}

async fn apply(session: &Session, settings: &[Setting]) -> anyhow::Result<()> {
    for setting in settings.iter().filter(|s| s.change) {
        session.alter_system(setting.name, &setting.wanted).await?;
    }
    session.reload().await?;
    Ok(())
}

fn show(settings: &[Setting], applied: bool) {
    let changes: Vec<&Setting> = settings.iter().filter(|s| s.change).collect();
    if changes.is_empty() {
        output::line("settings: all as they should be. Next: lastgood backup, then lastgood check");
        return;
    }
    output::line(if applied {
        "settings written with ALTER SYSTEM:"
    } else {
        "settings to make (or run this again with --apply):"
    });
    for setting in &changes {
        let restart = if setting.restart { "   -- needs a restart" } else { "" };
        // What another tool has archived with until now.
        let is_archiver = matches!(setting.name, "archive_command" | "archive_library");
        let was = match setting.now.as_str() {
            now if is_archiver && !matches!(now, "" | "(disabled)") => format!("   -- it was '{now}'"),
            _ => String::new(),
        };
        output::line(format!("  ALTER SYSTEM SET {} = '{}';{restart}{was}", setting.name, setting.wanted.replace('\'', "''")));
    }
    let needs_restart = changes.iter().any(|s| s.restart);
    let then = match (applied, needs_restart) {
        (true, true) => "restart the server once, then run: lastgood backup, and lastgood check",
        (true, false) => "next: lastgood backup, then lastgood check",
        (false, true) => "then restart the server once, and run: lastgood backup, then lastgood check",
        (false, false) => "then SELECT pg_reload_conf(); and run: lastgood backup, then lastgood check",
    };
    output::line(then);
}
