//! 200,000 small files: a full snapshot and a restore of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lastgood::owner::Ids;
use lastgood::postgres::page::{PAGE_BYTES, checksum};
use lastgood::postgres::scratch::{self, Scratch, Stop};

use super::{Bench, Scene, snapshots};
use crate::database::{self, PROGRAMS};
use crate::measure::quietly;
use crate::place::Store;
use crate::stage::{Stage, empty};

const FILES: u32 = 200_000;
/// No relation of a new cluster has such a number.
const FIRST_NUMBER: u32 = 1_000_000_000;
const VERSION: u32 = 1;

/// Measures once.
pub async fn play(bench: &Bench, round: usize) -> Result<()> {
    let base = base(bench).await?;
    let home = bench.home.join(format!("files-{round}"));
    scratch::make_directory(&home, bench.meter.user)?;
    let store = Store::open("directory", &home.join("store"), &bench.settings.harness, bench.meter.user).await?;
    let stage = Stage::start(&base, &home.join("stage"), &bench.meter).await?;
    let mut scene = Scene { bench, kind: "directory", round, stage, store };
    let mut players = scene.players().await?;
    snapshots::backups(&scene, &mut players, "files-full", true).await?;
    snapshots::restores(&scene, &mut players, "files-restore").await?;
    scene.stage.stop();
    drop(scene);
    empty(&home)
}

/// A stopped cluster with many relation files of one page, which no catalogue knows: tools copy them all the same.
async fn base(bench: &Bench) -> Result<PathBuf> {
    let home = bench.settings.work.join(format!("base-files-v{VERSION}"));
    let (data, ready) = (home.join("data"), home.join("ready"));
    if ready.exists() {
        return Ok(data);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home)?;
    }
    println!("making a cluster with {FILES} small files in {} (once)", home.display());
    scratch::make_directory(&home, bench.meter.user)?;
    let mut server = Scratch::new(Path::new(PROGRAMS), &data, &home.join("sockets"), bench.meter.user)?;
    server.initdb(&["--data-checksums"])?;
    let session = database::start(&mut server).await?;
    let oid = session.value("SELECT oid::text FROM pg_database WHERE datname = 'postgres'").await?;
    drop(session);
    server.stop(Stop::Fast);
    write_files(&data.join("base").join(oid), bench.meter.user)?;
    std::fs::remove_dir_all(home.join("sockets"))?;
    std::fs::write(&ready, "")?;
    Ok(data)
}

fn write_files(dir: &Path, user: Option<Ids>) -> Result<()> {
    for number in 0..FILES {
        std::fs::File::create(dir.join((FIRST_NUMBER + number).to_string()))?.write_all(&page(number))?;
    }
    if let Some(user) = user {
        let owner = format!("{}:{}", user.uid, user.gid);
        quietly(std::process::Command::new("chown").args(["-R", &owner]).arg(dir), None)?;
    }
    Ok(())
}

/// A page of its own content, half of it hard to compress, with a sane header and a checksum.
fn page(number: u32) -> Vec<u8> {
    let mut page = vec![0u8; PAGE_BYTES];
    let mut half = |at: usize, value: u16| page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    // pd_lower, pd_upper, pd_special, and the page's size with version 4 of the layout (`bufpage.h`).
    [(12, 24), (14, 24), (16, PAGE_BYTES as u16), (18, PAGE_BYTES as u16 | 4)].iter().for_each(|(at, value)| half(*at, *value));
    // A LSN from before every snapshot: 0/1000.
    page[4..8].copy_from_slice(&0x1000u32.to_le_bytes());
    let mut state = u64::from(number) << 20 | 1;
    for (at, byte) in page[24..].iter_mut().enumerate() {
        // A linear congruential generator (Knuth's MMIX).
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = if at % 2 == 0 { (state >> 56) as u8 } else { b'a' };
    }
    let sum = checksum(&page, 0).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
    page
}
