//! `lastgood.json` and a cluster's record are lost: there is a way back, and the messages name it.

use lastgood::repo::record::PRODUCTION;
use lastgood::upkeep::rebuild;

use super::fixture::{hand_over, open};
use crate::support::world::World;

async fn with_snapshot() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    world
}

/// A lifecycle rule, or `find -mtime`, took the oldest small objects.
#[tokio::test(flavor = "multi_thread")]
async fn lost_records_are_written_again_from_what_is_there() {
    let world = with_snapshot().await;
    let before = open(&world.repository()).await.unwrap().record().await.unwrap().unwrap();
    std::fs::remove_dir_all(world.repository().join("clusters/shop/record")).unwrap();
    std::fs::remove_file(world.repository().join("lastgood.json")).unwrap();
    // Each message leads to the next step, and none of them makes it by itself.
    world.refused(&["list"], 4, &["lastgood.json is missing", "init --rebuild"]);
    world.refused(&["init"], 4, &["init --rebuild"]);
    world.refused(&["check", "--no-switch"], 9, &["init --rebuild"]);
    assert!(!world.repository().join("lastgood.json").exists());
    let said = world.run(&["init", "--rebuild"]);
    assert_eq!(said.code, 0, "{}", said.all());
    let after = open(&world.repository()).await.unwrap().record().await.unwrap().unwrap();
    assert_eq!(after.label.as_deref(), Some(PRODUCTION), "a label that was lost counts as production");
    assert_eq!(after.histories[0].system_identifier, before.histories[0].system_identifier);
    world.ok(&["list"]);
    world.ok(&["backup"]);
    world.ok(&["verify"]);
    assert!(world.ok(&["init", "--rebuild"]).out.contains("nothing is missing"));
    let (_server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT x FROM t").await.unwrap(), "1");
}

/// Only the record is gone: `init` must not take the name for a new one, without a label.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_of_a_cluster_is_not_registered_anew() {
    let world = with_snapshot().await;
    std::fs::remove_dir_all(world.repository().join("clusters/shop/record")).unwrap();
    world.refused(&["list"], 4, &["the record of cluster \"shop\"", "init --rebuild"]);
    world.refused(&["init"], 5, &["init --rebuild"]);
    world.refused(&["check", "--no-switch"], 9, &["init --rebuild"]);
    let said = world.ok(&["init", "--rebuild"]);
    assert!(said.out.contains("counts as production"), "{}", said.all());
    world.ok(&["verify"]);
}

/// A damaged record: the one before stands in with the care of production, and the next number is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_has_one_that_stands_in() {
    let world = with_snapshot().await;
    let cluster = open(&world.repository()).await.unwrap();
    let first = cluster.record().await.unwrap().unwrap();
    let second = lastgood::repo::record::ClusterRecord { number: 2, label: Some("test".into()), ..first };
    assert!(cluster.put_record(&second).await.unwrap());
    let path = world.repository().join("clusters/shop/record/00000002");
    std::fs::write(&path, "not a record").unwrap();
    hand_over(&world, &world.repository());
    world.ok(&["list"]);
    let record = cluster.record().await.unwrap().unwrap();
    assert_eq!((record.number, record.label.as_deref()), (2, Some(PRODUCTION)));
    world.refused(&["check", "--no-switch"], 9, &["record/00000002 is damaged", "an older one stands in"]);
    world.ok(&["init", "--rebuild"]);
    assert_eq!(cluster.record().await.unwrap().unwrap().number, 3);
    world.ok(&["backup"]);
}

/// An empty place, or one that does not answer, is none to write a record into.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_rebuilt_where_nothing_is_there() {
    let world = World::bare(15, &["--no-sync"], "", None).await;
    lastgood::postgres::scratch::make_directory(&world.repository(), world.user()).unwrap();
    world.refused(&["init", "--rebuild"], 4, &["holds nothing", "lastgood init"]);
    assert!(world.objects("").is_empty());
    let world = with_snapshot().await;
    let cluster = open(&world.repository()).await.unwrap();
    assert!(rebuild::cluster_record(&cluster, None).await.unwrap().is_none(), "it is whole");
    assert!(rebuild::cluster_record(&cluster_of(&cluster), None).await.is_err(), "no such cluster was ever here");
}

fn cluster_of(known: &lastgood::repo::repository::Cluster) -> lastgood::repo::repository::Cluster {
    lastgood::repo::repository::Cluster::unchecked(known.vault().clone(), "other")
}
