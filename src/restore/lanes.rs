//! Threads that write, and read back what they wrote, so that those that decompress never wait for a disk.
//!
//! A file that is written past the page cache may be written by several lanes at once. One that goes through the page cache has one
//! lane: the kernel lets in one writer at a time, and the others would burn their time in its queue.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_setfl};

use super::RestoreError;
use crate::aligned::{Buffer, Pool};
use crate::config::ReadBack;
use crate::monitor::Monitor;

/// One write takes at most this much: long enough for a disk to be at its best, and eight frames.
pub const WRITE_BYTES: usize = 1 << 20;
/// Writes that wait in a lane.
const QUEUE: usize = 2;

/// A file that is being written. It is closed when no write holds it.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    pub path: PathBuf,
    /// Decides which lane has it, where only one may.
    pub number: usize,
    /// Past the page cache.
    pub is_direct: bool,
}

/// Some bytes on their way into a file.
#[derive(Debug)]
pub struct Write {
    pub file: Arc<OpenFile>,
    pub offset: u64,
    pub bytes: usize,
    pub buffer: Buffer,
}

/// The way to the writing threads. They end when this is gone.
pub struct Lanes {
    senders: Vec<SyncSender<Write>>,
    shared: Arc<Shared>,
    next: AtomicUsize,
}

/// The writing threads themselves.
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    read_back: ReadBack,
    monitor: Arc<dyn Monitor>,
    /// Of [`WRITE_BYTES`].
    buffers: Pool,
    failure: Mutex<Option<RestoreError>>,
}

/// In a sample, one write of so many of a file is read back, and the first.
const SAMPLE: u64 = 16;

/// Whether what was written at `offset` of a file is to be read back.
fn is_read_back(how: ReadBack, offset: u64) -> bool {
    match how {
        ReadBack::Nothing => false,
        ReadBack::Sample => (offset / WRITE_BYTES as u64).is_multiple_of(SAMPLE),
        ReadBack::Everything => true,
    }
}

/// A lane failed; [`Running::finish`] says how.
#[derive(Debug)]
pub struct LaneFailed;

impl Lanes {
    pub fn start(count: usize, read_back: ReadBack, monitor: Arc<dyn Monitor>) -> (Lanes, Running) {
        let shared = Arc::new(Shared { read_back, monitor, buffers: Pool::new(WRITE_BYTES), failure: Mutex::default() });
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..count.max(1) {
            let (sender, receiver) = sync_channel(QUEUE);
            let shared = shared.clone();
            senders.push(sender);
            threads.push(tokio::task::spawn_blocking(move || shared.run(&receiver)));
        }
        (Lanes { senders, shared: shared.clone(), next: AtomicUsize::new(0) }, Running { shared, threads })
    }

    pub fn buffer(&self) -> Buffer {
        self.shared.buffers.take()
    }

    /// Hands a write over; waits while all lanes that could take it are busy. Nothing is taken once a lane failed. Not for async code.
    pub fn send(&self, write: Write) -> Result<(), LaneFailed> {
        if self.shared.failure().is_some() {
            return Err(LaneFailed);
        }
        let count = self.senders.len();
        if !write.file.is_direct {
            return self.senders[write.file.number % count].send(write).map_err(|_| LaneFailed);
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut write = write;
        for lane in 0..count {
            match self.senders[(first + lane) % count].try_send(write) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => write = back,
            }
        }
        self.senders[first % count].send(write).map_err(|_| LaneFailed)
    }
}

