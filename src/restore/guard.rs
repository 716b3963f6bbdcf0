//! The guard: who may let a plan destroy the present.
//!
//! # What
//! Into an empty place a plan goes ahead. A place that holds a cluster needs the plan's code. Production (by label, by system
//! identifier, or because nobody can tell) needs its name typed at a terminal, or the code from an automation. The code holds the
//! minute in which it was given out, and a hash over the plan, what stands in the place down to the times of its files, this host,
//! and that minute: it is worth nothing for another plan, elsewhere, later than 15 minutes, or once anything has changed.
//!
//! The code is no secret and keeps no attacker out: who may write into the directory may also delete it. It makes sure that what
//! happens is what somebody has seen.

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::RestoreError;
use crate::clock;

/// A code is good for this long.
pub const CODE_LIFE_MINUTES: u64 = 15;
/// Minutes in a code count modulo this: 20 bits, two years.
const MINUTES: u64 = 1 << 20;
/// Crockford's base 32: no I, L, O and U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// How much care a plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "care", rename_all = "snake_case")]
pub enum Care {
    /// Nothing stands there.
    Free,
    /// A cluster stands there: the code.
    Code,
    /// Production: its name, typed, or the code.
    Production { name: String, why: String },
}

/// How a plan was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    NotNeeded,
    Code,
    Typed,
}

impl Passed {
    pub fn words(self) -> &'static str {
        match self {
            Passed::NotNeeded => "not needed",
            Passed::Code => "code",
            Passed::Typed => "typed",
        }
    }
}

/// What a code is bound to besides the minute.
#[derive(Debug, Clone)]
pub struct Seal(Sha256);

impl Seal {
    /// `plan` is everything that was shown, `host` what tells this host from all others.
    pub fn of(plan: &impl Serialize, host: &str) -> Seal {
        let mut hasher = Sha256::new();
        hasher.update(serde_json::to_vec(plan).expect("our own types are JSON"));
        hasher.update([0]);
        hasher.update(host);
        Seal(hasher)
    }

    /// The code as given out now.
    pub fn code(&self, now: Timestamp) -> String {
        self.at(minute(now))
    }

    fn at(&self, minute: u64) -> String {
        let mut hasher = self.0.clone();
        hasher.update(minute.to_le_bytes());
        let hash: [u8; 32] = hasher.finalize().into();
        let bits = hash[..5].iter().fold(minute % MINUTES, |bits, byte| bits << 8 | u64::from(*byte));
        let digits: Vec<u8> = (0..12).rev().map(|at| DIGITS[(bits >> (5 * at) & 31) as usize]).collect();
        let group = |range: std::ops::Range<usize>| String::from_utf8_lossy(&digits[range]).into_owned();
        format!("{}-{}-{}", group(0..4), group(4..8), group(8..12))
    }

    /// Why a code does not fit, if so.
    pub fn check(&self, code: &str, now: Timestamp) -> Result<(), RestoreError> {
        let refused = |problem: &'static str| Err(RestoreError::Code { problem });
        let Some(given) = given_minute(code) else { return refused("this is no code of lastgood") };
        let now = minute(now);
        let age = (now % MINUTES + MINUTES - given) % MINUTES;
        // One minute into the future is two clocks; more is another code.
        if age > CODE_LIFE_MINUTES && age != MINUTES - 1 {
            return refused("the code has expired (a code is good for 15 minutes)");
        }
        let issued = if age == MINUTES - 1 { now + 1 } else { now - age };
        if plain(code) != plain(&self.at(issued)) {
            return refused(
                "the code belongs to another plan: the target, the configuration, the host or what stands there differs",
            );
        }
        Ok(())
    }
}

fn minute(at: Timestamp) -> u64 {
    at.as_second().max(0) as u64 / 60
}

/// Upper case, without separators; letters that people confuse with digits are those digits.
fn plain(code: &str) -> String {
    let one = |c: char| match c.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    code.chars().filter(|c| !matches!(c, '-' | ' ')).map(one).collect()
}

fn given_minute(code: &str) -> Option<u64> {
    let plain = plain(code);
    if plain.len() != 12 {
        return None;
    }
    let digit = |byte: u8| DIGITS.iter().position(|d| *d == byte).map(|d| d as u64);
    let values: Option<Vec<u64>> = plain.bytes().map(digit).collect();
    Some(values?[..4].iter().fold(0, |minute, value| minute << 5 | value))
}

/// What somebody brings to pass the guard.
#[derive(Debug, Clone, Default)]
pub struct Brought {
    /// After `--confirm`.
    pub code: Option<String>,
    /// Typed at a terminal, by a person.
    pub typed: Option<String>,
}

/// Proof that the guard let a plan pass; only [`pass`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approval {
    how: Passed,
}

impl Approval {
    pub fn how(&self) -> Passed {
        self.how
    }
}

