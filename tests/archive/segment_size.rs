//! `pg_resetwal --wal-segsize`: the same name means another position, and nothing of it may enter the archive.

use lastgood::postgres::scratch::Stop;

use crate::support::world::{World, said};

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_another_size_are_refused_and_named() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world.archive().await;
    let before = world.objects("clusters/shop/wal");
    world.server.stop(Stop::Fast);
    let done = said(world.server.command("pg_resetwal").args(["--wal-segsize=8", "-D"]).arg(world.server.data()));
    assert_eq!(done.code, 0, "{}", done.all());
    world.start().await;
    world.sql("INSERT INTO t VALUES (2)").await;
    world.refused(&["backup"], 8, &["WAL segments have 8 MiB", "16 MiB", "[cluster] name of its own"]);
    world.refused(&["check"], 9, &["FAILED  registration", "8 MiB"]);
    let segment = world.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    world.sql("SELECT pg_switch_wal()").await;
    let mut push = world.command(&["archive-push", &format!("pg_wal/{segment}")]);
    let refused = said(push.current_dir(world.server.data()));
    assert!(refused.code == 5 && refused.err.contains("it has 8 MiB"), "{}", refused.all());
    assert_eq!(world.objects("clusters/shop/wal"), before, "nothing of it came into the archive");
}
