//! A key as text, for a file or for paper: short lines, each with a checksum of its own, so that a typing error is found in its
//! line. Everything that is no such line is for people, and ignored.
//!
//! ```text
//! [1] 01GY 4M3N ... = 7QK2
//! ```
//!
//! The lines hold, in Crockford's base 32 (no I, L, O, U; read without regard to case, O as 0, I and L as 1): version (1), role
//! (1 reader, 2 writer), repository id (16 bytes), key id (16 bytes), for each epoch its number (4 bytes) and key (32 or 96 bytes),
//! and at the end the first 4 bytes of the SHA-256 of all before.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::epoch::{EpochKey, READER_BYTES, WRITER_BYTES};
use super::{Role, Seal};
use crate::repo::object::Sha;

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const VERSION: u8 = 1;
/// Bytes in a line: 32 digits in groups of four.
const LINE_BYTES: usize = 20;
const CHECK_BYTES: usize = 4;
const FIXED_BYTES: usize = 34;

/// Why a text is no key. Nothing of the text is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("it has no key lines, which look like `[1] 01GY 4M3N ... = 7QK2`")]
    NoLines,
    #[error("line [{0}] is missing or out of order")]
    Missing(usize),
    #[error("line [{0}] has a typing error: the checksum after `=` does not fit")]
    Line(usize),
    #[error("a line is missing at the end, or lines are of two keys")]
    Whole,
    #[error("it was written by a newer lastgood (version {0})")]
    Newer(u8),
}

/// The lines of a key.
pub fn write(seal: &Seal) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(vec![VERSION, if seal.role() == Role::Reader { 1 } else { 2 }]);
    bytes.extend(hex::decode(seal.repository()).unwrap_or_default());
    bytes.extend(hex::decode(seal.key_id()).unwrap_or_default());
    debug_assert_eq!(bytes.len(), FIXED_BYTES, "ids are 16 bytes each");
    for (epoch, key) in seal.epochs() {
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(key.to_bytes().iter());
    }
    let check = Sha::of(&bytes);
    bytes.extend(&check.0[..CHECK_BYTES]);
    let mut text = Zeroizing::new(String::new());
    for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
        let digits = encode(line);
        let groups: Vec<&str> = digits.as_bytes().chunks(4).map(|g| std::str::from_utf8(g).unwrap_or_default()).collect();
        text.push_str(&format!("[{}] {} = {}\n", index + 1, groups.join(" "), line_check(index + 1, line)));
    }
    text
}

/// Reads the lines of a key out of any text around them.
pub fn read(text: &str) -> Result<Seal, TextError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut count = 0;
    for line in text.lines().map(str::trim) {
        let Some((number, rest)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) else { continue };
        let Ok(number) = number.trim().parse::<usize>() else { continue };
        count += 1;
        if number != count {
            return Err(TextError::Missing(count));
        }
        let (digits, check) = rest.split_once('=').ok_or(TextError::Line(number))?;
        let raw = decode(digits).ok_or(TextError::Line(number))?;
        if normal(check).as_str() != line_check(number, &raw) {
            return Err(TextError::Line(number));
        }
        bytes.extend_from_slice(&raw);
    }
    if count == 0 {
        return Err(TextError::NoLines);
    }
    if bytes[0] != VERSION {
        return Err(TextError::Newer(bytes[0]));
    }
    parse(&bytes).ok_or(TextError::Whole)
}

