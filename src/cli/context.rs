//! From flags, environment and configuration file to a repository and a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use super::keys::{Need, keys};
use super::{output, places, progress, secrets};
use crate::config::{self, Config};
use crate::postgres::session::{Connection, Session, Tls};
use crate::repo::copies;
use crate::repo::manifest::Manifest;
use crate::repo::record::ClusterRecord;
use crate::repo::repository::{Cluster, Opened, Readable, Repository};
use crate::storage::Storage;
use crate::storage::pace::Pace;
use crate::storage::several::Several;

/// Apart from those of the command, which people look for first.
const GENERAL: &str = "General";

/// Flags of every command. Each wins over the environment, and that over the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Configuration file [default: /etc/lastgood.toml, when it exists]
    #[arg(long, global = true, value_name = "PATH", env = "LASTGOOD_CONFIG", help_heading = GENERAL)]
    pub config: Option<PathBuf>,
    /// Repository: /path or s3://bucket/prefix
    #[arg(long, global = true, value_name = "URL", env = "LASTGOOD_REPO", help_heading = GENERAL)]
    pub repo: Option<String>,
    /// Name of the cluster in the repository
    #[arg(long, global = true, value_name = "NAME", env = "LASTGOOD_CLUSTER", help_heading = GENERAL)]
    pub cluster: Option<String>,
    /// Key from `lastgood key export`, as a file or typed in from paper
    #[arg(long, global = true, value_name = "PATH", env = "LASTGOOD_KEY_FILE", help_heading = GENERAL)]
    pub key_file: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true, help_heading = GENERAL)]
    pub json: bool,
    /// Host of the server, or directory of its socket
    #[arg(long, global = true, value_name = "HOST", env = "PGHOST", help_heading = "PostgreSQL")]
    pub pg_host: Option<String>,
    #[arg(long, global = true, value_name = "PORT", env = "PGPORT", help_heading = "PostgreSQL", help = "Port of the server")]
    pub pg_port: Option<u16>,
    /// Role to connect as
    #[arg(long, global = true, value_name = "ROLE", env = "PGUSER", help_heading = "PostgreSQL")]
    pub pg_user: Option<String>,
    /// Where this host sees the data directory, when not where the server does
    #[arg(long, global = true, value_name = "PATH", help_heading = "PostgreSQL")]
    pub data_directory: Option<PathBuf>,
}

impl Global {
    /// The configuration with flags and environment applied, checked as a whole.
    pub fn configuration(&self) -> anyhow::Result<Config> {
        let default = Path::new(config::DEFAULT_PATH);
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None if default.exists() => Config::read(default)?,
            None => Config::default(),
        };
        let set = |place: &mut Option<String>, flag: &Option<String>| {
            if flag.is_some() {
                place.clone_from(flag);
            }
        };
        if let Some(url) = &self.repo {
            places::choose(&mut config, url);
        }
        if let Some(name) = &self.cluster {
            config.cluster.name.clone_from(name);
        }
        if self.key_file.is_some() {
            config.encryption.key_file.clone_from(&self.key_file);
        }
        set(&mut config.postgres.host, &self.pg_host);
        set(&mut config.postgres.user, &self.pg_user);
        if self.pg_port.is_some() {
            config.postgres.port = self.pg_port;
        }
        if self.data_directory.is_some() {
            config.postgres.data_directory.clone_from(&self.data_directory);
        }
        config.check()?;
        Ok(config)
    }

    /// The words with which another process calls this program with the same configuration.
    pub fn words(&self, config: &Config) -> anyhow::Result<Vec<String>> {
        let program = std::env::current_exe().context("find this program's own path")?;
        let mut words = vec![program.display().to_string()];
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_string(), value]);
            }
        };
        let path = config.path.as_ref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone()));
        flag("--config", path.map(|p| p.display().to_string()));
        flag("--repo", self.repo.clone());
        flag("--cluster", self.cluster.clone());
        let key_file = self.key_file.as_ref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone()));
        flag("--key-file", key_file.map(|p| p.display().to_string()));
        Ok(words)
    }

    /// What was said of the server by flags or by the environment, for a process that has neither.
    pub fn server_words(&self) -> Vec<String> {
        let directory = self.data_directory.as_ref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone()));
        let said = [
            ("--pg-host", self.pg_host.clone()),
            ("--pg-port", self.pg_port.map(|port| port.to_string())),
            ("--pg-user", self.pg_user.clone()),
            ("--data-directory", directory.map(|path| path.display().to_string())),
        ];
        said.into_iter().filter_map(|(flag, value)| Some([flag.to_string(), value?])).flatten().collect()
    }

    /// The same as a line for `archive_command` or `restore_command`, where `%` is PostgreSQL's own.
    pub fn server_command(&self, config: &Config, rest: &str) -> anyhow::Result<String> {
        Ok(format!("{} {rest}", output::shell_words(&self.words(config)?).replace('%', "%%")))
    }
}

/// Everything a command works on.
pub struct Place {
    pub config: Config,
    pub repository: Repository,
    pub cluster: Cluster,
    pub record: ClusterRecord,
    /// Where it is read from several places.
    pub several: Option<Arc<Several>>,
    /// Ids of the snapshots, as they were listed when it was opened.
    ids: Vec<String>,
    /// Their manifests, where they were read at once.
    read: Option<Vec<Readable>>,
}

