//! Durability in one place: temporary name, fsync, rename, fsync of the directory.
//!
//! After a failed fsync nothing is retried: the kernel may have dropped the dirty pages, so a second fsync that
//! succeeds would prove nothing (rule 58, the "fsyncgate" of 2018).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Makes the directory's entries durable. Some file systems (SMB, some FUSE) know no such call for directories and answer EINVAL or EBADF;
/// there nobody can do more, and it is passed over as in PostgreSQL (`fsync_fname_ext` in `src/common/file_utils.c`).
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match File::open(dir)?.sync_all() {
        Err(error) if [Errno::INVAL, Errno::BADF].iter().any(|known| error.raw_os_error() == Some(known.raw_os_error())) => {
            Ok(())
        }
        synced => synced,
    }
}

/// Flushes everything of the file system that holds `path`; since Linux 5.8 it reports write errors.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Writes `bytes` to `path`, replacing what is there, so that after a crash either the old or the new content stands.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let written = write_new(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(parent(path))
}

/// A new file that only its owner may read, whatever the umask: WAL and what is said about it are as secret as the tables.
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Creates `path` with `bytes` and fsyncs it; the caller syncs the directory.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Publishes a finished, closed temporary file under its final name.
pub fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    File::open(temporary)?.sync_all()?;
    std::fs::rename(temporary, path)?;
    sync_directory(parent(path))
}

/// A name in the same directory that nobody else uses.
pub fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.tmp-{}", crate::clock::random_hex(6)))
}

/// The directory that holds `path`; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
