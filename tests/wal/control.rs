//! The control file against `pg_controldata` and the server's own functions.

use std::collections::HashMap;

use lastgood::postgres::control::{ControlError, ControlFile, State};
use lastgood::postgres::scratch::Stop;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::world::World;

/// What `pg_controldata` prints, by its names.
fn controldata(world: &World) -> HashMap<String, String> {
    let output = world.server.command("pg_controldata").env("TZ", "UTC").arg(world.server.data()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.into(), value.trim().into())).collect()
}

/// Asserts that both say the same, and answers the state.
fn same_as_controldata(world: &World) -> State {
    let (control, theirs) = (ControlFile::read(world.server.data()).unwrap(), controldata(world));
    let state = match theirs["Database cluster state"].as_str() {
        "shut down" => State::ShutDown,
        "shut down in recovery" => State::ShutDownInRecovery,
        "in archive recovery" => State::InArchiveRecovery,
        "in production" => State::InProduction,
        other => panic!("{other}"),
    };
    assert_eq!(control.state, state);
    for (name, ours) in [
        ("pg_control version number", control.control_version.to_string()),
        ("Catalog version number", control.catalog_version.to_string()),
        ("Database system identifier", control.system_identifier.to_string()),
        ("pg_control last modified", control.written.strftime("%a %b %e %H:%M:%S %Y").to_string()),
        ("Latest checkpoint location", control.checkpoint.to_string()),
        ("Latest checkpoint's REDO location", control.redo.to_string()),
        ("Latest checkpoint's TimeLineID", control.timeline.0.to_string()),
        ("Database block size", control.block_bytes.to_string()),
        ("Blocks per segment of large relation", control.blocks_per_file.to_string()),
        ("Bytes per WAL segment", control.wal_segment_bytes.to_string()),
        ("Data page checksum version", control.data_checksum_version.to_string()),
    ] {
        assert_eq!(ours, theirs[name], "{name}");
    }
    state
}

/// In production, after a clean end, after a crash, and as a standby (rules 3 and 4).
#[tokio::test(flavor = "multi_thread")]
async fn the_control_file_reads_as_pg_controldata_reads_it() {
    for options in [&["--data-checksums", "--wal-segsize=4"][..], &[]] {
        let mut world = World::bare(15, options, "restore_command = 'false'", None).await;
        assert_eq!(same_as_controldata(&world), State::ShutDown);
        world.start().await;
        world.sql("CREATE TABLE t (x int); CHECKPOINT").await;
        assert_eq!(same_as_controldata(&world), State::InProduction);
        world.server.stop(Stop::Immediate);
        assert_eq!(same_as_controldata(&world), State::InProduction);
        world.start().await;
        world.server.stop(Stop::Fast);
        assert_eq!(same_as_controldata(&world), State::ShutDown);
        std::fs::write(world.server.data().join("standby.signal"), "").unwrap();
        world.start().await;
        assert_eq!(same_as_controldata(&world), State::InArchiveRecovery);
        world.server.stop(Stop::Fast);
        assert_eq!(same_as_controldata(&world), State::ShutDownInRecovery);
    }
}

async fn same_as_sql(major: u32) {
    let mut world = World::bare(major, &["--wal-segsize=2"], "", None).await;
    world.start().await;
    world.sql("CREATE TABLE t (x int); CHECKPOINT").await;
    let theirs = world
        .value(
            "SELECT concat_ws(' ', system_identifier, pg_control_version, catalog_version_no, checkpoint_lsn, redo_lsn, timeline_id,
                 database_block_size, blocks_per_segment, bytes_per_wal_segment, data_page_checksum_version,
                 floor(extract(epoch FROM pg_control_last_modified)))
             FROM pg_control_system(), pg_control_checkpoint(), pg_control_init()",
        )
        .await;
    let ours = ControlFile::read(world.server.data()).unwrap();
    let fields = [
        ours.system_identifier.to_string(),
        ours.control_version.to_string(),
        ours.catalog_version.to_string(),
        ours.checkpoint.to_string(),
        ours.redo.to_string(),
        ours.timeline.0.to_string(),
        ours.block_bytes.to_string(),
        ours.blocks_per_file.to_string(),
        ours.wal_segment_bytes.to_string(),
        ours.data_checksum_version.to_string(),
        ours.written.as_second().to_string(),
    ];
    assert_eq!(fields.join(" "), theirs);
    assert_eq!(ours.state, State::InProduction);
    damaged(&std::fs::read(world.server.data().join("global/pg_control")).unwrap());
}

/// A damaged or short control file is refused (rule 11); behind the checksum nothing counts.
fn damaged(bytes: &[u8]) {
    let good = ControlFile::parse(bytes).unwrap();
    TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() })
        .run(&(0..512usize, 1..=255u8, 0..600usize), |(at, flip, length)| {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= flip;
            let unused = bytes[at..512].iter().all(|byte| *byte == 0);
            match ControlFile::parse(&damaged) {
                Ok(control) => prop_assert!(unused && control == good, "byte {at}"),
                Err(ControlError::Checksum | ControlError::Version { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            prop_assert_eq!(ControlFile::parse(&bytes[..length]).is_ok(), length >= 512);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            same_as_sql($major).await;
        }
    )*};
}

versions!(
    control_file_of_postgresql_13 13,
    control_file_of_postgresql_14 14,
    control_file_of_postgresql_15 15,
    control_file_of_postgresql_16 16,
    control_file_of_postgresql_17 17,
    control_file_of_postgresql_18 18
);