impl Place {
    /// With keys that read everything, where such are configured.
    pub async fn open(global: &Global) -> anyhow::Result<Place> {
        Place::open_to(global, Need::Read).await
    }

    /// The first repository alone: for what is done to one.
    pub async fn open_to(global: &Global, need: Need) -> anyhow::Result<Place> {
        let config = global.configuration()?;
        let storage = storage(&config).await?;
        Place::with(config, storage, need, None).await
    }

    /// The first repository alone, read no faster than the configuration says of drills.
    pub async fn open_for_drill(global: &Global) -> anyhow::Result<Place> {
        let config = global.configuration()?;
        let pace = config.drill.as_ref().and_then(|drill| drill.bytes_per_s);
        let storage = Arc::new(Pace::new(storage(&config).await?, pace));
        Place::with(config, storage, Need::Read, None).await
    }

    /// Whichever repository is sound, object by object: for reading.
    pub async fn open_any(global: &Global) -> anyhow::Result<Place> {
        let config = global.configuration()?;
        let (storage, several) = places::any(&config).await?;
        Place::with_manifests(config, storage, Need::Read, several, true).await
    }

    /// All repositories that are required: for writing.
    pub async fn open_all(global: &Global, need: Need) -> anyhow::Result<Place> {
        let config = global.configuration()?;
        let storage = places::required(&config).await?;
        copies::prove_places(&*storage).await?;
        Place::with(config, storage, need, None).await
    }

    async fn with(config: Config, storage: Arc<dyn Storage>, need: Need, several: Option<Arc<Several>>) -> anyhow::Result<Place> {
        Place::with_manifests(config, storage, need, several, false).await
    }

    async fn with_manifests(
        config: Config,
        storage: Arc<dyn Storage>,
        need: Need,
        several: Option<Arc<Several>>,
        wanted: bool,
    ) -> anyhow::Result<Place> {
        let (keys, lease_s) = (keys(&config, need)?, config.repository.lease_s);
        let Opened { repository, cluster, record, ids, manifests } =
            Repository::open_cluster(storage, &keys, lease_s, &config.cluster.name, wanted).await?;
        Ok(Place { config, repository, cluster, record, several, ids, read: wanted.then_some(manifests) })
    }

    /// The newest snapshot, as it was when the repository was opened.
    pub fn newest(&self) -> Option<String> {
        self.ids.last().cloned()
    }

    /// Manifests that can be read, oldest first; the others are named in a warning.
    pub async fn manifests(&self, json: bool) -> anyhow::Result<Vec<Manifest>> {
        let (readable, unreadable) = self.snapshots().await?;
        for (id, error) in unreadable {
            progress::monitor(json).warn(&format!("snapshot {id} is left out: {error}"));
        }
        Ok(readable)
    }

    /// The same, and why the others cannot be read.
    pub async fn snapshots(&self) -> anyhow::Result<(Vec<Manifest>, Vec<(String, String)>)> {
        let now;
        let all = match &self.read {
            Some(all) => all,
            None => {
                now = self.cluster.manifests_of(self.ids.clone()).await?;
                &now
            }
        };
        let readable = all.iter().filter_map(|(_, manifest)| manifest.as_ref().ok().cloned()).collect();
        let why = |(id, manifest): &Readable| Some((id.clone(), manifest.as_ref().err()?.to_string()));
        Ok((readable, all.iter().filter_map(why).collect()))
    }
}

/// The first repository alone.
pub async fn storage(config: &Config) -> anyhow::Result<Arc<dyn Storage>> {
    places::first(config).await
}

/// Connects to the configured server.
pub async fn session(config: &Config) -> anyhow::Result<Session> {
    Ok(Session::open(&connection(config).await?).await?)
}

/// Who asks the configured server, and where.
pub async fn connection(config: &Config) -> anyhow::Result<Connection> {
    let postgres = &config.postgres;
    let tls = match postgres.sslmode.as_deref() {
        None => None,
        Some("prefer") => Some(Tls::Prefer),
        Some("disable") => Some(Tls::Disable),
        Some("require" | "verify-full") => Some(Tls::Require),
        Some(other) => {
            let what = format!("[postgres] sslmode is {other:?}");
            return Err(config::ConfigError::Invalid {
                what,
                mend: "use disable, prefer or require (which verifies like verify-full)".into(),
            }
            .into());
        }
    };
    Ok(Connection {
        host: postgres.host.clone(),
        port: postgres.port,
        user: postgres.user.clone(),
        dbname: postgres.dbname.clone(),
        password: secrets::password(postgres).await?,
        tls,
        ca_file: postgres.ca_file.clone(),
    })
}

/// More threads than this are for those who ask for them: each takes about 15 MiB of a restore, and 256 MiB are promised.
const THREADS_MAX: usize = 8;

/// Threads for CPU work: as configured, or one for each core.
pub fn threads(configured: Option<usize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX);
    configured.unwrap_or_else(cores).max(1)
}
