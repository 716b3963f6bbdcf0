//! Secrets are planted, and looked for in everything that comes out.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::CommandFactory;
use lastgood::clock;
use rustix::process::{Resource, Rlimit};

use crate::support::s3::{self, S3Server};
use crate::support::world::{PATIENCE, Said, World, said};

const PASSWORD: &str = "Planted-Password-7f3a";
/// The secret of `support::s3`.
const S3_SECRET: &str = "a-secret-of-the-tests";
const WRONG: &str = "Planted-Wrong-91bc";

/// Puts lines below `[postgres]`.
fn configure(world: &World, base: &str, lines: &str) {
    std::fs::write(world.config(), base.replace("[postgres]\n", &format!("[postgres]\n{lines}\n"))).unwrap();
}

fn has_no_secret(what: &str, bytes: &[u8]) {
    for secret in [PASSWORD, S3_SECRET, WRONG] {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} holds {secret}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]));
    }
}

/// Every file below a place, as it is and unpacked; answers how many.
fn objects_have_no_secret(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += objects_have_no_secret(&path);
            continue;
        }
        has_no_secret(&path.display().to_string(), &std::fs::read(&path).unwrap());
        let unpacked = Command::new("zstd").args(["-dcqf"]).arg(&path).output().unwrap();
        has_no_secret(&path.display().to_string(), &unpacked.stdout);
        count += 1;
    }
    count
}

/// A world on S3 whose role needs the password, and has only the rights that the guide grants.
async fn guarded(server: &S3Server) -> (World, String) {
    let url = format!("s3://{}/pg", s3::BUCKET);
    let world = World::with(15, &[], "", Some((&url, server.config()))).await;
    let functions =
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_switch_wal()", "pg_create_restore_point(text)"];
    world.sql(&format!("CREATE ROLE lastgood LOGIN PASSWORD '{PASSWORD}'; GRANT pg_read_all_settings TO lastgood")).await;
    for function in functions {
        world.sql(&format!("GRANT EXECUTE ON FUNCTION {function} TO lastgood")).await;
    }
    let hba = world.server.data().join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("local all lastgood scram-sha-256\n{text}")).unwrap();
    world.sql("SELECT pg_reload_conf()").await;
    let base = std::fs::read_to_string(world.config()).unwrap();
    (world, base)
}

/// Runs with everything said aloud, and looks at all of it.
fn aloud(world: &World, args: &[&str]) -> Said {
    let said = said(world.command(args).env("LASTGOOD_LOG", "trace").env("RUST_BACKTRACE", "1"));
    has_no_secret(&format!("{args:?}"), said.all().as_bytes());
    assert!(said.err.contains("TRACE") || said.err.contains("DEBUG") || said.code != 0, "{args:?} was not aloud");
    said
}

