//! The configuration: one TOML file, every key checked, errors with the line and the fix.
//!
//! Environment variables and flags override single values; `cli` applies them, because the library never reads the
//! environment. No secret stands in a command line; secrets come from files or from the AWS credential chain.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/lastgood.toml";
/// Long enough for a store that is down for a while, short enough that the night's second try succeeds.
pub const LEASE_S: u64 = 900;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}, column {column}: {message}{}", hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
    Parse { path: PathBuf, line: usize, column: usize, message: String, hint: Option<String> },
    #[error("{what}; {mend}")]
    Invalid { what: String, mend: String },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub repository: Repository,
    pub cluster: Cluster,
    pub postgres: Postgres,
    pub snapshot: Snapshot,
    pub archive: Archive,
    pub restore: Restore,
    pub encryption: Encryption,
    /// Where the file came from; shown in the settings that `init` prints.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repository {
    /// `/path`, `file:///path` or `s3://bucket/prefix`.
    pub url: String,
    /// A holder of a lease that was silent for so long may be taken over, by any host. Each lease carries its own number.
    pub lease_s: u64,
    pub s3: S3,
}

impl Default for Repository {
    fn default() -> Self {
        Repository { url: String::new(), lease_s: LEASE_S, s3: S3::default() }
    }
}

/// How to reach an S3 store. Credentials come from the AWS chain: environment, profile, web identity, container, IMDSv2.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    pub region: Option<String>,
    /// Base URL of an S3-compatible store; AWS when absent.
    pub endpoint: Option<String>,
    /// `https://host/bucket/key` instead of `https://bucket.host/key`.
    pub path_style: bool,
    /// PEM file with the certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Allow an endpoint on another host without TLS; `check` stays red while it is set. Certificates are verified even so.
    pub insecure: bool,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// AWS-style credentials file, used instead of the default place.
    pub credentials_file: Option<PathBuf>,
    pub encryption: ServerSideEncryption,
    pub kms_key_id: Option<String>,
    /// For example `STANDARD_IA`; the bucket's default when absent.
    pub storage_class: Option<String>,
    /// `false` for stores that do not know `If-None-Match: *`; `init` and `check` find out by trying.
    pub conditional_create: bool,
    /// Send and check the SDK's own checksums; many S3-compatible stores reject them.
    pub sdk_checksums: bool,
    /// Calls at the same time.
    pub max_requests: usize,
    /// Longest time for one attempt of one call.
    pub attempt_timeout_s: u64,
    /// Longest time for one call with all its attempts.
    pub call_timeout_s: u64,
}

impl Default for S3 {
    fn default() -> Self {
        S3 {
            region: None,
            endpoint: None,
            path_style: false,
            ca_file: None,
            insecure: false,
            profile: None,
            credentials_file: None,
            encryption: ServerSideEncryption::None,
            kms_key_id: None,
            storage_class: None,
            conditional_create: true,
            sdk_checksums: false,
            max_requests: 16,
            attempt_timeout_s: 60,
            call_timeout_s: 300,
        }
    }
}

impl S3 {
    /// The host of an endpoint on the network that is reached without TLS.
    pub fn plain_host(&self) -> Option<&str> {
        let (scheme, rest) = self.endpoint.as_deref()?.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // An IPv6 address stands in brackets, because it holds colons itself.
        let name = host.strip_prefix('[').and_then(|host| host.split(']').next());
        let name = name.unwrap_or_else(|| host.split(':').next().unwrap_or_default());
        (scheme.eq_ignore_ascii_case("http") && !is_loopback(name)).then_some(name)
    }
}

