//! Whether archived segments follow one another.
//!
//! A trailer holds the digest of the segment before, as the same server had it, where the writer knew it. So every reader can check
//! that a stretch of the archive is one history, and a volume that was rolled back breaks the chain at once. A digest that is absent
//! says nothing.

use crate::postgres::history::History;
use crate::postgres::wal::name::SegmentName;
use crate::repo::object::Sha;

/// What a trailer says of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub name: SegmentName,
    pub sha256: Sha,
    /// Of the segment before it, on the path of the server that archived it.
    pub previous: Option<Sha>,
}

/// Two neighbours of the archive that are no neighbours in any server's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    pub before: SegmentName,
    pub after: SegmentName,
}

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "segment {} does not continue the archived {}: its server had another one before it, so the two are of different histories",
            self.after, self.before
        )
    }
}

/// The first break in a stretch of neighbours, in order.
pub fn first_break(links: &[Link]) -> Option<Break> {
    let apart = |pair: &&[Link]| pair[1].previous.is_some_and(|previous| previous != pair[0].sha256);
    links.windows(2).find(apart).map(|pair| Break { before: pair[0].name, after: pair[1].name })
}

/// The segment before `name` on a path: of the timeline that was left, where `name` is the first of its own.
pub fn predecessor(path: &History, name: SegmentName, segment_bytes: u64) -> Option<SegmentName> {
    let before = name.number(segment_bytes)?.checked_sub(1)?;
    Some(path.segment(before, segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lsn::Timeline;

    const SEGMENT: u64 = 16 << 20;

    fn link(number: u64, sha256: u8, previous: Option<u8>) -> Link {
        let name = SegmentName::new(Timeline(1), number, SEGMENT);
        Link { name, sha256: Sha([sha256; 32]), previous: previous.map(|byte| Sha([byte; 32])) }
    }

    #[test]
    fn a_chain_breaks_where_two_histories_meet() {
        assert_eq!(first_break(&[link(3, 3, None), link(4, 4, Some(3)), link(5, 5, None), link(6, 6, Some(5))]), None);
        let broken = first_break(&[link(3, 3, None), link(4, 4, Some(3)), link(5, 5, Some(9)), link(6, 6, Some(5))]).unwrap();
        assert_eq!((broken.before, broken.after), (link(4, 0, None).name, link(5, 0, None).name));
    }

    #[test]
    fn the_first_segment_of_a_timeline_follows_its_parents() {
        let path = History::parse(Timeline(2), "1\t0/3000100\tx\n").unwrap();
        let before = |number| predecessor(&path, SegmentName::new(Timeline(2), number, SEGMENT), SEGMENT).unwrap().to_string();
        assert_eq!(before(3), "000000010000000000000002");
        assert_eq!(before(4), "000000020000000000000003");
        assert_eq!(predecessor(&path, SegmentName::new(Timeline(2), 0, SEGMENT), SEGMENT), None);
    }
}
