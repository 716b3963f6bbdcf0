//! What the WAL index adds to a push: the walk through the same segments with nothing else, and what lies in the repository.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use lastgood::postgres::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;

use super::{Player, Scene};
use crate::measure::Step;

/// As a push reads.
const PIECE_BYTES: usize = 512 << 10;

/// After the segments were pushed by `player`.
pub async fn play(scene: &Scene<'_>, player: &Player, names: &[String]) {
    let measured = async {
        let files = names.iter().map(|name| scene.stage.inbox().join(name).display().to_string());
        let step = Step::new(&scene.bench.settings.harness, ["index".to_string()].into_iter().chain(files));
        let mut measured = scene.bench.meter.run(vec![step]).await?;
        measured.output.clear();
        let system = scene.stage.session.value("SELECT system_identifier::text FROM pg_control_system()").await?;
        let indexes = format!("{}/lastgood/clusters/bench/wal/{system}/index", player.part);
        anyhow::Ok((measured, scene.store.stored(&indexes).await?))
    };
    let (measured, stored) = match measured.await {
        Ok((measured, stored)) => (Ok(measured), stored),
        Err(error) => (Err(error), 0),
    };
    scene.keep("index", "lastgood", names.len(), measured, stored, Default::default());
}

/// `index FILE…`: makes the index of each segment, and prints how many bytes they have.
pub fn run(files: &[String]) -> Result<()> {
    let mut bytes = 0;
    for file in files {
        bytes += of_segment(Path::new(file)).with_context(|| file.clone())?;
    }
    println!("{bytes}");
    Ok(())
}

fn of_segment(path: &Path) -> Result<usize> {
    let mut file = std::fs::File::open(path)?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut fold: Option<Fold> = None;
    loop {
        piece.clear();
        (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            break;
        }
        let fold = match &mut fold {
            Some(fold) => fold,
            none => {
                let header = SegmentHeader::parse(&piece[..LONG_HEADER_BYTES.min(piece.len())])?;
                none.insert(Fold::new(header.address, header.segment_bytes, MappedFiles::new()))
            }
        };
        fold.feed(&piece);
    }
    let folded = fold.context("the segment is empty")?.finish();
    Ok(folded.index?.to_bytes()?.len())
}
