//! A file of which only some pages are read: what is read, and what is taken over from the parent's map.

use std::ops::Range;

use super::changes::Known;
use super::retire::Retire;
use crate::postgres::page::PAGE_BYTES;
use crate::repo::frame::FrameRef;
use crate::repo::map::{Cursor, FileMap};

const PAGE: u64 = PAGE_BYTES as u64;

#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// To be read up to here; `anew` where it is stored although the parent has it.
    Read { end: u64, anew: bool },
    /// The parent's; zeros without a frame.
    Taken { frame: Option<FrameRef>, position: u32, bytes: u64 },
}

/// The pieces of `range`, in order and without gap. The range begins with a page; what is read begins and ends with one, or ends
/// with the range.
pub fn pieces(known: &Known, range: Range<u64>, parent: &FileMap, retire: &Retire) -> Vec<Piece> {
    let mut cursor = Cursor::new(parent);
    let mut pieces = Vec::new();
    let (mut at, mut changed) = (range.start, 0);
    while at < range.end {
        if changed <= at {
            changed = known.next(at..range.end);
        }
        let page_end = (at + PAGE).min(range.end);
        if changed == at {
            read(&mut pieces, page_end, false);
            at = page_end;
            continue;
        }
        let whole_pages = |bytes: u64| if bytes < changed - at { bytes / PAGE * PAGE } else { changed - at };
        match cursor.stretch(at).map(|(location, bytes)| (location, whole_pages(bytes))) {
            Some((location, bytes)) if bytes > 0 => {
                match location.frame.filter(|frame| retire.lets_go(frame, bytes)) {
                    Some(_) => read(&mut pieces, at + bytes, true),
                    None => pieces.push(Piece::Taken { frame: location.frame.cloned(), position: location.position, bytes }),
                }
                at += bytes;
            }
            _ => {
                match parts(&mut cursor, at..page_end) {
                    // Not all of it is there.
                    None => read(&mut pieces, page_end, false),
                    Some(parts) if lets_go(&parts, retire, page_end - at) => read(&mut pieces, page_end, true),
                    Some(parts) => pieces.extend(parts),
                }
                at = page_end;
            }
        }
    }
    pieces
}

fn read(pieces: &mut Vec<Piece>, up_to: u64, as_new: bool) {
    match pieces.last_mut() {
        Some(Piece::Read { end, anew }) if *anew == as_new => *end = up_to,
        _ => pieces.push(Piece::Read { end: up_to, anew: as_new }),
    }
}

/// A page that lies in several runs of the parent.
fn parts(cursor: &mut Cursor, page: Range<u64>) -> Option<Vec<Piece>> {
    let (mut parts, mut at) = (Vec::new(), page.start);
    while at < page.end {
        let (location, bytes) = cursor.stretch(at)?;
        let bytes = bytes.min(page.end - at);
        parts.push(Piece::Taken { frame: location.frame.cloned(), position: location.position, bytes });
        at += bytes;
    }
    Some(parts)
}

