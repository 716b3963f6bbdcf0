//! Packs of snapshots that are gone, of which little is needed: what is needed is stored anew, and the pack is let go.
//!
//! # Why
//! A pack stays as long as any snapshot refers to it, and every snapshot refers to what it takes over from its parent. So a few
//! pages that never change would hold a pack for ever, with all the dead ones beside them. A snapshot that retires a pack does not
//! take over what lies in it; the pack goes when the older snapshots that refer to it do.
//!
//! # Which
//! Those whose own snapshot is expired (before that, it would hold them anyway), of which less than [`Terms::below_percent`] is
//! alive, and which no pinned snapshot holds for longer than any rule does. What is alive of a pack stands in the parent's pack
//! table, so that nothing has to be read to choose.
//!
//! # The limit
//! The deadest first, while what is alive of them fits under [`Terms::max_bytes`]. Every byte that is stored anew is booked before;
//! when the limit is reached nevertheless, the rest is taken over as ever, and the next snapshot goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::parent::Parent;
use crate::clock;
use crate::repo::RepoError;
use crate::repo::frame::FrameRef;
use crate::repo::keep;
use crate::repo::manifest::{Manifest, MapPlace, Retired};
use crate::repo::pack_table::{PackLine, Used};
use crate::repo::repository::Cluster;

/// When packs are retired, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Packs are retired of which less than so many percent are alive; 0 turns it off.
    pub below_percent: u32,
    /// Raw bytes that one snapshot stores anew for it at most; 0 turns it off.
    pub max_bytes: u64,
}

/// The packs that a snapshot does without, and the account of what that costs.
#[derive(Debug, Default)]
pub struct Retire {
    /// With their stored bytes.
    packs: BTreeMap<Arc<str>, u64>,
    waiting: Vec<u64>,
    limit: u64,
    /// Raw bytes that are stored anew.
    booked: AtomicU64,
}

impl Retire {
    /// What a snapshot with this parent does without. Asks the store only when the parent has packs of which little is alive.
    ///
    /// `ids` are those of all snapshots that there are.
    pub async fn plan(cluster: &Cluster, ids: &[String], parent: &Parent, terms: Terms) -> Result<Retire, RepoError> {
        let Parent { manifest, packs } = parent;
        let is_sparse = |line: &&PackLine| line.used.is_some_and(|used| used.is_below(terms.below_percent));
        let mut sparse: Vec<&PackLine> = packs.iter().filter(|line| line.writer() != manifest.id).filter(is_sparse).collect();
        if terms.max_bytes == 0 || sparse.is_empty() {
            return Ok(Retire::default());
        }
        sparse.retain(|line| !ids.iter().any(|id| id == line.writer()));
        if !sparse.is_empty() {
            let pinned = pinned(cluster, ids).await?;
            sparse.retain(|line| !pinned.contains(&line.name));
        }
        Ok(Retire::choose(sparse, terms.max_bytes))
    }

    /// The deadest first, as many as the limit allows.
    pub(super) fn choose(mut sparse: Vec<&PackLine>, limit: u64) -> Retire {
        let used = |line: &PackLine| line.used.unwrap_or(Used { raw_bytes: 0, live_bytes: 0 });
        // a / b < c / d without a division: the smaller share of the living first.
        sparse.sort_by_key(|line| line.bytes);
        sparse.sort_by(|one, two| {
            let (one, two) = (used(one), used(two));
            let product = |live: Used, all: Used| u128::from(live.live_bytes) * u128::from(all.raw_bytes);
            product(one, two).cmp(&product(two, one))
        });
        let mut retire = Retire { limit, ..Retire::default() };
        let mut left = limit;
        for line in sparse {
            match left.checked_sub(used(line).live_bytes) {
                Some(rest) => {
                    left = rest;
                    retire.packs.insert(line.name.as_str().into(), line.bytes);
                }
                None => retire.waiting.push(line.bytes),
            }
        }
        retire
    }

    /// Whether a file that did not change needs anything of a retired pack; the map that has to be made anew for it is booked.
    pub fn moves(&self, map: &MapPlace) -> bool {
        match map {
            _ if self.packs.is_empty() => false,
            MapPlace::Map(map) => map.frames.iter().any(|frame| self.has(&frame.pack)),
            MapPlace::MapFrame { frame, packs, .. } => {
                let touches = self.has(&frame.pack) || packs.iter().any(|pack| self.has(pack));
                touches && self.book(u64::from(frame.raw_bytes))
            }
        }
    }

    /// Whether `bytes` that lie in this frame are to be stored anew. When so, they are booked: ask once, and do it.
    pub fn lets_go(&self, frame: &FrameRef, bytes: u64) -> bool {
        self.has(&frame.pack) && self.book(bytes)
    }

    fn has(&self, pack: &str) -> bool {
        self.packs.contains_key(pack)
    }

