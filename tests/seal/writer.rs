//! A database host that can only write: snapshots of what changed, the WAL index, the tripwire; and what it cannot tell.

use super::*;
use crate::timeline::tripwire::until;

/// A server whose host holds a writer key, with small segments and the tripwire on; and the identity that reads.
async fn on_a_writer() -> (World, String, String) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let mut world =
        World::bare(15, &["--data-checksums", "--wal-segsize=1"], "archive_timeout = 60\nautovacuum = off", None).await;
    let heard = world.write_private("heard", "");
    let writer = format!(
        "recipients = [\"{}\"]\nkey_file = \"{}\"\n\n[tripwire]\nenabled = true\n\n[alert]\ncommand = [\"/bin/sh\", \"-c\", \"cat >> {}\"]",
        identity.to_public(),
        world.path("writer").display(),
        heard.display()
    );
    configure(&world, &writer);
    world.start().await;
    world.ok(&["init", "--apply"]);
    let secret = put(&world, "identity", identity.to_string().expose_secret());
    world.sql("CREATE TABLE t AS SELECT i AS x, repeat('x', 200) AS y FROM generate_series(1, 20000) i").await;
    world.sql("CREATE TABLE orders AS SELECT generate_series(1, 3000) AS id").await;
    world.sql("VACUUM (FREEZE, ANALYZE) t").await;
    world.sql("VACUUM (FREEZE, ANALYZE) orders").await;
    world.backup(&[]);
    (world, writer, format!("identity_file = \"{secret}\""))
}

/// Segments with something in them, archived.
async fn busy(world: &World, segments: usize) {
    for number in 0..segments {
        world.sql(&format!("UPDATE t SET y = 'changed {number}' WHERE x = {}; SELECT pg_switch_wal()", 100 + number)).await;
    }
    world.archive().await;
}

fn unread(said: &crate::support::world::Said) -> u64 {
    said.json()["snapshot"]["totals"]["unread_bytes"].as_u64().unwrap()
}

const EVERYTHING: &str = "every changed file is read";

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_reads_only_what_changed_while_it_has_the_index() {
    let (world, _, reader) = on_a_writer().await;
    busy(&world, 40).await;
    let rolled_up = || world.objects("clusters/shop/wal").iter().filter(|key| key.contains("/index/1/")).count();
    assert!(rolled_up() >= 2, "a writer makes roll-ups of what it archives");
    let said = world.ok(&["--json", "backup"]);
    assert!(!said.all().contains(EVERYTHING) && unread(&said) > 2 << 20, "{}", said.all());
    // The spool is lost, and the server has let go of its WAL.
    world.sql("UPDATE t SET y = 'after' WHERE x = 5").await;
    busy(&world, 3).await;
    let name = world.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    world.sql("SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT").await;
    world.archive().await;
    world.sql("CHECKPOINT").await;
    assert!(!world.server.data().join("pg_wal").join(name).exists());
    std::fs::remove_dir_all(world.path("spool")).unwrap();
    let said = world.ok(&["--json", "backup"]);
    assert!(said.all().contains(EVERYTHING) && said.all().contains("the configured key is a writer's"), "{}", said.all());
    assert_eq!(unread(&said), 0);
    // From here on it has the index again.
    world.sql("UPDATE t SET y = 'again' WHERE x = 6").await;
    let said = world.ok(&["--json", "backup"]);
    assert!(!said.all().contains(EVERYTHING) && unread(&said) > 2 << 20, "{}", said.all());
    configure(&world, &reader);
    world.ok(&["verify"]);
    let expected = world.value("SELECT md5(string_agg(x || y, ',' ORDER BY x)) FROM t").await;
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT md5(string_agg(x || y, ',' ORDER BY x)) FROM t").await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_tells_what_its_spool_knows_and_says_what_it_cannot() {
    let (world, writer, reader) = on_a_writer().await;
    busy(&world, 20).await;
    world.sql("DROP TABLE orders").await;
    world.archive().await;
    let heard = || std::fs::read_to_string(world.path("heard")).unwrap();
    until(|| !heard().is_empty(), "nobody heard of the drop").await;
    assert!(heard().contains("DROP postgres.public.orders in cluster shop (about 3000 rows"), "{}", heard());
    assert_eq!(world.ok(&["--json", "alerts"]).json()["rule"], "drop");
    let told = world.ok(&["timeline"]).out;
    assert!(told.contains("DROP postgres.public.orders") && !told.contains("GAP"), "{told}");
    world.ok(&["alerts", "--acknowledge", "all", "--reason", "a test"]);
    // To go there, the WAL itself must be read.
    let into = world.path("refused").display().to_string();
    for event in ["drop of orders", "drop of nothing_of_this_name"] {
        world.refused(&["restore", "--before", event, "--into", &into], 3, &["is a writer's", "configure a reader's"]);
    }
    // Without the spool nobody here knows what happened, and it is not called a quiet night.
    std::fs::remove_dir_all(world.path("spool")).unwrap();
    let told = world.ok(&["timeline"]).out;
    assert!(!told.contains("DROP") && told.matches("GAP").count() == 1 && told.contains("a writer's"), "{told}");
    // What is archived from here on is watched.
    world.sql("DROP TABLE t").await;
    world.archive().await;
    until(|| heard().contains("DROP postgres.public.t "), "nobody heard of the second drop").await;
    let told = world.ok(&["timeline"]).out;
    assert!(told.contains("DROP postgres.public.t") && told.contains("GAP"), "{told}");
    configure(&world, &reader);
    let told = world.ok(&["timeline"]).out;
    assert!(told.contains("DROP postgres.public.orders") && !told.contains("GAP"), "{told}");
    configure(&world, &writer);
}
