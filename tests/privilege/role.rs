//! A role of its own, as the page about it says; and what is said when the server lets nobody in.

use std::fs;

use lastgood::postgres::scratch::Stop;

use crate::support::world::{Said, World};

/// A block of code of the page, by its language.
fn block(language: &str) -> String {
    let page = include_str!("../../docs/guide/setup.md");
    let section = &page[page.find("## A role of its own").unwrap()..];
    let begin = section.find(&format!("```{language}\n")).unwrap() + language.len() + 4;
    section[begin..].split("```").next().unwrap().to_string()
}

fn as_lastgood(world: &World, args: &[&str]) -> Said {
    world.run(&[&["--pg-user", "lastgood"], args].concat())
}

/// A reload takes effect some time later, and nobody is told when.
async fn restart(world: &mut World) {
    world.server.stop(Stop::Fast);
    world.start().await;
}

async fn as_the_page_says(major: u32) {
    let mut world = World::bare(major, &["--data-checksums"], "", None).await;
    let data = world.server.data().to_path_buf();
    let uid = world.user().map_or_else(|| rustix::process::getuid().as_raw(), |ids| ids.uid);
    let me = lastgood::owner::user_name(uid);
    // As Debian has it; the superuser of a test keeps its way in.
    let local = "local all postgres trust\nlocal all all peer\n";
    fs::write(data.join("pg_hba.conf"), local).unwrap();
    world.start().await;
    let refused = |said: Said, code: i32, words: &[&str]| {
        assert!(said.code == code && words.iter().all(|words| said.err.contains(words)), "{words:?}: {}", said.all());
    };
    refused(as_lastgood(&world, &["init"]), 8, &[&format!("this is the system user {me}"), "pg_ident.conf"]);

    let old = |sql: String| {
        sql.replace("pg_backup_start(text, boolean)", "pg_start_backup(text, boolean, boolean)")
            .replace("pg_backup_stop(boolean)", "pg_stop_backup(boolean, boolean)")
    };
    fs::write(data.join("pg_hba.conf"), format!("{}{local}", block("pg_hba"))).unwrap();
    fs::write(data.join("pg_ident.conf"), block("pg_ident").replace("  postgres  ", &format!("  {me}  "))).unwrap();
    restart(&mut world).await;
    // Let in by the map, and not there.
    refused(as_lastgood(&world, &["init"]), 8, &["create the role"]);
    let sql = block("sql");
    world.sql(&if major < 15 { old(sql) } else { sql }).await;
    refused(as_lastgood(&world, &["init", "--apply"]), 8, &["`lastgood init --apply --pg-user postgres`"]);
    world.ok(&["init", "--apply", "--pg-user", "postgres"]);
    for args in [&["backup"][..], &["check"]] {
        let said = as_lastgood(&world, args);
        assert_eq!(said.code, 0, "{}", said.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_its_own_in_13() {
    as_the_page_says(13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_its_own_in_18() {
    as_the_page_says(18).await;
}

/// Each answer names what keeps us out and what to do, in whatever language the server speaks.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_us_out_is_named_with_the_mend() {
    let mut world = World::bare(17, &[], "allow_alter_system = off\nlc_messages = 'C'", None).await;
    world.refused(&["init"], 8, &["no server has a socket for port 5432", "--pg-host"]);
    world.refused(&["init", "--pg-host", "127.0.0.1", "--pg-port", "1"], 8, &["nothing listens there"]);
    world.start().await;
    world.refused(&["init", "--pg-user", "nobody_there"], 8, &["create the role", "--pg-user"]);
    world.refused(&["init", "--apply"], 8, &["run `lastgood init` without --apply"]);
    let hba = world.server.data().join("pg_hba.conf");
    let let_in = |line: &str| fs::write(&hba, format!("local all postgres trust\n{line}\n")).unwrap();
    world.sql("CREATE ROLE lastgood LOGIN").await;
    for (line, words) in [("", "add a line for lastgood to pg_hba.conf"), ("local all lastgood scram-sha-256", "password_file")] {
        let_in(line);
        restart(&mut world).await;
        world.refused(&["init", "--pg-user", "lastgood"], 8, &[words]);
    }
    world.refused(&["--pg-port", "5433", "init"], 8, &["no server has a socket for port 5433"]);
}
