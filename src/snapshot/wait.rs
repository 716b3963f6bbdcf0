//! Waiting for WAL to reach the repository, with a deadline and the reason when it does not come (rules 1, 5, 17).

use std::path::Path;
use std::time::Duration;

use super::SnapshotError;
use crate::clock;
use crate::lineage::chain::{self, Link};
use crate::lineage::compare;
use crate::monitor::Monitor;
use crate::postgres::lsn::SystemId;
use crate::postgres::session::Session;
use crate::postgres::wal::header::is_segment_length;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::repo::RepoError;
use crate::repo::manifest::SegmentLine;
use crate::repo::object;
use crate::repo::repository::Cluster;
use crate::repo::segment::{self, WalFileTrailer};
use crate::timeline::indexes::Kept;
use crate::upkeep::check::command;

/// Pauses between two looks: an eighth of what was waited already, so that what arrives is seen little later than it arrived.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whose WAL is waited for.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    pub system: SystemId,
    pub session: &'a Session,
    /// Where its segments lie, as long as it keeps them.
    pub pg_wal: &'a Path,
    /// What this host knows of their digests.
    pub kept: &'a Kept,
}

/// Waits until a segment of this name is in the repository: whose it is, [`prove_own`] tells.
async fn for_segment(
    cluster: &Cluster,
    server: Server<'_>,
    name: SegmentName,
    timeout: Duration,
) -> Result<WalFileTrailer, SnapshotError> {
    let began = clock::monotonic();
    let failed_before = server.session.archiver().await?.failed;
    loop {
        let found = segment::read_trailer(cluster, server.system, &WalFile::Segment(name)).await;
        if let Some(trailer) = object::absent(found)? {
            return Ok(trailer);
        }
        if began.elapsed() >= timeout {
            let reason = reason(server.session, failed_before).await;
            return Err(SnapshotError::WalMissing { segment: name.to_string(), waited_s: timeout.as_secs(), reason });
        }
        tokio::time::sleep((began.elapsed() / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

/// Compares what is archived with the server's own file: a name is taken by whoever archives first. A file that was recycled meanwhile
/// proves nothing; its place in the chain does (see [`for_snapshot`]).
async fn prove_own(
    cluster: &Cluster,
    server: Server<'_>,
    name: SegmentName,
    archived: &WalFileTrailer,
) -> Result<(), SnapshotError> {
    let file = server.pg_wal.join(name.to_string());
    let (there, bytes) = (archived.sha256, archived.raw_bytes);
    if server.kept.digest(name) == Some(there) {
        return Ok(());
    }
    // A standby may not have received all of it.
    let end = is_segment_length(bytes).then(|| name.next(bytes)?.start(bytes)).flatten();
    let is_complete = match server.session.in_recovery().await? {
        true => server.session.current_lsn().await.is_ok_and(|replayed| end.is_some_and(|end| replayed >= end)),
        false => true,
    };
    if !is_complete || !compare::is_segment(&file, name, server.system) {
        return Ok(());
    }
    match compare::digest_of(file.clone()).await {
        // It became another segment while it was read.
        _ if !compare::is_segment(&file, name, server.system) => Ok(()),
        Ok(here) if here == there => Ok(()),
        Ok(here) => Err(SnapshotError::OtherWal { cluster: cluster.name().into(), segment: name, here, there }),
        Err(RepoError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the server's statistics tell about archiving. Those of a standby tell nothing: its primary archives.
async fn reason(session: &Session, failed_before: i64) -> String {
    if session.in_recovery().await.unwrap_or(false) {
        return "this is a standby, and its primary archives: on a quiet primary a segment is finished by archive_timeout (set it there to \
                '1min'), or by hand with SELECT pg_switch_wal(); `lastgood check` there says whether archiving works"
            .into();
    }
    let Ok(state) = session.archiver().await else { return "and the server does not answer any more".into() };
    match (state.last_failed, state.last_archived) {
        (Some(failed), _) if state.failed > failed_before => {
            let line = session.value("SELECT current_setting('archive_command', true)").await.unwrap_or_default();
            let why = command::missing_file(&line).unwrap_or_else(|| "the server's log says why".into());
            format!("archive_command fails for {failed}: {why}")
        }
        (_, Some(archived)) => format!(
            "the server archived {archived} last: does archive_command write into this repository, and is the archiver keeping up?"
        ),
        _ => "the server has not archived anything yet: is archive_command the one that `lastgood init` prints?".into(),
    }
}

/// Proves that archiving works before a byte is copied (rule 5).
pub async fn prove_archiving(cluster: &Cluster, server: Server<'_>, timeout: Duration) -> Result<SegmentName, SnapshotError> {
    let switched = server.session.switch_segment("lastgood archive check").await?;
    let name: SegmentName =
        switched.parse().map_err(|_| SnapshotError::Archiving { reason: format!("no segment name: {switched:?}") })?;
    match for_segment(cluster, server, name, timeout).await {
        Ok(archived) => {
            prove_own(cluster, server, name, &archived).await?;
            history_is_there(cluster, server.system, name).await.map(|()| name)
        }
        Err(SnapshotError::WalMissing { waited_s, reason, .. }) => {
            let reason = format!("segment {name} did not reach the repository within {waited_s} s; {reason}");
            Err(SnapshotError::Archiving { reason })
        }
        Err(error) => Err(error),
    }
}

/// A server that was promoted while archiving was off never archived the history of its timeline.
async fn history_is_there(cluster: &Cluster, system: SystemId, name: SegmentName) -> Result<(), SnapshotError> {
    let file = WalFile::History(name.timeline);
    // The first timeline has none.
    if name.timeline.0 == 1 || object::absent(segment::read_trailer(cluster, system, &file).await)?.is_some() {
        return Ok(());
    }
    let reason = format!(
        "the history file {file} of the server's timeline is not in the repository (the server was promoted while archiving was \
         off?); store it once, in the data directory, with: lastgood archive-push pg_wal/{file}"
    );
    Err(SnapshotError::Archiving { reason })
}

/// Waits for every segment that a snapshot needs, and the history of its timeline; answers them with their checksums. All of them are
/// this server's: the last ones by content, the others by the chain of digests that leads to them.
pub async fn for_snapshot(
    cluster: &Cluster,
    server: Server<'_>,
    segments: impl Iterator<Item = SegmentName>,
    timeout: Duration,
    monitor: &dyn Monitor,
) -> Result<Vec<SegmentLine>, SnapshotError> {
    monitor.phase("wait for WAL", 0);
    let (mut links, mut archived) = (Vec::new(), Vec::new());
    for name in segments {
        let trailer = for_segment(cluster, server, name, timeout).await?;
        links.push(Link { name, sha256: trailer.sha256, previous: trailer.previous });
        archived.push(trailer);
    }
    if let Some(broken) = chain::first_break(&links) {
        return Err(SnapshotError::Archiving { reason: broken.to_string() });
    }
    for (index, trailer) in archived.iter().enumerate() {
        // One that its successor names is proven with that.
        if links.get(index + 1).is_none_or(|next| next.previous.is_none()) {
            prove_own(cluster, server, links[index].name, trailer).await?;
        }
    }
    if let Some(Link { name: last, .. }) = links.last() {
        // The first timeline has no history file.
        if last.timeline.0 > 1 {
            history(cluster, server, *last, timeout).await?;
        }
    }
    Ok(links.into_iter().map(|link| SegmentLine(link.name, link.sha256)).collect())
}

async fn history(cluster: &Cluster, server: Server<'_>, last: SegmentName, timeout: Duration) -> Result<(), SnapshotError> {
    let file = WalFile::History(last.timeline);
    let began = clock::monotonic();
    let archived = loop {
        if let Some(trailer) = object::absent(segment::read_trailer(cluster, server.system, &file).await)? {
            break trailer;
        }
        if began.elapsed() >= timeout {
            let reason = reason(server.session, 0).await;
            return Err(SnapshotError::WalMissing { segment: file.to_string(), waited_s: timeout.as_secs(), reason });
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
    };
    // Two servers may have taken the same number.
    match compare::digest_of(server.pg_wal.join(file.to_string())).await {
        Ok(here) if here != archived.sha256 => {
            let reason = format!("the repository has another {file} than this server: another server took the same timeline");
            Err(SnapshotError::Archiving { reason })
        }
        Ok(_) => Ok(()),
        // A standby that never saw the switch need not have it.
        Err(RepoError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}
