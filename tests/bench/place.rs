//! Where repositories are: a directory, or a Garage server, near or 50 ms away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lastgood::owner::Ids;
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Depth, list_all};

use crate::proxy::{Counts, Proxy};
use crate::stage;
use crate::support::garage::{self, Garage};

pub use crate::support::garage::BUCKET;

pub const REGION: &str = "garage";
/// Longest time for a listing of everything.
const LISTING: Duration = Duration::from_secs(120);

/// As tools are told.
#[derive(Debug, Clone)]
pub enum Place {
    /// A directory in which each tool has its own.
    Directory(PathBuf),
    S3(S3),
}

#[derive(Debug, Clone)]
pub struct S3 {
    pub port: u16,
    pub is_far: bool,
    /// Empty, or ends in `/`.
    pub prefix: String,
    /// With `ca.pem`.
    pub certificates: PathBuf,
    /// In AWS's format, of the server's user.
    pub credentials: PathBuf,
}

impl S3 {
    /// Access key and secret key.
    pub fn keys(&self) -> Result<(String, String)> {
        let text = std::fs::read_to_string(&self.credentials)?;
        let secret = text.lines().find_map(|line| line.strip_prefix("aws_secret_access_key")?.trim_start().strip_prefix('='));
        Ok((garage::ACCESS_KEY.into(), secret.context("no secret key")?.trim().into()))
    }
}

/// A Garage server, and the way to it.
pub struct Served {
    garage: Garage,
    proxy: Proxy,
    s3: S3,
}

/// What stands behind a place in one round.
pub enum Store {
    Directory(PathBuf),
    S3(Box<Served>),
}

impl Store {
    /// A new, empty store of this kind, with its files below `home`.
    pub async fn open(kind: &str, home: &Path, program: &Path, user: Option<Ids>) -> Result<Store> {
        lastgood::postgres::scratch::make_directory(home, user)?;
        if kind == "directory" {
            return Ok(Store::Directory(home.into()));
        }
        if !garage::program().exists() {
            bail!("there is no {}; tests/tools/install bench", garage::program().display());
        }
        let certificates = home.join("certificates");
        std::fs::create_dir(&certificates)?;
        crate::proxy::make_certificates(&certificates)?;
        let garage = Garage::start_below(home).await;
        let config = garage.config();
        let credentials = home.join("credentials");
        std::fs::copy(config.credentials_file.context("Garage has no credentials")?, &credentials)?;
        if let Some(user) = user {
            std::os::unix::fs::chown(&credentials, Some(user.uid), Some(user.gid))?;
        }
        let store_port = config.endpoint.as_ref().and_then(|url| url.rsplit(':').next()?.parse().ok());
        let proxy = Proxy::start(program, store_port.context("Garage has no port")?, &certificates).await?;
        let is_far = kind == "distant";
        let port = if is_far { proxy.far_port } else { proxy.near_port };
        let s3 = S3 { port, is_far, prefix: String::new(), certificates, credentials };
        Ok(Store::S3(Box::new(Served { garage, proxy, s3 })))
    }

    /// A place in the store; what has another `part` is apart from it.
    pub fn place(&self, part: &str) -> Place {
        match self {
            Store::Directory(path) => Place::Directory(path.join(part)),
            Store::S3(served) => Place::S3(S3 { prefix: format!("{part}/"), ..served.s3.clone() }),
        }
    }

    /// The same place as it is seen from 50 ms away; a directory is not.
    pub fn far_place(&self, part: &str) -> Place {
        match self.place(part) {
            Place::S3(s3) if let Store::S3(served) = self => Place::S3(S3 { port: served.proxy.far_port, is_far: true, ..s3 }),
            near => near,
        }
    }

    /// Bytes of everything stored below `part`, by all tools.
    pub async fn stored(&self, part: &str) -> Result<u64> {
        match self {
            Store::Directory(path) => Ok(stage::stored(&path.join(part))),
            Store::S3(served) => {
                let storage = S3Storage::connect(BUCKET, "", &served.garage.config()).await?;
                let prefix = format!("{part}/");
                let listing = list_all(&storage, &prefix, Depth::All);
                let page = tokio::time::timeout(LISTING, listing).await.context("listing the bucket takes too long")??;
                Ok(page.objects.iter().map(|object| object.bytes).sum())
            }
        }
    }

    /// Requests until now; a directory has none.
    pub async fn counts(&self) -> Result<Counts> {
        match self {
            Store::Directory(_) => Ok(Counts::default()),
            Store::S3(served) => served.proxy.counts().await,
        }
    }

    /// Makes the directory of a part, and has the store's files in memory.
    pub fn make(&self, part: &str, user: Option<Ids>) -> Result<()> {
        if let Store::Directory(path) = self {
            lastgood::postgres::scratch::make_directory(&path.join(part), user)?;
        }
        Ok(())
    }

    pub fn warm(&self) -> Result<()> {
        match self {
            Store::Directory(path) => stage::warm(path).map(drop),
            // Its server has just written them.
            Store::S3(_) => Ok(()),
        }
    }
}
