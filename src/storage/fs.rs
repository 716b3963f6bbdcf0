//! A directory as a store.
//!
//! # Durability
//! An object is written to an unnamed file (`O_TMPFILE`), or is one already ([`Body::Unnamed`]), fsynced, and given its name by
//! `linkat`, which fails when the name is taken: so creation is exclusive, and a crash leaves nothing behind. File systems without `O_TMPFILE` (NFS, some
//! overlays) get a temporary name and `link` + `unlink`, or a rename that replaces nothing. Then the directory is fsynced, and every directory made on the way.
//!
//! # Who owns what
//! Files are 0600 and directories 0700. When root writes into a repository that belongs to somebody else (a nightly backup
//! as root, archiving as `postgres`), what it makes is given to the owner of the repository's directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, OFlags};

use super::direct;
use super::memory::paginate;
use super::{Body, Created, Depth, Fault, ObjectInfo, ObjectKey, Page, Part, Read, Result, Storage, StorageError, Tier};
use crate::aligned::Pool;
use crate::durable;
use crate::owner;

mod walk;

use walk::Walk;

/// Held while an unnamed file gets its name.
static NAMING: Mutex<()> = Mutex::new(());

/// How often a create begins again because its folder vanished.
const FOLDER_TRIES: usize = 100;

#[derive(Debug, Clone)]
pub struct DirectoryStorage {
    root: PathBuf,
    place: String,
    buffers: Pool,
}