fn parse(bytes: &[u8]) -> Option<Seal> {
    let (content, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if Sha::of(content).0[..CHECK_BYTES] != *check {
        return None;
    }
    let (fixed, mut rest) = content.split_at_checked(FIXED_BYTES)?;
    let (role, key_bytes) = match fixed[1] {
        1 => (Role::Reader, READER_BYTES),
        2 => (Role::Writer, WRITER_BYTES),
        _ => return None,
    };
    let mut epochs = BTreeMap::new();
    while !rest.is_empty() {
        let (epoch, after) = rest.split_at_checked(4)?;
        let (key, after) = after.split_at_checked(key_bytes)?;
        epochs.insert(u32::from_le_bytes(epoch.try_into().ok()?), EpochKey::from_bytes(role, key)?);
        rest = after;
    }
    (!epochs.is_empty()).then(|| Seal::new(&hex::encode(&fixed[2..18]), &hex::encode(&fixed[18..34]), epochs))
}

/// Four digits for a line and its number.
fn line_check(number: usize, line: &[u8]) -> String {
    let mut bytes = Zeroizing::new((number as u64).to_le_bytes().to_vec());
    bytes.extend_from_slice(line);
    encode(&Sha::of(&bytes).0[..5])[..4].to_string()
}

/// Five bits a digit, the first bits first; the last digit is filled with zeros.
fn encode(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    let (mut bits, mut count) = (0u32, 0);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(DIGITS[(bits >> count) as usize & 31]));
        }
    }
    if count > 0 {
        text.push(char::from(DIGITS[(bits << (5 - count)) as usize & 31]));
    }
    text
}

/// As people type it: spaces and dashes anywhere, any case, O for 0, I and L for 1.
fn normal(text: &str) -> Zeroizing<String> {
    let plain = text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    });
    Zeroizing::new(plain.collect())
}

fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let (mut bits, mut count) = (0u32, 0);
    for digit in normal(text).bytes() {
        bits = (bits << 5) | DIGITS.iter().position(|d| *d == digit)? as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    // What is left over was zeros.
    (bits & ((1 << count) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(epochs: u32, writer: bool) -> Seal {
        let key = || if writer { EpochKey::random().to_writer() } else { EpochKey::random() };
        let keys = (1..=epochs).map(|epoch| (epoch, key())).collect();
        Seal::new("72d43c07332f5c65edd550217f538236", "00112233445566778899aabbccddeeff", keys)
    }

    #[test]
    fn a_key_comes_back_from_its_text_as_people_type_it() {
        for (epochs, writer) in [(1, false), (1, true), (3, false), (3, true)] {
            let seal = seal(epochs, writer);
            let text = write(&seal);
            let typed = format!("the key of the shop\n{}\n(end)", text.to_lowercase().replace('0', "o").replace('1', "l"));
            // Numbers of lines are numbers.
            let typed: String =
                typed.lines().map(|l| l.replace("[l", "[1").replace("o]", "0]").replace("l]", "1]") + "\n").collect();
            for text in [text.as_str(), &typed, &text.replace(' ', "")] {
                let back = read(text).unwrap();
                assert_eq!(back.fingerprint(), seal.fingerprint());
                assert_eq!(back.role(), seal.role());
                for (epoch, key) in back.epochs() {
                    assert_eq!(*key.to_bytes(), *seal.epochs()[epoch].to_bytes());
                }
            }
        }
        assert_eq!(write(&seal(1, false)).lines().count(), 4, "short enough to type");
    }

    #[test]
    fn every_typing_error_names_its_line() {
        let text = write(&seal(1, true));
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            for at in line.find(']').unwrap() + 1..line.len() {
                let c = line.as_bytes()[at];
                if c == b' ' || c == b'=' {
                    continue;
                }
                let mut typed: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
                typed[index].replace_range(at..=at, if c == b'7' { "8" } else { "7" });
                assert_eq!(read(&typed.join("\n")).unwrap_err(), TextError::Line(index + 1), "{at}");
            }
            let mut typed = lines.clone();
            typed.remove(index);
            let expected = if index + 1 == lines.len() { TextError::Whole } else { TextError::Missing(index + 1) };
            assert_eq!(read(&typed.join("\n")).unwrap_err(), expected);
        }
        assert_eq!(read("passphrase").unwrap_err(), TextError::NoLines);
    }
}
