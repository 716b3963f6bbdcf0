//! `lastgood schedule`

use clap::ValueEnum;

use super::context::Global;
use super::output;
use crate::config::{Config, ConfigError};

/// Hours between the snapshots of a weekly schedule.
const WEEK_H: u64 = 7 * 24;

/// Print files that run snapshots, checks, verification and, where they are configured, drills, expiry and mirrors
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lastgood schedule --print cron > /etc/cron.d/lastgood-shop\n  \
    lastgood schedule --print cron --role staging --weekly --mail-to dba@example.com\n  lastgood schedule --print systemd --role database")]
pub struct Args {
    /// For which scheduler
    #[arg(long, value_enum)]
    print: Scheduler,
    /// What this host does [default: everything]
    ///
    /// One or several, with commas: database takes snapshots and checks, staging verifies, drills and fills mirrors, expiry deletes what
    /// no rule of [retention] keeps.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE")]
    role: Vec<Role>,
    /// Take snapshots, drill and expire once a week instead of every night
    #[arg(long)]
    weekly: bool,
    /// The user who runs it; on the database host it needs to read the data directory
    #[arg(long, default_value = "postgres")]
    user: String,
    /// When the snapshot begins, local time; the rest follows from it
    #[arg(long, default_value = "02:15", value_name = "HH:MM", value_parser = time_of_day)]
    at: (u8, u8),
    /// Who gets cron's mail [default: the user who runs it]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    mail_to: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scheduler {
    Cron,
    Systemd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Database,
    Staging,
    Expiry,
}

fn time_of_day(text: &str) -> Result<(u8, u8), String> {
    let parse = || {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (hour.parse::<u8>().ok()?, minute.parse::<u8>().ok()?);
        (hour < 24 && minute < 60).then_some((hour, minute))
    };
    parse().ok_or_else(|| "write it as HH:MM, like 02:15".into())
}

/// It becomes a line of a crontab.
fn address(text: &str) -> Result<String, String> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"@.,-_+".contains(&b));
    is_plain.then(|| text.to_string()).ok_or_else(|| "write one address, or several with commas, without spaces".into())
}

/// What runs, and when.
struct Task {
    /// Of the command line.
    words: &'static str,
    what: &'static str,
    when: When,
    /// How cron calls it: said only when something wants a person.
    quiet: &'static str,
}

#[derive(Clone, Copy)]
enum When {
    /// On these days of the week, as cron and systemd write them; `None` for all of them.
    At { hour: u8, minute: u8, days: Option<(&'static str, &'static str)> },
    /// Each hour.
    Hourly { minute: u8 },
}

const SATURDAY: Option<(&str, &str)> = Some(("6", "Sat"));
const MONDAY: Option<(&str, &str)> = Some(("1", "Mon"));
const SUNDAY: Option<(&str, &str)> = Some(("0", "Sun"));

impl When {
    fn cron(self) -> String {
        match self {
            When::At { hour, minute, days } => format!("{minute} {hour} * * {}", days.map_or("*", |(cron, _)| cron)),
            When::Hourly { minute } => format!("{minute} * * * *"),
        }
    }

    fn calendar(self) -> String {
        match self {
            When::At { hour, minute, days } => {
                let days = days.map(|(_, systemd)| format!("{systemd} ")).unwrap_or_default();
                format!("{days}*-*-* {hour:02}:{minute:02}:00")
            }
            When::Hourly { minute } => format!("*-*-* *:{minute:02}:00"),
        }
    }
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let mut words = global.words(&config)?;
    words.extend(global.server_words());
    let command = output::shell_words(&words);
    let tasks = tasks(&config, &args)?;
    output::block(match args.print {
        // In a crontab % is a newline.
        Scheduler::Cron => cron(&config, &args, &command.replace('%', "\\%"), &tasks),
        Scheduler::Systemd => systemd(&config.cluster.name, &args.user, &command.replace('%', "%%"), &tasks),
    });
    Ok(0)
}

