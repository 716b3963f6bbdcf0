//! Names that carry commands for a terminal: they are shown, and do nothing.

use crate::support::world::{Said, World};

/// A table whose name forges a line, clears one, colours, and turns the direction of what follows.
const FORGED: &str = "t\n    before it: lastgood restore --before x\r\u{1b}[2K\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\u{2028}";

/// No line begins as the forged one does, and nothing but line breaks controls a terminal.
fn is_harmless(what: &str, said: &Said) {
    for text in [&said.out, &said.err] {
        let active = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let found: Vec<char> = text.chars().filter(|c| active(*c)).collect();
        assert!(found.is_empty(), "{what} prints {found:?}: {text:?}");
        let forged = text.lines().find(|line| line.starts_with("    before it: lastgood restore --before x"));
        assert_eq!(forged, None, "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_others_named_reaches_the_terminal_as_it_is() {
    let mut world = World::bare(15, &[], "", None).await;
    world.write_config(None, "[tripwire]\nenabled = true\n");
    world.start().await;
    world.ok(&["init", "--apply"]);
    let quoted = format!("\"{FORGED}\"");
    world.sql(&format!("CREATE DATABASE {quoted}")).await;
    world.sql(&format!("CREATE TABLE {quoted} AS SELECT i FROM generate_series(1, 3000) i")).await;
    let snapshot = world.backup(&[])["id"].as_str().unwrap().to_string();
    world.sql(&format!("DROP TABLE {quoted}")).await;
    world.archive().await;
    is_harmless("pin", &world.ok(&["pin", &snapshot, "--reason", FORGED]));
    let into = world.path(&FORGED.replace('/', "-")).display().to_string();
    let calls: [&[&str]; 11] = [
        &["timeline"],
        &["alerts", "--all"],
        &["alerts", "--look"],
        &["check"],
        &["list"],
        &["audit"],
        &["audit", "--plans"],
        &["verify"],
        &["restore", "--to", "latest", "--into", &into, "--dry-run"],
        &["restore", "--before", FORGED, "--into", &into, "--dry-run"],
        &["restore", "--to", FORGED, "--into", &into],
    ];
    for args in calls {
        is_harmless(args[0], &world.run(args));
        let as_json = world.run(&[&["--json"], args].concat());
        is_harmless(args[0], &as_json);
        for line in as_json.out.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{args:?}: {error}: {line:?}"));
        }
    }
    let said = world.ok(&["timeline"]);
    assert!(said.out.contains(r"t\n    before it: lastgood restore --before x\r\x1b[2K"), "{}", said.out);
    assert!(world.ok(&["--json", "timeline"]).out.contains(r"\u001b[2K"), "JSON says the same");
}
