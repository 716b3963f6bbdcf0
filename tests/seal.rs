//! Encryption: who can read what, and who notices what was changed.

mod damage;
mod guarded;
mod keyrings;
mod objects;
mod python;
mod writer;

use std::os::unix::fs::PermissionsExt;

use crate::support::world::{World, tamper};

/// Cheap to try, because tests try often.
const CHEAP: &str = "argon2_memory_kib = 64";
const PASSPHRASE: &str = "correct horse battery staple";
const MARKER: &str = "a-marker-that-must-not-be-seen";

/// A file for the server's user.
fn put(world: &World, name: &str, text: &str) -> String {
    let path = world.path(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    path.display().to_string()
}

/// Replaces the `[encryption]` of the configuration.
fn configure(world: &World, lines: &str) {
    world.write_config(None, &format!("\n[snapshot]\nthreads = 2\n\n[encryption]\n{CHEAP}\n{lines}\n"));
}

/// A running, registered server whose repository is encrypted as `lines` say.
async fn encrypted(lines: impl FnOnce(&World) -> String) -> World {
    let mut world = World::bare(15, &["--data-checksums"], "", None).await;
    let lines = lines(&world);
    configure(&world, &lines);
    world.start().await;
    world.ok(&["init", "--apply"]);
    world
}

fn with_passphrase(world: &World) -> String {
    format!("passphrase_file = \"{}\"\nkey_file = \"{}\"", put(world, "passphrase", PASSPHRASE), world.path("writer").display())
}

/// Two snapshots and WAL behind them, with the marker in tables, WAL and names.
async fn filled(world: &World) -> (String, String) {
    world
        .sql(&format!("CREATE TABLE t AS SELECT i AS x, '{MARKER}' || md5(i::text) AS y FROM generate_series(1, 20000) i"))
        .await;
    let first = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql("DELETE FROM t WHERE x % 100 = 0").await;
    let second = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql(&format!("INSERT INTO t VALUES (0, '{MARKER} at the end')")).await;
    world.archive().await;
    (first, second)
}

async fn restores(world: &World, name: &str, args: &[&str], rows: &str) {
    let (mut server, session) = world.restore(name, args).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), rows);
    drop(session);
    server.stop(lastgood::postgres::scratch::Stop::Immediate);
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_brings_everything_back_and_nothing_can_be_read_without() {
    let world = encrypted(with_passphrase).await;
    let mode = std::fs::metadata(world.path("writer")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "init wrote this host's writer key, for its owner only");
    assert!(std::fs::read_to_string(world.path("writer")).unwrap().contains("lastgood writer key"));
    let (first, _) = filled(&world).await;
    let list = world.ok(&["--json", "list"]).json();
    assert_eq!(list["histories"][0]["snapshots"].as_array().unwrap().len(), 2);
    let newer = &list["histories"][0]["snapshots"][1]["totals"];
    assert!(newer["new_bytes"].as_u64().unwrap() < newer["raw_bytes"].as_u64().unwrap() / 4, "built on the first: {newer}");
    world.ok(&["verify"]);
    world.ok(&["verify", "--quick"]);
    let checked = world.ok(&["check"]);
    assert!(checked.out.contains("sealed; key id"), "{}", checked.out);
    restores(&world, "latest", &["--to", "latest"], "19801").await;
    restores(&world, "then", &["--to", &format!("snapshot:{first}")], "20000").await;
    for key in world.objects("") {
        let bytes = std::fs::read(world.repository().join(&key)).unwrap();
        let seen: Vec<&str> = [MARKER, "base/", "pg_control", "PG_VERSION", "backup_label"]
            .into_iter()
            .filter(|word| contains(&bytes, word))
            .collect();
        assert!(seen.is_empty(), "{key} shows {seen:?}");
        // Nor is anything but lastgood.json and the keyrings plain zstd.
        assert!(key.starts_with("keys/") || !bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "{key} is not sealed");
    }
    let record = std::fs::read_to_string(world.repository().join("lastgood.json")).unwrap();
    assert!(record.contains("\"seal\": \"aes-256-gcm\""), "{record}");
    // The environment's passphrase counts before the file's.
    let mut command = world.command(&["list"]);
    command.env("LASTGOOD_PASSPHRASE", "another passphrase");
    assert_eq!(crate::support::world::said(&mut command).code, 3);
}

