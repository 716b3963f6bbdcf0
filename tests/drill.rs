//! Drills: a good backup passes, a bad one never does, and nothing is left behind.

use std::path::{Path, PathBuf};

use lastgood::postgres::scratch;

use crate::support::world::{Said, World};

mod estimate;
mod interrupted;
mod ledger;
mod locked;
mod mutations;
mod pace;
mod versions;

/// A `[drill]` section for a world: its own scratch directory, the programs of `major`, and `more`.
pub fn configure(world: &World, major: u32, more: &str) {
    scratch::make_directory(&drills(world), world.user()).unwrap();
    let bin = crate::support::world::programs(major);
    let section = format!(
        "\n[drill]\ndirectory = \"{}\"\nshared_buffers_mib = 16\n{more}\n[drill.programs]\n{major} = \"{}\"\n",
        drills(world).display(),
        bin.display()
    );
    world.write_config(None, &section);
}

/// Where the drills of a world work.
pub fn drills(world: &World) -> PathBuf {
    world.path("drills")
}

/// The report of a drill that was run with `--json`.
pub fn report(said: &Said) -> serde_json::Value {
    let mut lines = said.out.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let result = lines.find(|line| line["event"] == "result");
    result.unwrap_or_else(|| panic!("no result: {}", said.all()))["report"].clone()
}

/// Everything that failed, in one text.
pub fn failures(report: &serde_json::Value) -> String {
    let findings = report["findings"].as_array().unwrap();
    let failed = findings.iter().filter(|finding| finding["level"] == "failure");
    failed.map(|f| format!("{}: {}", f["subject"].as_str().unwrap(), f["what"].as_str().unwrap())).collect::<Vec<_>>().join("\n")
}

/// Without the events of progress.
fn quiet(said: Said) -> Said {
    let lines = said.out.lines().filter(|line| !line.contains("\"event\":\"progress\""));
    Said { out: lines.collect::<Vec<_>>().join("\n"), ..said }
}

/// A drill that passes.
pub fn passes(world: &World, args: &[&str]) -> serde_json::Value {
    let said = quiet(world.run(&[&["--json", "drill"], args].concat()));
    assert_eq!(said.code, 0, "{}", said.all());
    let report = report(&said);
    assert!(report["passed"] == true && failures(&report).is_empty(), "{report:#}");
    nothing_is_left(world);
    report
}

/// A drill that fails, with a report that names the cause.
pub fn fails(world: &World, args: &[&str], words: &[&str]) -> serde_json::Value {
    let said = quiet(world.run(&[&["--json", "drill"], args].concat()));
    assert_eq!(said.code, 11, "{}", said.all());
    let report = report(&said);
    assert_eq!(report["passed"], false);
    for word in words {
        assert!(failures(&report).contains(word), "{word}:\n{}\n{report:#}", failures(&report));
    }
    let id = report["id"].as_str().unwrap();
    assert!(world.objects("clusters/shop/reports").iter().any(|key| key.ends_with(id)), "the report is not kept");
    nothing_is_left(world);
    report
}

pub fn nothing_is_left(world: &World) {
    let left: Vec<_> = std::fs::read_dir(drills(world)).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(servers_below(&drills(world)), Vec::<i32>::new());
}

/// Processes that work in a directory below `dir`.
pub fn servers_below(dir: &Path) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

/// A cluster with rows in it, a snapshot, more rows, and all of it archived.
pub async fn filled(major: u32, more: &str) -> World {
    let world = World::with(major, &["--data-checksums"], "autovacuum = off", None).await;
    configure(&world, major, more);
    world.sql("CREATE TABLE orders (id int PRIMARY KEY, what text)").await;
    world.sql("INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 20000) i").await;
    world.sql("CREATE INDEX by_what ON orders (what)").await;
    world.sql("ANALYZE orders").await;
    world.backup(&[]);
    world.sql("INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(20001, 30000) i").await;
    world.archive().await;
    world
}

pub const QUESTIONS: &str = "[[drill.question]]\nname = \"all orders\"\nsql = \"SELECT count(*) FROM orders\"\nmin = 20000\n\
    [[drill.question]]\nsql = \"SELECT pg_is_in_recovery()\"\nexpect = true\n";

/// Every part of a drill is really done, and the report tells it.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_backup_passes() {
    let world = filled(15, QUESTIONS).await;
    world.refused(&["check", "--no-switch"], 9, &["no drill was ever run"]);
    let report = passes(&world, &["--dump"]);
    let checked = &report["checked"];
    let count = |name: &str| checked[name].as_u64().unwrap();
    assert_eq!(count("questions"), 2);
    assert!(count("pages") > 500 && checked["pages"] == checked["pages_there"], "{checked}");
    assert!(count("relations") > 200 && checked["relations"] == checked["relations_there"], "{checked}");
    assert!(count("databases") == 2 && count("catalogued") > 100 && count("dumped_bytes") > 500_000, "{checked}");
    assert!(report["replayed_to"].is_string() && report["rto_s"].as_f64().unwrap() > 0.0 && report["rpo_s"].is_number());
    for name in ["restore", "replay", "pages", "amcheck", "dump"] {
        assert!(report["phases"].as_array().unwrap().iter().any(|phase| phase["name"] == name), "{name}: {report:#}");
    }
    world.ok(&["check", "--no-switch"]);
    // The original was not touched by any of it.
    assert_eq!(world.value("SELECT count(*) FROM orders").await, "30000");
    let said = world.ok(&["drill", "--dry-run"]);
    assert!(said.out.contains("from 1 drill") && said.out.contains("removed at the end"), "{}", said.out);
    nothing_is_left(&world);
}

