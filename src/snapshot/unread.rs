//! A file of which only changed pages are read: what is read, and what is taken over from the parent's map.

use std::ops::Range;

use super::changes::FileChanges;
use crate::postgres::page::PAGE_BYTES;
use crate::repo::frame::FrameRef;
use crate::repo::map::{Cursor, FileMap};

const PAGE: u64 = PAGE_BYTES as u64;

#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// To be read up to here.
    Read { end: u64 },
    /// The parent's; zeros without a frame.
    Taken { frame: Option<FrameRef>, position: u32, bytes: u64 },
}

/// The pieces of `range`, in order and without gap. Begin and end of the range are page borders.
pub fn pieces(changes: &FileChanges, range: Range<u64>, parent: &FileMap) -> Vec<Piece> {
    let mut cursor = Cursor::new(parent);
    let mut pieces = Vec::new();
    let mut at = range.start;
    let mut changed = 0;
    while at < range.end {
        if changed <= at {
            changed = changes.next(at / PAGE, range.end / PAGE) * PAGE;
        }
        // A page that lies in two runs of the parent is read.
        let there = cursor.stretch(at).map(|(location, bytes)| (location, bytes.min(changed - at) / PAGE * PAGE));
        match there.filter(|(_, bytes)| *bytes > 0) {
            Some((location, bytes)) => {
                pieces.push(Piece::Taken { frame: location.frame.cloned(), position: location.position, bytes });
                at += bytes;
            }
            None => {
                at += PAGE;
                match pieces.last_mut() {
                    Some(Piece::Read { end }) => *end = at,
                    _ => pieces.push(Piece::Read { end: at }),
                }
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::postgres::wal::index::changed::{Change, ChangedBlocks, Fork};
    use crate::postgres::wal::reference::RelFileLocator;
    use crate::repo::map::MapBuilder;
    use crate::repo::object::Sha;
    use crate::snapshot::changes::Changes;

    fn frame(name: u8) -> FrameRef {
        FrameRef { pack: "s/d000001".into(), offset: 0, stored_bytes: 10, raw_bytes: 131_072, sha256: Sha([name; 32]) }
    }

    fn changes(ranges: &[(u32, u32)]) -> FileChanges {
        let locator = RelFileLocator { tablespace: 1663, database: 5, number: 7 };
        let fork = Fork { locator, fork: 0 };
        let mut changes = Changes::new(131_072);
        let change = Change { limit: None, ranges: ranges.to_vec() };
        changes.add(&ChangedBlocks { forks: [(fork, change)].into(), ..ChangedBlocks::default() }).unwrap();
        Arc::new(changes).of_file(b"base/5/7", 0).unwrap()
    }

    /// Page numbers that are read, and how many pieces are taken.
    fn read(pieces: &[Piece], start: u64) -> (Vec<u64>, usize) {
        let (mut at, mut read, mut taken) = (start, Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Read { end } => {
                    read.extend(at / PAGE..end / PAGE);
                    at = *end;
                }
                Piece::Taken { bytes, .. } => {
                    (at, taken) = (at + bytes, taken + 1);
                }
            }
        }
        (read, taken)
    }

    #[test]
    fn changed_pages_are_read_and_so_is_what_the_parent_lacks() {
        let mut builder = MapBuilder::default();
        builder.frame(&frame(1), 0, 4 * PAGE);
        // Pages 4 to 7 are cut in the middle of one.
        builder.frame(&frame(2), 100, 2 * PAGE + 1000);
        builder.frame(&frame(3), 0, 2 * PAGE - 1000);
        builder.zeros(2 * PAGE);
        let map = builder.finish();
        let pieces = pieces(&changes(&[(1, 2)]), 0..12 * PAGE, &map);
        assert_eq!(read(&pieces, 0), (vec![1, 2, 6, 10, 11], 5));
        assert_eq!(pieces[0], Piece::Taken { frame: Some(frame(1)), position: 0, bytes: PAGE });
        assert_eq!(pieces[2], Piece::Taken { frame: Some(frame(1)), position: 3 * PAGE as u32, bytes: PAGE });
        let zeros = Piece::Taken { frame: None, position: 0, bytes: 2 * PAGE };
        assert!(pieces.contains(&zeros), "{pieces:?}");
    }

    #[test]
    fn a_stretch_in_the_middle_and_an_empty_parent() {
        let mut builder = MapBuilder::default();
        builder.frame(&frame(1), 0, 16 * PAGE);
        let map = builder.finish();
        let changes = changes(&[(9, 9), (40, 40)]);
        assert_eq!(read(&pieces(&changes, 8 * PAGE..12 * PAGE, &map), 8 * PAGE), (vec![9], 2));
        assert_eq!(read(&pieces(&changes, 0..3 * PAGE, &FileMap::default()), 0), (vec![0, 1, 2], 0));
        assert!(pieces(&changes, 0..0, &map).is_empty());
    }
}
