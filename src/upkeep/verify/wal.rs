//! The WAL of the windows: every segment is there, can be read, and is replayed.

use super::Verifier;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::gone::Gone;
use crate::repo::manifest::Manifest;
use crate::repo::presence;
use crate::timeline::archive::Archive;
use crate::timeline::gaps;
use crate::timeline::tail::Tail;
use crate::timeline::windows::{self, Window, Windows};

impl Verifier<'_> {
    /// Every segment from the first snapshot's start to the end of each window.
    pub(super) async fn wal(&mut self, archive: &Archive, manifests: &[Manifest]) -> Result<(), RepoError> {
        for (name, problem) in &archive.unreadable {
            self.problem(name.clone(), problem.clone());
        }
        let all = windows::windows(archive, manifests).await?;
        for (snapshot, reason) in &all.unusable {
            let key = self.cluster.layout().manifest(snapshot).to_string();
            self.costs(key, reason.clone(), snapshot);
        }
        for window in &all.windows {
            if let Some(missing) = &window.gap_at {
                let Some(key) = gaps::at_end(archive, window.timeline, missing).await? else { continue };
                let what = "it is missing, and later segments are there: nothing in this gap can be restored".into();
                let broken = format!("{} to {} (timeline {})", window.from_time, window.to_time, window.timeline);
                self.problem(key, what).windows.insert(broken);
            }
            self.window(archive, manifests, window).await?;
        }
        self.stops(archive, &all);
        Ok(())
    }

    /// Where replay stops: a problem as long as no later snapshot leads past it.
    fn stops(&mut self, archive: &Archive, all: &Windows) {
        let unsolved: Vec<_> = all.unsolved(archive).collect();
        for window in &all.windows {
            let Some(stop) = window.stop else { continue };
            let broken = format!("{} to {} (timeline {})", window.from_time, window.to_time, window.timeline);
            if !unsolved.iter().any(|(other, _)| *other == window) {
                self.report.warnings.push(format!("window {broken} ends early: {stop}"));
                continue;
            }
            let number = stop.lsn.segment(archive.segment_bytes);
            let name = archive.path(window.timeline).and_then(|path| archive.on_path(&path, number));
            let key = match name {
                Some(name) => self.cluster.layout().wal(archive.system, &WalFile::Segment(name)).to_string(),
                None => stop.lsn.to_string(),
            };
            let what = format!("{stop}; no snapshot leads past it: `lastgood backup` takes one");
            self.problem(key, what).windows.insert(broken);
        }
    }

    async fn window(&mut self, archive: &Archive, manifests: &[Manifest], window: &Window) -> Result<(), RepoError> {
        let Some(path) = archive.path(window.timeline) else { return Ok(()) };
        let of_window = |m: &&Manifest| window.snapshots.contains(&m.id);
        let starts = manifests.iter().filter(of_window).map(|m| m.start_lsn.segment(archive.segment_bytes));
        let first = starts.min().unwrap_or(0);
        let Some(last) = archive.contiguous_end(&path, first) else { return Ok(()) };
        let name_of = |window: &Window| format!("{} to {} (timeline {})", window.from_time, window.to_time, window.timeline);
        if self.request.quick {
            // The key of a roll-up outlives the segments that it stands for.
            let names = (first..=last).filter_map(|number| archive.on_path(&path, number));
            let names: Vec<SegmentName> = names.filter(|name| archive.tail(*name).is_none()).collect();
            for lack in presence::missing_segments(self.cluster, archive.system, &names).await? {
                self.problem(lack.key, lack.what).windows.insert(name_of(window));
            }
        }
        for number in first..=last {
            let Some(name) = archive.on_path(&path, number) else { break };
            self.report.segments += 1;
            if self.request.quick {
                continue;
            }
            if let Err(error) = archive.fetch(name, &mut std::io::sink()).await {
                if error.is_newer_epoch() {
                    self.report.warnings.push(format!("WAL from {name} on is left out: {error}"));
                    break;
                }
                if !error.is_damage() && !error.is_frozen() {
                    return Err(error);
                }
                // Expired since it was listed, and noted before it went.
                if error.is_not_found() && Gone::read(self.cluster, archive.system).await?.has(name) {
                    continue;
                }
                let file = match archive.tail(name) {
                    Some(Tail::Stored(file)) => *file,
                    _ => WalFile::Segment(name),
                };
                let key = self.cluster.layout().wal(archive.system, &file).to_string();
                let needing = needing(manifests, archive, name, window);
                let problem = self.problem(key, error.to_string());
                problem.snapshots.extend(needing);
                problem.windows.insert(name_of(window));
            }
        }
        Ok(())
    }
}

/// Snapshots that are not consistent without this segment.
fn needing(manifests: &[Manifest], archive: &Archive, name: SegmentName, window: &Window) -> Vec<String> {
    let number = name.number(archive.segment_bytes).unwrap_or(0);
    let needs = |m: &&Manifest| {
        let from = m.start_lsn.segment(archive.segment_bytes);
        let to = m.stop_lsn.last_segment_before(archive.segment_bytes);
        window.snapshots.contains(&m.id) && (from..=to).contains(&number)
    };
    manifests.iter().filter(needs).map(|m| m.id.clone()).collect()
}
