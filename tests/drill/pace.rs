//! A drill that leaves room on the line: it reads no faster than it is told, files and WAL, and its time is nobody's estimate.

use super::{configure, failures, passes};
use crate::support::world::World;

const RATE: u64 = 8 << 20;
/// What several readers may have in flight when the budget is used up, and a segment.
const SLACK: u64 = 12 << 20;

fn stored(world: &World, prefix: &str) -> u64 {
    let bytes = |key: &String| std::fs::metadata(world.repository().join(key)).unwrap().len();
    world.objects(prefix).iter().map(bytes).sum()
}

fn phase(report: &serde_json::Value, name: &str) -> f64 {
    let phases = report["phases"].as_array().unwrap();
    phases.iter().find(|phase| phase["name"] == name).unwrap_or_else(|| panic!("{report:#}"))["seconds"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_under_a_ceiling_reads_no_faster() {
    let world = World::new(15).await;
    // Hexadecimal digits of hashes: zstd takes half of them away.
    let rows = "SELECT i AS x, (SELECT string_agg(md5((i * 50 + n)::text), '') FROM generate_series(1, 40) n) AS y";
    world.sql(&format!("CREATE TABLE t AS {rows} FROM generate_series(1, 60000) i")).await;
    world.sql("ALTER TABLE t ALTER y SET STORAGE PLAIN").await;
    world.backup(&[]);
    let packs = stored(&world, "clusters/shop/packs");
    world.sql("CREATE TABLE more AS SELECT * FROM t").await;
    world.archive().await;
    let wal = stored(&world, "clusters/shop/wal");
    assert!(packs > 3 * SLACK && wal > 3 * SLACK, "{packs} {wal}");
    configure(&world, 15, &format!("bytes_per_s = {RATE}\n"));
    let report = passes(&world, &[]);
    assert!(failures(&report).is_empty() && report["bytes_per_s"] == RATE, "{report:#}");
    let least = |bytes: u64| (bytes - SLACK) as f64 / RATE as f64;
    assert!(phase(&report, "restore") >= least(packs), "{packs} bytes of packs: {report:#}");
    assert!(phase(&report, "replay") >= least(wal) / 2.0, "{wal} bytes of WAL: {report:#}");
    // An estimate waits for a drill without a ceiling.
    let plan = ["restore", "--dry-run", "--to", "latest", "--into", world.path("planned").to_str().unwrap()].map(String::from);
    let plan: Vec<&str> = plan.iter().map(String::as_str).collect();
    assert!(world.ok(&plan).out.contains("not known yet"), "{}", world.ok(&plan).out);
    configure(&world, 15, "");
    passes(&world, &[]);
    assert!(!world.ok(&plan).out.contains("not known yet"), "{}", world.ok(&plan).out);
}