/// Whether a plan for `path` may go ahead.
/// `verb` says what would be done to the cluster in `path`: "moved aside", "released".
pub fn pass(path: &Path, verb: &'static str, care: &Care, seal: &Seal, brought: &Brought) -> Result<Approval, RestoreError> {
    passed(path, verb, care, seal, brought).map(|how| Approval { how })
}

fn passed(path: &Path, verb: &'static str, care: &Care, seal: &Seal, brought: &Brought) -> Result<Passed, RestoreError> {
    let now = clock::now();
    match (care, &brought.code, &brought.typed) {
        (Care::Free, _, _) => Ok(Passed::NotNeeded),
        (_, Some(code), _) => seal.check(code, now).map(|()| Passed::Code),
        (Care::Code, None, Some(typed)) => seal.check(typed, now).map(|()| Passed::Typed),
        (Care::Production { name, .. }, None, Some(typed)) if typed == name => Ok(Passed::Typed),
        (Care::Production { name, .. }, None, Some(_)) => Err(RestoreError::Typed { name: name.clone() }),
        (_, None, None) => Err(RestoreError::Unconfirmed { path: path.into(), verb }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_code_is_good_for_its_plan_its_host_and_fifteen_minutes() {
        let seal = Seal::of(&"plan", "host");
        let code = seal.code(at("2026-11-21T04:15:30Z"));
        assert_eq!(code.len(), 14, "{code}");
        for good in ["2026-11-21T04:15:30Z", "2026-11-21T04:30:59Z", "2026-11-21T04:14:59Z"] {
            seal.check(&code, at(good)).unwrap();
        }
        seal.check(&code.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l"), at("2026-11-21T04:16:00Z"))
            .unwrap();
        let problem = |seal: &Seal, code: &str, time: &str| seal.check(code, at(time)).unwrap_err().to_string();
        for late in ["2026-11-21T04:31:00Z", "2026-11-22T04:15:30Z", "2026-11-21T04:13:59Z", "2020-01-01T00:00:00Z"] {
            assert!(problem(&seal, &code, late).contains("expired"), "{late}");
        }
        for other in [Seal::of(&"other plan", "host"), Seal::of(&"plan", "other host")] {
            assert!(problem(&other, &code, "2026-11-21T04:15:40Z").contains("another plan"));
        }
        // The minute cannot be exchanged for a later one.
        let later = seal.code(at("2026-11-21T04:40:00Z"));
        let forged = format!("{}{}", &later[..4], &code[4..]);
        assert!(problem(&seal, &forged, "2026-11-21T04:40:00Z").contains("another plan"));
        for bad in ["", "yes", "----", "UUUU-UUUU-UUUU", &code[..13]] {
            assert!(problem(&seal, bad, "2026-11-21T04:15:30Z").contains("no code"), "{bad}");
        }
    }

    #[test]
    fn each_care_takes_what_it_should() {
        let seal = Seal::of(&1, "h");
        let production = Care::Production { name: "shop".into(), why: "its label".into() };
        let code = || Some(seal.code(clock::now()));
        let brought = |code: Option<String>, typed: Option<&str>| Brought { code, typed: typed.map(String::from) };
        assert_eq!(passed(Path::new("/x"), "moved aside", &Care::Free, &seal, &brought(None, None)).unwrap(), Passed::NotNeeded);
        assert_eq!(passed(Path::new("/x"), "moved aside", &Care::Code, &seal, &brought(code(), None)).unwrap(), Passed::Code);
        assert_eq!(passed(Path::new("/x"), "moved aside", &production, &seal, &brought(code(), None)).unwrap(), Passed::Code);
        assert_eq!(
            passed(Path::new("/x"), "moved aside", &production, &seal, &brought(None, Some("shop"))).unwrap(),
            Passed::Typed
        );
        assert_eq!(
            passed(Path::new("/x"), "moved aside", &Care::Code, &seal, &brought(None, code().as_deref())).unwrap(),
            Passed::Typed
        );
        for typed in ["y", "yes", "SHOP", "shop ", "", "shop2"] {
            assert!(
                matches!(
                    passed(Path::new("/x"), "moved aside", &production, &seal, &brought(None, Some(typed))),
                    Err(RestoreError::Typed { .. })
                ),
                "{typed:?}"
            );
            assert!(
                matches!(
                    passed(Path::new("/x"), "moved aside", &Care::Code, &seal, &brought(None, Some(typed))),
                    Err(RestoreError::Code { .. })
                ),
                "{typed:?}"
            );
        }
        for care in [Care::Code, production] {
            assert!(matches!(
                passed(Path::new("/x"), "moved aside", &care, &seal, &brought(None, None)),
                Err(RestoreError::Unconfirmed { .. })
            ));
            // A wrong code is not mended by a name.
            assert!(matches!(
                passed(Path::new("/x"), "moved aside", &care, &seal, &brought(Some("x".into()), Some("shop"))),
                Err(RestoreError::Code { .. })
            ));
        }
    }
}
