//! The tripwire with the program: a mistake is told of when it is archived, once, and everyday work is not.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::loopback::Loopback;
use crate::support::world::{PATIENCE, World};

const SCHEMA: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders SELECT i, repeat('o', 50) FROM generate_series(1, 3000) i;
    CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers SELECT generate_series(1, 4000);
    CREATE TABLE notes (id int PRIMARY KEY); INSERT INTO notes SELECT generate_series(1, 50); ANALYZE";

/// Waits for a condition, with what to say when it does not come.
pub async fn until(mut is_so: impl FnMut() -> bool, what: &str) {
    let began = lastgood::clock::monotonic();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A server with a snapshot, and with the tripwire on; `alert` are lines of `[alert]`.
async fn armed(alert: impl Fn(&World) -> String) -> World {
    let mut world = World::bare(15, &[], "archive_timeout = 60", None).await;
    rearm(&world, &alert(&world));
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql(SCHEMA).await;
    world.backup(&[]);
    world
}

fn rearm(world: &World, alert: &str) {
    world.write_config(None, &format!("[tripwire]\nenabled = true\n[alert]\n{alert}\n"));
}

/// One whose alerts are written to a file.
async fn written_down() -> (World, PathBuf) {
    let world = armed(|world| {
        let heard = world.write_private("heard", "");
        format!("command = [\"/bin/sh\", \"-c\", \"cat >> {0}; echo >> {0}\"]", heard.display())
    })
    .await;
    let heard = world.path("heard");
    (world, heard)
}

fn notes_named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(notes_named(&entry.path(), name));
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    found
}

/// Everything that was archived has been looked at.
async fn looked_at(world: &World) {
    let spool = world.path("spool");
    until(|| notes_named(&spool, "suspicion").is_empty(), "nobody looks at what was archived").await;
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_is_told_of_once_and_everyday_work_is_not() {
    let (world, heard) = written_down().await;
    // A day's work.
    world.sql("CREATE TABLE staging AS SELECT generate_series(1, 5000) AS id; TRUNCATE staging; DROP TABLE staging").await;
    for sql in
        ["VACUUM FULL orders", "REINDEX TABLE customers", "TRUNCATE notes", "CREATE TEMP TABLE t AS SELECT 1; DROP TABLE t"]
    {
        world.sql(sql).await;
    }
    world.sql("UPDATE orders SET what = 'x' WHERE id <= 1400").await;
    // Sessions that end leave their temporary tables to be dropped.
    for _ in 0..12 {
        world.sql("CREATE TEMP TABLE report AS SELECT generate_series(1, 2000) AS id").await;
        world.sql("DISCARD TEMP").await;
    }
    world.archive().await;
    looked_at(&world).await;
    assert_eq!(lines(&heard), Vec::<serde_json::Value>::new());
    assert!(world.ok(&["alerts"]).out.contains("no alert is open"));
    let said = world.ok(&["timeline"]).out;
    assert!(!said.contains("report") && !said.contains("DROP (") && !said.contains("DROP relation"), "{said}");

    world.sql("DROP TABLE orders").await;
    world.archive().await;
    until(|| !lines(&heard).is_empty(), "nobody heard of the drop").await;
    looked_at(&world).await;
    let told = lines(&heard);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!((told[0]["rule"].as_str(), told[0]["timeline"].as_u64()), (Some("drop"), Some(1)));
    assert!(
        told[0]["what"].as_str().unwrap().contains("DROP postgres.public.orders in cluster shop (about 3000 rows"),
        "{told:#?}"
    );
    // The command that it names goes to just before it.
    let event = world.ok(&["--json", "timeline", "--kind", "drop", "--table", "orders"]).json()["events"][0].clone();
    assert_eq!(told[0]["event"], event["id"]);
    let words = told[0]["restore"].as_str().unwrap().replace("DIRECTORY", world.path("restored").to_str().unwrap());
    let words: Vec<&str> = words.split_whitespace().skip(1).chain(["--target-action", "promote"]).collect();
    world.ok(&words);
    let (_server, session) = world.recovered("restored").await;
    assert_eq!(session.value("SELECT count(*) FROM orders").await.unwrap(), "3000");

    // Red until somebody acknowledges it.
    let open = world.ok(&["--json", "alerts"]).json();
    let (id, event) = (open["id"].as_str().unwrap().to_string(), open["event"].as_str().unwrap());
    world.refused(&["check", "--no-switch"], 9, &["DROP postgres.public.orders", &format!("--acknowledge {event}")]);
    assert!(world.ok(&["alerts"]).out.contains(&format!("lastgood alerts --acknowledge {event} --reason")));
    world.refused(&["alerts", "--acknowledge", "1:0/1"], 10, &["no open alert"]);
    world.ok(&["alerts", "--acknowledge", event, "--reason", "drill"]);
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains("the tripwire is on, and no alert is open"), "{}", said.out);
    assert!(world.ok(&["alerts", "--all"]).out.contains("acknowledged"));
    world.refused(&["alerts", "--acknowledge", &id], 10, &["no open alert"]);

    // The next one is another one.
    world.sql("TRUNCATE customers").await;
    world.archive().await;
    until(|| lines(&heard).len() == 2, "nobody heard of the truncation").await;
    looked_at(&world).await;
    assert_eq!(lines(&heard)[1]["rule"], "truncate");
    let id = world.ok(&["--json", "alerts"]).json()["id"].as_str().unwrap().to_string();
    for reason in [&[][..], &["--reason", "  "]] {
        let args = [&["alerts", "--acknowledge", &id[..id.len() - 3]], reason].concat();
        world.refused(&args, 10, &["needs a reason"]);
    }
    world.ok(&["alerts", "--acknowledge", &id[..id.len() - 3], "--reason", "the test meant it"]);
    let said = world.ok(&["alerts", "--all"]).out;
    assert!(said.contains(": the test meant it") && said.contains(": drill"), "{said}");
    // Who looks at what happened sees what was done about it.
    let said = world.ok(&["timeline"]).out;
    assert!(said.contains("acknowledged 1:0/") && said.contains(": drill") && said.contains("restore"), "{said}");
}

