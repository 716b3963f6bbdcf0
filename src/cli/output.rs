//! Lines, JSON, and numbers for people.

use jiff::Timestamp;
use serde::Serialize;

/// Prints a line of text for people.
pub fn line(text: impl std::fmt::Display) {
    use std::io::Write;
    // A closed pipe (`lastgood list | head`) is no error of ours.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Red,
    Yellow,
}

/// Colours text on a terminal, and nowhere else; <https://no-color.org> turns it off there too.
pub fn paint(colour: Colour, text: &str) -> String {
    use std::io::IsTerminal;
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !is_wanted || !std::io::stdout().is_terminal() {
        return text.into();
    }
    let code = match colour {
        Colour::Red => 31,
        Colour::Yellow => 33,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Prints a line of a plan: a label, then what there is to say, wrapped below itself where a terminal is narrow.
pub fn entry(label: &str, text: impl std::fmt::Display) {
    use std::io::IsTerminal;
    let stdout = std::io::stdout();
    let columns = if stdout.is_terminal() { rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col) } else { 0 };
    line(wrapped(label, &text.to_string(), columns.into()));
}

/// With 0 columns nothing is wrapped: who reads lines in a file or a pipe wants them whole.
fn wrapped(label: &str, text: &str, columns: usize) -> String {
    const INDENT: usize = 13;
    let room = columns.saturating_sub(INDENT);
    let mut wrapped = format!("  {label:<11}");
    if room < 20 {
        return wrapped + text;
    }
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            wrapped.push_str(&format!("\n{:INDENT$}", ""));
            used = 0;
        } else if used > 0 {
            wrapped.push(' ');
            used += 1;
        }
        wrapped.push_str(word);
        used += length;
    }
    wrapped
}

/// Prints one JSON object on a line.
pub fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).unwrap_or_default());
}

/// An error with its causes, in one line each; no cause is said twice.
pub fn error(error: &anyhow::Error, code: u8, as_json: bool) {
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
    eprintln!("lastgood: {text}");
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

/// `2026-11-21 04:15:00.123456Z`, where the part of a second decides.
pub fn exact_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S.%6fZ").to_string()
}

/// `1 h 05 min`, `3.2 s`
pub fn duration(seconds: f64) -> String {
    match seconds {
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
        assert_eq!(
            (duration(3.21), duration(125.0), duration(3900.0)),
            ("3.2 s".into(), "2 min 05 s".into(), "1 h 05 min".into())
        );
    }
}
