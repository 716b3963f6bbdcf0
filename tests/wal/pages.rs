//! Page checksums against `pg_checksums`.

use std::path::{Path, PathBuf};

use lastgood::postgres::page;
use lastgood::postgres::scratch::Stop;

use crate::support::world::{World, said, tamper};

/// Relation files of a stopped cluster, with the number of their 1 GiB file.
fn relation_files(dir: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            relation_files(&path, found);
        } else if name.starts_with(|c: char| c.is_ascii_digit()) {
            found.push((path, name.split_once('.').map_or(0, |(_, number)| number.parse().unwrap())));
        }
    }
}

/// Every page, and those whose checksum does not hold.
fn check(data: &Path) -> (usize, Vec<(PathBuf, usize)>) {
    let (mut files, mut pages, mut bad) = (Vec::new(), 0, Vec::new());
    relation_files(&data.join("base"), &mut files);
    relation_files(&data.join("global"), &mut files);
    for (path, number) in files {
        let bytes = std::fs::read(&path).unwrap();
        for (index, bytes) in bytes.chunks(page::PAGE_BYTES).enumerate() {
            pages += 1;
            if !page::checksum_holds(bytes, number * 131_072 + index as u32) {
                bad.push((path.clone(), index));
            } else {
                assert!(page::header_is_sane(bytes), "{} block {index}", path.display());
            }
        }
    }
    (pages, bad)
}

/// What `pg_checksums` counts: blocks, and bad ones.
fn pg_checksums(world: &World) -> (i32, usize, usize) {
    let said = said(world.server.command("pg_checksums").arg("--check").arg("-D").arg(world.server.data()));
    let count = |name: &str| {
        let line = said.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{said:?}"));
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    (said.code, count("Blocks scanned:"), count("Bad checksums:"))
}

/// Each page of a real cluster is found good, as many as `pg_checksums` finds; a flipped bit is found in the same page (rule 12).
#[tokio::test(flavor = "multi_thread")]
async fn checksums_are_those_of_pg_checksums() {
    let mut world = World::bare(15, &["--data-checksums"], "", None).await;
    world.start().await;
    world.sql("CREATE EXTENSION pg_trgm; CREATE EXTENSION bloom").await;
    world.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS what, point(i, i) AS p FROM generate_series(1, 20000) i").await;
    for index in ["btree (i)", "hash (i)", "gin (what gin_trgm_ops)", "gist (p)", "spgist (p)", "brin (i)", "bloom (i)"] {
        world.sql(&format!("CREATE INDEX ON t USING {index}")).await;
    }
    for sql in ["DELETE FROM t WHERE i % 3 = 0", "VACUUM", "CHECKPOINT"] {
        world.sql(sql).await;
    }
    let path = world.server.data().join(world.value("SELECT pg_relation_filepath('t')").await);
    world.server.stop(Stop::Fast);
    let (pages, bad) = check(world.server.data());
    assert_eq!((bad.len(), pg_checksums(&world)), (0, (0, pages, 0)));
    for (block, at) in [(0, 0), (1, 9), (2, 15), (3, 8191), (17, 4000)] {
        let at = block * page::PAGE_BYTES + at;
        tamper(&path, |bytes| bytes[at] ^= 1);
        assert_eq!(check(world.server.data()).1, [(path.clone(), block)]);
        assert_eq!(pg_checksums(&world), (1, pages, 1));
        tamper(&path, |bytes| bytes[at] ^= 1);
    }
}