impl Running {
    /// Waits until everything is written that was sent. Any failure of a lane comes out here.
    pub async fn finish(self) -> Result<(), RestoreError> {
        for thread in self.threads {
            if let Err(panic) = thread.await {
                std::panic::resume_unwind(panic.into_panic());
            }
        }
        self.shared.failure().take().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<RestoreError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends with the channel, or at the first failure; then whoever sends learns it from the closed channel.
    fn run(&self, writes: &Receiver<Write>) {
        for write in writes {
            if let Err(error) = self.write(&write) {
                self.failure().get_or_insert(error);
                return;
            }
            self.monitor.advance(write.bytes as u64);
        }
    }

    fn write(&self, write: &Write) -> Result<(), RestoreError> {
        let OpenFile { file, path, .. } = &*write.file;
        let failed = |doing: &'static str| move |source: io::Error| RestoreError::Io { doing, path: path.clone(), source };
        let bytes = &write.buffer[..write.bytes];
        match file.write_all_at(bytes, write.offset) {
            // Some file systems take the flag, and then nothing that is written with it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                fcntl_setfl(file, OFlags::empty()).map_err(|errno| failed("write")(errno.into()))?;
                file.write_all_at(bytes, write.offset).map_err(failed("write"))?;
            }
            written => written.map_err(failed("write"))?,
        }
        if !is_read_back(self.read_back, write.offset) {
            return Ok(());
        }
        // Past the page cache this asks the disk itself (rule 38).
        let mut again = self.buffers.take();
        let again = &mut again[..write.bytes];
        file.read_exact_at(again, write.offset).map_err(failed("read back"))?;
        if again != bytes {
            return Err(RestoreError::ReadBack { path: path.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    /// Linux puts what is written to a file open for appending at its end, whatever the offset: a disk that writes elsewhere.
    async fn elsewhere(read_back: ReadBack, offset: u64) -> Result<(), RestoreError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("16384");
        std::fs::write(&path, vec![0; 3 * WRITE_BYTES]).unwrap();
        let file = File::options().read(true).append(true).open(&path).unwrap();
        let file = Arc::new(OpenFile { file, path, number: 1, is_direct: false });
        let (lanes, running) = Lanes::start(2, read_back, Arc::new(Silent));
        let mut buffer = lanes.buffer();
        buffer[..8192].fill(7);
        let sent = tokio::task::spawn_blocking(move || lanes.send(Write { file, offset, bytes: 8192, buffer }));
        assert!(sent.await.unwrap().is_ok());
        running.finish().await
    }

    #[tokio::test]
    async fn what_was_written_elsewhere_is_found_where_it_is_read_back() {
        let last = 2 * WRITE_BYTES as u64;
        for (read_back, offset, is_found) in [
            (ReadBack::Everything, 0, true),
            (ReadBack::Everything, last, true),
            (ReadBack::Sample, 0, true),
            (ReadBack::Sample, last, false),
            (ReadBack::Nothing, 0, false),
        ] {
            let found = matches!(elsewhere(read_back, offset).await, Err(RestoreError::ReadBack { .. }));
            assert_eq!(found, is_found, "{read_back:?} at {offset}");
        }
    }

    /// What failed in one lane ends the others' work too, however much they could still take.
    #[tokio::test]
    async fn nothing_is_taken_once_a_lane_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("16384");
        std::fs::write(&path, [0; 8192]).unwrap();
        // Of two lanes, these have one each; the first cannot be written.
        let open = |number: usize| {
            let file = File::options().read(true).write(number == 1).open(&path).unwrap();
            Arc::new(OpenFile { file, path: path.clone(), number, is_direct: false })
        };
        let (lanes, running) = Lanes::start(2, ReadBack::Nothing, Arc::new(Silent));
        let (closed, open) = (open(0), open(1));
        let sent = tokio::task::spawn_blocking(move || {
            let write = |file: &Arc<OpenFile>| Write { file: file.clone(), offset: 0, bytes: 512, buffer: lanes.buffer() };
            lanes.send(write(&closed)).unwrap();
            // It closes its channel when it has failed.
            while lanes.senders[0].send(write(&closed)).is_ok() {}
            lanes.send(write(&open))
        });
        assert!(sent.await.unwrap().is_err());
        assert!(matches!(running.finish().await, Err(RestoreError::Io { doing: "write", .. })));
    }

    #[test]
    fn a_sample_is_the_beginning_and_a_sixteenth() {
        let read = (0..64u64).filter(|n| is_read_back(ReadBack::Sample, n << 20));
        assert_eq!(read.collect::<Vec<_>>(), [0, 16, 32, 48]);
    }
}