impl DirectoryStorage {
    /// A store in `root`, which must exist by the time of the first call: an unmounted disk must not look like an empty
    /// repository, so nothing but [`DirectoryStorage::prepare`] ever makes it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        DirectoryStorage { place: format!("file://{}", root.display()), root, buffers: direct::pool() }
    }

    /// Makes the root directory; only `init` does this.
    pub fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        durable::sync_directory(durable::parent(&self.root))
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn error(&self, operation: &'static str, key: &str, error: &io::Error) -> StorageError {
        let fault = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if !self.root.is_dir() => Fault::NoPlace,
            // Creating cannot miss an object: a part of the name is a file, or folders keep vanishing.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if operation == "create" => Fault::Other,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Fault::NotFound,
            io::ErrorKind::PermissionDenied => Fault::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Fault::Full,
            io::ErrorKind::ReadOnlyFilesystem => Fault::ReadOnly,
            io::ErrorKind::UnexpectedEof => Fault::Truncated,
            io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle => Fault::Transient,
            _ => Fault::Other,
        };
        let detail = format!("{error}{}", owner::kept_out(&self.root.join(key), error));
        StorageError { operation, place: self.place.clone(), key: key.into(), fault, detail }
    }

    /// Runs blocking file work on tokio's threads for it.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: String,
        work: impl FnOnce(&DirectoryStorage) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        let done = done.unwrap_or_else(|join| Err(io::Error::other(join.to_string())));
        done.map_err(|error| self.error(operation, &key, &error))
    }

    /// The directory of a new object, made where missing; each one made is durable in its parent.
    fn make_directories(&self, dir: &Path) -> io::Result<()> {
        if dir == self.root || dir.is_dir() {
            return if self.root.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) };
        }
        let above = durable::parent(dir);
        self.make_directories(above)?;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => self.give_to_owner(dir)?,
            // Whoever made it may not have come to the sync yet.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        durable::sync_directory(above)
    }

    /// See the module: what root makes belongs to the owner of the repository.
    fn give_to_owner(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.root)?;
        std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
    }

    /// Somebody who deletes the last object of a folder removes the folder, perhaps between our making it and our using it.
    fn create_now(&self, path: &Path, body: &Body) -> io::Result<Created> {
        let mut tries = FOLDER_TRIES;
        loop {
            match self.create_once(path, body) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 && self.root.is_dir() => tries -= 1,
                Err(error) => {
                    remove_empty_folders(&self.root, durable::parent(path));
                    return Err(error);
                }
                Ok(created) => return Ok(created),
            }
        }
    }

    fn create_once(&self, path: &Path, body: &Body) -> io::Result<Created> {
        let dir = durable::parent(path);
        // Asked first, so that an object that is there costs no writing. Its creator may have died before syncing its name.
        if path.exists() {
            durable::sync_directory(dir)?;
            return Ok(Created::AlreadyThere);
        }
        self.make_directories(dir)?;
        let unnamed = match ready_made(dir, body)? {
            Some(file) => Ok(file),
            None => OpenOptions::new().write(true).mode(0o600).custom_flags(OFlags::TMPFILE.bits() as i32).open(dir),
        };
        let created = match unnamed {
            Ok(file) => {
                fill(&file, body)?;
                match self.name(&file, path)? {
                    Some(created) => created,
                    None => self.create_with_temporary(path, body)?,
                }
            }
            Err(error) if is_unsupported(&error) => self.create_with_temporary(path, body)?,
            Err(error) => return Err(error),
        };
        durable::sync_directory(dir)?;
        Ok(created)
    }

    /// Names an unnamed file; `None` when it cannot be named, or has a name already: of two stores that got the same file at once, the
    /// second makes one of its own.
    fn name(&self, file: &File, path: &Path) -> io::Result<Option<Created>> {
        let _naming = NAMING.lock().unwrap_or_else(PoisonError::into_inner);
        if file.metadata()?.nlink() > 0 {
            return Ok(None);
        }
        self.give_to_owner_of_file(file)?;
        let proc_name = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, proc_name.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(Some(Created::New)),
            Err(rustix::io::Errno::EXIST) => Ok(Some(Created::AlreadyThere)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn give_to_owner_of_file(&self, file: &File) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.root)?;
        std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))
    }

    /// For file systems without `O_TMPFILE`. The name begins with a dot, so no listing shows it.
    fn create_with_temporary(&self, path: &Path, body: &Body) -> io::Result<Created> {
        let temporary = durable::temporary_beside(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let named = fill(&file, body).and_then(|()| self.give_to_owner_of_file(&file)).and_then(|()| name_new(&temporary, path));
        let _ = fs::remove_file(&temporary);
        match named {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::AlreadyThere),
            Err(error) => Err(error),
        }
    }

    fn read_now(&self, path: &Path, part: Part) -> io::Result<Read> {
        let mut file = File::open(path)?;
        // A folder is no object.
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let object_bytes = file.metadata()?.len();
        let (start, wanted) = match part {
            Part::Whole => (0, object_bytes),
            Part::Range { start, bytes } => (start, bytes),
            Part::Tail { bytes } => (object_bytes - bytes.min(object_bytes), bytes.min(object_bytes)),
        };
        if start.checked_add(wanted).is_none_or(|end| end > object_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = match direct::read(&file, start, wanted, &self.buffers)? {
            Some(bytes) => bytes,
            None => {
                file.seek(SeekFrom::Start(start))?;
                let mut bytes = Vec::with_capacity(wanted as usize);
                file.take(wanted).read_to_end(&mut bytes)?;
                bytes.into()
            }
        };
        if bytes.len() as u64 != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Read { bytes, object_bytes })
    }

    fn list_now(&self, prefix: &str, after: Option<&str>, depth: Depth) -> io::Result<Page> {
        if !self.root.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut found = Vec::new();
        let above = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        let walk = Walk { root: &self.root, prefix, after: after.unwrap_or(""), depth };
        walk.folder(above, &mut found)?;
        // Unmounted meanwhile: what was found is not all.
        if !self.root.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(paginate(prefix, found.into_iter(), depth))
    }
}

fn stat_now(path: &Path, key: ObjectKey) -> io::Result<ObjectInfo> {
    let metadata = fs::metadata(path)?;
    // A folder is no object.
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(info(key, &metadata))
}

fn info(key: ObjectKey, metadata: &fs::Metadata) -> ObjectInfo {
    let modified = Timestamp::new(metadata.mtime(), metadata.mtime_nsec() as i32).unwrap_or(Timestamp::UNIX_EPOCH);
    ObjectInfo { key, bytes: metadata.len(), modified, tier: Tier::Ready }
}

fn fill(file: &File, body: &Body) -> io::Result<()> {
    match body {
        Body::Bytes(pieces) => {
            direct::write(file, body, pieces)?;
        }
        Body::Unnamed { file: filled, .. } if is_same(filled, file)? => {}
        Body::File { bytes, .. } | Body::Unnamed { bytes, .. } => copy(&body.path().unwrap_or_default(), *bytes, file)?,
    }
    file.sync_all()
}

