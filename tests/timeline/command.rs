//! `lastgood timeline` and `restore --before` with the program: each disaster is named, and undone to the row.

use crate::support::world::World;

const SCHEMA: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders SELECT i, repeat('o', 50) FROM generate_series(1, 3000) i;
    CREATE TABLE emptied (id int PRIMARY KEY, what text); INSERT INTO emptied SELECT i, 'e' FROM generate_series(1, 500) i;
    CREATE TABLE deleted (id int, what text); INSERT INTO deleted SELECT i, repeat('d', 30) FROM generate_series(1, 5000) i;
    CREATE TABLE ledger (id int PRIMARY KEY); ANALYZE";

/// One event of this kind, as JSON.
fn event(world: &World, args: &[&str]) -> serde_json::Value {
    let said = world.ok(&[&["--json", "timeline"], args].concat());
    let events = said.json()["events"].as_array().unwrap().clone();
    assert_eq!(events.len(), 1, "{args:?}: {}", said.out);
    events[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_disaster_is_named_and_undone() {
    let world = World::new(15).await;
    world.sql(SCHEMA).await;
    world.backup(&[]);
    // Made after the snapshot: only the WAL knows its name.
    world.sql("CREATE TABLE late (id int PRIMARY KEY, what text)").await;
    world.sql("INSERT INTO late SELECT i, 'l' FROM generate_series(1, 40) i").await;
    let disasters = [
        ("DROP TABLE orders", "drop", "public.orders", "drop of orders", "SELECT count(*) FROM orders", "3000"),
        ("TRUNCATE emptied", "truncate", "emptied", "truncate of public.emptied", "SELECT count(*) FROM emptied", "500"),
        (
            "DELETE FROM deleted",
            "delete",
            "deleted",
            "delete from postgres.public.deleted",
            "SELECT count(*) FROM deleted",
            "5000",
        ),
        ("DROP TABLE late", "drop", "late", "drop of public.late", "SELECT count(*) FROM late", "40"),
    ];
    let mut written = 0;
    for (sql, ..) in &disasters {
        world.sql("INSERT INTO ledger SELECT coalesce(max(id), 0) + 1 FROM ledger").await;
        written += 1;
        world.sql(sql).await;
    }
    world.sql("INSERT INTO ledger VALUES (1000)").await;
    assert_eq!(world.value("SELECT count(*) FROM ledger").await, (written + 1).to_string());
    world.archive().await;

    let said = world.ok(&["timeline"]);
    println!("{}", said.out);
    for words in ["DROP postgres.public.orders", "TRUNCATE postgres.public.emptied", "(about 100 %)", "DROP postgres.public.late"]
    {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    assert!(said.out.contains("any moment in it can be restored") && said.out.contains("--include-pg-wal"), "{}", said.out);
    for (number, (_, kind, name, words, question, answer)) in disasters.iter().enumerate() {
        let event = event(&world, &["--kind", kind, "--table", name]);
        let into = format!("restored-{number}");
        // By its id and by words: the same plan.
        let id = event["id"].as_str().unwrap();
        let directory = world.path(&into);
        let plan = |before: &str| {
            let said = world.ok(&["--json", "restore", "--before", before, "--into", directory.to_str().unwrap(), "--dry-run"]);
            said.json()["plan"].clone()
        };
        assert_eq!(plan(id), plan(words));
        assert_eq!(plan(id)["event"]["text"], event["text"]);
        let shown = world.ok(&["restore", "--before", id, "--into", directory.to_str().unwrap(), "--dry-run"]).out;
        assert_eq!(shown.contains("still holds its locks"), *kind != "delete", "{shown}");
        let (mut server, session) = world.restore(&into, &["--before", words, "--target-action", "promote"]).await;
        assert_eq!(session.value(question).await.unwrap(), *answer, "{words}");
        // What was committed before it is there, and nothing behind it.
        assert_eq!(session.value("SELECT count(*) FROM ledger").await.unwrap(), (number + 1).to_string(), "{words}");
        server.stop(lastgood::postgres::scratch::Stop::Immediate);
    }
    // Over a copy that went a way of its own: what is meant happened to the original.
    let over = world.path("restored-0");
    let said = world.ok(&["--json", "restore", "--before", "drop of late", "--into", over.to_str().unwrap(), "--dry-run"]);
    assert_eq!(said.json()["plan"]["timeline"], 1, "{}", said.out);
}

/// Databases, schemas and tables that were made or renamed since the first snapshot; and events that are small.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_those_of_the_time() {
    let world = World::new(15).await;
    world.backup(&[]);
    for database in ["made", "draft"] {
        world.sql(&format!("CREATE DATABASE {database}")).await;
        let inside = world.session().in_database(database).await.unwrap();
        inside.run("CREATE SCHEMA s; CREATE TABLE s.orders (id int); CREATE TABLE s.notes (id int)").await.unwrap();
        inside
            .run("INSERT INTO s.orders SELECT generate_series(1, 300); INSERT INTO s.notes SELECT generate_series(1, 300)")
            .await
            .unwrap();
    }
    // No snapshot ever knew this one: only WAL names it.
    let inside = world.session().in_database("made").await.unwrap();
    inside.run("DROP TABLE s.orders").await.unwrap();
    inside.run("DELETE FROM s.notes WHERE id <= 200").await.unwrap();
    drop(inside);
    world.sql("DROP DATABASE made").await;
    world.sql("ALTER DATABASE draft RENAME TO shop").await;
    world.backup(&[]);
    let inside = world.session().in_database("shop").await.unwrap();
    inside.run("BEGIN; INSERT INTO s.notes SELECT generate_series(301, 400); DROP TABLE s.orders; COMMIT").await.unwrap();
    world.archive().await;
    let into = world.path("restored");
    let plan = |before: &str| {
        let said = world.ok(&["--json", "restore", "--before", before, "--into", into.to_str().unwrap(), "--dry-run"]);
        said.json()["plan"]["event"]["text"].as_str().unwrap().to_string()
    };
    assert_eq!(plan("drop of made.s.orders"), "DROP made.s.orders");
    assert_eq!(plan("drop database made"), "DROP DATABASE made");
    // Renamed where WAL does not tell: the second snapshot knows.
    assert_eq!(plan("drop of shop.s.orders"), "DROP shop.s.orders");
    // Of fewer rows than `timeline` tells of by itself.
    assert!(plan("delete from made.s.notes").starts_with("DELETE of 200 rows from made.s.notes"));
    let into = into.to_str().unwrap();
    world.refused(
        &["restore", "--before", "delete from shop.s.notes", "--into", into],
        6,
        &["fewer than 50 rows is not an event"],
    );
    let told = event(&world, &["--kind", "drop", "--table", "shop.s.orders"]);
    let beside = serde_json::json!([{ "name": "shop.s.notes", "inserted": 100, "updated": 0, "deleted": 0 }]);
    assert_eq!((&told["beside"], &told["is_archived"]), (&beside, &true.into()), "{told}");
    let said = world.ok(&["timeline"]).out;
    assert!(said.contains("CREATE DATABASE made") && said.contains("shop.s.notes: 100 rows inserted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_comes_back_whole() {
    let world = World::new(15).await;
    world.sql("CREATE DATABASE shop").await;
    let inside = world.session().in_database("shop").await.unwrap();
    inside.run("CREATE TABLE public.orders AS SELECT generate_series(1, 1000) AS id").await.unwrap();
    drop(inside);
    world.backup(&[]);
    world.sql("CREATE TABLE other (id int); INSERT INTO other VALUES (1)").await;
    let before = world.value("SELECT clock_timestamp()").await;
    world.sql("DROP DATABASE shop WITH (FORCE)").await;
    world.sql("INSERT INTO other VALUES (2)").await;
    world.archive().await;
    let told = event(&world, &["--kind", "drop-database"]);
    assert_eq!((told["text"].as_str(), told["database"].as_str()), (Some("DROP DATABASE shop"), Some("shop")));
    // The moment before, as a clock tells it, is inside: the next commit is the drop's own.
    let into = world.path("inside");
    let id = told["id"].as_str().unwrap();
    let words = ["inside DROP DATABASE shop", &format!("--before {id}")];
    world.refused(&["restore", "--to", &before, "--into", into.to_str().unwrap()], 6, &words);
    let commit = told["lsn"].as_str().unwrap();
    world.refused(&["restore", "--to", commit, "--exclusive", "--into", into.to_str().unwrap()], 6, &words);
    assert!(!into.exists());
    let (_server, session) = world.restore("restored", &["--before", "drop database shop", "--target-action", "promote"]).await;
    let inside = session.in_database("shop").await.unwrap();
    assert_eq!(inside.value("SELECT count(*) FROM public.orders").await.unwrap(), "1000");
    assert_eq!(session.value("SELECT count(*) FROM other").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_clear_is_asked_back() {
    let world = World::new(15).await;
    world.sql("CREATE TABLE twice (id int); INSERT INTO twice VALUES (1)").await;
    world.backup(&[]);
    world.sql("TRUNCATE twice; INSERT INTO twice VALUES (2)").await;
    world.sql("TRUNCATE twice").await;
    world.archive().await;
    let into = world.path("restored");
    let restore = |before: &'static str| ["restore", "--before", before, "--into", into.to_str().unwrap()];
    let said = world.refused(&restore("truncate of twice"), 6, &["happened 2 times", "TRUNCATE postgres.public.twice"]);
    assert_eq!(said.err.matches("\n    |   1:0/").count(), 2, "{}", said.err);
    world.refused(&restore("drop of twice"), 6, &["there is no event drop of twice", "the nearest is 1:0/"]);
    world.refused(&restore("truncate of Twice"), 6, &["there is no event truncate of Twice", "TRUNCATE postgres.public.twice"]);
    world.refused(&restore("drop database nothing"), 6, &["there is no event drop database nothing in"]);
    world.refused(&restore("lose twice"), 6, &["is no event", "drop of shop.public.orders"]);
    world.refused(&restore("0/5000000"), 6, &["is no event", "an LSN, a time or a transaction id goes with --to"]);
    // A slip of the pen in an id.
    let known = world.ok(&["--json", "timeline", "--kind", "truncate"]).json()["events"][1]["id"].as_str().unwrap().to_string();
    let lsn = u64::from_str_radix(known.strip_prefix("1:0/").unwrap(), 16).unwrap();
    for slip in [lsn + 1, lsn - 1] {
        let wrong = format!("1:0/{slip:X}");
        let args = ["restore", "--before", &wrong, "--into", into.to_str().unwrap()];
        world.refused(&args, 6, &[&format!("there is no event {wrong}"), &format!("the nearest is {known}: TRUNCATE")]);
    }
    world.refused(&restore("7:0/5000000"), 6, &["timeline 00000007 is not in the archive"]);
    world.refused(&["restore", "--into", into.to_str().unwrap()], 2, &["--to", "--before", "--after"]);
    world.refused(&["timeline", "--since", "2026-11-21 04:15:00"], 6, &["without a zone"]);
    world.refused(&["timeline", "--kind", "lost"], 2, &["drop-database"]);
    // Nothing is said as clearly as something.
    let said = world.ok(&["timeline", "--kind", "drop"]);
    assert!(said.out.contains("Nothing of what was asked for happened"), "{}", said.out);
    assert!(!into.exists());
}

/// The drop is minutes old and not archived: it is found where the broken server left it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_archived_yet_is_read_from_pg_wal() {
    let mut world = World::new(15).await;
    world.sql("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id").await;
    world.backup(&[]);
    world.sql("INSERT INTO orders VALUES (101)").await;
    world.sql("DROP TABLE orders").await;
    let nothing = world.ok(&["timeline", "--kind", "drop"]);
    assert!(nothing.out.contains("Nothing of what was asked for"), "{}", nothing.out);
    let pg_wal = world.server.data().join("pg_wal");
    let told = event(&world, &["--kind", "drop", "--include-pg-wal", pg_wal.to_str().unwrap()]);
    assert_eq!((told["text"].as_str(), told["is_incomplete"].as_bool()), (Some("DROP postgres.public.orders"), Some(false)));
    assert_eq!(told["is_archived"], false);
    let said = world.ok(&["timeline", "--include-pg-wal", pg_wal.to_str().unwrap()]).out;
    let over = format!("--into {}\n", world.server.data().display());
    assert!(said.contains("first run SELECT pg_switch_wal()") && said.contains(&over), "{said}");
    // The data directory does as well, and a place without WAL is not taken for a quiet night.
    assert_eq!(event(&world, &["--kind", "drop", "--include-pg-wal", world.server.data().to_str().unwrap()]), told);
    let sockets = world.server.sockets().display().to_string();
    world.refused(&["timeline", "--include-pg-wal", &sockets], 10, &["holds no WAL of this cluster"]);
    world.server.stop(lastgood::postgres::scratch::Stop::Immediate);
    let into = world.server.data().to_path_buf();
    world.confirmed(&["restore", "--before", "drop of orders", "--into", into.to_str().unwrap(), "--target-action", "promote"]);
    world.start().await;
    while world.value("SELECT pg_is_in_recovery()").await == "t" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(world.value("SELECT count(*) FROM orders").await, "101");
    // A server that was promoted was not shut down.
    let data = world.server.data().display().to_string();
    let read = |kind: &str| {
        let said = world.ok(&["--json", "timeline", "--timeline", "2", "--include-pg-wal", &data, "--kind", kind]);
        said.json()["events"].as_array().unwrap().iter().map(|told| told["text"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(read("promotion"), ["\"promoted: timeline 00000001 was left for 00000002\""]);
    assert!(read("shutdown").iter().all(|text| !text.contains("promoted")), "{:?}", read("shutdown"));
}