/// Who changes or removes a report is found out.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_cannot_be_edited() {
    let world =
        filled(15, "[[drill.question]]\nname = \"too many\"\nsql = \"SELECT count(*) FROM orders\"\nmin = 1000000\n").await;
    let report = fails(&world, &[], &["question: too many: 30000 came back, and at least 1000000 is expected"]);
    world.ok(&["audit"]);
    let path = world.repository().join("clusters/shop/reports").join(report["id"].as_str().unwrap());
    let good = std::fs::read(&path).unwrap();
    let mut forged = report.clone();
    (forged["passed"], forged["findings"]) = (true.into(), serde_json::json!([]));
    std::fs::write(&path, lastgood::repo::object::document(&serde_json::to_vec(&forged).unwrap(), None)).unwrap();
    world.refused(&["audit"], 7, &["was changed"]);
    std::fs::remove_file(&path).unwrap();
    world.refused(&["audit"], 7, &["is missing"]);
    std::fs::write(&path, good).unwrap();
    world.ok(&["audit"]);
    world.refused(&["check", "--no-switch"], 9, &["the last one failed", "too many"]);
}

/// Every kind of target, and what is no fault of the backup.
#[tokio::test(flavor = "multi_thread")]
async fn targets_and_refusals() {
    let world = filled(15, "").await;
    let snapshot = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql("SELECT pg_create_restore_point('here')").await;
    world.sql("BEGIN; INSERT INTO orders VALUES (0, 'last')").await;
    let xid = world.value("SELECT txid_current()").await;
    world.sql("COMMIT").await;
    world.archive().await;
    for args in [&["--to", &snapshot][..], &["--to", "here"], &["--to", &xid, "--exclusive"], &["--random"]] {
        passes(&world, args);
    }
    let report = passes(&world, &["--snapshot", &snapshot[..16], "--to", &xid]);
    assert_eq!(report["snapshot"], snapshot.as_str());
    let reports = world.objects("clusters/shop/reports").len();
    world.refused(&["drill", "--to", "4000000"], 6, &["no transaction 4000000"]);
    world.refused(&["drill", "--snapshot", "20200101T000000Z"], 6, &["no snapshot"]);
    world.refused(&["drill", "--to", "latest", "--random"], 2, &["cannot be used with"]);
    let absent = world.path("absent");
    let more = |more: &str| world.write_config(None, &format!("[drill]\n{more}\n"));
    more(&format!("directory = \"{}\"", absent.display()));
    world.refused(&["drill"], 5, &["this directory for drills does not exist"]);
    more(&format!("directory = \"{}\"\nshared_buffers_mib = 1048576", drills(&world).display()));
    world.refused(&["drill"], 5, &["bytes of memory"]);
    more(&format!("directory = \"{}\"\n[drill.programs]\n15 = \"/nowhere/bin\"", drills(&world).display()));
    world.refused(&["drill"], 3, &["the programs of PostgreSQL 15 are not on this host", "/nowhere/bin"]);
    more("[[drill.question]]\nsql = \"SELECT 1\"");
    world.refused(&["drill"], 3, &["expects nothing, so it could never fail"]);
    // None of these is a drill that failed.
    assert_eq!(world.objects("clusters/shop/reports").len(), reports);
    nothing_is_left(&world);
}

/// Limits of the original that are raised in the WAL, and a bootstrap superuser of another name.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_settings_of_its_own_is_drilled() {
    let settings = "max_connections = 37\nmax_prepared_transactions = 3\nmax_locks_per_transaction = 71\nwal_level = logical";
    let mut world = World::with(15, &["--data-checksums"], settings, None).await;
    configure(&world, 15, "role = \"boss\"\n");
    world.sql("CREATE ROLE boss SUPERUSER LOGIN").await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.sql("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'").await;
    world.backup(&[]);
    world.server.stop(lastgood::postgres::scratch::Stop::Fast);
    world.server.configure("max_connections = 250\nmax_prepared_transactions = 20\nmax_worker_processes = 21").unwrap();
    world.start().await;
    world.sql("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'left open'").await;
    world.archive().await;
    passes(&world, &["--dump"]);
}

/// A server that is kept can be used by people, and no later drill takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_server_stays() {
    let world = filled(15, "").await;
    let said = world.ok(&["--json", "drill", "--keep"]);
    let kept = said.json()["kept"].clone();
    let pid = kept["pid"].as_i64().unwrap() as i32;
    let connection = lastgood::postgres::session::Connection {
        host: Some(kept["sockets"].as_str().unwrap().into()),
        ..world.server.connection()
    };
    let session = lastgood::postgres::session::Session::open(&connection).await.unwrap();
    assert_eq!(session.value("SELECT count(*) FROM public.orders").await.unwrap(), "30000");
    assert!(session.run("CREATE TABLE public.x ()").await.unwrap_err().to_string().contains("read-only"));
    for (setting, value) in [("archive_mode", "off"), ("listen_addresses", ""), ("max_logical_replication_workers", "0")] {
        assert_eq!(session.value(&format!("SHOW {setting}")).await.unwrap(), value);
    }
    let said = world.run(&["--json", "drill"]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert_eq!(session.value("SELECT count(*) FROM public.orders").await.unwrap(), "30000");
    drop(session);
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    let data = PathBuf::from(kept["data"].as_str().unwrap());
    while lastgood::postgres::postmaster::living(&data).unwrap().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
