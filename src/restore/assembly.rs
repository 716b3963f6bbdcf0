//! From the frames of a stretch to writes: frames are decompressed right where they are written from, proven many at a time, and only
//! then handed over.

use std::ops::Range;
use std::sync::Arc;

use super::lanes::{LaneFailed, Lanes, OpenFile, WRITE_BYTES, Write};
use super::write::{Piece, Stopped};
use crate::repo::fetch::{Fetched, Unproven};
use crate::repo::frame::Decompressor;
use crate::repo::hash;

/// Writes with frames that are not proven yet, besides the one that is being put together: they hold memory. Eight frames of a large
/// file lie in one or two.
const HELD: usize = 2;

pub struct Assembly<'a> {
    fetched: &'a Fetched,
    decompressor: &'a mut Decompressor,
    /// What pieces name by their number.
    files: &'a [Arc<OpenFile>],
    lanes: &'a Lanes,
    /// The last may be continued.
    writes: Vec<Write>,
    unproven: Vec<(Unproven, Place)>,
}

/// Where in the writes a frame lies.
#[derive(Debug, Clone)]
struct Place {
    write: usize,
    bytes: Range<usize>,
}

impl<'a> Assembly<'a> {
    pub fn new(
        fetched: &'a Fetched,
        decompressor: &'a mut Decompressor,
        files: &'a [Arc<OpenFile>],
        lanes: &'a Lanes,
    ) -> Assembly<'a> {
        Assembly { fetched, decompressor, files, lanes, writes: Vec::new(), unproven: Vec::with_capacity(hash::AT_ONCE) }
    }

    /// A frame that goes to one place as a whole.
    pub fn whole(&mut self, index: usize, piece: Piece) -> Result<(), Stopped> {
        let place = self.room(piece)?;
        let room = &mut self.writes[place.write].buffer[place.bytes.clone()];
        let unproven = self.fetched.unpack(index, self.decompressor, room)?;
        self.unproven.push((unproven, place));
        if self.unproven.len() == hash::AT_ONCE { self.prove() } else { Ok(()) }
    }

    /// A frame of which parts go to several places.
    pub fn scattered(&mut self, index: usize, raw: &mut [u8], pieces: &[Piece]) -> Result<(), Stopped> {
        self.fetched.open(index, self.decompressor, raw)?;
        // Its parts may belong to a thousand files, and each takes a buffer until it is handed over.
        self.prove()?;
        for piece in pieces {
            let mut piece = *piece;
            for part in raw[piece.position as usize..][..piece.bytes as usize].chunks(WRITE_BYTES) {
                piece.bytes = part.len() as u32;
                let place = self.room(piece)?;
                self.writes[place.write].buffer[place.bytes].copy_from_slice(part);
                piece.offset += part.len() as u64;
            }
        }
        Ok(())
    }

    /// Hands over what is left.
    pub fn finish(mut self) -> Result<(), Stopped> {
        self.prove()?;
        self.hand_over(0)
    }

    /// Room for a piece in the last write when the piece continues it, or else in a new one. At most [`WRITE_BYTES`].
    fn room(&mut self, piece: Piece) -> Result<Place, Stopped> {
        let bytes = piece.bytes as usize;
        let file = &self.files[piece.file as usize];
        let continues = |write: &Write| {
            Arc::ptr_eq(&write.file, file)
                && write.offset + write.bytes as u64 == piece.offset
                && write.bytes + bytes <= WRITE_BYTES
        };
        if !self.writes.last().is_some_and(continues) {
            if self.unproven.is_empty() || self.writes.len() > HELD {
                self.prove()?;
                self.hand_over(0)?;
            }
            self.writes.push(Write { file: file.clone(), offset: piece.offset, bytes: 0, buffer: self.lanes.buffer() });
        }
        let write = self.writes.len() - 1;
        let begin = self.writes[write].bytes;
        self.writes[write].bytes += bytes;
        Ok(Place { write, bytes: begin..begin + bytes })
    }

    /// Proves all that is not, and hands over all writes but the last.
    fn prove(&mut self) -> Result<(), Stopped> {
        let writes = &self.writes;
        let bytes = |place: &Place| &writes[place.write].buffer[place.bytes.clone()];
        let unproven: Vec<_> = self.unproven.iter().map(|(unproven, place)| (*unproven, bytes(place))).collect();
        let holds = self.fetched.holds(&unproven);
        for ((unproven, place), holds) in self.unproven.drain(..).zip(holds) {
            if !holds {
                let room = &mut self.writes[place.write].buffer[place.bytes];
                self.fetched.open(unproven.index(), self.decompressor, room)?;
            }
        }
        self.hand_over(1)
    }

    /// Hands writes over, all but the last `kept`.
    fn hand_over(&mut self, kept: usize) -> Result<(), Stopped> {
        let done = self.writes.len().saturating_sub(kept);
        self.writes.drain(..done).try_for_each(|write| self.lanes.send(write)).map_err(|LaneFailed| Stopped::Lane)
    }
}
