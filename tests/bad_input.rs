//! Bad input gets a clear error that says what, where, and what to do next; nothing is lost and nothing half written stays.

use std::os::unix::fs::PermissionsExt;

use std::os::unix::process::CommandExt;

use rustix::process::Signal;

use crate::support::running::Running;
use crate::support::s3::{self, S3Server};
use crate::support::world::{PATIENCE, World};

async fn quiet() -> World {
    World::bare(15, &["--no-sync"], "", None).await
}

fn add(world: &World, text: &str) {
    let before = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), format!("{before}{text}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_names_the_line_and_the_nearest_key() {
    let world = quiet().await;
    let good = std::fs::read_to_string(world.config()).unwrap();
    let lines = good.lines().count();
    let cases = [
        ("pushahead = 3\n", "did you mean `push_ahead`?"),
        ("push_ahead = \"three\"\n", "invalid type"),
        ("[snapshots]\n", "did you mean `snapshot`?"),
        ("push_ahead = \n", "line"),
    ];
    for (text, words) in cases {
        std::fs::write(world.config(), format!("{good}{text}")).unwrap();
        world.refused(&["list"], 3, &[words, &format!("line {}", lines + 1), "lastgood.toml"]);
    }
    std::fs::write(world.config(), format!("{good}\n[snapshot]\ncompression_level = 99\n")).unwrap();
    world.refused(&["list"], 3, &["compression_level is 99", "1 (fast) to 19"]);
    std::fs::write(world.config(), "").unwrap();
    world.refused(&["list"], 3, &["no repository is configured", "--repo"]);
    std::fs::remove_file(world.config()).unwrap();
    world.refused(&["list"], 3, &["read configuration", "No such file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_used_says_why() {
    let mut world = quiet().await;
    world.refused(&["list"], 4, &["does not exist"]);
    world.start().await;
    // Something else lives there.
    std::fs::create_dir_all(world.repository().join("archive/main")).unwrap();
    std::fs::write(world.repository().join("archive/main/archive.info"), "pgbackrest").unwrap();
    for dir in [world.repository(), world.repository().join("archive"), world.repository().join("archive/main")] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    world.refused(&["init"], 5, &["not empty", "no lastgood repository", "archive"]);
    world.refused(&["list"], 4, &["holds no lastgood repository", "lastgood init"]);
    std::fs::remove_dir_all(world.repository()).unwrap();
    world.ok(&["init", "--apply"]);
    world.ok(&["init"]);
    world.refused(&["--cluster", "store", "list"], 4, &["knows no cluster \"store\"", "it knows shop"]);
    world.refused(&["--cluster", "../x", "list"], 3, &["cannot be used"]);
    // Read-only for the one who writes.
    let all = |mode: u32| {
        for dir in [world.repository(), world.repository().join("clusters"), world.repository().join("clusters/shop")] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    all(0o500);
    world.refused(&["backup"], 4, &["permission denied"]);
    world.refused(&["check", "--no-switch"], 9, &["FAILED", "permission denied", "right to create"]);
    all(0o700);
    world.ok(&["backup"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_or_foreign_format_is_told_apart_from_damage() {
    let world = World::new(15).await;
    let record = world.repository().join("lastgood.json");
    let good = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, good.replace("\"minimum_reader\": 1", "\"minimum_reader\": 99")).unwrap();
    world.refused(&["list"], 4, &["format 99", "use a newer lastgood"]);
    std::fs::write(&record, good.replace("\"seal\": \"none\"", "\"seal\": \"aes-256-gcm\"")).unwrap();
    world.refused(&["list"], 3, &["sealed", "no key", "[encryption]"]);
    std::fs::write(&record, good.replace("\"seal\": \"none\"", "\"seal\": \"rot13\"")).unwrap();
    world.refused(&["list"], 4, &["\"rot13\"", "use a newer lastgood"]);
    std::fs::write(&record, "{\"hello\": 1}").unwrap();
    world.refused(&["list"], 7, &["is damaged"]);
    std::fs::write(&record, &good).unwrap();
    let snapshot = world.backup(&[]);
    let manifest = world.repository().join(format!("clusters/shop/snapshots/{}", snapshot["id"].as_str().unwrap()));
    // The format version stands in the trailer's footer, twelve bytes before the end.
    crate::support::world::tamper(&manifest, |bytes| {
        let at = bytes.len() - 12;
        bytes[at] = 77;
    });
    world.refused(&["verify"], 7, &["format 77", "newer lastgood"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_that_cannot_be_used_says_why() {
    let server = S3Server::start().await;
    let url = format!("s3://{}/x", s3::BUCKET);
    let world = World::with(15, &[], "", Some((&url, server.config()))).await;
    world.ok(&["backup"]);
    let mut wrong = server.config();
    wrong.credentials_file = Some(server.wrong_credentials_file());
    world.write_config(Some((&url, wrong)), "");
    let said = world.refused(&["list"], 4, &["credentials were not accepted"]);
    assert!(!said.all().to_lowercase().contains("secret"), "{}", said.all());
    world.write_config(Some(("s3://nobucket/x", server.config())), "");
    world.refused(&["list"], 4, &["bucket missing"]);
    let mut dead = server.config();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    dead.endpoint = Some(format!("http://127.0.0.1:{port}"));
    world.write_config(Some((&url, dead)), "");
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), text.replace("path_style", "call_timeout_s = 2\npath_style")).unwrap();
    world.refused(&["list"], 4, &["did not answer properly"]);
    // Recovery must stop, not end, when the store does not answer (rule 30).
    world.refused(&["archive-get", "000000010000000000000001", "/tmp/nowhere"], 126, &["did not answer properly"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_used_says_why() {
    let mut world = quiet().await;
    world.refused(&["init"], 8, &["connect to PostgreSQL"]);
    assert!(!world.repository().exists(), "nothing is made before the server is known");
    world.server.configure("archive_mode = off\nwal_level = minimal\nmax_wal_senders = 0").unwrap();
    world.start().await;
    let said = world.ok(&["init"]);
    assert!(said.out.contains("ALTER SYSTEM SET archive_mode = 'on';   -- needs a restart"), "{}", said.out);
    assert!(said.out.contains("wal_level = 'replica'"), "{}", said.out);
    world.refused(&["backup"], 8, &["archive_mode is off", "restart"]);
    world.refused(&["check"], 9, &["FAILED", "archive_mode is off", "wal_level is minimal"]);
    add(&world, "\n[restore]\nthreads = 0\n");
    world.refused(&["list"], 3, &["threads is 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_have_their_own_code() {
    let world = quiet().await;
    world.refused(&["backup", "--no-such-flag"], 2, &["--no-such-flag"]);
    world.refused(&["restore"], 2, &["--to"]);
    assert!(world.ok(&["completions", "bash"]).out.contains("archive-push"));
}

/// A signal that ends a backup is answered with what it leaves; one that was ignored from the start stays ignored (`nohup`).
#[tokio::test(flavor = "multi_thread")]
async fn signals_are_answered_and_ignored_ones_stay_ignored() {
    let world = World::new(15).await;
    let paused = |program: &str, before: &[&str]| {
        let inner = world.command(&["backup"]);
        let mut command = world.command(&[]);
        if !program.is_empty() {
            let mut outer = std::process::Command::new(program);
            outer.args(before).arg(inner.get_program()).args(inner.get_args()).current_dir(world.path(""));
            if let Some(user) = world.user() {
                outer.uid(user.uid).gid(user.gid);
            }
            command = outer;
        } else {
            command.args(["backup"]);
        }
        let running = Running::start(&mut command);
        let began = lastgood::clock::monotonic();
        while !world.objects("clusters/shop/leases").iter().any(|key| !key.ends_with("released")) {
            assert!(began.elapsed() < PATIENCE);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        running.pause();
        running
    };
    let ignores = paused("env", &["--ignore-signal=HUP"]);
    ignores.signal(Signal::HUP);
    ignores.signal(Signal::CONT);
    let said = ignores.end();
    assert_eq!(said.code, 0, "{}", said.all());
    for (signal, code, name) in [(Signal::TERM, 143, "SIGTERM"), (Signal::HUP, 129, "SIGHUP")] {
        for key in world.objects("clusters/shop/leases") {
            std::fs::remove_file(world.repository().join(key)).unwrap();
        }
        let running = paused("", &[]);
        running.signal(signal);
        running.signal(Signal::CONT);
        let said = running.end();
        assert_eq!(said.code, code, "{}", said.all());
        assert!(said.err.contains(&format!("ended by {name}: no snapshot was made; run it again")), "{}", said.all());
    }
}

/// Settings of the role that would end long work do not, and another tool's archive_library is taken out with a word.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_others_are_no_harm() {
    let mut world =
        World::bare(18, &[], "archive_library = 'basic_archive'\nbasic_archive.archive_directory = '/tmp'", None).await;
    world.start().await;
    for name in ["transaction_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"] {
        world.sql(&format!("ALTER ROLE postgres SET {name} = '300ms'")).await;
    }
    let said = world.ok(&["init", "--apply"]);
    assert!(said.out.contains("archive_library = '';   -- it was 'basic_archive'"), "{}", said.all());
    world.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 100000) g").await;
    // The checkpoint takes longer than any of them.
    world.ok(&["backup"]);
    world.ok(&["check"]);
}
