//! Reads the events of a segment out of the archive.

use super::archive::Archive;
use crate::postgres::history::History;
use crate::postgres::lsn::Lsn;
use crate::postgres::wal::pages::Pages;
use crate::postgres::wal::reader::Walk;
use crate::postgres::wal::transaction::{self, Event};
use crate::repo::RepoError;

/// Hands the events that begin in segment `number` of a path to `visit`, until it answers `false`. A record that crosses into the
/// next segment (up to `end`) is read to its end.
pub async fn segment(
    archive: &Archive,
    path: &History,
    number: u64,
    end: u64,
    mut visit: impl FnMut(Event) -> bool,
) -> Result<(), RepoError> {
    let limit = archive.ends_at_fork(path, number).unwrap_or(archive.segment_start(number + 1));
    let mut scanner = Scanner::new(archive.segment_bytes);
    for number in number..=end {
        let Some(name) = archive.on_path(path, number) else { break };
        scanner.begin(archive.segment_start(number));
        archive.fetch(name, &mut scanner).await?;
        // Only an open record makes the next segment worth reading.
        if scanner.ended || scanner.walk.open_record().is_none() {
            break;
        }
    }
    for event in scanner.events {
        if event.lsn < limit && !visit(event) {
            break;
        }
    }
    Ok(())
}

/// Reads events from segments as they are decompressed.
struct Scanner {
    walk: Walk,
    pages: Pages,
    ended: bool,
    events: Vec<Event>,
}

impl Scanner {
    fn new(segment_bytes: u64) -> Scanner {
        Scanner { walk: Walk::new(segment_bytes), pages: Pages::default(), ended: false, events: Vec::new() }
    }

    fn begin(&mut self, start: Lsn) {
        self.pages = Pages::new(start);
    }
}

impl std::io::Write for Scanner {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Scanner { walk, pages, ended, events } = self;
        pages.feed(bytes, &mut |page, address| {
            *ended = *ended || transaction::events(walk, page, address, &mut |event| events.push(event)).is_err();
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