/// Whether a host name or address can only mean this host.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerSideEncryption {
    #[default]
    None,
    SseS3,
    SseKms,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The name under which this cluster's history is kept; letters, digits, `_` and `-`.
    pub name: String,
    /// For people, and for the guard: `production` is treated with most care.
    pub label: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub dbname: Option<String>,
    /// A file with the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// A program and its arguments; the first line that it prints is the password.
    pub password_command: Option<Vec<String>>,
    /// `disable`, `prefer`, or `require` (also called `verify-full`); on another host `require` when absent.
    pub sslmode: Option<String>,
    pub ca_file: Option<PathBuf>,
    /// Where this host sees the data directory; the server's own answer when absent.
    pub data_directory: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshot {
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Threads that read, hash and compress; one for each core, at most 8, when absent.
    pub threads: Option<usize>,
    /// How long to wait until the WAL that the snapshot needs is archived.
    pub archive_timeout_s: u64,
    /// `check` calls a last snapshot older than this an error.
    pub max_age_hours: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { compression_level: 1, threads: None, archive_timeout_s: 300, max_age_hours: 26 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Where acknowledgements and prefetched segments lie; look-ahead is off when it cannot be written.
    pub spool: PathBuf,
    /// Further `.ready` segments that one push takes along; 0 turns it off.
    pub push_ahead: usize,
    /// Segments fetched before recovery asks for them; 0 turns it off.
    pub fetch_ahead: usize,
    /// Archive although `archive_mode = always` (a standby that archives too).
    pub allow_archive_mode_always: bool,
}

impl Default for Archive {
    fn default() -> Self {
        Archive {
            compression_level: 1,
            spool: PathBuf::from("/var/spool/lastgood"),
            push_ahead: 8,
            fetch_ahead: 8,
            allow_archive_mode_always: false,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restore {
    /// Threads that decompress, check and write; one for each core, at most 8, when absent.
    pub threads: Option<usize>,
    pub read_back: ReadBack,
}

/// What of a restored cluster is read back and compared with what was written (rule 38). Every byte was proven by its SHA-256 in the
/// very buffer that was written from; reading back is about the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadBack {
    Nothing,
    /// The beginning of each file, and [`ReadBack::SAMPLE`]th of the rest.
    #[default]
    Sample,
    Everything,
}

impl ReadBack {
    /// One write in so many is read back as a sample.
    pub const SAMPLE: u64 = 16;
    /// Bytes of a file in which one write falls into the sample.
    const STRIDE_BYTES: u64 = Self::SAMPLE << 20;

    /// Whether what was written at `offset` of a file is to be read back.
    pub fn wants(self, offset: u64) -> bool {
        match self {
            ReadBack::Nothing => false,
            ReadBack::Sample => offset % Self::STRIDE_BYTES < 1 << 20,
            ReadBack::Everything => true,
        }
    }
}

/// Where the keys of a sealed repository come from; `docs/guide/keys.md` helps to choose.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encryption {
    /// A file with the passphrase and nothing else.
    pub passphrase_file: Option<PathBuf>,
    /// A program and its arguments that print the passphrase.
    pub passphrase_command: Vec<String>,
    /// age secret keys, as `age-keygen` writes them.
    pub identity_file: Option<PathBuf>,
    /// A key from `lastgood key export`; `init` writes this host's writer key there.
    pub key_file: Option<PathBuf>,
    /// age public keys that a new repository is sealed for.
    pub recipients: Vec<String>,
    /// Only keys with this id are used.
    pub key_id: Option<String>,
    /// Memory that trying a passphrase costs, for slots to be made: tests take less.
    pub argon2_memory_kib: Option<u32>,
}

impl Encryption {
    /// Whether a new repository shall be sealed.
    pub fn is_configured(&self) -> bool {
        let file = self.passphrase_file.is_some() || self.identity_file.is_some() || self.key_file.is_some();
        file || !self.passphrase_command.is_empty() || !self.recipients.is_empty()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |what: String, mend: &str| Err(ConfigError::Invalid { what, mend: mend.into() });
        if self.passphrase_file.is_some() && !self.passphrase_command.is_empty() {
            return invalid("[encryption] has passphrase_file and passphrase_command".into(), "keep one of them");
        }
        if let Some(other) = self.recipients.iter().find(|r| !r.starts_with("age1")) {
            return invalid(format!("[encryption] recipients has {other:?}"), "use age public keys, like age1ql3z…");
        }
        let is_id = |id: &String| id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match &self.key_id {
            Some(id) if !is_id(id) => {
                invalid(format!("[encryption] key_id is {id:?}"), "use the 32 hex digits of `lastgood key list`")
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let mut config = Self::parse(path, &text)?;
        config.path = Some(path.to_path_buf());
        Ok(config)
    }

    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| parse_error(path, text, &error))
    }

    /// Checks what only the whole can tell, after environment and flags were applied.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |what: String, mend: &str| Err(ConfigError::Invalid { what, mend: mend.into() });
        if self.repository.url.is_empty() {
            return invalid(
                "no repository is configured".into(),
                "set `url` under [repository], or pass --repo /path or --repo s3://bucket/prefix",
            );
        }
        if self.cluster.name.is_empty() {
            return invalid("no cluster is named".into(), "set `name` under [cluster], or pass --cluster NAME");
        }
        if !is_cluster_name(&self.cluster.name) {
            return invalid(
                format!("the cluster name {:?} cannot be used", self.cluster.name),
                "use 1 to 63 letters, digits, '_' or '-', beginning with a letter or digit",
            );
        }
        for (key, level) in [("snapshot", self.snapshot.compression_level), ("archive", self.archive.compression_level)] {
            if !(1..=19).contains(&level) {
                return invalid(format!("[{key}] compression_level is {level}"), "use 1 (fast) to 19 (small)");
            }
        }
        for (key, threads) in [("snapshot", self.snapshot.threads), ("restore", self.restore.threads)] {
            if threads == Some(0) {
                return invalid(format!("[{key}] threads is 0"), "use 1 or more, or leave it out for one per core");
            }
        }
        let lease_s = self.repository.lease_s;
        if !(1..=86_400).contains(&lease_s) {
            return invalid(format!("[repository] lease_s is {lease_s}"), "use 60 to 86400, or leave it out for 900");
        }
        self.encryption.check()?;
        let s3 = &self.repository.s3;
        if s3.kms_key_id.is_some() && s3.encryption != ServerSideEncryption::SseKms {
            return invalid("kms_key_id is set, but encryption is not \"sse-kms\"".into(), "set encryption = \"sse-kms\"");
        }
        // Said without the URL, which would put the secret into logs.
        let authority = |url: &str| url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_string());
        for (key, url) in [("url", Some(&self.repository.url)), ("endpoint", s3.endpoint.as_ref())] {
            if url.and_then(|url| authority(url)).is_some_and(|authority| authority.contains('@')) {
                let what = format!("the {key} of the repository holds a user name or a secret before an '@'");
                return invalid(what, "put credentials into credentials_file, or into the environment");
            }
        }
        if let Some(host) = s3.plain_host()
            && !s3.insecure
        {
            let what =
                format!("the endpoint {host} is reached without TLS, so everybody on the way could read and change backups");
            return invalid(
                what,
                "use https:// (and ca_file for an authority of your own), or set insecure = true under [repository.s3]",
            );
        }
        if self.postgres.password_file.is_some() && self.postgres.password_command.is_some() {
            return invalid("both password_file and password_command are set".into(), "keep one of them under [postgres]");
        }
        if self.postgres.password_command.as_ref().is_some_and(Vec::is_empty) {
            return invalid(
                "password_command names no program".into(),
                "write it as a list of words, like [\"pass\", \"show\", \"pg\"]",
            );
        }
        if s3.max_requests == 0 || s3.attempt_timeout_s == 0 || s3.call_timeout_s == 0 {
            return invalid(
                "max_requests and the time-outs of [repository.s3] must be above 0".into(),
                "leave them out for the defaults",
            );
        }
        Ok(())
    }
}

