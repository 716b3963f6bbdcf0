//! Lines, JSON, and numbers for people: the one door to a terminal.
//!
//! Whoever may create a table, pin a snapshot or write into the store chooses words that we print. A name with an escape sequence could
//! recolour, hide or forge lines of a plan, and a name with a newline could add one. So nothing here prints text as it came: control
//! characters, and those that turn the direction of a line or take no room, are shown by their numbers ([`escaped`]). Colours are
//! added here, around text that was escaped before, and line breaks by [`block`], [`finding`] and [`complain`] alone; of the last two,
//! every further line says with a bar that it continues the one before.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::quiet;

/// Begins each further line of what came as one text.
const CONTINUES: &str = "\n    | ";

/// Prints a line of text for people.
pub fn line(text: impl std::fmt::Display) {
    print(&escaped(&text.to_string()));
}

/// Prints several lines of our own: a table, a page. What others chose in it must be [`escaped`] before.
pub fn block(text: impl std::fmt::Display) {
    text.to_string().lines().for_each(line);
}

/// The only one that writes to standard output, what is safe to be written.
fn print(safe: &str) {
    if quiet::hold(safe) {
        return;
    }
    // A closed pipe (`lastgood list | head`) is no error of ours.
    let _ = writeln!(std::io::stdout(), "{safe}");
}

/// A part of a line.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    Plain(&'a str),
    In(Colour, &'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Red,
    Yellow,
}

/// Prints a line of several parts, some of them in a colour.
pub fn parts(parts: &[Part]) {
    print(&painted(parts, is_coloured()));
}

/// Colours are for terminals; <https://no-color.org> turns them off there too.
fn is_coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stdout().is_terminal()
}

fn painted(parts: &[Part], is_coloured: bool) -> String {
    let mut line = String::new();
    for part in parts {
        match part {
            Part::In(colour, text) if is_coloured => {
                let code = if *colour == Colour::Red { 31 } else { 33 };
                let _ = write!(line, "\x1b[{code}m{}\x1b[0m", escaped(text));
            }
            Part::Plain(text) | Part::In(_, text) => line.push_str(&escaped(text)),
        }
    }
    line
}

/// Prints what was found of something: a mark, what it is about, and what is to say, which may have several lines, such as those of a
/// server's log.
pub fn finding(mark: Part, about: &str, what: &str, colour: Option<Colour>) {
    let mut lines = what.lines();
    let first = lines.next().unwrap_or_default();
    let part = |text| colour.map_or(Part::Plain(text), |colour| Part::In(colour, text));
    // Behind the mark of 7 characters and what it is about.
    let indent = 7 + 1 + about.chars().count() + 1;
    let first = hanging(&escaped(first), indent, columns());
    let mut broken = first.split('\n');
    parts(&[mark, Part::Plain(" "), Part::Plain(about), Part::Plain(" "), part(broken.next().unwrap_or_default())]);
    broken.for_each(|line| parts(&[part(line)]));
    lines.for_each(|line| parts(&[Part::Plain("        | "), part(line)]));
}

/// Whether a character does something else than to stand in its place: control characters of any kind, marks that turn the direction of
/// text, breaks of lines and paragraphs, and what has no width.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text of which every character stands in its place: `\n` and the like as in a program, others as `\x1b` or `\u{202e}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_active) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if is_active(c) && c.is_ascii() => safe.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_active(c) => safe.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe.into()
}

/// The same of a text with lines.
fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join(CONTINUES)
}

/// Prints a line of a plan: a label, then what there is to say, wrapped below itself where a terminal is narrow.
pub fn entry(label: &str, text: impl std::fmt::Display) {
    print(&wrapped(label, &escaped(&text.to_string()), columns()));
}

/// The same in a colour.
pub fn entry_in(colour: Colour, label: &str, text: &str) {
    let lines = wrapped(label, &escaped(text), columns());
    let (label, text) = lines.split_at(INDENT.min(lines.len()));
    // Escaped before; what is left are our own breaks.
    let text: Vec<String> = text.split('\n').map(|line| painted(&[Part::In(colour, line)], is_coloured())).collect();
    print(&format!("{label}{}", text.join("\n")));
}

/// How wide the terminal is; 0 where there is none.
pub fn columns() -> usize {
    let stdout = std::io::stdout();
    let columns = if stdout.is_terminal() { rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col) } else { 0 };
    columns.into()
}

const INDENT: usize = 13;

fn wrapped(label: &str, text: &str, columns: usize) -> String {
    format!("  {label:<11}{}", hanging(text, INDENT, columns))
}

/// Breaks a text between words, so that what begins in column `indent` goes on there. With 0 columns nothing is broken: who reads lines
/// in a file or a pipe wants them whole.
fn hanging(text: &str, indent: usize, columns: usize) -> String {
    let room = columns.saturating_sub(indent);
    if room < 20 {
        return text.into();
    }
    let (mut broken, mut used) = (String::with_capacity(text.len()), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            broken.push_str(&format!("\n{:indent$}", ""));
            used = 0;
        } else if used > 0 {
            broken.push(' ');
            used += 1;
        }
        broken.push_str(word);
        used += length;
    }
    broken
}

/// Prints a sentence behind `indent` spaces, broken between words where a terminal is narrow. Not for commands, which are copied whole.
pub fn sentence(indent: usize, text: impl std::fmt::Display) {
    print(&format!("{:indent$}{}", "", hanging(&escaped(&text.to_string()), indent, columns())));
}