/// The body's own file, when all that it lacks is the name: it lies in the folder's file system, and no other store named it.
fn ready_made(dir: &Path, body: &Body) -> io::Result<Option<File>> {
    let Body::Unnamed { file, bytes } = body else { return Ok(None) };
    let metadata = file.metadata()?;
    let is_ready = metadata.nlink() == 0 && metadata.len() == *bytes && metadata.dev() == fs::metadata(dir)?.dev();
    if is_ready { Ok(Some(file.try_clone()?)) } else { Ok(None) }
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Problems with the source are not problems of the object: they get no kind that would be taken for "not found".
fn copy(source: &Path, bytes: u64, mut file: &File) -> io::Result<()> {
    let unreadable = |error: io::Error| io::Error::other(format!("cannot read {}: {error}", source.display()));
    let source_file = File::open(source).map_err(unreadable)?;
    let copied = io::copy(&mut source_file.take(bytes), &mut file)?;
    if copied != bytes {
        return Err(io::Error::other(format!("{} has {copied} bytes instead of {bytes}", source.display())));
    }
    Ok(())
}

/// Gives a file a name that is not taken: by a link, and where the file system has none (FAT, SMB, some FUSE), by a rename that replaces
/// nothing.
fn name_new(temporary: &Path, path: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    let is_one_of =
        |error: &io::Error, known: &[Errno]| known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    match fs::hard_link(temporary, path) {
        Err(error) if is_one_of(&error, &[Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS]) => {}
        named => return named,
    }
    let renamed =
        rustix::fs::renameat_with(CWD, temporary, CWD, path, rustix::fs::RenameFlags::NOREPLACE).map_err(io::Error::from);
    renamed.map_err(|error| match is_one_of(&error, &[Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]) {
        true => io::Error::other(
            "its file system has neither hard links nor a rename that replaces nothing, so of two writers one could overwrite the \
             other's object unseen; use another file system (ext4, XFS, ZFS, NFS 4), or S3",
        ),
        false => error,
    })
}

/// EPERM is what ext4 answers in a directory that was removed meanwhile; by name the true reason comes out.
fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL, Errno::PERM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[async_trait]
impl Storage for DirectoryStorage {
    fn place(&self) -> &str {
        &self.place
    }

    fn conditional_create(&self) -> bool {
        true
    }

    async fn create(&self, key: &ObjectKey, body: Body) -> Result<Created> {
        let path = self.path(key);
        self.blocking("create", key.to_string(), move |this| this.create_now(&path, &body)).await
    }

    async fn read(&self, key: &ObjectKey, part: Part) -> Result<Read> {
        let path = self.path(key);
        self.blocking("read", key.to_string(), move |this| this.read_now(&path, part)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>> {
        let (path, found_key) = (self.path(key), key.clone());
        let stat = self.blocking("stat", key.to_string(), move |_| stat_now(&path, found_key)).await;
        match stat {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, depth: Depth) -> Result<Page> {
        let (asked, after) = (prefix.to_string(), after.map(str::to_string));
        self.blocking("list", prefix.into(), move |this| this.list_now(&asked, after.as_deref(), depth)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, StorageError)>> {
        let keys = keys.to_vec();
        let this = self.clone();
        self.blocking("delete", String::new(), move |_| {
            let mut failed = Vec::new();
            for key in keys {
                let path = this.path(&key);
                match fs::remove_file(&path) {
                    Ok(()) => remove_empty_folders(&this.root, durable::parent(&path)),
                    Err(error) if this.error("delete", "", &error).is_not_found() => {}
                    Err(error) => {
                        let error = this.error("delete", key.as_str(), &error);
                        failed.push((key, error));
                    }
                }
            }
            Ok(failed)
        })
        .await
    }

    fn scratch(&self) -> Option<PathBuf> {
        Some(self.root.clone())
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.blocking("stat", String::new(), |this| {
            let space = rustix::fs::statvfs(&this.root)?;
            Ok(Some(space.f_bavail * space.f_frsize))
        })
        .await
    }
}

/// Folders exist only to hold objects; one that still does refuses to go.
fn remove_empty_folders(root: &Path, mut dir: &Path) {
    while dir != root && dir.starts_with(root) && fs::remove_dir(dir).is_ok() {
        dir = durable::parent(dir);
    }
}
