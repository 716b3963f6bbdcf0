//! Verifying in portions: everything comes round, damage stays red, and `check` notices when it is not done.

use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::verified::Verified;
use lastgood::storage::fs::DirectoryStorage;

use crate::support::world::{World, tamper};

/// One portion of a single unit.
fn portion(world: &World, code: i32) -> serde_json::Value {
    let said = world.run(&["--json", "verify", "--budget", "1MB"]);
    assert_eq!(said.code, code, "{}", said.all());
    said.json()["portion"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_is_read_in_turn_and_damage_stays_red() {
    let world = World::new(15).await;
    world.refused(&["verify", "--budget", "many"], 2, &["50GB"]);
    world.refused(&["verify", "--budget", "0GB"], 2, &["50GB"]);
    world.write_config(None, "\n[verify]\ncycle_days = 7\n");
    for n in 0..2 {
        world.sql(&format!("CREATE TABLE t{n} AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 30000) i")).await;
        world.backup(&[]);
    }
    world.refused(&["check", "--no-switch"], 9, &["nothing was ever read again"]);
    let first = portion(&world, 0);
    let units = first["units"].as_u64().unwrap();
    assert!(units >= 5 && first["never_read"].as_u64().unwrap() > 0, "{first}");
    let mut portions = 1;
    while portion(&world, 0)["never_read"] != 0 {
        portions += 1;
        assert!(portions <= units, "each portion reads what was not read before");
    }
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains("was read 0 days ago"), "{}", said.out);
    // One record, however many runs.
    assert_eq!(world.objects("clusters/shop/verified").len(), 1);

    let pack = world.objects("clusters/shop/packs").into_iter().find(|key| key.ends_with("/d000001")).unwrap();
    tamper(&world.repository().join(&pack), |bytes| bytes[1000] ^= 1);
    let mut found = false;
    for _ in 0..=units {
        let said = world.run(&["--json", "verify", "--budget", "1MB"]);
        found |= said.code == 7 && said.json()["portion"]["problems"][0][0] == pack.as_str();
    }
    assert!(found);
    // From then on every run reads it again, whatever its budget.
    for _ in 0..2 {
        assert_eq!(portion(&world, 7)["problems"][0][0], pack.as_str());
    }
    tamper(&world.repository().join(&pack), |bytes| bytes[1000] ^= 1);
    portion(&world, 0);

    let store = std::sync::Arc::new(DirectoryStorage::new(world.repository()));
    let cluster = Repository::open(store, &Keys::default()).await.unwrap().cluster("shop");
    let mut verified = Verified::read(&cluster).await.unwrap().unwrap();
    verified.oldest = verified.oldest.map(|at| at - jiff::SignedDuration::from_hours(24 * 9));
    verified.put(&cluster).await.unwrap();
    let key = world.objects("clusters/shop/verified").pop().unwrap();
    if let Some(user) = world.user() {
        std::os::unix::fs::chown(world.repository().join(key), Some(user.uid), Some(user.gid)).unwrap();
    }
    world.refused(&["check", "--no-switch"], 9, &["9 days ago", "cycle_days is 7"]);
}
