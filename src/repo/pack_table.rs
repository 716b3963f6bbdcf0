//! The pack table: which packs a snapshot refers to, and how much of each it uses.

use serde::{Deserialize, Serialize};

use super::seal::Head;

/// A pack that a snapshot refers to: `[name, stored bytes]` in JSON, and `[name, stored bytes, [epoch, seed]]` where it is sealed,
/// so that who reads frames need not read the pack's trailer. A fourth element says how much of it is [`Used`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Tuple", into = "Tuple")]
pub struct PackLine {
    pub name: String,
    pub bytes: u64,
    pub head: Option<Head>,
    /// Absent in snapshots from before it was counted, and where such a snapshot's maps are still in use.
    pub used: Option<Used>,
}

impl PackLine {
    /// The snapshot that wrote it.
    pub fn writer(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// How much of a pack a snapshot uses: `[raw bytes, live bytes]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Used {
    /// Of all frames in the pack.
    pub raw_bytes: u64,
    /// What would have to be stored anew to do without the pack: the bytes that files take from it, and every map in a pack that
    /// points to it.
    pub live_bytes: u64,
}

impl Used {
    /// Whether less than so many percent of it are alive.
    pub fn is_below(&self, percent: u32) -> bool {
        u128::from(self.live_bytes) * 100 < u128::from(self.raw_bytes) * u128::from(percent)
    }
}

impl From<(u64, u64)> for Used {
    fn from((raw_bytes, live_bytes): (u64, u64)) -> Self {
        Used { raw_bytes, live_bytes }
    }
}

impl From<Used> for (u64, u64) {
    fn from(used: Used) -> Self {
        (used.raw_bytes, used.live_bytes)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Tuple {
    Counted(String, u64, Option<Head>, Used),
    Sealed(String, u64, Head),
    Plain(String, u64),
}

impl From<Tuple> for PackLine {
    fn from(tuple: Tuple) -> Self {
        match tuple {
            Tuple::Counted(name, bytes, head, used) => PackLine { name, bytes, head, used: Some(used) },
            Tuple::Sealed(name, bytes, head) => PackLine { name, bytes, head: Some(head), used: None },
            Tuple::Plain(name, bytes) => PackLine { name, bytes, head: None, used: None },
        }
    }
}

impl From<PackLine> for Tuple {
    fn from(PackLine { name, bytes, head, used }: PackLine) -> Self {
        match (head, used) {
            (head, Some(used)) => Tuple::Counted(name, bytes, head, used),
            (Some(head), None) => Tuple::Sealed(name, bytes, head),
            (None, None) => Tuple::Plain(name, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_age_come_back() {
        let seed = "ab".repeat(32);
        for text in [
            r#"["s/d000001",7]"#.to_string(),
            format!(r#"["s/d000001",7,[1,"{seed}"]]"#),
            r#"["s/d000001",7,null,[100,24]]"#.to_string(),
            format!(r#"["s/d000001",7,[1,"{seed}"],[100,24]]"#),
        ] {
            let line: PackLine = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!((line.writer(), line.bytes), ("s", 7));
            assert_eq!(line.used.is_some(), text.contains("24"));
            assert_eq!(line.head.is_some(), text.contains(&seed));
        }
    }

    #[test]
    fn a_share_is_below_or_not() {
        let used = |raw_bytes, live_bytes| Used { raw_bytes, live_bytes };
        assert!(used(100, 24).is_below(25) && !used(100, 25).is_below(25));
        assert!(used(100, 0).is_below(1) && !used(100, 0).is_below(0));
        assert!(used(u64::MAX, 1).is_below(25) && !used(0, 0).is_below(99));
    }
}
