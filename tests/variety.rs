//! Everything that a PostgreSQL cluster can hold comes back equal, from a full and from a tenth snapshot.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Stdio;

use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::session::Session;

use crate::support::world::{World, said};

const SNAPSHOTS: usize = 10;

/// A client program of this server's version that wants to succeed.
fn client(server: &Scratch, program: &str, args: &[&str], input: &str) -> String {
    let mut command = server.command(program);
    command.arg("-h").arg(server.sockets()).args(["-U", "postgres"]).args(args).env("PGOPTIONS", "-c lock_timeout=100s");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

fn psql(server: &Scratch, sql: &str) {
    client(server, "psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-"], sql);
}

/// `pg_dumpall`, without the places of tablespaces, what unlogged tables hold, and the random key of each dump.
fn dump(server: &Scratch) -> String {
    let text = client(server, "pg_dumpall", &["--no-unlogged-table-data", "--quote-all-identifiers"], "");
    let line = |line: &str| {
        let varies = [("CREATE TABLESPACE", " LOCATION "), ("\\restrict", " "), ("\\unrestrict", " ")];
        let cut = varies.iter().find(|(begin, _)| line.starts_with(begin)).and_then(|(_, at)| line.split(at).next());
        cut.unwrap_or(line).to_string()
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Two long texts, and only the lines around their first difference.
fn assert_same(found: &str, expected: &str) {
    let difference = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let start = |line: &str| line.chars().take(300).collect::<String>();
    if let Some(at) = difference {
        let around = |text: &str| text.lines().skip(at.saturating_sub(3)).take(6).map(start).collect::<Vec<_>>().join("\n");
        panic!("line {at} differs:\n{}\n--- expected ---\n{}", around(found), around(expected));
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

/// Files that are no business of PostgreSQL's, and must come back all the same.
fn odd_names() -> [&'static OsStr; 4] {
    ["odd é %name".as_bytes(), b"odd \xff\xfe bytes", b"odd\nline", b"%41"].map(OsStr::from_bytes)
}

fn put_odd_files(world: &World) {
    let data = world.server.data();
    let user = world.user();
    for name in odd_names() {
        std::fs::write(data.join(name), name.as_bytes()).unwrap();
        let dir = data.join("odd directory").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), b"").unwrap();
        for path in [data.join(name), data.join("odd directory"), dir.join(name), dir] {
            chown(&path, user.map(|u| u.uid), user.map(|u| u.gid)).unwrap();
        }
    }
    drop(std::os::unix::net::UnixListener::bind(data.join("odd socket")).unwrap());
    symlink("/nowhere/at/all", data.join("odd link")).unwrap();
}

fn check_odd_files(data: &Path) {
    for name in odd_names() {
        assert_eq!(std::fs::read(data.join(name)).unwrap(), name.as_bytes());
        assert_eq!(std::fs::read(data.join("odd directory").join(name).join(name)).unwrap(), b"");
    }
    for left_out in ["odd socket", "odd link"] {
        assert!(std::fs::symlink_metadata(data.join(left_out)).is_err(), "{left_out}");
    }
}

/// Temporary relations below a directory.
fn temporary(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += temporary(&path);
        } else if path.file_name().unwrap().as_bytes().starts_with(b"t") {
            count += 1;
        }
    }
    count
}

/// What the server does not dump.
async fn not_dumped(session: &Session) -> Vec<String> {
    let mut found = Vec::new();
    for sql in [
        "SELECT string_agg(k::text, chr(10) ORDER BY k::text) FROM kinds.kept k",
        "SELECT string_agg(gid || owner, chr(10) ORDER BY gid) FROM pg_prepared_xacts",
        "SELECT string_agg(spcname, chr(10) ORDER BY spcname) FROM pg_tablespace",
        "SELECT string_agg(datname || ' ' || dattablespace, chr(10) ORDER BY datname) FROM pg_database",
    ] {
        found.push(session.value(sql).await.unwrap());
    }
    found
}

/// What a snapshot has to bring back.
struct Expected {
    id: String,
    dump: String,
    not_dumped: Vec<String>,
}

async fn snapshot(world: &World, args: &[&str]) -> Expected {
    let (dump, not_dumped) = (dump(&world.server), not_dumped(world.session()).await);
    let snapshot = world.backup(args);
    Expected { id: snapshot["id"].as_str().unwrap().into(), dump, not_dumped }
}

