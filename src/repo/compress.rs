//! A stream of zstd frames made by two threads: one reads, hashes and looks at the bytes, and compresses what the other, which only
//! compresses, has no time for. Both are busy until the end, whatever the one has to do beside.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, TrySendError, channel, sync_channel};

use zstd::bulk::Compressor;

/// Frames that were begun and not written yet, because one before them is not done: what bounds memory when the helper gets no
/// processor.
const WAITING_FRAMES: usize = 4;

/// A frame's raw bytes and what became of them; also buffers on their way back.
#[derive(Default)]
struct Frame {
    raw: Vec<u8>,
    stored: Vec<u8>,
}

/// Frames in the order of the file.
enum Begun {
    /// With the helper, which answers in the order in which it was asked.
    Helper,
    Done(Frame),
}

/// Writes what `next` puts into the buffer, call by call, as one frame each, until it answers `false`: then there is no more.
///
/// # Errors
/// Of `next`, of zstd, and of `sink`, as they are.
pub fn frames(level: i32, sink: &mut impl Write, mut next: impl FnMut(&mut Vec<u8>) -> io::Result<bool>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let (give, given) = sync_channel::<Frame>(1);
        let (answer, answers) = channel::<io::Result<Frame>>();
        let mut helping = Compressing::new(level)?;
        let helper = scope.spawn(move || helping.help(&given, &answer));
        let mut ours = Ours { compressing: Compressing::new(level)?, begun: VecDeque::new(), spare: Vec::new(), answers, sink };
        loop {
            let mut frame = ours.spare.pop().unwrap_or_default();
            frame.raw.clear();
            if !next(&mut frame.raw)? {
                break;
            }
            match give.try_send(frame) {
                Ok(()) => ours.begun.push_back(Begun::Helper),
                Err(TrySendError::Full(frame) | TrySendError::Disconnected(frame)) => ours.compress(frame)?,
            }
            ours.write_until(WAITING_FRAMES)?;
        }
        drop(give);
        ours.write_until(0)?;
        helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    })
}

/// What the thread that reads knows of all frames.
struct Ours<'a, W> {
    compressing: Compressing,
    begun: VecDeque<Begun>,
    spare: Vec<Frame>,
    answers: Receiver<io::Result<Frame>>,
    sink: &'a mut W,
}

impl<W: Write> Ours<'_, W> {
    fn compress(&mut self, mut frame: Frame) -> io::Result<()> {
        self.compressing.run(&mut frame)?;
        self.begun.push_back(Begun::Done(frame));
        Ok(())
    }

    /// Writes all frames whose turn it is and that are done; waits for the helper while more than `most` are begun.
    fn write_until(&mut self, most: usize) -> io::Result<()> {
        while let Some(first) = self.begun.pop_front() {
            let frame = match first {
                Begun::Done(frame) => frame,
                Begun::Helper if self.begun.len() >= most => self.answers.recv().map_err(io::Error::other)??,
                Begun::Helper => match self.answers.try_recv() {
                    Ok(answer) => answer?,
                    Err(_) => {
                        self.begun.push_front(Begun::Helper);
                        return Ok(());
                    }
                },
            };
            self.sink.write_all(&frame.stored)?;
            self.spare.push(frame);
        }
        Ok(())
    }
}

struct Compressing(Compressor<'static>);

impl Compressing {
    fn new(level: i32) -> io::Result<Compressing> {
        let mut compressor = Compressor::new(level)?;
        compressor.include_checksum(true)?;
        Ok(Compressing(compressor))
    }

    fn run(&mut self, frame: &mut Frame) -> io::Result<()> {
        frame.stored.clear();
        frame.stored.reserve(zstd::zstd_safe::compress_bound(frame.raw.len()));
        self.0.compress_to_buffer(&frame.raw, &mut frame.stored)?;
        Ok(())
    }

    /// Until there are no more frames, or nobody wants them any more.
    fn help(&mut self, given: &Receiver<Frame>, answer: &Sender<io::Result<Frame>>) {
        for mut frame in given {
            let done = self.run(&mut frame).map(|()| frame);
            if answer.send(done).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frame `n` of a made-up file: of different lengths, and not alike.
    fn raw(n: u32) -> Vec<u8> {
        (0..(n * 7919) % 70_000).flat_map(|at| (at ^ n).to_le_bytes()).collect()
    }

    #[test]
    fn frames_come_out_in_the_order_of_the_file_whoever_compressed_them() {
        for count in [0, 1, 2, 3, 100] {
            let (mut out, mut number) = (Vec::new(), 0);
            let next = |buffer: &mut Vec<u8>| {
                // Now and then the one who reads has more to do, or less.
                if number % 5 == 0 {
                    std::thread::yield_now();
                }
                assert!(buffer.is_empty());
                buffer.extend(raw(number));
                number += 1;
                Ok(number <= count)
            };
            frames(1, &mut out, next).unwrap();
            let expected: Vec<u8> = (0..count).flat_map(raw).collect();
            let is_right = if count == 0 { out.is_empty() } else { zstd::decode_all(&out[..]).unwrap() == expected };
            assert!(is_right, "{count} frames");
        }
    }

    #[test]
    fn an_error_of_the_reader_or_the_sink_ends_it() {
        let broken = |buffer: &mut Vec<u8>| {
            buffer.push(1);
            Err(io::Error::other("unreadable"))
        };
        assert_eq!(frames(1, &mut Vec::new(), broken).unwrap_err().to_string(), "unreadable");
        let mut small = [0u8; 100];
        let endless = |buffer: &mut Vec<u8>| {
            buffer.extend(raw(7));
            Ok(true)
        };
        let error = frames(1, &mut &mut small[..], endless).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
