//! A few months of backups with locks of 30 days, in a store whose clock is moved.

use lastgood::config::S3;

use super::header;
use crate::support::moto::{BUCKET, Kept, Moto};
use crate::support::world::World;

const RULES: &str = "\n[retention]\nkeep_last = 1\n";

struct Stage {
    moto: Moto,
    world: World,
}

impl Stage {
    async fn new() -> Stage {
        let moto = Moto::keeping(Kept::Locks);
        let config = S3 { object_lock_days: Some(30), delete_versions: true, ..moto.config() };
        let url = format!("s3://{BUCKET}");
        let world = World::with(15, &[], "", Some((&url, config.clone()))).await;
        world.write_config(Some((&url, config)), RULES);
        world.sql("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i").await;
        Stage { moto, world }
    }

    fn backup(&self, args: &[&str]) -> String {
        self.world.backup(args)["id"].as_str().unwrap().to_string()
    }

    fn manifest(&self, id: &str) -> (usize, usize) {
        self.moto.versions(&format!("clusters/shop/snapshots/{id}"))
    }

    /// Days from the beginning until which the packs that a snapshot wrote are locked.
    fn locks(&self, id: &str) -> Vec<i64> {
        let answer = self.moto.ask("GET", &format!("?versions&prefix=clusters/shop/packs/{id}/"));
        let keys = answer.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap().to_string());
        let until = keys.filter_map(|key| header(&self.moto, &key, "x-amz-object-lock-retain-until-date"));
        let days = |text: String| {
            let until: jiff::Timestamp = text.parse().unwrap();
            (until.duration_since(lastgood::clock::now()).as_hours() + 12) / 24
        };
        until.map(days).collect()
    }

    fn plan(&self) -> serde_json::Value {
        let said = self.world.ok(&["expire", "--dry-run", "--json"]);
        serde_json::from_str::<serde_json::Value>(said.out.lines().next().unwrap()).unwrap()["plan"].clone()
    }
}

fn ids(list: &serde_json::Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["snapshot"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked_waits_and_goes_on_its_day_and_what_is_taken_over_is_locked_for_longer() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let first = stage.backup(&[]);
    world.sql("INSERT INTO t VALUES (0)").await;
    let second = stage.backup(&[]);
    // Taken over on the same day: locked for half as long again, so that the next weeks ask nothing.
    let of_first = stage.locks(&first);
    assert!(of_first.contains(&45) && of_first.iter().all(|days| [30, 45].contains(days)), "{of_first:?}");
    assert!(stage.locks(&second).iter().all(|days| *days == 30), "{:?}", stage.locks(&second));
    let plan = stage.plan();
    assert_eq!((ids(&plan["kept"]), ids(&plan["removed"])), (vec![first.as_str(), &second], vec![]));
    assert!(plan["kept"][0]["locked_until"].is_string() && plan["kept"][1]["locked_until"].is_null(), "{plan}");
    assert!(plan["locked"][0]["objects"].as_u64().unwrap() > 0 && plan["bytes"].is_null(), "{plan}");
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("no rule keeps it, and it is locked until") && said.out.contains("left "), "{said:?}");
    assert!(said.out.contains("are locked until") && said.out.contains("the next expire after"), "{said:?}");
    assert_eq!(stage.manifest(&first), (1, 0));
    world.ok(&["verify"]);

    stage.moto.travel(20);
    world.sql("INSERT INTO t VALUES (1)").await;
    let third = stage.backup(&[]);
    // Those of the first had 25 days left, those of the second 10: too little for a snapshot that is locked for 30.
    let (of_first, of_second) = (stage.locks(&first), stage.locks(&second));
    assert!(of_first.contains(&65) && of_second.iter().all(|days| [30, 65].contains(days)), "{of_first:?} {of_second:?}");

    // The manifests of both are free, and what nothing needs goes; what the third took over is no concern of theirs.
    stage.moto.travel(31);
    let plan = stage.plan();
    assert_eq!((ids(&plan["kept"]), ids(&plan["removed"])), (vec![third.as_str()], vec![first.as_str(), &second]));
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("removed 2 snapshots") && !said.all().contains("could not be deleted"), "{said:?}");
    assert_eq!((stage.manifest(&first), stage.manifest(&second), stage.manifest(&third)), ((0, 0), (0, 0), (1, 0)));
    world.ok(&["verify"]);

    // Everything anew: the third waits for its day, and then for the packs that were locked for it.
    let fourth = stage.backup(&["--full"]);
    assert_eq!(ids(&stage.plan()["kept"]), [third.as_str(), &fourth]);
    stage.moto.travel(52);
    world.ok(&["expire"]);
    assert_eq!(stage.manifest(&third), (0, 0));
    assert!(!stage.locks(&first).is_empty(), "locked until the 65th day");
    world.ok(&["verify"]);
    stage.moto.travel(67);
    let said = world.ok(&["expire"]);
    assert!(!said.out.contains("left "), "{said:?}");
    for id in [&first, &second, &third] {
        assert_eq!(stage.moto.versions(&format!("clusters/shop/packs/{id}/")), (0, 0), "{id}");
        assert_eq!(stage.moto.versions(&format!("clusters/shop/files/{id}/")), (0, 0), "{id}");
        assert_eq!(stage.moto.versions(&format!("clusters/shop/expired/{id}")), (0, 0), "{id}");
    }
    world.ok(&["verify"]);
    let check = world.run(&["check", "--no-switch"]);
    assert!(check.out.contains("objects are locked for 30 days, and can be locked for longer"), "{check:?}");
}

