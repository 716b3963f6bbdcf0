//! What the WAL index adds to a push: the walk through the same segments with nothing else, and what lies in the repository.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use lastgood::postgres::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::postgres::wal::reader::{PAGE_BYTES, Walk};

use super::{Player, Scene};
use crate::measure::Step;

/// As a push reads.
const PIECE_BYTES: usize = 512 << 10;

/// After the segments were pushed by `player`.
pub async fn play(scene: &Scene<'_>, player: &Player, names: &[String]) {
    walks(scene, names).await;
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

/// The headers and the CRC of every record, against PostgreSQL's own program on the same segments.
async fn walks(scene: &Scene<'_>, names: &[String]) {
    let [Some(first), Some(last)] = [names.first(), names.last()] else { return };
    let inbox = scene.stage.inbox().display().to_string();
    let paths: Vec<String> = names.iter().map(|name| format!("{inbox}/{name}")).collect();
    let harness = |threads: &str| {
        let words = ["walk".to_string(), threads.to_string()].into_iter().chain(paths.iter().cloned());
        Step::new(&scene.bench.settings.harness, words)
    };
    let dump = Path::new(crate::database::PROGRAMS).join("pg_waldump");
    let dump = Step::new(&dump, ["--stats", "--path", &inbox, first, last]);
    for (tool, step) in [("lastgood", harness("1")), ("lastgood, 2 threads", harness("2")), ("pg_waldump --stats", dump)] {
        let measured = scene.bench.meter.run(vec![step]).await.map(|mut measured| {
            measured.output.clear();
            measured
        });
        scene.keep("walk", tool, names.len(), measured, 0, Default::default());
    }
}

/// `walk THREADS FILE…`: reads all records of the segments, each thread its share, and prints how many there are.
pub fn walk(arguments: &[String]) -> Result<()> {
    let (threads, files) = arguments.split_first().context("walk THREADS FILE…")?;
    let share = files.len().div_ceil(threads.parse::<usize>()?.max(1)).max(1);
    let records = std::thread::scope(|scope| {
        let running: Vec<_> = files.chunks(share).map(|files| scope.spawn(move || of_files(files))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum::<Result<u64>>()
    })?;
    println!("{records}");
    Ok(())
}

fn of_files(files: &[String]) -> Result<u64> {
    let mut walk: Option<Walk> = None;
    let mut pages = vec![0u8; PIECE_BYTES];
    for path in files {
        let mut file = std::fs::File::open(path).with_context(|| path.clone())?;
        let mut address = None;
        loop {
            let bytes = file.read(&mut pages)?;
            if bytes == 0 {
                break;
            }
            if address.is_none() {
                let header = SegmentHeader::parse(&pages[..LONG_HEADER_BYTES.min(bytes)])?;
                walk.get_or_insert_with(|| Walk::new(header.segment_bytes));
                address = Some(header.address);
            }
            let (Some(walk), Some(at)) = (&mut walk, &mut address) else { continue };
            for page in pages[..bytes].chunks(PAGE_BYTES) {
                walk.page(page, *at, &mut |_| {}).map_err(|end| anyhow::anyhow!("{path} ends early: {end:?}"))?;
                at.0 += PAGE_BYTES as u64;
            }
        }
    }
    Ok(walk.map_or(0, |walk| walk.records()))
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