/// The database host holds a writer key: it backs up and archives, builds on its own snapshots, proves what is stored, and can
/// read no data. The identity, elsewhere, restores.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_key_writes_and_an_identity_reads() {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let on_host = |world: &World| format!("recipients = [\"{recipient}\"]\nkey_file = \"{}\"", world.path("writer").display());
    let world = encrypted(on_host).await;
    filled(&world).await;
    world.ok(&["list"]);
    world.ok(&["check"]);
    world.ok(&["verify", "--quick"]);
    world.refused(&["verify"], 3, &["is a writer's, which cannot open data", "key export"]);
    let into = world.path("refused").display().to_string();
    world.refused(&["restore", "--to", "latest", "--into", &into], 3, &["is a writer's"]);
    world.refused(&["key", "export", "--to", &world.path("x").display().to_string()], 3, &["a reader key is needed"]);
    world.refused(&["key", "add", "--recipient", &recipient], 3, &["a reader key is needed"]);
    let segment = world.objects("clusters/shop/wal").into_iter().rfind(|k| k.contains("/segments/")).unwrap();
    let name = segment.rsplit('/').next().unwrap();
    world.refused(&["archive-get", name, &world.path("got").display().to_string()], 126, &["is a writer's"]);
    world.refused(
        &["archive-get", "0000000100000000000000F0", &world.path("got").display().to_string()],
        1,
        &["not in the archive"],
    );
    // With the identity.
    let secret = {
        use age::secrecy::ExposeSecret;
        identity.to_string().expose_secret().to_string()
    };
    let file = put(&world, "identity", &format!("# created: today\n{secret}\n"));
    configure(&world, &format!("identity_file = \"{file}\""));
    let said = world.ok(&["archive-get", name, &world.path("got").display().to_string()]);
    // The host again: the same segment once more is the same, and is proven although it cannot be read.
    configure(&world, &on_host(&world));
    std::fs::rename(world.path("got"), world.path(name)).unwrap();
    let push = world.path(name).display().to_string();
    // Nothing is asked of the keyring: a push is a process for each segment.
    std::fs::rename(world.repository().join("keys"), world.path("keys")).unwrap();
    world.ok(&["archive-push", &push]);
    std::fs::rename(world.path("keys"), world.repository().join("keys")).unwrap();
    let stored = world.repository().join(&segment);
    let good = std::fs::read(&stored).unwrap();
    tamper(&stored, |bytes| bytes[100] ^= 1);
    world.refused(&["archive-push", &push], 7, &["sealed content does not hold"]);
    std::fs::write(&stored, good).unwrap();
    configure(&world, &format!("identity_file = \"{file}\""));
    world.ok(&["verify"]);
    restores(&world, "latest", &["--to", "latest"], "19801").await;
    assert!(!said.all().contains(&secret));
}