/// A pin keeps a snapshot for longer than its lock: expiry locks it for longer, all of it, before the lock ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_locked_for_longer_once_in_half_of_the_days() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let first = stage.backup(&[]);
    world.ok(&["pin", &first, "--reason", "the audit"]);
    stage.backup(&["--full"]);
    let shown = |said: &str| said.contains("that stay longer are locked until");
    // The first time, what was there before anything was written down of locks.
    world.ok(&["expire"]);
    assert!(!shown(&world.ok(&["expire"]).out), "30 days are left");
    stage.moto.travel(14);
    let asked = stage.moto.asked("retention");
    assert!(asked > 0 && !shown(&world.ok(&["expire"]).out), "16 days are left");
    assert_eq!(stage.moto.asked("retention"), asked, "nothing is asked of any object");
    stage.moto.travel(16);
    let said = world.ok(&["expire"]);
    assert!(shown(&said.out), "{said:?}");
    assert!(stage.locks(&first).iter().all(|days| *days == 46), "{:?}", stage.locks(&first));
    let until = header(&stage.moto, &format!("clusters/shop/snapshots/{first}"), "x-amz-object-lock-retain-until-date");
    assert!(until.is_some_and(|until| until.parse::<jiff::Timestamp>().unwrap() > lastgood::clock::now()));
    assert!(!shown(&world.ok(&["expire"]).out), "once");
    stage.moto.travel(32);
    assert!(shown(&world.ok(&["expire"]).out), "again after half of the days");
}

/// A backup that died left packs that are locked: they wait, and a later backup removes them.
#[tokio::test(flavor = "multi_thread")]
async fn remains_of_an_unfinished_snapshot_wait_for_their_day() {
    let stage = Stage::new().await;
    let storage = super::store(&S3 { object_lock_days: Some(30), ..stage.moto.config() }).await;
    let remains = super::key("clusters/shop/packs/20200101T000000Z-dead/d000001");
    storage.create(&remains, b"x".to_vec().into()).await.unwrap();
    let said = stage.world.ok(&["backup"]);
    assert!(said.all().contains("1 more are locked until"), "{said:?}");
    stage.moto.travel(32);
    let said = stage.world.ok(&["backup"]);
    assert!(said.all().contains("removed 1 objects"), "{said:?}");
    assert_eq!(stage.moto.versions(remains.as_str()), (0, 0));
}

/// Somebody locked a manifest and a pack for longer, behind our back: the snapshot stays whole, and the pack waits.
#[tokio::test(flavor = "multi_thread")]
async fn locks_of_others_take_no_snapshot_apart_and_fail_nothing() {
    let stage = Stage::new().await;
    let (world, moto) = (&stage.world, &stage.moto);
    let (first, second) = (stage.backup(&[]), stage.backup(&["--full"]));
    let third = stage.backup(&["--full"]);
    let lock = |key: &str, days: i64| {
        let until = lastgood::clock::now() + jiff::SignedDuration::from_hours(24 * days);
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ");
        let body = format!("<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>");
        let answer = moto.send("PUT", &format!("{key}?retention"), "", &body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    let pack = format!("clusters/shop/packs/{second}/d000001");
    lock(&format!("clusters/shop/snapshots/{first}"), 100);
    lock(&pack, 50);
    moto.travel(32);
    let plan = stage.plan();
    assert_eq!((ids(&plan["kept"]), ids(&plan["removed"])), (vec![first.as_str(), &third], vec![second.as_str()]), "{plan}");
    let said = world.ok(&["expire", "--json"]).json();
    assert_eq!((said["done"]["snapshots"].as_u64(), moto.versions(&pack)), (Some(1), (1, 0)), "{said}");
    assert!(said["done"]["locked"]["objects"].as_u64() > plan["locked"][0]["objects"].as_u64(), "{said} {plan}");
    assert_eq!((stage.manifest(&first), stage.manifest(&second)), ((1, 0), (0, 0)));
    world.ok(&["verify"]);
    assert!(world.ok(&["list"]).out.contains(&first));
    moto.travel(60);
    world.ok(&["expire"]);
    assert_eq!((moto.versions(&pack), moto.versions(&format!("clusters/shop/expired/{second}"))), ((0, 0), (0, 0)));
}