fn aloud_at(world: &World, url: &str) -> Said {
    let said = said(world.command(&["list"]).env("LASTGOOD_REPO", url));
    has_no_secret("LASTGOOD_REPO", said.all().as_bytes());
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_comes_out() {
    let server = S3Server::start().await;
    let (world, base) = guarded(&server).await;
    let file = world.write_private("password", &format!("{PASSWORD}\n"));
    let with_file = format!("user = \"lastgood\"\npassword_file = \"{}\"", file.display());
    configure(&world, &base, &with_file);
    let restored = world.path("restored").display().to_string();
    let calls: [&[&str]; 8] = [
        &["backup"],
        &["--json", "backup"],
        &["check"],
        &["--json", "check"],
        &["--json", "list"],
        &["restore", "--to", "latest", "--into", &restored, "--dry-run"],
        &["--json", "restore", "--to", "latest", "--into", &restored],
        &["verify"],
    ];
    for args in calls {
        let said = aloud(&world, args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.out);
    }
    // What fails speaks most.
    world.write_private("password", WRONG);
    assert_eq!(aloud(&world, &["--json", "backup"]).code, 8);
    world.write_private("password", PASSWORD);
    let credentials = std::fs::read_to_string(world.path("credentials")).unwrap();
    world.write_private("credentials", &credentials.replace(S3_SECRET, WRONG));
    for args in [["--json", "check"], ["--json", "backup"], ["--json", "list"]] {
        assert_ne!(aloud(&world, &args).code, 0);
    }
    world.write_private("credentials", &credentials);
    configure(
        &world,
        &base,
        &format!("user = \"lastgood\"\npassword_command = [\"sh\", \"-c\", \"echo {WRONG} >&2; echo {WRONG}; exit 3\"]"),
    );
    let said = world.run(&["--json", "backup"]);
    assert!(said.code == 3 && said.err.contains("password_command \"sh\" failed (exit status: 3)"), "{said:?}");
    has_no_secret("a failing password_command", said.all().as_bytes());
    // In places where they do not belong.
    configure(&world, &base, &format!("password = \"{WRONG}\""));
    assert_eq!(aloud(&world, &["list"]).code, 3);
    configure(&world, &base, "");
    assert_eq!(aloud_at(&world, &format!("s3://AKIA:{WRONG}@backups/pg")).code, 3);
    std::fs::write(world.config(), base.replace("http://", &format!("http://AKIA:{WRONG}@"))).unwrap();
    assert_eq!(aloud(&world, &["list"]).code, 3);
    assert!(objects_have_no_secret(&server.file("pg")) > 10);
    has_no_secret("the server's log", world.server.log().as_bytes());
    has_no_secret("a restored setting", &std::fs::read(world.path("restored/postgresql.auto.conf")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_a_file_a_command_or_the_environment() {
    let server = S3Server::start().await;
    let (world, base) = guarded(&server).await;
    let connects = |command: &mut Command| {
        let said = said(command);
        assert!(!said.all().contains(PASSWORD), "{said:?}");
        (said.code, said.err)
    };
    // `init` without --apply connects, and changes nothing that is there.
    let init = || world.command(&["init"]);
    configure(&world, &base, "user = \"lastgood\"");
    assert_eq!(connects(&mut init()).0, 8, "no password");
    assert_eq!(connects(init().env("PGPASSWORD", PASSWORD)).0, 0);
    assert_eq!(connects(init().env("PGPASSWORD", WRONG)).0, 8);

    configure(&world, &base, &format!("user = \"lastgood\"\npassword_command = [\"printf\", \"%s\\\\nmore\", \"{PASSWORD}\"]"));
    assert_eq!(connects(init().env("PGPASSWORD", WRONG)).0, 0, "the first line, and before the environment");
    for (words, told) in [
        ("[\"true\"]", "printed nothing in its first line"),
        ("[\"false\"]", "failed (exit status: 1)"),
        ("[\"/nowhere/pass\"]", "cannot be started"),
        ("[\"printf\", \"\\\\377\"]", "printed no text"),
        ("[]", "names no program"),
    ] {
        configure(&world, &base, &format!("password_command = {words}"));
        let (code, err) = connects(&mut init());
        assert!(code == 3 && err.contains(told), "{words}: {err}");
    }
    configure(&world, &base, "password_file = \"/x\"\npassword_command = [\"x\"]");
    assert!(connects(&mut init()).1.contains("both password_file and password_command"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_files_with_secrets_that_others_can_read() {
    let server = S3Server::start().await;
    let (world, base) = guarded(&server).await;
    let file = world.write_private("password", PASSWORD);
    configure(&world, &base, &format!("user = \"lastgood\"\npassword_file = \"{}\"", file.display()));
    let finding = |level: &str, name: &str| {
        let said = world.run(&["--json", "check", "--no-switch"]);
        let wanted = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let finding = &line["finding"];
            finding["subject"] == "secrets" && finding["level"] == level && finding["what"].as_str().unwrap().starts_with(name)
        };
        assert_eq!(said.out.lines().filter(|line| wanted(line)).count(), 1, "{level} {name}: {said:?}");
    };
    for (name, key) in [("password", "password_file"), ("credentials", "credentials_file")] {
        finding("ok", key);
        for mode in [0o644, 0o640, 0o604] {
            std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
            finding("warning", key);
        }
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Who may read a passphrase reads the backups, and who may write into the spool decides what counts as archived.
#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_passphrase_and_a_spool_that_are_open() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t (x int)").await;
    world.archive().await;
    let found = |subject: &str, level: &str| {
        let said = world.run(&["--json", "check", "--no-switch"]);
        let wanted = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["finding"]["subject"] == subject && line["finding"]["level"] == level
        };
        assert!(said.out.lines().any(wanted), "{subject} {level}: {said:?}");
    };
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    found("spool", "ok");
    for open in [0o777, 0o770, 0o702] {
        mode(&world.path("spool"), open);
        found("spool", "warning");
    }
    mode(&world.path("spool"), 0o755);
    found("spool", "ok");
    let file = world.write_private("passphrase", "correct horse");
    world.write_config(None, &format!("[encryption]\npassphrase_file = \"{}\"\n", file.display()));
    found("secrets", "ok");
    for open in [0o644, 0o640] {
        mode(&file, open);
        found("secrets", "warning");
    }
}

/// A process of ours, held while it knows the S3 secret, dies of an abort; one that is not ours dies beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core() {
    let world = World::bare(15, &[], "", None).await;
    let base = std::fs::read_to_string(world.config()).unwrap();
    let started = world.path("started");
    configure(&world, &base, &format!("password_command = [\"sh\", \"-c\", \"echo > {}; exec sleep 60\"]", started.display()));
    let unlimited = |command: &mut Command| {
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            let all = Rlimit { current: None, maximum: None };
            command.pre_exec(move || Ok(rustix::process::setrlimit(Resource::Core, all)?));
        }
    };
    let abort = |child: &mut std::process::Child| {
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        let status = child.wait().unwrap();
        std::os::unix::process::ExitStatusExt::core_dumped(&status)
    };
    let mut ours = world.command(&["check", "--no-switch"]);
    ours.env("PGPASSWORD", PASSWORD).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    unlimited(&mut ours);
    let mut ours = ours.spawn().unwrap();
    let began = clock::monotonic();
    while !started.exists() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ours.id())).unwrap();
    let core: Vec<&str> = limits.lines().find(|l| l.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["1", "1"], "{limits}");
    let mut other = Command::new("sleep");
    other.arg("60").current_dir(world.path(""));
    if let Some(user) = world.user() {
        other.uid(user.uid).gid(user.gid);
    }
    unlimited(&mut other);
    let mut other = other.spawn().unwrap();
    let here = || {
        let entries = std::fs::read_dir(world.path("")).unwrap();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("core")).count()
    };
    assert!(!abort(&mut ours) && here() == 0, "lastgood dumped core");
    // Shows that the machine would have made one; where it makes none for anybody, the limit above is all there is to see.
    if abort(&mut other) && std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().trim() == "core" {
        assert_eq!(here(), 1, "a process without the limit dumps");
    }
}

/// Every user of a host reads every command line.
#[test]
fn no_flag_takes_a_secret() {
    let command = lastgood::cli::Args::command();
    let subs: Vec<_> = command.get_subcommands().collect();
    for command in subs.into_iter().chain([&command]) {
        for argument in command.get_arguments() {
            let name = format!("{} {:?}", argument.get_id(), argument.get_long()).to_lowercase();
            for word in ["password", "passphrase", "secret", "token", "credential"] {
                assert!(!name.contains(word), "{} has a flag {name}", command.get_name());
            }
        }
    }
}
