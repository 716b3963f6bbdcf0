//! `lastgood schedule`

use clap::ValueEnum;

use super::context::Global;
use super::output;

/// Print files that run snapshots, checks and, with a [drill] section, drills
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood schedule --print cron > /etc/cron.d/lastgood-shop")]
pub struct Args {
    /// For which scheduler
    #[arg(long, value_enum)]
    print: Scheduler,
    /// The user who runs it; needs to read the data directory
    #[arg(long, default_value = "postgres")]
    user: String,
    /// When the snapshot begins, local time
    #[arg(long, default_value = "02:15", value_name = "HH:MM", value_parser = time_of_day)]
    at: (u8, u8),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scheduler {
    Cron,
    Systemd,
}

fn time_of_day(text: &str) -> Result<(u8, u8), String> {
    let parse = || {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (hour.parse::<u8>().ok()?, minute.parse::<u8>().ok()?);
        (hour < 24 && minute < 60).then_some((hour, minute))
    };
    parse().ok_or_else(|| "write it as HH:MM, like 02:15".into())
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let command = output::shell_words(&global.words(&config)?);
    let (name, user, (hour, minute)) = (&config.cluster.name, &args.user, args.at);
    let drills = config.drill.is_some();
    let expires = config.retention.is_configured();
    output::block(match args.print {
        // In a crontab % is a newline.
        Scheduler::Cron => cron(name, user, (hour, minute), &command.replace('%', "\\%"), (drills, expires)),
        Scheduler::Systemd => systemd(name, user, (hour, minute), &command.replace('%', "%%"), (drills, expires)),
    });
    Ok(0)
}

fn cron(name: &str, user: &str, (hour, minute): (u8, u8), command: &str, (drills, expires): (bool, bool)) -> String {
    let mut text = format!(
        "# /etc/cron.d/lastgood-{name}: a snapshot every night, a check every hour; once a week everything is read, the server's files\n\
         # on Saturday, what is stored on Sunday.\n\
         # Output means trouble: cron mails what a failing command prints.\n\
         SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         {minute} {hour} * * 0-5 {user} out=$({command} backup 2>&1) || {{ echo \"$out\"; exit 1; }}\n\
         {minute} {hour} * * 6 {user} out=$({command} backup --paranoid 2>&1) || {{ echo \"$out\"; exit 1; }}\n\
         {} * * * * {user} out=$({command} check 2>&1) || {{ echo \"$out\"; exit 1; }}\n\
         {minute} {} * * 0 {user} out=$({command} verify 2>&1) || {{ echo \"$out\"; exit 1; }}",
        (minute + 30) % 60,
        (hour + 2) % 24,
    );
    if drills {
        let hour = (hour + 4) % 24;
        text.push_str(&format!("\n{minute} {hour} * * * {user} out=$({command} drill 2>&1) || {{ echo \"$out\"; exit 1; }}"));
    }
    if expires {
        let hour = (hour + 1) % 24;
        text.push_str(
            "\n# What no rule of [retention] keeps goes every night. Better on another host, with credentials that may delete.\n",
        );
        text.push_str(&format!("{minute} {hour} * * * {user} out=$({command} expire 2>&1) || {{ echo \"$out\"; exit 1; }}"));
    }
    text
}

fn systemd(name: &str, user: &str, (hour, minute): (u8, u8), command: &str, (drills, expires): (bool, bool)) -> String {
    let unit = |words: &str, what: &str, when: &str| {
        let task = words.replace(" --", "-");
        format!(
            "# /etc/systemd/system/lastgood-{task}-{name}.service\n[Unit]\nDescription={what} of PostgreSQL cluster {name}\n\
             Wants=network-online.target\nAfter=network-online.target\n\n[Service]\nType=oneshot\nUser={user}\n\
             ExecStart={command} {words}\nNice=10\nIOSchedulingClass=idle\n\n\
             # /etc/systemd/system/lastgood-{task}-{name}.timer\n[Unit]\nDescription={what} of {name}, on schedule\n\n[Timer]\n\
             OnCalendar={when}\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n"
        )
    };
    let mut units = vec![
        unit("backup", "Snapshot", &format!("Mon..Fri,Sun *-*-* {hour:02}:{minute:02}:00")),
        unit("backup --paranoid", "Snapshot that reads everything", &format!("Sat *-*-* {hour:02}:{minute:02}:00")),
        unit("check", "Check", &format!("*-*-* *:{:02}:00", (minute + 30) % 60)),
        unit("verify", "Verification", &format!("Sun *-*-* {:02}:{minute:02}:00", (hour + 2) % 24)),
    ];
    let mut tasks = "backup,backup-paranoid,check,verify".to_string();
    if drills {
        units.push(unit("drill", "Drill", &format!("*-*-* {:02}:{minute:02}:00", (hour + 4) % 24)));
        tasks.push_str(",drill");
    }
    if expires {
        units.push(unit("expire", "Expiry", &format!("*-*-* {:02}:{minute:02}:00", (hour + 1) % 24)));
        tasks.push_str(",expire");
    }
    format!("{}\n# Then: systemctl enable --now lastgood-{{{tasks}}}-{name}.timer", units.join("\n"))
}