/// A transaction that deletes for many segments and commits in a quiet one.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_delete_is_told_of_when_it_commits() {
    let (world, heard) = written_down().await;
    world.sql("BEGIN; DELETE FROM orders").await;
    let other = world.connect().await;
    let name = other.switch_segment("while it runs").await.unwrap();
    until_archived(&world, &other, &name).await;
    let spool = world.path("spool");
    until(|| !notes_named(&spool, "watched").is_empty(), "nobody looks").await;
    // Others' segments go by, in which there is something to look at.
    for _ in 0..2 {
        other.run("TRUNCATE notes").await.unwrap();
        let name = other.switch_segment("while it runs").await.unwrap();
        until_archived(&world, &other, &name).await;
        let is_watched = || notes_named(&spool, "watched").iter().any(|note| std::fs::read_to_string(note).unwrap() >= name);
        until(is_watched, "nobody looks on").await;
    }
    assert!(lines(&heard).is_empty(), "it may still be rolled back");
    world.sql("COMMIT").await;
    world.archive().await;
    until(|| !lines(&heard).is_empty(), "nobody heard of the delete").await;
    let told = lines(&heard);
    assert_eq!((told[0]["rule"].as_str(), told.len()), (Some("mass-change"), 1));
    assert!(
        told[0]["what"].as_str().unwrap().contains("DELETE of 3000 rows from postgres.public.orders (about 100 %)"),
        "{told:#?}"
    );
}

async fn until_archived(world: &World, session: &lastgood::postgres::session::Session, name: &str) {
    let began = lastgood::clock::monotonic();
    while session.archiver().await.unwrap().last_archived.is_none_or(|last| last.as_str() < name) {
        assert!(began.elapsed() < PATIENCE, "{name} is not archived\n{}", world.server.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_hears_of_it_and_a_deaf_one_is_seen() {
    let hook = Loopback::start(|_| (200, "{}".into())).await;
    let routes = |command: &str, url: &str| format!("command = [\"{command}\"]\nwebhook = \"{url}\"");
    let world = armed(|_| routes("/bin/true", &format!("{}/hook", hook.url))).await;
    world.sql("DROP TABLE orders").await;
    world.archive().await;
    until(|| !hook.asked().is_empty(), "the webhook was not called").await;
    looked_at(&world).await;
    let asked = hook.asked();
    let alert: serde_json::Value = serde_json::from_str(&asked[0].body).unwrap();
    assert_eq!((asked[0].line.as_str(), alert["rule"].as_str(), asked.len()), ("POST /hook", Some("drop"), 1));

    rearm(&world, &routes("/bin/false", "http://127.0.0.1:1/hook-with-a-secret"));
    world.sql("DROP TABLE customers").await;
    world.archive().await;
    let spool = world.path("spool");
    until(|| !notes_named(&spool, "alert-problem").is_empty(), "nobody says that nobody heard").await;
    let said = world.refused(
        &["check", "--no-switch"],
        9,
        &["did not reach everybody", "[alert] command: exit status: 1", "an alert cannot be delivered: [alert] webhook"],
    );
    rearm(&world, &format!("command = [\"/no/such/pager\"]\nwebhook = \"{}/hook\"", hook.url));
    let deaf = world.refused(&["check", "--no-switch"], 9, &["an alert cannot be delivered: [alert] command: /no/such/pager"]);
    assert!(!deaf.all().contains("delivered: [alert] webhook"), "{}", deaf.all());
    assert!(!said.all().contains("secret"), "{}", said.all());
}

/// Whatever the alert command does, archiving goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_alert_command_does_not_hold_archiving() {
    let world = armed(|world| {
        let script = world.path("hang");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("command = [\"{}\"]\ntimeout_s = 3600", script.display())
    })
    .await;
    world.sql("DROP TABLE orders").await;
    world.archive().await;
    until(|| world.ok(&["--json", "alerts"]).out.contains("\"rule\":\"drop\""), "no alert").await;
    for _ in 0..3 {
        world.sql("INSERT INTO customers SELECT max(id) + 1 FROM customers").await;
        world.archive().await;
    }
}