/// A page is stored as a whole, when any part of it is.
fn lets_go(parts: &[Piece], retire: &Retire, page_bytes: u64) -> bool {
    let mut frames = parts.iter().filter_map(|part| match part {
        Piece::Taken { frame, .. } => frame.as_ref(),
        Piece::Read { .. } => None,
    });
    frames.any(|frame| retire.lets_go(frame, page_bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::postgres::wal::index::changed::{Change, ChangedBlocks, Fork};
    use crate::postgres::wal::reference::RelFileLocator;
    use crate::repo::map::MapBuilder;
    use crate::repo::object::Sha;
    use crate::repo::pack_table::{PackLine, Used};
    use crate::snapshot::changes::Changes;

    fn frame(name: u8) -> FrameRef {
        FrameRef { pack: "s/d000001".into(), offset: 0, stored_bytes: 10, raw_bytes: 131_072, sha256: Sha([name; 32]) }
    }

    fn changes(ranges: &[(u32, u32)]) -> Known {
        let locator = RelFileLocator { tablespace: 1663, database: 5, number: 7 };
        let fork = Fork { locator, fork: 0 };
        let mut changes = Changes::new(131_072);
        let change = Change { limit: None, ranges: ranges.to_vec() };
        changes.add(&ChangedBlocks { forks: [(fork, change)].into(), ..ChangedBlocks::default() }).unwrap();
        Known::Pages(Arc::new(changes).of_file(b"base/5/7", 0).unwrap())
    }

    /// Page numbers that are read, and how many pieces are taken.
    fn read(pieces: &[Piece], start: u64) -> (Vec<u64>, usize) {
        let (mut at, mut read, mut taken) = (start, Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Read { end, .. } => {
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
        let pieces = pieces(&changes(&[(1, 2)]), 0..12 * PAGE, &map, &Retire::default());
        assert_eq!(read(&pieces, 0), (vec![1, 2, 10, 11], 7));
        assert_eq!(pieces[0], Piece::Taken { frame: Some(frame(1)), position: 0, bytes: PAGE });
        assert_eq!(pieces[2], Piece::Taken { frame: Some(frame(1)), position: 3 * PAGE as u32, bytes: PAGE });
        assert_eq!(pieces[4], Piece::Taken { frame: Some(frame(2)), position: 100 + 2 * PAGE as u32, bytes: 1000 });
        assert_eq!(pieces[5], Piece::Taken { frame: Some(frame(3)), position: 0, bytes: PAGE - 1000 });
        let zeros = Piece::Taken { frame: None, position: 0, bytes: 2 * PAGE };
        assert!(pieces.contains(&zeros), "{pieces:?}");
    }

    #[test]
    fn a_stretch_in_the_middle_and_an_empty_parent() {
        let mut builder = MapBuilder::default();
        builder.frame(&frame(1), 0, 16 * PAGE);
        let map = builder.finish();
        let changes = changes(&[(9, 9), (40, 40)]);
        let empty = FileMap::default();
        let pieces = |range, map| pieces(&changes, range, map, &Retire::default());
        assert_eq!(read(&pieces(8 * PAGE..12 * PAGE, &map), 8 * PAGE), (vec![9], 2));
        assert_eq!(read(&pieces(0..3 * PAGE, &empty), 0), (vec![0, 1, 2], 0));
        assert!(pieces(0..0, &map).is_empty());
    }

    /// Frames of pack `t` are let go, as long as `limit` allows.
    fn retire(limit: u64) -> Retire {
        let used = Some(Used { raw_bytes: 100, live_bytes: 0 });
        Retire::choose(vec![&PackLine { name: "t/d000001".into(), bytes: 1, head: None, used }], limit)
    }

    #[test]
    fn what_lies_in_a_retired_pack_is_read_and_nothing_else() {
        let old = |name| FrameRef { pack: "t/d000001".into(), ..frame(name) };
        let mut builder = MapBuilder::default();
        builder.frame(&frame(1), 0, 3 * PAGE);
        builder.frame(&old(2), 0, 2 * PAGE + 1000);
        builder.frame(&frame(3), 0, PAGE - 1000 + 10);
        // Of the last page there are 10 bytes.
        let (map, end) = (builder.finish(), 6 * PAGE + 10);
        let of = |known: &Known, limit| read(&pieces(known, 0..end, &map, &retire(limit)), 0);
        assert_eq!(of(&Known::Same, u64::MAX), (vec![3, 4, 5], 2));
        assert_eq!(pieces(&Known::Same, 0..end, &map, &retire(u64::MAX))[1], Piece::Read { end: 6 * PAGE, anew: true });
        // The run of two pages fits under the limit, and then the page that another pack shares does not.
        assert_eq!(of(&Known::Same, 3 * PAGE - 1), (vec![3, 4], 4));
        assert_eq!(of(&Known::Same, 2 * PAGE - 1), (vec![5], 3));
        assert_eq!(of(&Known::Same, 0), (vec![], 5));
        // Beside a page that changed, which costs nothing.
        let map = FileMap { runs: map.runs[..2].to_vec(), frames: map.frames.clone() };
        let known = changes(&[(3, 3)]);
        let found = pieces(&known, 0..5 * PAGE, &map, &retire(PAGE));
        assert_eq!(found[1..], [Piece::Read { end: 4 * PAGE, anew: false }, Piece::Read { end: 5 * PAGE, anew: true }]);
    }
}
