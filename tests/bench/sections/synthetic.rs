//! `list` and plans of a restore on a repository with 1,000 snapshots and 100,000 segments.
//!
//! One real snapshot of an empty cluster is the pattern of all manifests; the segments are tiny, because only their names and what
//! their trailers say is looked at. Everything is written through the library into memory, then into files, once, and kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use lastgood::postgres::scratch::{self, Scratch, Stop};
use lastgood::postgres::wal::name::{SegmentName, WalFile};
use lastgood::repo::manifest::{Manifest, SegmentLine, put_table};
use lastgood::repo::object::Sha;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::segment;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{Body, Depth, Part, Storage, list_all};

use super::Bench;
use crate::database::{self, PROGRAMS};
use crate::measure::{Step, quietly};
use crate::results::Sample;
use crate::stage::warm;

const SNAPSHOTS: u64 = 1_000;
const SEGMENTS: u64 = 100_000;
const SEGMENT_BYTES: u64 = 16 << 20;
/// Of time between two segments.
const STEP_S: i64 = 60;
const VERSION: u32 = 1;

/// Measures once.
pub async fn play(bench: &Bench, round: usize) -> Result<()> {
    let repository = repository(bench).await.context("make the synthetic repository")?;
    let url = repository.display().to_string();
    let scratch = bench.meter.scratch.join("nothing").display().to_string();
    let middle = middle(&repository).await?;
    let plan = |target: &str| ["restore", "--dry-run", "--to", target, "--into", &scratch].map(str::to_string).to_vec();
    let works = [("list", vec!["list".to_string()]), ("plan-latest", plan("latest")), ("plan-snapshot", plan(&middle))];
    for (work, words) in works {
        warm(&repository)?;
        let args = ["--repo", &url, "--cluster", "bench"].map(str::to_string).into_iter().chain(words);
        let ran = bench.meter.run(vec![Step::new(&bench.settings.lastgood, args)]).await;
        let (measured, error) = match ran {
            Ok(mut measured) => {
                measured.output.clear();
                (Some(measured), None)
            }
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let (place, tool, work) = ("directory".into(), "lastgood".into(), work.into());
        bench.keep(Sample { place, work, tool, round, times: 1, measured, error, stored_bytes: 0, counts: Default::default() });
    }
    Ok(())
}

/// The id of a snapshot in the middle.
async fn middle(repository: &Path) -> Result<String> {
    let ids = open(Arc::new(DirectoryStorage::new(repository))).await?.snapshot_ids().await?;
    ids.get(ids.len() / 2).cloned().context("there are no snapshots")
}

async fn open(storage: Arc<dyn Storage>) -> Result<Cluster> {
    Ok(Repository::open(storage, &Keys::default()).await?.registered("bench").await?.0)
}

async fn repository(bench: &Bench) -> Result<PathBuf> {
    let home = bench.settings.work.join(format!("synthetic-v{VERSION}"));
    let ready = home.join("ready");
    if !ready.exists() {
        println!("making a repository with {SNAPSHOTS} snapshots and {SEGMENTS} segments in {} (once)", home.display());
        if home.exists() {
            std::fs::remove_dir_all(&home)?;
        }
        scratch::make_directory(&home, bench.meter.user)?;
        pattern(bench, &home).await.context("take a real snapshot")?;
        multiply(&home.join("repository")).await?;
        if let Some(user) = bench.meter.user {
            let owner = format!("{}:{}", user.uid, user.gid);
            quietly(std::process::Command::new("chown").args(["-R", &owner]).arg(&home), None)?;
        }
        std::fs::write(&ready, "")?;
    }
    Ok(home.join("repository"))
}

/// A real repository with one snapshot.
async fn pattern(bench: &Bench, home: &Path) -> Result<()> {
    let mut server = Scratch::new(Path::new(PROGRAMS), &home.join("data"), &home.join("sockets"), bench.meter.user)?;
    server.initdb(&["--data-checksums"])?;
    let config = home.join("lastgood.toml");
    let (repository, sockets, spool) = (home.join("repository"), home.join("sockets"), home.join("spool"));
    let text = format!(
        "[repository]\nurl = {repository:?}\n[cluster]\nname = \"bench\"\n[postgres]\nhost = {sockets:?}\n[archive]\nspool = {spool:?}\n"
    );
    std::fs::write(&config, text)?;
    let program = bench.settings.lastgood.display();
    let command = format!("{program} --config {} archive-push \"%p\"", config.display());
    server.configure(&format!("archive_mode = on\nfsync = off\narchive_command = '{command}'"))?;
    let session = database::start(&mut server).await?;
    for word in ["init", "backup"] {
        let mut command = std::process::Command::new(&bench.settings.lastgood);
        quietly(command.arg("--config").arg(&config).arg(word), bench.meter.user)?;
    }
    drop(session);
    server.stop(Stop::Fast);
    Ok(std::fs::remove_dir_all(home.join("data"))?)
}

/// Writes what is missing, from the one snapshot.
async fn multiply(repository: &Path) -> Result<()> {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let directory = DirectoryStorage::new(repository);
    for object in list_all(&directory, "", Depth::All).await?.objects {
        let bytes = directory.read(&object.key, Part::Whole).await?.bytes;
        memory.create(&object.key, Body::from(bytes.to_vec())).await?;
    }
    let cluster = open(memory.clone()).await?;
    let id = cluster.snapshot_ids().await?.pop().context("there is no snapshot")?;
    let pattern = Manifest::read(&cluster, &id).await?;
    segments(&cluster, &pattern).await?;
    for number in 1..SNAPSHOTS {
        snapshot(&cluster, &pattern, number).await?;
    }
    for object in list_all(&*memory, "", Depth::All).await?.objects {
        let path = repository.join(object.key.as_str());
        if !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap_or(repository))?;
            std::fs::write(&path, memory.read(&object.key, Part::Whole).await?.bytes)?;
        }
    }
    Ok(())
}

