//! A smoke of every supported major version.

use crate::support::world::World;

async fn smoke(major: u32) {
    let world = World::with(major, &[], "", None).await;
    world.sql("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 5000) i").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (5001)").await;
    let snapshot = world.backup(&[]);
    assert_eq!(snapshot["major"], major);
    assert!(snapshot["parent"].is_string());
    world.sql("SELECT pg_create_restore_point('before the mistake')").await;
    world.sql("DELETE FROM t").await;
    world.archive().await;
    world.ok(&["verify"]);
    world.ok(&["check"]);
    let (_server, session) = world.restore("named", &["--to", "before the mistake"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "5001");
    assert_eq!(session.value("SHOW recovery_target_action").await.unwrap(), "pause");
    let (_server, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "0");
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            smoke($major).await;
        }
    )*};
}

versions!(postgresql_13 13, postgresql_14 14, postgresql_15 15, postgresql_16 16, postgresql_17 17, postgresql_18 18);