    fn book(&self, bytes: u64) -> bool {
        let add = |booked: u64| booked.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.booked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// What came of it, given the packs that the snapshot needs all the same.
    pub fn outcome(&self, needed: &Live) -> Option<Retired> {
        let gone: Vec<u64> = self.packs.iter().filter(|(name, _)| !needed.has(name)).map(|(_, bytes)| *bytes).collect();
        let left: Vec<u64> = self.packs.iter().filter(|(name, _)| needed.has(name)).map(|(_, bytes)| *bytes).collect();
        let retired = Retired {
            packs: gone.len() as u64,
            stored_bytes: gone.iter().sum(),
            rewritten_bytes: self.booked.load(Ordering::Relaxed),
            waiting_packs: (left.len() + self.waiting.len()) as u64,
            waiting_bytes: left.iter().chain(&self.waiting).sum(),
        };
        (retired != Retired::default()).then_some(retired)
    }
}

/// Packs that pinned snapshots hold.
async fn pinned(cluster: &Cluster, ids: &[String]) -> Result<BTreeSet<String>, RepoError> {
    let now = clock::now();
    let mut held = BTreeSet::new();
    for (id, pin) in keep::all(cluster).await? {
        if !pin.holds(now) || !ids.contains(&id) {
            continue;
        }
        let table = match Manifest::read(cluster, &id).await {
            Ok(manifest) => manifest.packs(cluster).await,
            Err(error) => Err(error),
        };
        match table {
            Ok(packs) => held.extend(packs.into_iter().map(|pack| pack.name)),
            // It cannot be restored; verify says so.
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// How much a snapshot needs of each pack, counted while its lists are written.
#[derive(Debug, Default)]
pub struct Live(BTreeMap<Arc<str>, Option<u64>>);

impl Live {
    /// Counts a file: what it takes from each pack, and its map, where that has to be made anew with any of them.
    pub fn add(&mut self, map: &MapPlace) {
        match map {
            MapPlace::Map(map) => map.live_bytes().into_iter().for_each(|(pack, bytes)| self.count(&pack, Some(bytes))),
            MapPlace::MapFrame { frame, packs, live_bytes } => {
                let of_map = u64::from(frame.raw_bytes);
                for (at, pack) in packs.iter().enumerate() {
                    self.count(pack, live_bytes.get(at).map(|bytes| bytes + of_map));
                }
                self.count(&frame.pack, Some(of_map));
            }
        }
    }

    fn count(&mut self, pack: &Arc<str>, bytes: Option<u64>) {
        match self.0.get_mut(pack) {
            Some(known) => *known = known.zip(bytes).map(|(known, bytes)| known + bytes),
            None => {
                self.0.insert(pack.clone(), bytes);
            }
        }
    }

    pub fn has(&self, pack: &str) -> bool {
        self.0.contains_key(pack)
    }

    /// Puts the count into a line of the pack table.
    pub fn fill(&self, line: &mut PackLine) {
        let live = self.0.get(line.name.as_str()).copied().unwrap_or(Some(0));
        line.used = line.used.zip(live).map(|(used, live_bytes)| Used { live_bytes, ..used });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::map::MapBuilder;
    use crate::repo::object::Sha;

    fn line(name: &str, bytes: u64, raw_bytes: u64, live_bytes: u64) -> PackLine {
        PackLine { name: name.into(), bytes, head: None, used: Some(Used { raw_bytes, live_bytes }) }
    }

    fn frame(pack: &str, raw_bytes: u32) -> FrameRef {
        FrameRef { pack: pack.into(), offset: 0, stored_bytes: 10, raw_bytes, sha256: Sha([1; 32]) }
    }

    #[test]
    fn the_deadest_go_first_and_the_limit_holds() {
        let lines = [line("a/d1", 50, 100, 20), line("b/d1", 5, 10, 1), line("c/d1", 40, 80, 15), line("d/d1", 9, 1000, 10)];
        let chosen = |limit| {
            let retire = Retire::choose(lines.iter().collect(), limit);
            let names: Vec<String> = retire.packs.keys().map(|name| name.to_string()).collect();
            (names.concat().replace("/d1", ""), retire.waiting.iter().sum::<u64>())
        };
        assert_eq!(chosen(46), ("abcd".into(), 0));
        // 1 %, 10 %, 18.75 %, and then 20 % does not fit.
        assert_eq!(chosen(45), ("bcd".into(), 50));
        assert_eq!(chosen(10), ("d".into(), 95));
        assert_eq!(chosen(9), ("b".into(), 99), "what fits goes, though a deader one does not");
        let retire = Retire::choose(lines.iter().collect(), 46);
        assert!(!retire.lets_go(&frame("e/d1", 100), 8) && retire.lets_go(&frame("a/d1", 100), 40));
        assert!(!retire.lets_go(&frame("a/d1", 100), 7) && retire.lets_go(&frame("c/d1", 100), 6));
        assert!(!retire.lets_go(&frame("c/d1", 100), 1), "not a byte more");
        let mut needed = Live::default();
        needed.count(&"a/d1".into(), Some(7));
        let outcome = retire.outcome(&needed).unwrap();
        assert_eq!((outcome.packs, outcome.stored_bytes, outcome.rewritten_bytes), (3, 54, 46));
        assert_eq!((outcome.waiting_packs, outcome.waiting_bytes), (1, 50));
        assert_eq!(Retire::default().outcome(&needed), None);
    }

    #[test]
    fn what_is_alive_is_counted_and_what_is_not_known_stays_so() {
        let mut small = MapBuilder::default();
        small.frame(&frame("a/d1", 100), 10, 30);
        small.zeros(1000);
        let mut live = Live::default();
        live.add(&MapPlace::Map(small.finish()));
        let packs = vec!["a/d1".into(), "b/d1".into()];
        let large = |live_bytes| MapPlace::MapFrame { frame: frame("b/m1", 5), packs: packs.clone(), live_bytes };
        live.add(&large(vec![7, 8]));
        let filled = |live: &Live, name: &str| {
            let mut line = line(name, 1, 1000, 0);
            live.fill(&mut line);
            line.used.map(|used| used.live_bytes)
        };
        assert_eq!(["a/d1", "b/d1", "b/m1", "c/d1"].map(|name| filled(&live, name)), [Some(42), Some(13), Some(5), Some(0)]);
        // A line of an older snapshot says which packs, and not how much of each.
        live.add(&large(Vec::new()));
        assert_eq!(["a/d1", "b/d1", "b/m1"].map(|name| filled(&live, name)), [None, None, Some(10)]);
    }
}
