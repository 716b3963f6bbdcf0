//! Roll-ups: the WAL indexes of 16, 256 or 4,096 neighbouring segments in one object.
//!
//! # What
//! A roll-up is a [pack](super::pack) whose frames are the indexes of its segments, in order; what an index says is the business of
//! `postgres::wal::index`. Groups are aligned: the first segment's number is a multiple of the group's size.
//!
//! # What a key proves
//! A roll-up is written when all its segments are stored, so its key alone says that they are there, and a listing of many years
//! is a few keys. Whoever deletes a segment deletes the roll-ups over it first ([`keys_over`]): never a reference to what is gone.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::RepoError;
use super::frame::{Compressor, Decompressor, FRAME_MAX_BYTES, FrameRef};
use super::object::{self, ObjectKind, Sha};
use super::pack::{self, CHUNK_BYTES, PackBuilder};
use super::repository::Cluster;
use super::seal::crypto::GcmKey;
use crate::aligned::Pool;
use crate::postgres::lsn::{SystemId, Timeline};
use crate::postgres::wal::name::SegmentName;
use crate::storage::{Created, ObjectKey, Part};

/// Groups of each level are made of so many of the level below; those of the first level, of so many segments.
pub const FAN: u64 = 16;
pub const LEVELS: RangeInclusive<u8> = 1..=3;
/// A roll-up that would be longer is not made; the level below stands for it.
pub const STORED_MAX_BYTES: usize = 32 << 20;
/// zstd level of the frames: they are small, and read more often than written.
const LEVEL: i32 = 6;

/// Neighbouring segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    pub timeline: Timeline,
    pub level: u8,
    /// Number of the first segment.
    pub first: u64,
}

impl Group {
    /// Segments in a group of this level.
    pub fn size(level: u8) -> u64 {
        FAN.pow(u32::from(level))
    }

    /// The group that holds segment `number`.
    pub fn of(timeline: Timeline, level: u8, number: u64) -> Group {
        Group { timeline, level, first: number - number % Group::size(level) }
    }

    pub fn numbers(&self) -> RangeInclusive<u64> {
        self.first..=self.first + Group::size(self.level) - 1
    }

    pub fn key(&self, cluster: &Cluster, system: SystemId, segment_bytes: u64) -> ObjectKey {
        let first = SegmentName::new(self.timeline, self.first, segment_bytes);
        cluster.layout().rollup(system, self.level, first)
    }

    /// The group that a key stands for; `None` for anything else.
    pub fn named(level: u8, key: &ObjectKey, segment_bytes: u64) -> Option<Group> {
        let name: SegmentName = key.name().parse().ok()?;
        let first = name.number(segment_bytes)?;
        first.is_multiple_of(Group::size(level)).then_some(Group { timeline: name.timeline, level, first })
    }
}

/// Keys of all roll-ups that can exist over segments of a timeline: to be deleted before any of these segments is.
pub fn keys_over(
    cluster: &Cluster,
    system: SystemId,
    timeline: Timeline,
    segment_bytes: u64,
    numbers: RangeInclusive<u64>,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    for level in LEVELS.rev() {
        let size = Group::size(level);
        let first = Group::of(timeline, level, *numbers.start()).first;
        let groups = (first..=*numbers.end()).step_by(size as usize);
        keys.extend(groups.map(|first| Group { timeline, level, first }.key(cluster, system, segment_bytes)));
    }
    keys
}

/// A roll-up that is being put together.
pub struct Builder {
    group: Group,
    key: ObjectKey,
    pack: PackBuilder,
    compressor: Compressor,
    count: u64,
    stored: usize,
}

impl Builder {
    pub fn new(cluster: &Cluster, system: SystemId, segment_bytes: u64, group: Group) -> Builder {
        let key = group.key(cluster, system, segment_bytes);
        let pack = PackBuilder::new("", cluster.vault().sealer(&key), &Pool::new(CHUNK_BYTES));
        Builder { group, key, pack, compressor: Compressor::new(LEVEL), count: 0, stored: 0 }
    }

