//! How long a restore takes is told from what others took, and honestly not before.

use super::{filled, passes};

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_comes_from_drills_and_restores() {
    let world = filled(15, "").await;
    let into = world.path("restored");
    let restore = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
    let unknown = "not known yet: no drill and no restore of such a size has measured it";
    assert!(world.ok(&["list"]).out.contains(unknown));
    assert!(world.ok(&[&restore[..], &["--dry-run"]].concat()).out.contains(unknown));
    world.ok(&restore);
    let said = world.ok(&["list"]).out;
    assert!(said.contains("the replay of WAL, which no drill has measured; from 1 restore"), "{said}");
    passes(&world, &[]);
    let report = passes(&world, &[]);
    assert!(report["estimated"]["typical_s"].as_f64().unwrap() > 0.0, "{report:#}");
    let said = world.ok(&["list"]).out;
    assert!(said.contains("a restore to its end takes about ") && said.contains("from 2 drills and 1 restore"), "{said}");
    let listed = world.ok(&["--json", "list"]).json();
    let estimate = &listed["histories"][0]["estimates"][0];
    assert!(estimate["drills"] == 2 && estimate["restores"] == 1 && estimate["replay"]["typical_s"].is_number(), "{estimate}");
    // A real restore is compared with what was thought before.
    let again = world.path("again");
    world.ok(&["restore", "--to", "latest", "--into", again.to_str().unwrap()]);
    let last = world.objects("clusters/shop/reports").pop().unwrap();
    let raw = zstd::decode_all(std::fs::File::open(world.repository().join(last)).unwrap()).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    assert!(report["kind"] == "restore" && report["estimated"]["typical_s"].is_number(), "{report:#}");
    assert!(report["phases"][0]["name"] == "restore" && report["phases"][0]["seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    // The entry of the audit vouches for it.
    let audit = world.ok(&["--json", "audit"]).out;
    assert!(audit.contains(report["id"].as_str().unwrap()), "{audit}");
}
