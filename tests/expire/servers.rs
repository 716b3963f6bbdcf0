//! On real servers: after an expiry every kept snapshot, and every moment that was promised, is restored.

use crate::support::world::World;

/// Rules for the program.
pub fn rules(world: &World, text: &str) {
    world.write_config(None, &format!("\n[retention]\n{text}\n"));
}

/// Snapshot `n` of a table that gets a row for each, beside one that never changes.
pub async fn step(world: &World, n: u32) -> String {
    world.sql(&format!("INSERT INTO t VALUES ({n})")).await;
    let id = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql(&format!("INSERT INTO t VALUES ({n} + 1000)")).await;
    world.archive().await;
    id
}

/// A world with as many snapshots.
pub async fn with_snapshots(count: u32) -> (World, Vec<String>) {
    let world = World::new(15).await;
    world.sql("CREATE TABLE still AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 20000) i").await;
    world.sql("CREATE TABLE t (x int)").await;
    let mut ids = Vec::new();
    for n in 1..=count {
        ids.push(step(&world, n).await);
    }
    (world, ids)
}

/// What the program says of snapshots that go or stay.
fn named(plan: &serde_json::Value, what: &str) -> Vec<String> {
    plan[what].as_array().unwrap().iter().map(|s| s["snapshot"].as_str().unwrap().to_string()).collect()
}

fn plan_of(out: &str) -> serde_json::Value {
    let lines = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.into_iter().find(|line| line["event"] == "plan").unwrap()["plan"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_snapshots_restore_after_the_ones_below_them_are_gone() {
    let (world, ids) = with_snapshots(4).await;
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("no retention is configured"), "{}", said.all());
    rules(&world, "keep_last = 2");
    let before = world.objects("clusters");
    let shown = plan_of(&world.ok(&["--json", "expire", "--dry-run"]).out);
    assert_eq!(world.objects("clusters"), before, "a preview changes nothing");
    let said = world.ok(&["--json", "expire"]);
    assert_eq!(plan_of(&said.out), shown, "the preview is what is done");
    assert_eq!((named(&shown, "removed"), named(&shown, "kept")), (ids[..2].to_vec(), ids[2..].to_vec()));
    assert_eq!(world.objects("clusters/shop/snapshots").len(), 2);
    // The table that never changes lies in the first snapshot's packs, and lives on there.
    assert!(!world.objects(&format!("clusters/shop/packs/{}", ids[0])).is_empty());
    assert!(world.objects(&format!("clusters/shop/files/{}", ids[0])).is_empty());
    let freed = said.json()["done"]["bytes"].as_u64().unwrap();
    assert!(freed > 0 && shown["wal"][0]["objects"].as_u64().unwrap() > 0, "{shown:#}");
    // Whoever sweeps next must not take that for remains of an unfinished snapshot.
    let fifth = step(&world, 5).await;
    world.ok(&["verify"]);
    assert_eq!(plan_of(&world.ok(&["--json", "expire"]).out)["removed"][0]["snapshot"], ids[2].as_str());
    world.ok(&["verify"]);
    let nothing = world.ok(&["expire"]);
    assert!(nothing.out.contains("nothing goes"), "{}", nothing.out);
    for (name, id, rows) in [("four", &ids[3], "7"), ("five", &fifth, "9")] {
        let (_server, session) = world.restore(name, &["--to", &format!("snapshot:{id}")]).await;
        assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), rows, "{name}");
        assert_eq!(session.value("SELECT count(*) FROM still").await.unwrap(), "20000");
    }
    let (_server, session) = world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "10");
    let audit = world.ok(&["audit"]).out;
    assert!(audit.contains("expire done") && !audit.contains("no outcome"), "{audit}");
    // Servers that were restored may still want their WAL: what they were restored from stays for three days.
    rules(&world, "keep_last = 1");
    let said = world.ok(&["expire", "--dry-run"]);
    assert!(said.out.contains("and its WAL are kept until") && said.out.contains("nothing goes"), "{}", said.out);
}

