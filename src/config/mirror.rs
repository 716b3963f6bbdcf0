//! `[[mirror]]`: further repositories that hold the same objects.

use serde::Deserialize;

use super::repository::no_secret_in_urls;
use super::{ConfigError, S3, invalid, is_cluster_name};

/// A repository beside the first. Objects have the same keys and the same bytes in all of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// For `--to`, for messages and for notes in the spool; letters, digits, `_` and `-`.
    pub name: String,
    /// As of `[repository]`.
    pub url: String,
    /// `archive-push` and `backup` succeed only when this one has everything too. Others are filled by `lastgood mirror`.
    pub required: bool,
    /// Ceiling for what `lastgood mirror` copies to and from it.
    pub bytes_per_s: Option<u64>,
    /// Objects that `lastgood mirror` copies at the same time.
    pub max_requests: usize,
    pub s3: S3,
}

impl Default for Mirror {
    fn default() -> Self {
        Mirror { name: String::new(), url: String::new(), required: false, bytes_per_s: None, max_requests: 3, s3: S3::default() }
    }
}

impl Mirror {
    fn check(&self) -> Result<(), ConfigError> {
        if !is_cluster_name(&self.name) {
            return invalid(
                format!("a [[mirror]] has the name {:?}", self.name),
                "use 1 to 63 letters, digits, '_' or '-', beginning with a letter or digit",
            );
        }
        if self.url.is_empty() {
            return invalid(format!("the mirror {:?} has no url", self.name), "set `url` under [[mirror]]");
        }
        no_secret_in_urls(&format!("mirror {:?}", self.name), &self.url, &self.s3)?;
        if self.bytes_per_s == Some(0) || self.max_requests == 0 {
            return invalid(
                format!("bytes_per_s and max_requests of the mirror {:?} must be above 0", self.name),
                "leave them out for the defaults",
            );
        }
        self.s3.check(&self.url)
    }
}

/// Checks all of them, and that no two are one place.
pub(super) fn check(first: &str, mirrors: &[Mirror]) -> Result<(), ConfigError> {
    let place = |url: &str| url.trim_end_matches('/').trim_start_matches("file://").to_string();
    for (number, mirror) in mirrors.iter().enumerate() {
        mirror.check()?;
        if mirrors[..number].iter().any(|other| other.name == mirror.name) {
            return invalid(format!("two mirrors have the name {:?}", mirror.name), "give each [[mirror]] a name of its own");
        }
        let urls = mirrors[..number].iter().map(|other| other.url.as_str()).chain([first]);
        if urls.into_iter().any(|url| place(url) == place(&mirror.url)) {
            return invalid(
                format!("the mirror {:?} is the place of another repository: {}", mirror.name, mirror.url),
                "two repositories in one place are one: give it a place of its own",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    fn said(mirrors: &str) -> Result<(), String> {
        let text = format!("[repository]\nurl = \"/backup\"\n[cluster]\nname = \"shop\"\n{mirrors}");
        Config::parse(Path::new("lastgood.toml"), &text).unwrap().check().map_err(|error| error.to_string())
    }

    #[test]
    fn each_has_a_name_and_a_place_of_its_own() {
        said("[[mirror]]\nname = \"a\"\nurl = \"/a\"\n[[mirror]]\nname = \"b\"\nurl = \"s3://b\"\n[mirror.s3]\nregion = \"x\"\n")
            .unwrap();
        for (wrong, word) in [
            ("[[mirror]]\nurl = \"/a\"\n", "has the name"),
            ("[[mirror]]\nname = \"a\"\n", "has no url"),
            ("[[mirror]]\nname = \"a\"\nurl = \"/a\"\n[[mirror]]\nname = \"a\"\nurl = \"/b\"\n", "two mirrors"),
            ("[[mirror]]\nname = \"a\"\nurl = \"file:///backup/\"\n", "place of another"),
            ("[[mirror]]\nname = \"a\"\nurl = \"/a\"\nbytes_per_s = 0\n", "above 0"),
            ("[[mirror]]\nname = \"a\"\nurl = \"s3://u:secret@b/\"\n", "a secret before an '@'"),
        ] {
            let said = said(wrong).unwrap_err();
            assert!(said.contains(word) && !said.contains("u:secret"), "{said}");
        }
    }
}