/// Prints one JSON object on a line.
pub fn json(value: &impl Serialize) {
    print(&ascii_controls(&serde_json::to_string(value).unwrap_or_default()));
}

/// JSON says the same with an escape, and a terminal that shows it does nothing.
fn ascii_controls(json: &str) -> Cow<'_, str> {
    if !json.chars().any(is_active) {
        return json.into();
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if !is_active(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    safe.into()
}

/// Tells a person on standard error: notes, warnings, errors, whatever part of them others have chosen.
pub fn complain(text: &str) {
    let safe = escaped_lines(text);
    if !quiet::hold(&safe) {
        let _ = writeln!(std::io::stderr(), "{safe}");
    }
}

/// Tells a person of what is not as it should be, though nothing failed.
pub fn warn(text: &str) {
    quiet::warned();
    complain(&format!("warning: {text}"));
}

/// Asks a person on standard error; the answer comes on the same line.
pub fn ask(text: &str) {
    quiet::release();
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{}", escaped(text)).and_then(|()| stderr.flush());
}

/// An error with its causes, in one line each; no cause is said twice.
pub fn error(error: &anyhow::Error, code: u8, as_json: bool) {
    quiet::release();
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    if as_json {
        json(&serde_json::json!({ "event": "error", "exit_code": code, "message": text }));
    }
    complain(&format!("lastgood: {text}"));
}

/// `4.2 GiB`
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// `1 snapshot`, `3 snapshots`
pub fn count(number: impl Into<u64>, what: &str) -> String {
    let number = number.into();
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `2026-11-21 04:15:00Z`
pub fn time(at: Timestamp) -> String {
    crate::clock::seconds(at)
}

/// `2026-11-21 05:15:00 +01:00`, in the host's zone; absent where that is UTC.
pub fn local_time(at: Timestamp) -> Option<String> {
    let local = at.to_zoned(jiff::tz::TimeZone::system());
    (local.offset().seconds() != 0).then(|| local.strftime("%Y-%m-%d %H:%M:%S %:z").to_string())
}

/// `2026-11-21 04:15:00.123456Z`, where the part of a second decides.
pub fn exact_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S.%6fZ").to_string()
}

/// How long ago: `5 min ago`.
pub fn ago(at: Timestamp) -> String {
    format!("{} ago", duration(crate::clock::now().duration_since(at).as_secs_f64().max(0.0)))
}

/// `3 d 04 h`, `1 h 05 min`, `3.2 s`
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 172_800.0 => format!("{} d {:02} h", s as u64 / 86_400, s as u64 % 86_400 / 3600),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
    }
}

/// A command for the shell, each word quoted where it needs to be.
pub fn shell_words(words: &[String]) -> String {
    let quote = |word: &String| {
        let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,%+@".contains(&b));
        if plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_stays_in_its_place() {
        let name = "t\n    before it: lastgood restore --before x\r\u{1b}[2K\u{9b}1m\u{202e}\u{2066}\u{200b}\u{2028}\t\u{7f}\u{e0041}é 日本";
        let safe = escaped(name);
        assert!(!safe.chars().any(is_active), "{safe:?}");
        assert!(
            safe.starts_with(r"t\n    before it")
                && safe.contains(r"\x1b[2K\u{9b}1m\u{202e}\u{2066}")
                && safe.ends_with("é 日本")
        );
        assert!(matches!(escaped("shop.public.orders 'é'"), Cow::Borrowed(_)));
        assert_eq!(escaped_lines("failed:\nits log\u{1b}[1m"), "failed:\n    | its log\\x1b[1m");
    }

    #[test]
    fn colours_are_ours_alone() {
        let parts = [Part::Plain("a\u{1b}[31m "), Part::In(Colour::Red, "b\u{1b}[0m")];
        assert_eq!(painted(&parts, true), "a\\x1b[31m \u{1b}[31mb\\x1b[0m\u{1b}[0m");
        assert_eq!(painted(&parts, false), "a\\x1b[31m b\\x1b[0m");
    }

    #[test]
    fn json_says_the_same_and_does_nothing() {
        let value = serde_json::json!({ "name": "a\u{1b}\n\u{9b}\u{202e}\u{e0041}é" });
        let text = serde_json::to_string(&value).unwrap();
        let safe = ascii_controls(&text);
        assert!(!safe.chars().any(is_active), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        let words = ["a b".to_string(), "it's".into(), "/x/y".into(), String::new()];
        assert_eq!(shell_words(&words), r"'a b' 'it'\''s' /x/y ''");
    }

    #[test]
    fn plans_fit_the_terminal() {
        let text = "a snapshot of the cluster, consistent at some time of the day";
        assert_eq!(wrapped("from", text, 0), format!("  from       {text}"));
        let lines = wrapped("from", text, 40);
        assert_eq!(
            lines,
            "  from       a snapshot of the cluster,\n             consistent at some time of\n             the day"
        );
        assert!(lines.lines().all(|line| line.len() <= 40));
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!((count(1u64, "page"), count(0u64, "page")), ("1 page".into(), "0 pages".into()));
    }

    #[test]
    fn durations_read_well() {
        let words = [3.21, 125.0, 3900.0, 172_799.0, 273_600.0].map(duration);
        assert_eq!(words, ["3.2 s", "2 min 05 s", "1 h 05 min", "47 h 59 min", "3 d 04 h"]);
    }
}
