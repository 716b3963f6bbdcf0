//! The house rules as tests: who may call whom, what no room may do, how long things may grow, and dead links.

use std::path::{Path, PathBuf};

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Source files with their room (the folder or file below `src`) and their code without comments and test modules.
fn sources() -> Vec<(PathBuf, String, String)> {
    let src = root().join("src");
    let room = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()
    };
    files(&src, "rs")
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (path.clone(), room(&path), code.join("\n"))
        })
        .collect()
}

/// Who may call whom; everybody may use the files for everybody.
fn allowed(room: &str) -> &'static [&'static str] {
    match room {
        "main" | "lib" => &["cli"],
        "cli" => {
            &["archive", "lineage", "snapshot", "timeline", "restore", "drill", "upkeep", "watch", "repo", "postgres", "storage"]
        }
        // Snapshots sweep what earlier ones left, and read from the timeline what changed; checks prove archiving as snapshots do; a
        // plan is a moment found on a timeline.
        "snapshot" => &["upkeep", "lineage", "timeline", "repo", "postgres", "storage"],
        "upkeep" => &["snapshot", "lineage", "timeline", "repo", "postgres", "storage"],
        "restore" => &["timeline", "lineage", "snapshot", "repo", "postgres", "storage"],
        "drill" => &["restore", "timeline", "upkeep", "repo", "postgres", "storage"],
        "archive" | "timeline" => &["lineage", "repo", "postgres", "storage"],
        "watch" => &["timeline", "lineage", "repo", "postgres", "storage"],
        "lineage" => &["repo", "postgres", "storage"],
        "repo" => &["postgres", "storage"],
        "postgres" | "storage" => &[],
        _ => &[],
    }
}

const FOR_EVERYBODY: [&str; 8] = ["aligned", "child", "clock", "config", "durable", "monitor", "owner", "tls"];

#[test]
fn rooms_call_only_whom_they_may() {
    let mut wrong = Vec::new();
    for (path, room, code) in sources() {
        for (at, _) in code.match_indices("crate::") {
            let used: String = code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let fine = used == room || FOR_EVERYBODY.contains(&used.as_str()) || allowed(&room).contains(&used.as_str());
            if !fine && used.chars().next().is_some_and(char::is_lowercase) {
                wrong.push(format!("{}: {room} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Of PostgreSQL the format knows names and LSNs only.
#[test]
fn the_format_knows_little_of_postgresql() {
    for (path, room, code) in sources() {
        if room != "repo" {
            continue;
        }
        for (at, _) in code.match_indices("crate::postgres::") {
            let used = &code[at + 17..];
            assert!(
                used.starts_with("lsn") || used.starts_with("wal::name"),
                "{}: {}",
                path.display(),
                used.lines().next().unwrap()
            );
        }
    }
}

/// Operations never print, never exit, and never read the environment; `child` looks at it to take it from others.
#[test]
fn operations_are_silent() {
    let banned = ["println!", "eprintln!", "print!(", "process::exit", "env::var", "todo!", "unimplemented!", "dbg!"];
    for (path, room, code) in sources() {
        for word in banned {
            let allowed =
                (room == "child" && word == "env::var") || room == "cli" && !["todo!", "unimplemented!", "dbg!"].contains(&word);
            assert!(allowed || !code.contains(word), "{} has {word}", path.display());
        }
    }
}

/// AWS types never leave the S3 store; anyhow never enters the library.
#[test]
fn foreign_types_stay_in_their_room() {
    for (path, room, code) in sources() {
        let in_s3 = path.to_string_lossy().contains("/storage/s3");
        let sdk = ["aws_sdk", "aws_config", "aws_smithy", "aws_types", "aws_runtime"].iter().any(|name| code.contains(name));
        assert!(in_s3 || !sdk, "{} uses the AWS SDK", path.display());
        assert!(room == "cli" || !code.contains("anyhow"), "{} uses anyhow", path.display());
    }
}

#[test]
fn files_and_functions_stay_short() {
    for (path, _, code) in sources() {
        let lines = code.lines().count();
        assert!(lines <= 500, "{} has {lines} lines of code: where is the seam?", path.display());
        let mut begin: Option<(usize, usize, String)> = None;
        for (number, line) in code.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let word = line.trim_start();
            let is_function =
                ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(super) fn "].iter().any(|w| word.starts_with(w));
            if is_function && begin.is_none() {
                begin = Some((number, indent, word.to_string()));
            } else if let Some((first, depth, name)) = &begin
                && line.starts_with(&format!("{}}}", " ".repeat(*depth)))
                && indent == *depth
            {
                assert!(number - first <= 85, "{}: {} is {} lines long", path.display(), name, number - first);
                begin = None;
            }
        }
    }
}

/// Every relative link in the documentation leads somewhere.
#[test]
fn no_link_is_dead() {
    let mut pages = files(&root().join("docs"), "md");
    pages.push(root().join("README.md"));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap().split('#').next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().unwrap().join(link);
            assert!(target.exists(), "{}: dead link {link}", page.display());
        }
    }
}

/// Every command has help with an example, and every test file is part of the one test binary.
#[test]
fn every_command_shows_an_example() {
    use clap::CommandFactory;
    let command = lastgood::cli::Args::command();
    for sub in command.get_subcommands() {
        let help = sub.get_after_help().map(|h| h.to_string()).unwrap_or_default();
        assert!(help.contains("Example"), "{} has no example", sub.get_name());
    }
    let all = std::fs::read_to_string(root().join("tests/all.rs")).unwrap();
    for entry in std::fs::read_dir(root().join("tests")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".rs").filter(|m| *m != "all") {
            assert!(all.contains(&format!("mod {module};")), "tests/{name} is never run");
        }
    }
}