fn tasks(config: &Config, args: &Args) -> Result<Vec<Task>, ConfigError> {
    let has = |role| args.role.is_empty() || args.role.contains(&role);
    let (hour, minute) = args.at;
    let at = |after: u8, days| When::At { hour: (hour + after) % 24, minute, days };
    let task = |words, what, when| Task { words, what, when, quiet: "--quiet" };
    let weekly = if args.weekly { SUNDAY } else { None };
    let mut tasks = Vec::new();
    if has(Role::Database) {
        if args.weekly && config.snapshot.max_age_hours < WEEK_H {
            return Err(ConfigError::Invalid {
                what: format!(
                    "[snapshot] max_age_hours is {}, so with a snapshot a week `check` would be red most of the time",
                    config.snapshot.max_age_hours
                ),
                mend: format!("set max_age_hours = {}", WEEK_H + 24),
            });
        }
        if !args.weekly {
            tasks.push(task("backup", "Snapshot", at(0, Some(("0-5", "Mon..Fri,Sun")))));
        }
        tasks.push(task("backup --paranoid", "Snapshot that reads everything", at(0, SATURDAY)));
        // A warning is told once a week, a failure as soon as it is seen.
        let hourly = task("check", "Check", When::Hourly { minute: (minute + 30) % 60 });
        tasks.push(Task { quiet: "--quiet=failures", ..hourly });
    }
    if has(Role::Staging) {
        tasks.push(task("verify", "Verification", at(2, SUNDAY)));
        if config.drill.is_some() {
            tasks.push(task("drill", "Drill", at(4, weekly)));
        }
        if config.mirror.iter().any(|mirror| !mirror.required) {
            tasks.push(task("mirror", "Copy to the mirrors", When::Hourly { minute: (minute + 45) % 60 }));
        }
    }
    if has(Role::Expiry) && config.retention.is_configured() {
        tasks.push(task("expire", "Expiry", at(1, weekly)));
    } else if args.role.contains(&Role::Expiry) {
        let what = "--role expiry is asked for, and [retention] has no rule, so nothing would ever be deleted";
        return Err(ConfigError::Invalid { what: what.into(), mend: "add rules under [retention]".into() });
    }
    let check = if has(Role::Database) { "check --no-switch" } else { "check --no-server" };
    tasks.push(task(check, "Check that tells warnings too", at(5, MONDAY)));
    Ok(tasks)
}

fn cron(config: &Config, args: &Args, command: &str, tasks: &[Task]) -> String {
    let name = &config.cluster.name;
    let mut text = format!(
        "# /etc/cron.d/lastgood-{name}: printed by `lastgood schedule`.\n\
         # Mail means trouble: with --quiet nothing is printed when all is well, and cron mails what is printed.\n\
         # Failures are told as soon as they are seen, warnings of `check` on Mondays.\n\
         SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    if let Some(address) = &args.mail_to {
        text.push_str(&format!("MAILTO={address}\n"));
    }
    for task in tasks {
        text.push_str(&format!("{} {} {command} {} {}\n", task.when.cron(), args.user, task.words, task.quiet));
    }
    if args.role.contains(&Role::Staging) && config.drill.is_none() {
        text.push_str("# The configuration has no [drill] section, so no drill runs.\n");
    }
    text
}

fn systemd(name: &str, user: &str, command: &str, tasks: &[Task]) -> String {
    let task_name = |task: &Task| task.words.replace(" --", "-");
    let unit = |task: &Task| {
        let (words, what, when, task) = (task.words, task.what, task.when.calendar(), task_name(task));
        format!(
            "# /etc/systemd/system/lastgood-{task}-{name}.service\n[Unit]\nDescription={what} of PostgreSQL cluster {name}\n\
             Wants=network-online.target\nAfter=network-online.target\n\n[Service]\nType=oneshot\nUser={user}\n\
             ExecStart={command} {words}\nNice=10\nIOSchedulingClass=idle\n\n\
             # /etc/systemd/system/lastgood-{task}-{name}.timer\n[Unit]\nDescription={what} of {name}, on schedule\n\n[Timer]\n\
             OnCalendar={when}\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n"
        )
    };
    let units: Vec<String> = tasks.iter().map(unit).collect();
    let names: Vec<String> = tasks.iter().map(task_name).collect();
    // Braces around one word are no list for the shell.
    let names = if names.len() == 1 { names[0].clone() } else { format!("{{{}}}", names.join(",")) };
    format!("{}\n# Then: systemctl enable --now lastgood-{names}-{name}.timer", units.join("\n"))
}
