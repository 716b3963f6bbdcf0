//! The guard, the rescue of WAL, and the audit in an encrypted repository.

use lastgood::postgres::scratch::Stop;

use super::{MARKER, configure, contains, encrypted, filled, put, with_passphrase};

/// What is saved from a broken server is sealed as everything else, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_before_a_restore_is_sealed() {
    let mut world = encrypted(with_passphrase).await;
    filled(&world).await;
    world.sql(&format!("INSERT INTO t VALUES (-1, '{MARKER} not archived')")).await;
    world.server.stop(Stop::Immediate);
    let data = world.server.data().display().to_string();
    let restore = ["restore", "--to", "latest", "--into", &data];
    // The host's own key reads no data: it is told before anything is touched.
    configure(&world, &format!("key_file = \"{}\"", world.path("writer").display()));
    world.refused(&restore, 3, &["is a writer's"]);
    let lines = with_passphrase(&world);
    configure(&world, &lines);
    world.confirmed(&restore);
    let partial = world.objects("clusters/shop/wal").into_iter().find(|key| key.contains(".torn-")).unwrap();
    for key in [partial].into_iter().chain(world.objects("audit")) {
        let bytes = std::fs::read(world.repository().join(&key)).unwrap();
        assert!(
            !contains(&bytes, MARKER) && !contains(&bytes, "restore") && !bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            "{key}"
        );
    }
    let (_server, session) = world.recovered("data").await;
    assert_eq!(session.value("SELECT count(*) FROM t WHERE x = -1").await.unwrap(), "1");
    // From the archive alone, on another host, the torn end is there too.
    let (_other, session) = world.restore("elsewhere", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t WHERE x = -1").await.unwrap(), "1");
}

/// Every change of the keys, and every attempt, stands in the audit; no secret does.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_keys_are_audited() {
    let world = encrypted(with_passphrase).await;
    let other = put(&world, "other", "another good passphrase");
    let added = world.ok(&["--json", "key", "add", "--passphrase-file", &other]).json();
    world.ok(&["key", "remove", added["key"]["id"].as_str().unwrap()]);
    world.refused(&["key", "remove", "nonsense"], 5, &["there is no slot"]);
    world.ok(&["key", "rotate"]);
    world.ok(&["key", "export", "--paper"]);
    world.ok(&["key", "list"]);
    let audit = world.ok(&["--json", "audit"]).out;
    let story: Vec<String> = audit
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("entry").cloned())
        .map(|entry| format!("{} {}", entry["event"]["operation"].as_str().unwrap(), entry["event"]["outcome"].as_str().unwrap()))
        .collect();
    let pairs = ["add", "remove", "remove", "rotate", "export"];
    let outcomes = ["done", "done", "failed", "done", "done"];
    let expected: Vec<String> = pairs
        .iter()
        .zip(outcomes)
        .flat_map(|(what, outcome)| [format!("key {what} attempted"), format!("key {what} {outcome}")])
        .collect();
    assert_eq!(story, expected, "{audit}");
    assert!(!audit.contains("passphrase\""), "{audit}");
}

/// After a rotation the host with the old writer key goes on: the audit and other hosts' new objects do not stop it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_writer_key_goes_on_after_a_rotation() {
    let world = encrypted(with_passphrase).await;
    filled(&world).await;
    world.ok(&["key", "rotate"]);
    world.ok(&["key", "export", "--paper"]);
    configure(&world, &format!("key_file = \"{}\"", world.path("writer").display()));
    let said = world.ok(&["backup"]);
    assert!(said.all().contains("rotated to epoch 2"), "{}", said.all());
    world.archive().await;
}
