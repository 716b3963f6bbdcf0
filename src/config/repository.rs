//! `[repository]`: where everything is kept, and how to reach it.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, endpoint, invalid};

/// Long enough for a store that is down for a while, short enough that the night's second try succeeds.
pub const LEASE_S: u64 = 900;
/// A mistyped number in compliance mode could not be taken back: ten years, and not the hundred that S3 takes.
const LOCK_DAYS_MAX: u32 = 3650;

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

impl Repository {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.url.is_empty() {
            return invalid(
                "no repository is configured",
                "set `url` under [repository], or pass --repo /path or --repo s3://bucket/prefix",
            );
        }
        if !(1..=86_400).contains(&self.lease_s) {
            let what = format!("[repository] lease_s is {}", self.lease_s);
            return invalid(what, "use 60 to 86400, or leave it out for 900");
        }
        no_secret_in_urls("repository", &self.url, &self.s3)?;
        self.s3.check(&self.url)
    }
}

/// Said without the URL, which would put the secret into logs.
pub(super) fn no_secret_in_urls(whose: &str, url: &str, s3: &S3) -> Result<(), ConfigError> {
    let authority = |url: &str| url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_string());
    for (key, url) in [("url", Some(url)), ("endpoint", s3.endpoint.as_deref())] {
        if url.and_then(authority).is_some_and(|authority| authority.contains('@')) {
            let what = format!("the {key} of the {whose} holds a user name or a secret before an '@'");
            return invalid(what, "put credentials into credentials_file, or into the environment");
        }
    }
    Ok(())
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
    /// For so many days nobody can delete what is written, in a bucket with Object Lock.
    pub object_lock_days: Option<u32>,
    /// Governance when absent.
    pub object_lock_mode: Option<ObjectLockMode>,
    /// Delete all versions of an object, so that its room becomes free. Else a bucket with versions only hides what is deleted.
    pub delete_versions: bool,
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
            object_lock_days: None,
            object_lock_mode: None,
            delete_versions: false,
        }
    }
}

impl S3 {
    pub(super) fn check(&self, url: &str) -> Result<(), ConfigError> {
        self.check_versions(url)?;
        if let Some(address) = &self.endpoint {
            endpoint::check(address, url)?;
        }
        if self.kms_key_id.is_some() && self.encryption != ServerSideEncryption::SseKms {
            return invalid("kms_key_id is set, but encryption is not \"sse-kms\"", "set encryption = \"sse-kms\"");
        }
        if let Some(host) = self.plain_host()
            && !self.insecure
        {
            return invalid(
                format!("the endpoint {host} is reached without TLS, so everybody on the way could read and change backups"),
                "use https:// (and ca_file for an authority of your own), or set insecure = true under [repository.s3]",
            );
        }
        if self.max_requests == 0 || self.attempt_timeout_s == 0 || self.call_timeout_s == 0 {
            return invalid(
                "max_requests and the time-outs of [repository.s3] must be above 0",
                "leave them out for the defaults",
            );
        }
        Ok(())
    }

    fn check_versions(&self, url: &str) -> Result<(), ConfigError> {
        if self.object_lock_mode.is_some() && self.object_lock_days.is_none() {
            return invalid(
                "object_lock_mode is set, but object_lock_days is not, so nothing would be locked",
                "set object_lock_days to how long objects shall be locked",
            );
        }
        if let Some(days) = self.object_lock_days.filter(|days| !(1..=LOCK_DAYS_MAX).contains(days)) {
            return invalid(
                format!("object_lock_days is {days}"),
                &format!("use 1 to {LOCK_DAYS_MAX}, or leave it out for objects that are not locked"),
            );
        }
        if (self.object_lock_days.is_some() || self.delete_versions) && !url.starts_with("s3://") {
            return invalid(
                format!("object_lock_days or delete_versions is set for {url}, and only buckets have locks and versions"),
                "leave them out, or use s3://bucket/prefix",
            );
        }
        Ok(())
    }

    /// The host of an endpoint on the network that is reached without TLS.
    pub fn plain_host(&self) -> Option<&str> {
        endpoint::plain_host(self.endpoint.as_deref()?)
    }
}

/// What S3 calls the mode of a retention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectLockMode {
    /// Whoever has a right of its own (`s3:BypassGovernanceRetention`) may delete before the day.
    #[default]
    Governance,
    /// Nobody may, the owner of the account included.
    Compliance,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerSideEncryption {
    #[default]
    None,
    SseS3,
    SseKms,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn said(url: &str, s3: &str) -> Result<Config, String> {
        let text = format!("[repository]\nurl = \"{url}\"\n[repository.s3]\n{s3}\n[cluster]\nname = \"shop\"\n");
        let config = Config::parse(Path::new("lastgood.toml"), &text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn locks_and_versions_are_of_buckets_and_have_sensible_lengths() {
        let config = said("s3://b/p", "object_lock_days = 30\ndelete_versions = true").unwrap();
        assert_eq!((config.repository.s3.object_lock_days, config.repository.s3.object_lock_mode), (Some(30), None));
        let config = said("s3://b", "object_lock_days = 1\nobject_lock_mode = \"compliance\"").unwrap();
        assert_eq!(config.repository.s3.object_lock_mode, Some(ObjectLockMode::Compliance));
        for (url, s3, word) in [
            ("s3://b", "object_lock_days = 0", "object_lock_days is 0"),
            ("s3://b", "object_lock_days = 3651", "use 1 to 3650"),
            ("s3://b", "object_lock_mode = \"governance\"", "object_lock_days is not"),
            ("s3://b", "object_lock_days = 3\nobject_lock_mode = \"legal\"", "unknown variant"),
            ("/backup", "object_lock_days = 30", "only buckets"),
            ("/backup", "delete_versions = true", "only buckets"),
        ] {
            let said = said(url, s3).unwrap_err();
            assert!(said.contains(word), "{s3}: {said}");
        }
    }
}