    /// Adds the index of the next segment; nothing where none could be made.
    pub fn add(&mut self, raw: &[u8]) {
        self.count += 1;
        if self.is_too_long() {
            return;
        }
        let frame = self.compressor.compress(raw);
        self.stored += frame.len();
        self.pack.add(&frame, raw.len() as u32, Sha::of(raw));
    }

    pub fn is_too_long(&self) -> bool {
        self.stored > STORED_MAX_BYTES
    }

    /// Stores it once all segments of the group were added; they are stored. `false` when it would be too long, and is not made.
    pub async fn store(self, cluster: &Cluster) -> Result<bool, RepoError> {
        assert_eq!(self.count, Group::size(self.group.level), "a roll-up holds all of its group");
        if self.is_too_long() {
            return Ok(false);
        }
        // Whoever was first wrote the same: an index follows from its segment.
        let _: Created = cluster.storage().create(&self.key, self.pack.finish().body).await?;
        Ok(true)
    }
}

/// Stores the indexes of a group: one for each of its segments, in order, all of which are stored. `false` when it would be too
/// long, and was not made.
pub async fn write(
    cluster: &Cluster,
    system: SystemId,
    segment_bytes: u64,
    group: &Group,
    indexes: impl Iterator<Item = Vec<u8>>,
) -> Result<bool, RepoError> {
    let mut builder = Builder::new(cluster, system, segment_bytes, *group);
    indexes.for_each(|raw| builder.add(&raw));
    builder.store(cluster).await
}

/// A roll-up that was fetched; its indexes are opened one at a time.
#[derive(Debug)]
pub struct RollUp {
    group: Group,
    key: ObjectKey,
    bytes: Bytes,
    frames: Vec<FrameRef>,
    opens: Option<GcmKey>,
}

/// Fetches a roll-up; `None` where there is none.
pub async fn fetch(cluster: &Cluster, system: SystemId, segment_bytes: u64, group: &Group) -> Result<Option<RollUp>, RepoError> {
    let key = group.key(cluster, system, segment_bytes);
    let most = 2 * STORED_MAX_BYTES as u64;
    let read = cluster.storage().read(&key, Part::Tail { bytes: most }).await.map_err(RepoError::from);
    let Some(read) = object::absent(read)? else { return Ok(None) };
    if read.object_bytes > most {
        return Err(RepoError::damaged(&key, "it is longer than a roll-up can be"));
    }
    let trailer = object::parse_trailer(cluster.vault(), &key, ObjectKind::Pack, &read.bytes, read.object_bytes)?;
    let frames = pack::frames(&key, "", &trailer)?;
    if frames.len() as u64 != Group::size(group.level) {
        return Err(RepoError::damaged(&key, "it does not hold as many indexes as it should"));
    }
    let opens = match (cluster.vault().seal(), &trailer.head) {
        (Some(seal), Some(head)) => Some(seal.content_key(&key, head)?),
        _ => None,
    };
    Ok(Some(RollUp { group: *group, key, bytes: read.bytes, frames, opens }))
}

impl RollUp {
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Hands the number of each segment and what was written for it to `visit`, in order, until it answers `false`.
    pub fn each(&self, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), RepoError> {
        let (mut decompressor, mut raw) = (Decompressor::default(), Vec::new());
        for (frame, number) in self.frames.iter().zip(self.group.numbers()) {
            if frame.raw_bytes > FRAME_MAX_BYTES {
                return Err(RepoError::damaged(&self.key, "a frame announces an impossible length"));
            }
            raw.resize(frame.raw_bytes as usize, 0);
            let stored = &self.bytes[frame.offset as usize..frame.offset as usize + frame.stored_bytes as usize];
            let opened = decompressor.open(frame, stored, self.opens.as_ref(), &mut raw);
            opened.map_err(|what| RepoError::damaged(&self.key, what))?;
            if !visit(number, &raw) {
                break;
            }
        }
        Ok(())
    }
}