/// After the last segment of the snapshot, one a minute.
async fn segments(cluster: &Cluster, pattern: &Manifest) -> Result<()> {
    let first = pattern.last_segment.number(SEGMENT_BYTES).context("a segment without a number")? + 1;
    for number in 0..SEGMENTS {
        let file = WalFile::Segment(SegmentName::new(pattern.timeline, first + number, SEGMENT_BYTES));
        let at = pattern.stop_time + jiff::SignedDuration::from_secs(number as i64 * STEP_S);
        let encoded = segment::encode(&[0u8; 64][..], 1, None, &[], &mut |_| {})?;
        let summary = serde_json::json!({ "commits": 1, "aborts": 0, "earliest": at, "latest": at });
        segment::store(
            cluster,
            pattern.system_identifier,
            &file,
            encoded,
            segment::Said { summary: Some(summary), ..segment::Said::default() },
        )
        .await?;
    }
    Ok(())
}

/// The same snapshot once more, later.
async fn snapshot(cluster: &Cluster, pattern: &Manifest, number: u64) -> Result<()> {
    let step = number * (SEGMENTS / SNAPSHOTS);
    let begin = pattern.last_segment.number(SEGMENT_BYTES).context("a segment without a number")? + step;
    let segment = SegmentName::new(pattern.timeline, begin, SEGMENT_BYTES);
    let start = segment.start(SEGMENT_BYTES).context("a segment without a start")?;
    let later = jiff::SignedDuration::from_secs(step as i64 * STEP_S);
    let stop_time = pattern.stop_time + later;
    let mut manifest = pattern.clone();
    manifest.id = format!("{}-{number:04x}", stop_time.strftime("%Y%m%dT%H%M%SZ"));
    manifest.start_lsn.0 = start.0 + 40;
    manifest.stop_lsn.0 = start.0 + 4096;
    (manifest.start_time, manifest.stop_time) = (pattern.start_time + later, stop_time);
    (manifest.first_segment, manifest.last_segment) = (segment, segment);
    let packs = pattern.packs(cluster).await?;
    manifest.pack_table = put_table(cluster, &cluster.layout().pack_table(&manifest.id), &packs).await?;
    let wal = [SegmentLine(segment, Sha([0; 32]))];
    manifest.wal_table = put_table(cluster, &cluster.layout().wal_table(&manifest.id), &wal).await?;
    Ok(manifest.commit(cluster).await?)
}