/// Wrong keys and no keys: exit code 3, words that help, and nothing written.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_told_before_anything_is_written() {
    let world = encrypted(with_passphrase).await;
    let (first, _) = filled(&world).await;
    let snapshot = world.objects("");
    let wrong = put(&world, "wrong", "wrong horse battery staple\n");
    let into = world.path("refused").display().to_string();
    let all =
        [&["backup"][..], &["list"], &["verify"], &["init"], &["restore", "--into", &into, "--to", "latest"], &["key", "list"]];
    let refused = |words: &[&str]| {
        for args in all {
            world.refused(args, 3, words);
        }
        // Without its key the server cannot archive either; leases, probes and all: the repository is as it was.
        let there = world.objects("");
        assert!(snapshot.iter().all(|key| there.contains(key)) && there.len() == snapshot.len(), "something was written");
        assert!(!world.path("refused").exists());
    };
    configure(&world, &format!("passphrase_file = \"{wrong}\""));
    refused(&["the passphrase opens none of the slots", "keys/000001-000001"]);
    world.refused(&["check", "--no-switch"], 9, &["opens none of the slots"]);
    configure(&world, "");
    refused(&["is sealed (encrypted)", "passphrase_file", "key_file"]);
    configure(&world, &format!("identity_file = \"{wrong}\""));
    refused(&["holds no age identity", "age-keygen"]);
    configure(&world, &format!("key_file = \"{}\"", world.path("missing").display()));
    for args in [&["backup"][..], &["list"]] {
        world.refused(args, 3, &["cannot be read", "missing"]);
    }
    configure(&world, &format!("{}\nkey_id = \"{}\"", with_passphrase(&world), "0".repeat(32)));
    refused(&["pins 00000000000000000000000000000000"]);
    // What is said never holds the secret.
    let said = world.run(&["list"]).all();
    assert!(!said.contains("horse"), "{said}");
    // Somebody who may write into the bucket turns encryption off: nothing is written in the clear.
    configure(&world, &with_passphrase(&world));
    let record = world.repository().join("lastgood.json");
    let good = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, good.replace("aes-256-gcm", "none")).unwrap();
    refused(&["is not encrypted, although a key is configured"]);
    let local = world.server.data().join("pg_wal");
    let newest = std::fs::read_dir(&local).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let newest = newest.filter(|n| n.len() == 24).min().unwrap();
    let push = world.run(&["archive-push", &local.join(newest).display().to_string()]);
    assert_eq!(push.code, 3, "{}", push.all());
    std::fs::write(&record, good).unwrap();
    // One object in the clear among the sealed ones is refused too.
    let manifest = world.repository().join(format!("clusters/shop/snapshots/{first}"));
    std::fs::write(&manifest, lastgood::repo::object::document(b"{}", None)).unwrap();
    world.refused(&["verify"], 7, &["it is not sealed", &first]);
}

/// Encryption is chosen at init, by what is configured or against it.
#[tokio::test(flavor = "multi_thread")]
async fn init_seals_when_a_key_is_configured() {
    let mut world = World::bare(15, &["--no-sync"], "", None).await;
    world.start().await;
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    configure(&world, &format!("recipients = [\"{recipient}\"]"));
    world.refused(&["init"], 3, &["with recipients alone also key_file"]);
    configure(&world, &format!("key_file = \"{}\"", world.path("writer").display()));
    world.refused(&["init"], 3, &["needs somebody who can read it"]);
    configure(&world, "recipients = [\"age1nonsense\"]\nidentity_file = \"/nowhere\"");
    world.refused(&["init"], 3, &["/nowhere cannot be read"]);
    let short = put(&world, "short", "short");
    configure(&world, &format!("passphrase_file = \"{short}\""));
    world.refused(&["init"], 3, &["at least 8 characters"]);
    assert_eq!(
        world.objects("").into_iter().filter(|key| !key.starts_with("probe/")).count(),
        0,
        "refused before anything is written"
    );
    // An interrupted init left a keyring alone; the next one goes on from it, and another's key does not.
    configure(&world, &with_passphrase(&world));
    let first = world.ok(&["--json", "init"]).json();
    std::fs::remove_file(world.repository().join("lastgood.json")).unwrap();
    std::fs::remove_dir_all(world.repository().join("clusters")).unwrap();
    let wrong = put(&world, "wrong", "another passphrase");
    configure(&world, &format!("passphrase_file = \"{wrong}\""));
    world.refused(&["init"], 3, &["opens none of the slots"]);
    configure(&world, &with_passphrase(&world));
    assert_eq!(world.ok(&["--json", "init"]).json()["key_id"], first["key_id"]);
    world.ok(&["list"]);
    // Against it.
    std::fs::remove_dir_all(world.repository()).unwrap();
    world.ok(&["init", "--no-encryption"]);
    world.refused(&["list"], 3, &["is not encrypted, although a key is configured"]);
    configure(&world, "");
    world.ok(&["list"]);
    world.refused(&["key", "list"], 5, &["is not encrypted, so it has no keys"]);
}
