//! What `schedule` prints is run here as cron runs it: a shell, no terminal, and whatever is printed is mail.

use crate::support::world::{Said, World, said};
use lastgood::postgres::scratch::Stop;

/// The commands of a crontab beside their times, as `/bin/sh` gets them.
fn lines(crontab: &str) -> Vec<(String, String)> {
    let jobs = crontab.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    jobs.map(|line| {
        let fields: Vec<&str> = line.splitn(7, ' ').collect();
        (fields[..5].join(" "), fields[6].replace("\\%", "%"))
    })
    .collect()
}

/// As the user of the server, as the crontab says.
fn cron(world: &World, line: &str) -> Said {
    let own = world.command(&[]);
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", line]).env_clear().env("PATH", "/usr/bin:/bin").current_dir(own.get_current_dir().unwrap());
    if let Some(user) = world.user() {
        use std::os::unix::process::CommandExt;
        shell.uid(user.uid).gid(user.gid);
    }
    said(&mut shell)
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_means_trouble() {
    let mut world = World::new(15).await;
    world.write_config(None, "\n[retention]\nkeep_last = 2\n");
    // The environment of whoever prints it is not cron's.
    let host = world.server.sockets().display().to_string();
    let text = world.ok(&["schedule", "--print", "cron", "--user", "x", "--mail-to", "dba@example.com", "--pg-host", &host]).out;
    assert!(text.contains("\nMAILTO=dba@example.com\n"), "{text}");
    let jobs = lines(&text);
    let line = |end: &str| &jobs.iter().find(|(_, line)| line.ends_with(end)).unwrap_or_else(|| panic!("{end}: {text}")).1;
    let silent = |end: &str| {
        let said = cron(&world, line(end));
        assert_eq!((said.code, said.all().trim()), (0, ""), "{end}");
    };
    silent(" backup --quiet");
    silent(" backup --paranoid --quiet");
    silent(" verify --quiet");
    silent(" expire --quiet");
    // Nobody decided about the tripwire: no failure, and told once a week.
    silent(" check --quiet=failures");
    let told = cron(&world, line(" check --no-switch --quiet"));
    assert_eq!(told.code, 0, "{}", told.all());
    assert!(
        told.out.contains("WARNING") && told.out.contains("ok      server") && told.out.contains("verdict"),
        "{}",
        told.all()
    );
    // What fails is told with all that was said before it.
    world.server.stop(Stop::Fast);
    let told = cron(&world, line(" check --quiet=failures"));
    assert!(told.code == 9 && told.out.contains("FAILED  server") && told.out.contains("ok      spool"), "{}", told.all());
    let told = cron(&world, line(" backup --quiet"));
    assert!(told.code == 8 && told.err.contains("lastgood: "), "{}", told.all());
    world.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_does_its_own() {
    let world = World::new(15).await;
    let times = |flags: &[&str]| -> Vec<(String, String)> {
        let text = world.ok(&[&["schedule", "--print", "cron"], flags].concat()).out;
        let task = |line: &str| line.split_once(".toml ").unwrap().1.to_string();
        lines(&text).into_iter().map(|(when, line)| (when, task(&line))).collect()
    };
    let pairs = |expected: &[(&str, &str)]| -> Vec<(String, String)> {
        expected.iter().map(|(when, task)| (when.to_string(), task.to_string())).collect()
    };
    let mirror = format!("\n[[mirror]]\nname = \"second\"\nurl = \"{}\"\n", world.path("second").display());
    let config = |more: &str| world.write_config(None, &format!("{more}{mirror}"));
    config("\n[drill]\ndirectory = \"/srv/drills\"\n");
    assert_eq!(
        times(&["--role", "database", "--at", "23:40"]),
        pairs(&[
            ("40 23 * * 0-5", "backup --quiet"),
            ("40 23 * * 6", "backup --paranoid --quiet"),
            ("10 * * * *", "check --quiet=failures"),
            ("40 4 * * 1", "check --no-switch --quiet"),
        ])
    );
    assert_eq!(
        times(&["--role", "staging", "--weekly"]),
        pairs(&[
            ("15 4 * * 0", "verify --quiet"),
            ("15 6 * * 0", "drill --quiet"),
            ("0 * * * *", "mirror --quiet"),
            ("15 7 * * 1", "check --no-server --quiet"),
        ])
    );
    world.refused(&["schedule", "--print", "cron", "--role", "expiry"], 3, &["[retention] has no rule"]);
    world.refused(&["schedule", "--print", "cron", "--weekly"], 3, &["max_age_hours is 26", "set max_age_hours = 192"]);
    world.refused(&["schedule", "--print", "cron", "--at", "25:00"], 2, &["HH:MM"]);
    world.refused(&["schedule", "--print", "cron", "--mail-to", "a b"], 2, &["without spaces"]);
    config("\n[retention]\nkeep_last = 2\n[snapshot]\nmax_age_hours = 192\n");
    assert_eq!(
        times(&["--role", "expiry,database", "--weekly"]),
        pairs(&[
            ("15 2 * * 6", "backup --paranoid --quiet"),
            ("45 * * * *", "check --quiet=failures"),
            ("15 3 * * 0", "expire --quiet"),
            ("15 7 * * 1", "check --no-switch --quiet"),
        ])
    );
    let systemd = world.ok(&["schedule", "--print", "systemd", "--role", "database"]).out;
    for words in [
        "OnCalendar=Sat *-*-* 02:15:00",
        "OnCalendar=*-*-* *:45:00",
        "/etc/systemd/system/lastgood-backup-paranoid-shop.timer",
        "lastgood-{backup,backup-paranoid,check,check-no-switch}-shop.timer",
    ] {
        assert!(systemd.contains(words), "{words}: {systemd}");
    }
    let started = |line: &str| line.starts_with("ExecStart=") && line.ends_with(" backup --paranoid");
    assert!(systemd.lines().any(started), "{systemd}");
}

/// A host that only drills has no server to ask, and is green all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_server_is_green() {
    let mut world = World::new(15).await;
    world.backup(&[]);
    world.server.stop(Stop::Fast);
    let said = world.ok(&["check", "--no-server"]);
    assert!(!said.out.contains("FAILED") && !said.out.contains("server "), "{}", said.out);
    world.refused(&["check", "--no-switch"], 9, &["FAILED  server"]);
    world.start().await;
}