/// Cluster names become parts of object keys.
pub fn is_cluster_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let message = error.message().to_string();
    ConfigError::Parse { path: path.into(), line, column, hint: nearest_name(&message), message }
}

/// For "unknown field `x`, expected one of `a`, `b`": the name that `x` most resembles.
fn nearest_name(message: &str) -> Option<String> {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (unknown, known) = message.starts_with("unknown").then(|| quoted.split_first()).flatten()?;
    let (distance, name) = known.iter().map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min()?;
    (distance <= 3.max(unknown.len() / 3)).then(|| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(Path::new("lastgood.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_name_the_line_and_the_nearest_name() {
        let said = error("[repository]\nurl = \"/backup\"\n\n[snapshot]\ncompresion_level = 3\n");
        assert!(said.contains("line 5") && said.contains("did you mean `compression_level`?"), "{said}");
    }

    #[test]
    fn wrong_types_name_the_line() {
        let said = error("[postgres]\nport = \"many\"\n");
        assert!(said.contains("line 2") && said.contains("invalid type"), "{said}");
    }

    #[test]
    fn what_the_whole_needs_is_checked() {
        let mut config = Config::default();
        assert!(config.check().unwrap_err().to_string().contains("no repository"));
        config.repository.url = "/backup".into();
        assert!(config.check().unwrap_err().to_string().contains("no cluster"));
        config.cluster.name = "../x".into();
        assert!(config.check().unwrap_err().to_string().contains("cannot be used"));
        config.cluster.name = "shop".into();
        config.check().unwrap();
        config.snapshot.compression_level = 40;
        assert!(config.check().is_err());
    }
}
