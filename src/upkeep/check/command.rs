//! Whether an `archive_command` tells the server the truth.
//!
//! PostgreSQL recycles a segment when the command exits with 0. Whatever stands behind `archive-push` in the shell's line may turn its
//! failure into a success: `; true`, `|| true`, `| cat`, `&`. So the line is taken apart as a shell would, and what cannot be
//! followed is said to be unknown.

/// What an `archive_command` does with a failure of `archive-push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches the server.
    Told,
    /// It is hidden: why.
    Hidden(&'static str),
    /// Another program archives.
    Foreign,
    /// A script, or a line that is not understood.
    Unknown(&'static str),
}

/// Programs that hand over the exit code of what they start.
const STARTERS: [&str; 9] = ["env", "exec", "nice", "ionice", "nohup", "timeout", "chrt", "time", "command"];
/// Programs that are known to archive elsewhere, or nowhere.
const FOREIGN: [&str; 19] = [
    "true",
    "false",
    ":",
    "exit",
    "echo",
    "printf",
    "logger",
    "cp",
    "mv",
    "rsync",
    "scp",
    "gzip",
    "test",
    "[",
    "aws",
    "pgbackrest",
    "barman-wal-archive",
    "wal-g",
    "pg_probackup",
];
const SHELLS: [&str; 4] = ["sh", "bash", "dash", "ash"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `;`, `&`, `&&`, `||`, `|`, or a line's end.
    Operator(&'static str),
}

/// Judges the line.
pub fn judge(line: &str) -> Verdict {
    judge_line(line, 0)
}

fn judge_line(line: &str, depth: usize) -> Verdict {
    let has_push = line.contains("archive-push");
    let Some(tokens) = tokens(line) else { return unfollowed(line, "it uses more of the shell than is followed here") };
    let mut commands: Vec<(Vec<String>, &'static str)> = vec![(Vec::new(), "")];
    for token in tokens {
        match token {
            Token::Word(word) => commands.last_mut().expect("never empty").0.push(word),
            Token::Operator(operator) => {
                commands.last_mut().expect("never empty").1 = operator;
                commands.push((Vec::new(), ""));
            }
        }
    }
    // Nothing after the last `;` is no command.
    while commands.len() > 1 && commands.last().is_some_and(|(words, _)| words.is_empty()) {
        commands.pop();
    }
    let of = |words: &Vec<String>| judge_command(words, depth);
    let last = |is: fn(Verdict) -> bool| commands.iter().rposition(|(words, _)| is(of(words)));
    let ours = last(|verdict| matches!(verdict, Verdict::Told | Verdict::Hidden(_)));
    let Some(ours) = ours.or_else(|| last(|verdict| matches!(verdict, Verdict::Unknown(_)))) else { return Verdict::Foreign };
    let verdict = of(&commands[ours].0);
    if matches!(verdict, Verdict::Hidden(_)) {
        return verdict;
    }
    if !has_push && commands.len() > 1 {
        return Verdict::Unknown("whether its commands archive here, and tell when they fail, cannot be seen");
    }
    let options =
        commands.iter().flat_map(|(words, _)| words).any(|word| word == "pipefail" || word == "-e" || word == "errexit");
    if options {
        return Verdict::Unknown("it sets options of the shell, on which it depends whether a failure reaches the server");
    }
    match fate(&commands[ours..]) {
        Verdict::Told => verdict,
        hidden => hidden,
    }
}

/// What the commands after the first make of its failure.
fn fate(commands: &[(Vec<String>, &'static str)]) -> Verdict {
    let mut at = 0;
    loop {
        let next = commands.get(at + 1).map(|(words, _)| words.iter().map(String::as_str).collect::<Vec<_>>());
        match (commands[at].1, next.as_deref()) {
            ("", _) | (";", None) => return Verdict::Told,
            ("&", _) => return Verdict::Hidden("it runs in the background (&), so the server is told success at once"),
            ("|", _) => return Verdict::Hidden("of a pipeline (|) the server is told how the last command ended"),
            // Not reached after a failure; what comes after that chain is.
            ("&&", Some(_)) => at += 1,
            ("||", Some(["false"])) => return Verdict::Told,
            ("||", Some(["exit", code])) | (";", Some(["exit", code])) if *code == "$?" || is_failure(code) => {
                return Verdict::Told;
            }
            ("||", Some(_)) => return Verdict::Hidden("what follows || ends with success after a failure"),
            (";", Some(words)) if words.iter().any(|word| word.contains('$')) => {
                return Verdict::Unknown("what follows ; decides what the server is told");
            }
            (";", Some(_)) => {
                return Verdict::Hidden("after ; the server is told how the last command ended, whatever happened before");
            }
            _ => return Verdict::Unknown("it is not understood"),
        }
    }
}

fn is_failure(code: &str) -> bool {
    code.parse::<u8>().is_ok_and(|code| code > 0)
}

fn unfollowed(line: &str, why: &'static str) -> Verdict {
    let ends = line.trim_end().trim_end_matches(';').trim_end();
    let hides = ["; true", ";true", "|| true", "||true", "; exit 0", ";exit 0", "| cat", "|cat", "; :", "|| :"];
    match hides.iter().any(|end| ends.ends_with(end)) || (ends.ends_with('&') && !ends.ends_with("&&")) {
        true => Verdict::Hidden("its end makes a success of every failure"),
        false => Verdict::Unknown(why),
    }
}

/// What the line names and is not there: the program, its configuration, its key. Only as this host sees it, so it explains a failure and
/// proves none: the server may live in another container.
pub fn missing_file(line: &str) -> Option<String> {
    let words: Vec<String> = tokens(line)?
        .into_iter()
        .filter_map(|token| match token {
            Token::Word(word) => Some(word.replace("%%", "%")),
            Token::Operator(_) => None,
        })
        .collect();
    let program = words.iter().position(|word| word.rsplit('/').next().is_some_and(|name| name.starts_with("lastgood")))?;
    let named = |flag: &str| {
        let of_one = words.iter().find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
        of_one.or_else(|| words.get(words.iter().position(|word| word == flag)? + 1).map(String::as_str))
    };
    let files = [
        ("the program", Some(words[program].as_str())),
        ("its configuration", named("--config")),
        ("its key", named("--key-file")),
    ];
    let is_missing = |path: &&str| {
        let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        path.starts_with('/') && std::fs::metadata(path).is_err_and(gone)
    };
    let (what, path) = files.into_iter().find_map(|(what, path)| Some((what, path.filter(is_missing)?)))?;
    Some(format!("{what} {path} is not there; `lastgood init` prints the line to set"))
}

/// One command without operators.
fn judge_command(words: &[String], depth: usize) -> Verdict {
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        let name = first.rsplit('/').next().unwrap_or_default();
        let is_assignment = first
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        if is_assignment {
            words = rest;
        } else if first == "!" {
            return Verdict::Hidden("! makes a success of every failure");
        } else if STARTERS.contains(&name) {
            // Options and their numbers: what is started is the first that is neither.
            let skipped = rest.iter().take_while(|word| word.starts_with('-') || word.starts_with(|c: char| c.is_ascii_digit()));
            words = &rest[skipped.count()..];
        } else if SHELLS.contains(&name) && depth == 0 {
            let script = rest.iter().position(|word| word == "-c").and_then(|at| rest.get(at + 1));
            return script.map_or(Verdict::Unknown("a script decides what the server is told"), |script| judge_line(script, 1));
        } else {
            return judge_program(name, rest);
        }
    }
    Verdict::Foreign
}

fn judge_program(name: &str, arguments: &[String]) -> Verdict {
    if FOREIGN.contains(&name) {
        return Verdict::Foreign;
    }
    if !name.starts_with("lastgood") {
        return Verdict::Unknown("a script or program decides what the server is told");
    }
    match arguments.iter().position(|word| word == "archive-push") {
        Some(at) if arguments[at + 1..].iter().any(|word| word.contains("%p")) => Verdict::Told,
        Some(_) => Verdict::Hidden("archive-push is not told which file: %p is missing after it"),
        None => Verdict::Foreign,
    }
}

/// Words and operators; `None` for what is more than that: substitutions, groups, functions.
fn tokens(line: &str) -> Option<Vec<Token>> {
    let (mut tokens, mut word): (Vec<Token>, Option<String>) = (Vec::new(), None);
    let mut rest = line.trim_end().chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' => word.get_or_insert_default().push_str(&quoted(&mut rest, '\'')?),
            '"' => word.get_or_insert_default().push_str(&quoted(&mut rest, '"')?),
            '\\' => word.get_or_insert_default().push(rest.next()?),
            '#' if word.is_none() => {
                // A comment to the end of the line.
                while rest.peek().is_some_and(|c| *c != '\n') {
                    rest.next();
                }
            }
            '`' | '(' | ')' | '{' | '}' => return None,
            '>' | '<' => {
                // The descriptor before, and the file behind, are no words of the command.
                let is_descriptor = |word: &String| word.bytes().all(|b| b.is_ascii_digit());
                tokens.extend(word.take().filter(|word| !is_descriptor(word)).map(Token::Word));
                redirection(&mut rest)?;
            }
            ';' | '&' | '|' | '\n' => {
                tokens.extend(word.take().map(Token::Word));
                let is_double = matches!(c, '&' | '|') && rest.next_if_eq(&c).is_some();
                // `|&` is a pipeline too.
                let _ = c == '|' && rest.next_if_eq(&'&').is_some();
                tokens.push(Token::Operator(match (c, is_double) {
                    ('&', true) => "&&",
                    ('&', false) => "&",
                    ('|', true) => "||",
                    ('|', false) => "|",
                    _ => ";",
                }));
            }
            c if c.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            c => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    let keywords = ["if", "then", "while", "until", "for", "case", "do", "function", "trap"];
    let has_keyword = tokens.iter().any(|token| matches!(token, Token::Word(word) if keywords.contains(&word.as_str())));
    (!has_keyword).then_some(tokens)
}

fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, end: char) -> Option<String> {
    let mut text = String::new();
    loop {
        match rest.next()? {
            c if c == end => return Some(text),
            '\\' if end == '"' => text.push(rest.next()?),
            '`' if end == '"' => return None,
            '$' if end == '"' && rest.peek() == Some(&'(') => return None,
            c => text.push(c),
        }
    }
}

/// `>> file`, `2>&1`, `< file`; processes in their place are not followed.
fn redirection(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
    while rest.next_if(|c| matches!(c, '>' | '<' | '&' | '|')).is_some() {}
    while rest.next_if(|c| *c == ' ' || *c == '\t').is_some() {}
    if rest.peek() == Some(&'(') {
        return None;
    }
    loop {
        match rest.peek() {
            Some(&quote @ ('\'' | '"')) => {
                rest.next();
                quoted(rest, quote)?;
            }
            Some(c) if !c.is_whitespace() && !matches!(c, ';' | '&' | '|' | '<' | '>') => drop(rest.next()),
            _ => return Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_reaches_the_server_is_told() {
        for line in [
            "lastgood archive-push %p",
            "/usr/local/bin/lastgood --config /etc/lastgood.toml archive-push \"%p\"",
            "'/srv/my tools/lastgood' --config '/etc/a;b.toml' archive-push \"%p\"",
            "lastgood archive-push %p 2>> /var/log/push.log",
            "lastgood archive-push %p >/dev/null 2>&1",
            "lastgood archive-push %p;",
            "lastgood archive-push %p # || true",
            "AWS_PROFILE=x lastgood archive-push %p",
            "env HOME=/tmp nice -n 10 lastgood archive-push %p",
            "timeout 60 lastgood archive-push %p",
            "test ! -f /tmp/stop && lastgood archive-push %p",
            "lastgood archive-push %p && cp %p /mnt/second/%f",
            "lastgood archive-push %p || exit 1",
            "lastgood archive-push %p || false",
            "lastgood archive-push %p; exit $?",
            "echo started; lastgood archive-push %p",
            "sh -c 'lastgood archive-push %p'",
        ] {
            assert_eq!(judge(line), Verdict::Told, "{line}");
        }
    }

    #[test]
    fn a_failure_that_is_made_a_success_is_found() {
        for line in [
            "lastgood archive-push %p; true",
            "lastgood archive-push %p;true",
            "lastgood archive-push %p ; :",
            "lastgood archive-push %p || true",
            "lastgood archive-push %p || /bin/true",
            "lastgood archive-push %p || :",
            "lastgood archive-push %p || logger failed",
            "lastgood archive-push %p || exit 0",
            "lastgood archive-push %p; exit 0",
            "lastgood archive-push %p\ntrue",
            "lastgood archive-push %p | cat",
            "lastgood archive-push %p 2>&1 | logger -t lastgood",
            "lastgood archive-push %p |& cat",
            "lastgood archive-push %p &",
            "lastgood archive-push %p & wait",
            "lastgood archive-push %p && cp %p /mnt; true",
            "lastgood archive-push %p && sync || true",
            "! lastgood archive-push %p",
            "sh -c 'lastgood archive-push %p; exit 0'",
            "bash -c \"lastgood archive-push %p || true\"",
            "(lastgood archive-push %p); true",
            "{ lastgood archive-push %p; } || true",
            "lastgood archive-push",
            "lastgood archive-push $(realpath %p) || true",
        ] {
            assert!(matches!(judge(line), Verdict::Hidden(_)), "{line}: {:?}", judge(line));
        }
    }

    #[test]
    fn what_a_line_names_and_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("lastgood 100%");
        std::fs::write(&there, "").unwrap();
        let (there, gone) = (there.display().to_string(), dir.path().join("gone.toml").display().to_string());
        let quoted = format!("'{}'", there.replace('%', "%%"));
        for (line, what) in [
            (format!("{quoted} archive-push %p"), None),
            (format!("{quoted} --config {quoted} archive-push %p"), None),
            (format!("{quoted} --config {gone} archive-push %p"), Some("its configuration")),
            (format!("nice {quoted} --config={gone} archive-push %p || false"), Some("its configuration")),
            (format!("{quoted} --key-file {gone} archive-push %p"), Some("its key")),
            (format!("{}/no/lastgood archive-push %p", dir.path().display()), Some("the program")),
            // What a shell looks for itself, and other programs, are not judged.
            ("lastgood --config relative.toml archive-push %p".into(), None),
            ("cp %p /mnt/%f".into(), None),
        ] {
            let said = missing_file(&line);
            assert_eq!(said.is_some(), what.is_some(), "{line}: {said:?}");
            assert!(what.is_none_or(|what| said.as_ref().is_some_and(|said| said.starts_with(what))), "{line}: {said:?}");
        }
    }

    #[test]
    fn other_programs_and_scripts_are_told_apart() {
        for line in [
            "cp %p /mnt/%f",
            "true",
            "/bin/true",
            "echo lastgood archive-push %p",
            "true # archive-push",
            "pgbackrest archive-push %p",
            "test ! -f /mnt/%f && cp %p /mnt/%f",
            "lastgood list",
            "false",
        ] {
            assert_eq!(judge(line), Verdict::Foreign, "{line}");
        }
        for line in [
            "/usr/local/bin/archive.sh %p",
            "wrapper archive-push %p",
            "sh /etc/archive.sh %p",
            "set -e; lastgood archive-push %p; true",
            "bash -c 'set -o pipefail; lastgood archive-push %p | cat'",
            "lastgood archive-push %p; rc=$?; exit $rc",
            "if lastgood archive-push %p; then exit 0; else exit 1; fi",
            "lastgood archive-push `realpath %p`",
            "lastgood archive-push 'un",
        ] {
            assert!(matches!(judge(line), Verdict::Unknown(_)), "{line}: {:?}", judge(line));
        }
    }
}