async fn comes_back(world: &World, name: &str, expected: &Expected) {
    let spaces = world.path(&format!("{name}.spaces"));
    scratch::make_directory(&spaces, world.user()).unwrap();
    let args = ["--to", &expected.id, "--target-action", "promote", "--tablespaces-below", spaces.to_str().unwrap()];
    let (mut server, session) = world.restore(name, &args).await;
    assert_eq!(not_dumped(&session).await, expected.not_dumped);
    assert_same(&dump(&server), &expected.dump);
    // Rules 13, 14 and 44: no slots, no temporary files, unlogged tables empty and usable, tablespaces where they were mapped to.
    assert_eq!(session.value("SELECT count(*) FROM pg_replication_slots").await.unwrap(), "0");
    assert_eq!(session.value("SELECT count(*) FROM kinds.unlogged").await.unwrap(), "0");
    session.run("INSERT INTO kinds.unlogged VALUES (1, 'new')").await.unwrap();
    let places = "SELECT bool_and(starts_with(pg_tablespace_location(oid), '{}')) FROM pg_tablespace WHERE oid > 16000";
    assert_eq!(session.value(&places.replace("{}", spaces.to_str().unwrap())).await.unwrap(), "t");
    check_odd_files(server.data());
    // Prepared transactions can be ended, either way.
    session.run("COMMIT PREPARED 'left open é'").await.unwrap();
    session.run("ROLLBACK PREPARED 'left open too'").await.unwrap();
    assert_eq!(session.value("SELECT count(*) FROM kinds.emptied WHERE id = 100").await.unwrap(), "1");
    client(&server, "pg_amcheck", &["--all", "--install-missing", "--heapallindexed", "--parent-check"], "");
    drop(session);
    server.stop(Stop::Fast);
    assert_eq!(temporary(&server.data().join("base")), 0);
    let checked = said(server.command("pg_checksums").arg("--check").arg("-D").arg(server.data()));
    assert_eq!(checked.code, 0, "{}", checked.all());
}

/// A database with every kind of object comes back equal on a full and on a tenth snapshot (rules 6, 13, 14, 15, 16, 44).
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_object_comes_back_equal() {
    let settings = "wal_level = logical\nmax_prepared_transactions = 20\nautovacuum = off";
    let world = World::with(15, &["--data-checksums"], settings, None).await;
    let spaces = world.path("spaces");
    for dir in [spaces.clone(), spaces.join("fast"), spaces.join("odd é %")] {
        scratch::make_directory(&dir, world.user()).unwrap();
    }
    psql(&world.server, &include_str!("variety/objects.sql").replace("SPACES", spaces.to_str().unwrap()));
    put_odd_files(&world);
    // Open all the while, with its files on disk.
    let temporaries = world.connect().await;
    temporaries.run("CREATE TEMPORARY TABLE open AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i").await.unwrap();
    world.sql("CHECKPOINT").await;
    assert!(temporary(&world.server.data().join("base")) > 0);
    let first = snapshot(&world, &[]).await;
    let mut last = None;
    for number in 2..=SNAPSHOTS {
        let changes = include_str!("variety/changes.sql").replace("NUMBER", &number.to_string());
        psql(&world.server, &changes.replace("PREVIOUS", &(number - 1).to_string()));
        last = Some(snapshot(&world, &[]).await);
    }
    let warned = world.ok(&["backup"]).all();
    assert!(warned.contains("odd socket") && warned.contains("odd link"), "{warned}");
    world.ok(&["verify"]);
    comes_back(&world, "first", &first).await;
    comes_back(&world, "tenth", &last.unwrap()).await;
}

/// A table that is larger than one file of a relation; pages of the second file are counted on from the first (rule 12), and
/// only what changed is stored again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_more_than_one_file_comes_back() {
    let world = World::with(15, &["--data-checksums"], "autovacuum = off\nmax_wal_size = '4GB'", None).await;
    // One row in each page.
    world.sql("CREATE TABLE large (id int, what text) WITH (fillfactor = 10)").await;
    world.sql("INSERT INTO large SELECT i, repeat('x', 420) FROM generate_series(1, 132000) i").await;
    world.sql("CREATE INDEX ON large (id)").await;
    world.sql("VACUUM (FREEZE) large").await;
    assert_eq!(world.value("SELECT pg_relation_size('large') > 1 << 30 AND max(ctid) > '(131072,0)' FROM large").await, "t");
    world.backup(&[]);
    world.sql("UPDATE large SET what = 'changed' WHERE id IN (1, 131900)").await;
    let second = world.backup(&[]);
    assert!(second["parent"].is_string() && second["totals"]["new_bytes"].as_u64().unwrap() < 100 << 20, "{second}");
    assert_eq!(second["damaged_pages"].as_array().map_or(0, Vec::len), 0);
    world.ok(&["verify"]);
    let (mut server, session) = world.restore("restored", &["--to", second["id"].as_str().unwrap()]).await;
    let sum = "SELECT concat_ws(' ', count(*), sum(id), sum(length(what)), count(*) FILTER (WHERE what = 'changed')) FROM large";
    assert_eq!(session.value(sum).await.unwrap(), world.value(sum).await);
    drop(session);
    server.stop(Stop::Fast);
    let path = world.value("SELECT pg_relation_filepath('large')").await;
    assert!(server.data().join(format!("{path}.1")).exists());
    let checked = said(server.command("pg_checksums").arg("--check").arg("-D").arg(server.data()));
    assert_eq!(checked.code, 0, "{}", checked.all());
}
