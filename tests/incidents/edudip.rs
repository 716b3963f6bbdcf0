//! 9 February 2023: a human resets the production database. Five hours and 47 minutes of committed data were gone for good.

use lastgood::postgres::scratch::Stop;
use lastgood::postgres::session::Session;

use crate::guard::{at_terminal, beside, relabel};
use crate::support::world::World;
use crate::timeline::tripwire::until;

/// Commits under load, and writes down outside of the database what was acknowledged.
async fn work(world: &World, client: usize, until: std::sync::Arc<std::sync::atomic::AtomicBool>) -> Vec<String> {
    let session = Session::open(&world.server.connection()).await.unwrap();
    session.run("SET search_path = public").await.unwrap();
    let mut ledger = Vec::new();
    while !until.load(std::sync::atomic::Ordering::Relaxed) {
        let order = format!("{client}-{}", ledger.len());
        if session.run(&format!("INSERT INTO orders VALUES ('{order}')")).await.is_err() {
            break;
        }
        ledger.push(order);
    }
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_production_loses_nothing() {
    let mut world = World::bare(15, &["--data-checksums"], "archive_timeout = 0", None).await;
    relabel(&world, "production");
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE orders (id text PRIMARY KEY)").await;
    world.backup(&[]);
    world.archive().await;

    // 09:47: under load, somebody resets production. Nothing of the last minutes was archived.
    let until = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reset = async {
        while world.value("SELECT count(*) > 500 FROM orders").await != "t" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        world.sql("BEGIN; LOCK TABLE orders").await;
        let xid = world.value("SELECT txid_current()").await;
        world.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; COMMIT").await;
        until.store(true, std::sync::atomic::Ordering::Relaxed);
        xid
    };
    let (xid, one, two) = tokio::join!(reset, work(&world, 1, until.clone()), work(&world, 2, until.clone()));
    let ledger = [one, two].concat();
    assert!(ledger.len() > 500, "there was load: {}", ledger.len());
    world.sql("CREATE TABLE public.after_the_reset (x int)").await;

    // The first reflex: restore into the live directory. It is refused, and the server never notices.
    let data = world.server.data().to_path_buf();
    let into = data.to_str().unwrap().to_string();
    let target = format!("xid:{xid}");
    let restore = ["restore", "--to", &target, "--exclusive", "--target-action", "promote", "--into", &into];
    world.refused(&restore, 5, &["never writes under a living server", "stop it"]);
    assert_eq!(world.value("SELECT to_regclass('public.after_the_reset') IS NOT NULL").await, "t");

    // Stopped, it still takes the name, typed by a person. The plan says whose it is and what is lost: only what came after.
    world.server.stop(Stop::Immediate);
    world.refused(&[&restore[..], &["--yes"]].concat(), 5, &["PRODUCTION", "nobody has confirmed"]);
    let (plan, _) = world.planned(&restore);
    assert_eq!(plan["replaced"]["label"], "production", "{plan:#}");
    assert_eq!(plan["replaced"]["loss"]["transactions"], 2, "the reset, and what was made after it: {plan:#}");
    assert!(plan["replaced"]["unarchived"]["torn"].is_string(), "{plan:#}");
    let (code, screen) = at_terminal(&world, &restore, &["shop"]);
    assert_eq!(code, 0, "{screen}");

    // Not one transaction that was committed before the reset is missing.
    let (mut server, session) = world.recovered("data").await;
    let there = session.value("SELECT count(*) FROM orders").await.unwrap();
    let listed = ledger.iter().map(|order| format!("('{order}')")).collect::<Vec<_>>().join(",");
    let lost = format!("SELECT count(*) FROM (VALUES {listed}) l(id) LEFT JOIN orders USING (id) WHERE orders.id IS NULL");
    let missing = session.value(&lost).await.unwrap();
    assert_eq!(missing, "0", "of {} acknowledged, {there} are there", ledger.len());
    assert_eq!(session.value("SELECT coalesce(to_regclass('public.after_the_reset')::text, 'gone')").await.unwrap(), "gone");
    assert_eq!(session.value("SHOW archive_mode").await.unwrap(), "off", "quarantined until it is released");
    drop(session);
    server.stop(Stop::Fast);

    // The other way round: the state of the reset can be had back, too.
    let aside = beside(&data, "replaced");
    assert_eq!(aside.len(), 1);
    let (code, screen) = at_terminal(&world, &["undo", "--into", &into], &["shop"]);
    assert_eq!(code, 0, "{screen}");
    world.start().await;
    assert_eq!(world.value("SELECT to_regclass('public.after_the_reset') IS NOT NULL").await, "t");
    assert_eq!(world.value("SELECT coalesce(to_regclass('public.orders')::text, 'gone')").await, "gone");

    // And all of it stands in the audit.
    let audit = world.ok(&["--json", "audit"]);
    let story: Vec<String> = audit
        .out
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("entry").cloned())
        .map(|entry| format!("{} {}", entry["event"]["operation"].as_str().unwrap(), entry["event"]["outcome"].as_str().unwrap()))
        .collect();
    let expected = ["restore refused", "restore refused", "restore attempted", "restore done", "undo attempted", "undo done"]
        .map(String::from);
    assert_eq!(story, expected, "{}", audit.out);
    assert!(audit.out.contains("\"confirmed\":\"typed\"") && audit.out.contains("\"user\":\"postgres\""), "{}", audit.out);
    world.server.stop(Stop::Fast);
}

