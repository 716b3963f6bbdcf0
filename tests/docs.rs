//! The examples of README and docs are run: each line of a `sh` block that calls `lastgood`, with the places and moments of a
//! world of our own put in for those of the page.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lastgood::timeline::target::Target;

use crate::support::world::{World, said};

/// Its examples want an encrypted repository.
const KEYS: &str = "keys.md";
/// Its examples want a mirror.
const MIRRORS: &str = "mirrors.md";

/// Lines of `sh` blocks that call the program, with their page.
fn examples() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("docs/operations.md")];
    pages.extend(std::fs::read_dir(root.join("docs/guide")).unwrap().map(|e| e.unwrap().path()));
    let mut found = Vec::new();
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in text.split("```sh\n").skip(1) {
            for line in block.split("```").next().unwrap().lines().map(str::trim) {
                let line = line.strip_prefix("sudo -u postgres ").unwrap_or(line);
                let calls = line.starts_with("lastgood ") || line.contains("&& lastgood ");
                // One step of a longer task, which `restore::both_futures_of_a_fork_are_windows` walks through.
                if calls && !line.contains("archive-push") {
                    found.push((page.file_name().unwrap().to_string_lossy().into_owned(), line.to_string()));
                }
            }
        }
    }
    found
}

/// What stands for the targets of the pages.
struct Moments {
    time: String,
    xid: String,
    lsn: String,
    snapshot: String,
    /// The id of a drop.
    event: String,
}

impl Moments {
    /// Puts our target in for the one after `--to` or `--before`.
    fn put_in(&self, line: &str) -> String {
        let line = &line.replace("shop.public.orders", "orders").replace("1:0/48E06C0", &self.event);
        let Some((before, rest)) = line.split_once("--to ") else { return line.into() };
        let quote = rest.chars().next().filter(|c| *c == '\'' || *c == '"');
        let (text, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).unwrap(),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        let ours = match text.parse::<Target>().unwrap_or_else(|e| panic!("{line}: {e}")) {
            Target::Latest => "latest".to_string(),
            Target::Time(_) => self.time.clone(),
            Target::Lsn(_) => self.lsn.clone(),
            Target::Xid(_) => self.xid.clone(),
            Target::Name(_) => "before the mistake".into(),
            Target::Snapshot(_) => self.snapshot.clone(),
        };
        format!("{before}--to '{ours}' {after}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_runs() {
    let world = World::new(15).await;
    world.write_config(None, "\n[retention]\nkeep_days = 14\nkeep_monthly = 12\nwindow_days = 7\n");
    let space = world.path("space");
    lastgood::postgres::scratch::make_directory(&space, world.user()).unwrap();
    for place in ["srv", "spaces"] {
        lastgood::postgres::scratch::make_directory(&world.path(place), world.user()).unwrap();
    }
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS x").await;
    world.sql("CREATE TABLE orders AS SELECT 1 AS id").await;
    let snapshot = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql("INSERT INTO t VALUES (2)").await;
    let time = world.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'").await;
    world.sql("SELECT pg_create_restore_point('before the mistake')").await;
    world.sql("BEGIN; DELETE FROM t").await;
    let xid = world.value("SELECT txid_current()").await;
    let lsn = world.value("SELECT pg_current_wal_insert_lsn()").await;
    world.sql("COMMIT").await;
    world.sql("DROP TABLE orders").await;
    world.archive().await;
    let event = world.ok(&["--json", "timeline", "--kind", "drop"]).json()["events"][0]["id"].as_str().unwrap().to_string();
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    let moments = Moments { time, xid, lsn, snapshot: snapshot.clone(), event };
    let examples: Vec<_> = examples().into_iter().filter(|(page, _)| page != KEYS && page != MIRRORS).collect();
    assert!(examples.len() > 15, "{examples:#?}");
    for (page, example) in examples {
        let mut line = moments.put_in(&example);
        let srv = world.path("srv").display().to_string();
        for (from, to) in [
            ("/var/lib/postgresql/15", "@place"),
            ("/srv", "@place"),
            ("/etc/cron.d", "@place"),
            ("@place", srv.as_str()),
            ("16388", &oid),
            ("20261121T082525Z", &snapshot[..16]),
        ] {
            line = line.replace(from, to);
        }
        if line.contains("restore ") && !line.contains("--tablespace") {
            line = line.replace("restore ", &format!("restore --tablespaces-below {} ", world.path("spaces").display()));
        }
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &line]).current_dir(world.path("srv"));
        command.env("PATH", format!("{}:/usr/bin:/bin", world.path("").display())).env("LASTGOOD_CONFIG", world.config());
        command.env("PGDATA", world.server.data());
        if let Some(user) = world.user() {
            command.uid(user.uid).gid(user.gid);
        }
        let said = said(&mut command);
        assert_eq!(said.code, 0, "{page}: {example}\nrun as: {line}\n{}", said.all());
        for place in ["srv", "spaces"] {
            std::fs::remove_dir_all(world.path(place)).unwrap();
            lastgood::postgres::scratch::make_directory(&world.path(place), world.user()).unwrap();
        }
    }
}

