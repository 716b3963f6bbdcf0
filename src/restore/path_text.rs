//! Paths in JSON. Most are text; a tablespace may lie in a directory whose name is bytes, which JSON cannot hold as they are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::repo::manifest::{decode_place, encode_place};

/// A path that is read again: text, or an object with the encoded bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(PathBuf),
    Bytes { encoded: String },
}

pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => Text::Bytes { encoded: encode_place(path) }.serialize(serializer),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    match Text::deserialize(deserializer)? {
        Text::Plain(path) => Ok(path),
        Text::Bytes { encoded } => decode_place(&encoded).ok_or_else(|| serde::de::Error::custom("this is no absolute path")),
    }
}

/// The same for several, and for one that may be absent; these are only shown.
pub fn all<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| shown(path)))
}

pub fn option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(shown).serialize(serializer)
}

fn shown(path: &Path) -> Text {
    match path.to_str() {
        Some(text) => Text::Plain(text.into()),
        None => Text::Bytes { encoded: encode_place(path) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holds(#[serde(with = "super")] PathBuf);

    #[test]
    fn every_path_comes_back() {
        for path in [&b"/srv/a b%41"[..], b"/srv/\xe4\xff/x", "/srv/\u{e9}".as_bytes()] {
            let holds = Holds(OsString::from_vec(path.to_vec()).into());
            let text = serde_json::to_string(&holds).unwrap();
            assert_eq!(serde_json::from_str::<Holds>(&text).unwrap(), holds, "{text}");
        }
        assert_eq!(serde_json::to_string(&Holds("/srv/a".into())).unwrap(), "\"/srv/a\"", "as before");
        assert!(serde_json::from_str::<Holds>("{\"encoded\":\"srv\"}").is_err());
    }
}