/// Nothing noticed it for six minutes, and for two hours nobody knew what to restore. Here the archive notices, and says it.
#[tokio::test(flavor = "multi_thread")]
async fn the_reset_is_noticed_named_and_undone() {
    let mut world = World::bare(15, &["--data-checksums"], "archive_timeout = 60", None).await;
    let heard = world.write_private("heard", "");
    // Production: the tripwire is on by itself.
    relabel(&world, "production");
    let alert = format!("\n[alert]\ncommand = [\"/bin/sh\", \"-c\", \"cat >> {}\"]\n", heard.display());
    std::fs::write(world.config(), std::fs::read_to_string(world.config()).unwrap() + &alert).unwrap();
    world.start().await;
    world.ok(&["init", "--apply"]);
    world
        .sql(
            "CREATE TABLE orders (id text PRIMARY KEY); CREATE TABLE customers AS SELECT generate_series(1, 5000) AS id; ANALYZE",
        )
        .await;
    world.backup(&[]);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let moment = 200 + std::process::id() % 400;
    let reset = async {
        while world.value(&format!("SELECT count(*) > {moment} FROM orders")).await != "t" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        world.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let ((), one, two) = tokio::join!(reset, work(&world, 1, stop.clone()), work(&world, 2, stop.clone()));
    let ledger = [one, two].concat();
    world.archive().await;

    // Somebody hears of it, with the command that undoes it.
    until(|| std::fs::read_to_string(&heard).unwrap().contains("DROP"), "nobody heard of the reset").await;
    let alert: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&heard).unwrap()).unwrap();
    let told = world.ok(&["--json", "timeline", "--kind", "drop", "--since", "1h"]).json()["events"].clone();
    assert_eq!(told.as_array().unwrap().len(), 1, "{told:#}");
    let names: Vec<&str> = told[0]["relations"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["postgres.public.customers", "postgres.public.orders"]);
    assert_eq!((&alert["event"], &alert["xid"]), (&told[0]["id"], &told[0]["xid"]));

    // And not one transaction of the others is lost.
    let event = told[0]["id"].as_str().unwrap();
    let (_server, session) = world.restore("restored", &["--before", event, "--target-action", "promote"]).await;
    let listed = ledger.iter().map(|order| format!("('{order}')")).collect::<Vec<_>>().join(",");
    let lost = format!("SELECT count(*) FROM (VALUES {listed}) l(id) LEFT JOIN orders USING (id) WHERE orders.id IS NULL");
    assert_eq!(session.value(&lost).await.unwrap(), "0", "of {} acknowledged", ledger.len());
    assert_eq!(session.value("SELECT count(*) FROM customers").await.unwrap(), "5000");
}