/// The page about keys, from top to bottom.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_example_runs() {
    let mut world = World::bare(15, &["--no-sync"], "", None).await;
    let readable = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(world.path(name), text).unwrap();
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    };
    readable("passphrase", "correct horse battery staple\n");
    readable("new-passphrase", "another horse battery staple\n");
    let [passphrase, key] = ["passphrase", "writer.key"].map(|name| world.path(name).display().to_string());
    let lines = format!("[encryption]\nargon2_memory_kib = 64\npassphrase_file = \"{passphrase}\"\nkey_file = \"{key}\"\n");
    world.write_config(None, &lines);
    world.start().await;
    let examples: Vec<_> = examples().into_iter().filter(|(page, _)| page == KEYS).collect();
    assert!(examples.len() > 7, "{examples:#?}");
    let mut added = String::new();
    for (_, example) in examples {
        let line = example.replace("/etc/", &format!("{}/", world.path("").display())).replace("3f9a01c2", &added);
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &line]).current_dir(world.path(""));
        command.env("PATH", format!("{}:/usr/bin:/bin", world.path("").display())).env("LASTGOOD_CONFIG", world.config());
        if let Some(user) = world.user() {
            command.uid(user.uid).gid(user.gid);
        }
        let said = said(&mut command);
        assert_eq!(said.code, 0, "{example}\nrun as: {line}\n{}", said.all());
        if let Some(slot) = said.out.strip_prefix("slot ").and_then(|rest| rest.split(':').next()) {
            added = slot.into();
        }
    }
}

/// The page about mirrors, from top to bottom; before its last steps the first repository is lost, as the page says.
#[tokio::test(flavor = "multi_thread")]
async fn every_mirror_example_runs() {
    let world = crate::mirror::copy::mirrored("").await;
    lastgood::postgres::scratch::make_directory(&world.path("srv"), world.user()).unwrap();
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.archive().await;
    let examples: Vec<_> = examples().into_iter().filter(|(page, _)| page == MIRRORS).collect();
    assert!(examples.len() > 9, "{examples:#?}");
    for (_, example) in examples {
        if example.contains("--from") {
            std::fs::remove_dir_all(world.repository()).unwrap();
            lastgood::postgres::scratch::make_directory(&world.repository(), world.user()).unwrap();
        }
        let line = example.replace("/var/lib/postgresql/15", &world.path("srv").display().to_string());
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &line]).current_dir(world.path("srv"));
        command.env("PATH", format!("{}:/usr/bin:/bin", world.path("").display())).env("LASTGOOD_CONFIG", world.config());
        if let Some(user) = world.user() {
            command.uid(user.uid).gid(user.gid);
        }
        let said = said(&mut command);
        assert_eq!(said.code, 0, "{example}\nrun as: {line}\n{}", said.all());
    }
    world.ok(&["verify"]);
}
