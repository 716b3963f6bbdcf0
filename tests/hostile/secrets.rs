//! What the programs that we start get to know of our environment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lastgood::config;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::repo::alert::Alert;
use lastgood::watch::deliver;

use crate::drill::{drills, report};
use crate::support::world::{World, programs, said};

const SECRETS: [&str; 4] = ["LASTGOOD_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD"];
const PASSPHRASE: &str = "it's a Planted passphrase";

/// The server of a drill runs the code of the restored database. It gets no secret in its environment, and the file with which recovery
/// gets at the WAL is empty when the first question is asked; recovery itself had what it needs.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_a_drill_knows_no_secrets() {
    let mut world = World::bare(15, &["--data-checksums"], "", None).await;
    lastgood::postgres::scratch::make_directory(&drills(&world), world.user()).unwrap();
    let pid = "split_part(pg_read_file('postmaster.pid'), E'\\\\n', 1)";
    let environ = format!("encode(pg_read_binary_file('/proc/' || {pid} || '/environ'), 'escape')");
    let lent = "pg_read_file(replace(current_setting('config_file'), 'postgresql.conf', 'environment'))";
    let sections = format!(
        "\n[encryption]\nargon2_memory_kib = 64\nkey_file = \"{}\"\n\n[drill]\ndirectory = \"{}\"\nshared_buffers_mib = 16\n\
         [[drill.question]]\nname = \"secrets\"\nsql = \"SELECT {environ} ~ 'Planted'\"\nexpect = false\n\
         [[drill.question]]\nname = \"path\"\nsql = \"SELECT {environ} ~ 'PATH='\"\nexpect = true\n\
         [[drill.question]]\nname = \"lent\"\nsql = \"SELECT {lent} ~ 'exit 1' AND {lent} !~ 'Planted'\"\nexpect = true\n\
         [drill.programs]\n15 = \"{}\"\n",
        world.path("writer").display(),
        drills(&world).display(),
        programs(15).display()
    );
    world.write_config(None, &sections);
    world.start().await;
    let with_secrets = |args: &[&str]| {
        let mut command = world.command(args);
        command.envs(SECRETS.map(|name| (name, "Planted")));
        said(command.env("LASTGOOD_PASSPHRASE", PASSPHRASE))
    };
    let init = with_secrets(&["init", "--apply"]);
    assert_eq!(init.code, 0, "{}", init.all());
    let backup = with_secrets(&["backup"]);
    assert_eq!(backup.code, 0, "{}", backup.all());
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)").await;
    world.archive().await;
    let drilled = with_secrets(&["--json", "drill"]);
    assert_eq!(drilled.code, 0, "{}", drilled.all());
    let report = report(&drilled);
    assert_eq!(report["checked"]["questions"], 3, "{report:#}");
    let segments = report["phases"].as_array().unwrap().iter().find(|phase| phase["name"] == "replay").unwrap();
    assert!(segments["bytes"].as_u64().unwrap() > 0, "recovery opened sealed WAL: {report:#}");
}

/// In a process of its own, as every test has one.
#[test]
fn a_program_that_delivers_alerts_knows_no_secrets() {
    // SAFETY: no other thread runs yet.
    SECRETS.iter().for_each(|name| unsafe { std::env::set_var(name, "Planted") });
    unsafe { std::env::set_var("MAILTO", "dba@example.org") };
    let dir = tempfile::tempdir().unwrap();
    let heard = dir.path().join("environment");
    let command = format!("cat /proc/self/environ > {}; cat > /dev/null", heard.display());
    let settings = config::Alert { command: vec!["/bin/sh".into(), "-c".into(), command], ..config::Alert::default() };
    let alert = Alert {
        noticed: Timestamp::UNIX_EPOCH,
        host: "db1".into(),
        system_identifier: SystemId(7),
        timeline: Timeline(1),
        target: Lsn(7),
        event: "e".into(),
        time: None,
        xid: 7,
        rule: "drop".into(),
        what: "DROP TABLE".into(),
        restore: String::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(deliver::deliver(&alert, &settings)), Vec::<String>::new());
    let text = std::fs::read(&heard).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let known: BTreeMap<&str, &str> = text.split('\0').filter_map(|line| line.split_once('=')).collect();
    assert!(SECRETS.iter().all(|name| !known.contains_key(name)) && !text.contains("Planted"), "{known:?}");
    assert!(known.contains_key("PATH") && known["MAILTO"] == "dba@example.org", "everything else is as it was: {known:?}");
}