/// A pin keeps a snapshot with its own WAL; what is between is gone, and everybody says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_snapshot_outlives_the_wal_around_it() {
    let (world, ids) = with_snapshots(3).await;
    world.refused(&["pin", "2999"], 6, &["there is no snapshot"]);
    world.refused(&["pin", "2"], 6, &["several snapshots"]);
    world.refused(&["pin", &ids[0], "--until", "yesterday"], 2, &["write it as"]);
    world.ok(&["pin", &ids[0], "--dry-run"]);
    assert!(world.objects("clusters/shop/pins").is_empty());
    world.ok(&["pin", &ids[0], "--until", "9000-01-01", "--reason", "the audit"]);
    let listed = world.ok(&["list"]).out;
    assert!(listed.contains("pinned by") && listed.contains("until 9000-01-02") && listed.contains("the audit"), "{listed}");
    rules(&world, "keep_last = 1");
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("the audit") && said.out.contains(&format!("goes       {}", ids[1])), "{}", said.out);
    // A hole that was made on purpose is no gap, and no damage.
    let listed = world.ok(&["list"]).out;
    assert!(!listed.contains("gap"), "{listed}");
    world.ok(&["verify"]);
    let (_server, session) = world.restore("pinned", &["--to", &format!("snapshot:{}", ids[0])]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1");
    // Recovery is not told that the WAL ends where it was expired: it would promote there.
    let plan = plan_of(&world.ok(&["--json", "audit", "--plans"]).out.lines().filter_map(expired_plan).collect::<String>());
    let gone = plan["wal"][0]["last"].as_str().unwrap();
    let into = world.path("segment").display().to_string();
    world.refused(&["archive-get", gone, &into], 126, &["was expired"]);
    world.refused(&["archive-get", "0000000100000000000000FF", &into], 1, &[]);
    world.ok(&["unpin", &ids[0]]);
    let said = world.ok(&["expire", "--dry-run"]).out;
    assert!(said.contains("in use"), "{said}");
}

/// The plan of an expiry that an audit entry holds, as the program prints plans.
fn expired_plan(line: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let event = &entry["entry"]["event"];
    let is_it = event["operation"] == "expire" && event["outcome"] == "attempted";
    is_it.then(|| serde_json::json!({ "event": "plan", "plan": event["plan"] }).to_string())
}

/// The server went back to its first snapshot and on from there: that one's timeline is the one that counts.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_below_the_servers_timeline_stays() {
    let (world, ids) = with_snapshots(3).await;
    let (mut back, _) = world.restore("back", &["--to", &format!("snapshot:{}", ids[0]), "--target-action", "promote"]).await;
    world.release("back");
    back.stop(lastgood::postgres::scratch::Stop::Fast);
    back.start().await.unwrap();
    let session = lastgood::postgres::session::Session::open(&back.connection()).await.unwrap();
    session.run("SET search_path = public, pg_catalog").await.unwrap();
    session.run("INSERT INTO t VALUES (7)").await.unwrap();
    session.run("SELECT pg_switch_wal()").await.unwrap();
    let began = lastgood::clock::monotonic();
    while !world.objects("clusters/shop/wal").iter().any(|key| key.contains("/segments/00000002")) {
        assert!(began.elapsed() < crate::support::world::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // As if the three days of the restore were over.
    std::fs::remove_dir_all(world.repository().join("clusters/shop/leases")).unwrap();
    rules(&world, "keep_last = 1");
    let plan = plan_of(&world.ok(&["--json", "expire"]).out);
    assert_eq!((named(&plan, "kept"), named(&plan, "removed")), (vec![ids[0].clone(), ids[2].clone()], vec![ids[1].clone()]));
    let (_restored, session) = world.restore("again", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t WHERE x = 7").await.unwrap(), "1");
}
