//! `[encryption]`: the keys of a sealed repository.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid};

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

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.passphrase_file.is_some() && !self.passphrase_command.is_empty() {
            return invalid("[encryption] has passphrase_file and passphrase_command", "keep one of them");
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
