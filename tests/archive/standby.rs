//! A standby lives when the repository does not answer, and what that may cost at a promotion is refused.

use std::path::Path;

use lastgood::postgres::scratch::Stop;

use crate::restore::standby::{standby, until};
use crate::support::world::{PATIENCE, Said, World, said};

async fn appears(path: &Path, log: impl Fn() -> String) -> String {
    let began = lastgood::clock::monotonic();
    loop {
        if let Ok(text) = std::fs::read_to_string(path)
            && text.ends_with('}')
        {
            return text;
        }
        assert!(began.elapsed() < PATIENCE, "{} does not appear\n{}", path.display(), log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The program as a server with this data directory calls it.
fn get(world: &World, name: &str, directory: &Path) -> Said {
    said(world.command(&["archive-get", name, world.path("got").to_str().unwrap()]).current_dir(directory))
}

/// Rule 30: only a standby goes on, with a code that PostgreSQL takes for "ask again"; somebody is told, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_survives_an_absent_repository() {
    let mut world = World::new(15).await;
    let alerts = world.path("alerts");
    world.write_config(None, &format!("\n[alert]\ncommand = [\"/bin/sh\", \"-c\", \"cat >> {}\"]\n", alerts.display()));
    std::fs::set_permissions(world.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let (mut server, session) = standby(&world, "standby", &[]).await;
    let away = world.path("away");
    std::fs::rename(world.repository(), &away).unwrap();
    world.server.stop(Stop::Fast);
    let told = appears(&alerts, || server.log()).await;
    let alert: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(alert["rule"], "standby-archive");
    assert!(alert["what"].as_str().unwrap().contains("standby of cluster shop") && alert["host"].is_string(), "{alert}");
    // Each call is one of the server's own kind: neither an absence, nor a reason to shut down. Elsewhere it stops recovery.
    for name in ["0000000100000000000000FF", "00000002.history"] {
        let said = get(&world, name, server.data());
        assert!(said.code == 75 && said.err.contains("does not exist"), "{name}: {}", said.all());
        assert_eq!(get(&world, name, &world.path("")).code, 126, "{name}");
    }
    assert_eq!(std::fs::read_to_string(&alerts).unwrap(), told, "an outage is told once");
    assert_eq!(session.value("SELECT pg_is_in_recovery() || ' ' || (SELECT count(*) FROM t)").await.unwrap(), "true 1");
    // It starts without the repository, too.
    drop(session);
    server.stop(Stop::Fast);
    server.start().await.unwrap_or_else(|e| panic!("{e}"));
    std::fs::rename(&away, world.repository()).unwrap();
    world.start().await;
    world.sql("INSERT INTO t VALUES (2)").await;
    let session = lastgood::postgres::session::Session::open(&server.connection()).await.unwrap();
    until(&session, "SELECT count(*) FROM public.t", "2", || server.log()).await;
    assert_eq!(get(&world, "0000000100000000000000FF", server.data()).code, 1, "proven again");
    drop(session);
    server.stop(Stop::Fast);
}

/// A standby is promoted while it cannot ask which timelines are taken, and takes one twice: it is refused, with the way out.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_taken_twice_is_refused_with_the_way_out() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    world.backup(&[]);
    let (mut server, session) = standby(&world, "standby", &[]).await;
    let away = world.path("away");
    std::fs::rename(world.repository(), &away).unwrap();
    world.server.stop(Stop::Fast);
    session.run("SELECT pg_promote()").await.unwrap();
    session.run("INSERT INTO t VALUES (2)").await.unwrap();
    // Another server had taken that number, which the archive knows.
    let history = world.server.data().join("pg_wal/00000002.history");
    std::fs::write(&history, "1\t0/2000100\tno recovery target specified\n").unwrap();
    let push = ["--repo", away.to_str().unwrap(), "archive-push", "pg_wal/00000002.history"];
    let pushed = said(world.command(&push).current_dir(world.server.data()));
    assert_eq!(pushed.code, 0, "{}", pushed.all());
    std::fs::rename(&away, world.repository()).unwrap();
    let before = world.objects("clusters/shop/wal");
    session.run("SELECT pg_switch_wal()").await.unwrap();
    let own = said(world.command(&["archive-push", "pg_wal/00000002.history"]).current_dir(server.data()));
    assert_eq!(own.code, 5, "{}", own.all());
    for words in ["was taken twice", "begins at 0/2000100", "stays in pg_wal", "[cluster] name of its own"] {
        assert!(own.err.contains(words), "{words}: {}", own.err);
    }
    until(&session, "SELECT failed_count > 0 AND last_archived_wal IS NULL FROM pg_stat_archiver", "t", || server.log()).await;
    assert_eq!(world.objects("clusters/shop/wal"), before, "nothing of it is mixed in");
    // The way out, as it is said.
    let host = server.sockets().display().to_string();
    let other = ["--cluster", "shop2", "--pg-host", &host];
    world.ok(&[&other[..], &["init", "--apply"]].concat());
    world.ok(&[&other[..], &["backup"]].concat());
    world.ok(&[&other[..], &["restore", "--to", "latest", "--into", world.path("copy").to_str().unwrap()]].concat());
    let (_copy, rows) = world.recovered("copy").await;
    assert_eq!(rows.value("SELECT count(*) FROM t").await.unwrap(), "2");
    drop(session);
    server.stop(Stop::Fast);
}
