//! 2012: the expensive storage array. It stalls, fails at random, cuts what it sends, loses what it took, and its vendor wants proof.

use crate::mirror::copy::{keys, there};
use crate::support::s3::{BUCKET, S3Server, Weather};
use crate::support::world::{World, tamper};

/// The array is the first repository, a directory elsewhere the second, and both are required.
async fn world(server: &S3Server) -> World {
    let mut world = World::bare(15, &["--data-checksums"], "", None).await;
    lastgood::postgres::scratch::make_directory(&there(&world), world.user()).unwrap();
    let place = format!("s3://{BUCKET}/pg");
    let mirror = format!("\n[[mirror]]\nname = \"offsite\"\nurl = \"{}\"\nrequired = true\n", there(&world).display());
    world.write_config(Some((&place, server.config())), &mirror);
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.ok(&["mirror"]);
    world
}

fn weather(change: impl FnOnce(&mut Weather)) -> Weather {
    let mut weather = Weather::default();
    change(&mut weather);
    weather
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_array_that_does_everything_wrong_loses_nothing() {
    let server = S3Server::start().await;
    let world = world(&server).await;
    world.sql("CREATE TABLE mail AS SELECT i AS id, md5(i::text) AS text FROM generate_series(1, 30000) i").await;

    // Every twentieth call fails: nobody notices.
    server.weather(weather(|w| w.fails_every = 20));
    world.backup(&[]);
    for round in 0..6 {
        world.sql(&format!("INSERT INTO mail VALUES ({round}, 'while it fails')")).await;
        world.archive().await;
    }

    // It says that it took a pack, and did not keep it: there is no such snapshot, and the reason is named.
    server.weather(weather(|w| w.loses = Some("/packs/".into())));
    let said = world.run(&["backup", "--full"]);
    assert_eq!(said.code, 7, "{}", said.all());
    assert!(said.err.contains("it is missing in s3://") && said.err.contains("/packs/"), "{}", said.all());
    server.weather(Weather::default());
    let snapshots = world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"].as_array().unwrap().len();
    assert_eq!(snapshots, 1, "nothing was committed");
    world.ok(&["verify"]);

    // A wall of latency while the restore is needed: it comes from the other place, which is said.
    server.weather(weather(|w| w.stalls = Some("/packs/".into())));
    let (mut restored, session) = world.restore("stalled", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM mail").await.unwrap(), "30006");
    drop(session);
    restored.stop(lastgood::postgres::scratch::Stop::Fast);

    // Everything that it sends is cut short.
    server.weather(weather(|w| w.cuts = Some("clusters/".into())));
    let into = world.path("cut").display().to_string();
    let said = world.ok(&["restore", "--to", "latest", "--into", &into]);
    assert!(said.out.contains("from offsite (file://"), "{}", said.all());

    // It loses objects that it has acknowledged long ago, and changes others.
    server.weather(Weather::default());
    let all = keys(&there(&world));
    let of_kind =
        |kind: &str| all.iter().filter(|key| key.contains(kind)).map(|key| server.file(&format!("pg/{key}"))).collect::<Vec<_>>();
    let (packs, segments) = (of_kind("/packs/"), of_kind("/segments/"));
    tamper(&packs[0], |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    std::fs::remove_file(&segments[segments.len() - 1]).unwrap();
    let (mut restored, session) = world.restore("lossy", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM mail").await.unwrap(), "30006");
    drop(session);
    restored.stop(lastgood::postgres::scratch::Stop::Fast);

    // It is healed from the other place; what may not be deleted stays, and that is told.
    server.weather(weather(|w| w.denies_deletes = true));
    let said = world.refused(&["verify", "--repair"], 7, &["offsite has a sound copy, and the damaged one cannot be deleted"]);
    assert!(!said.out.contains("panicked"), "{}", said.all());
    server.weather(Weather::default());
    let said = world.ok(&["verify", "--repair"]);
    assert!(said.out.contains("repaired") && said.out.contains("from offsite"), "{}", said.all());
    world.run(&["mirror", "--heal"]);
    world.ok(&["verify"]);
    world.ok(&["backup"]);
    assert_eq!(world.ok(&["--json", "mirror"]).json()["report"]["differing"].as_array().unwrap().len(), 0);

    // And here is the proof for the vendor.
    let said = world.ok(&["check", "--storage"]);
    for words in
        [&format!("s3://{BUCKET}/pg"), "file://", "by hour", "create", "read", "delete", "transient", "no answer", "denied"]
    {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    let lines: Vec<serde_json::Value> =
        world.ok(&["--json", "check", "--storage"]).out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |operation: &str| {
        let of_it =
            |line: &&serde_json::Value| line["operation"] == operation && line["place"].as_str().unwrap().starts_with("s3://");
        lines.iter().filter(of_it).collect::<Vec<_>>()
    };
    let sum = |operation: &str, field: &str| of(operation).iter().map(|line| line[field].as_u64().unwrap()).sum::<u64>();
    let failed: u64 = ["create", "read", "list", "stat", "delete"].iter().map(|operation| sum(operation, "failed")).sum();
    assert!(sum("create", "calls") > 10 && failed > 3, "{lines:#?}");
    assert!(sum("read", "failed") >= 2, "{lines:#?}");
    assert!(of("read").iter().all(|line| line["p50_ms"].as_f64() <= line["p95_ms"].as_f64()), "{lines:#?}");
}
