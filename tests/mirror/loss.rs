//! A whole repository is lost in the middle of a backup, of an archive push, and of a restore.

use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::postgres::session::Session;
use lastgood::repo::copies::RULES;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::snapshot::take;
use lastgood::storage::Fault;
use lastgood::storage::fault::{FaultInjection, Script, Trouble, When};
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::several::{Duty, Several};

use super::copy::{from_mirror, keys, mirrored, there};
use crate::support::world::{World, tamper};

/// A world that writes to its mirror too.
async fn required() -> World {
    let world = mirrored("required = true").await;
    world.ok(&["mirror"]);
    world.sql("CREATE TABLE t AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 20000) i").await;
    world
}

/// Every manifest of both places has what it needs in that very place.
fn sound(world: &World, what: &str) {
    let place = there(world).display().to_string();
    for args in [vec!["verify"], from_mirror(&place, &["verify"])] {
        let said = world.run(&args);
        let fine = said.code == 0 || said.out.contains("there is no snapshot");
        assert!(fine, "{what}: {args:?} {}", said.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_may_vanish_at_any_call_of_a_backup() {
    let world = required().await;
    let attempt = async |scripts: &[Script; 2]| {
        let faulty =
            |path: std::path::PathBuf, script: &Script| Arc::new(FaultInjection::new(DirectoryStorage::new(path), script));
        let mirror = ("offsite".to_string(), faulty(there(&world), &scripts[1]) as Arc<dyn lastgood::storage::Storage>);
        let both = Several::new(faulty(world.repository(), &scripts[0]), vec![mirror], Duty::Write, RULES);
        let session = Session::open(&world.server.connection()).await.unwrap();
        let opened = Repository::open(Arc::new(both), &Keys::default()).await;
        let Ok(repository) = opened else { return false };
        let Ok((cluster, record)) = repository.with_lease_s(1).registered("shop").await else { return false };
        take::take(&cluster, &record, &session, &crate::crash::request(), Arc::new(Silent)).await.is_ok()
    };
    let calm = [Script::new(), Script::new()];
    assert!(attempt(&calm).await);
    let mut failed = 0;
    for (gone, script) in calm.iter().enumerate() {
        let calls = script.calls();
        assert!(calls > 8, "{calls}");
        // The last calls tidy up after the manifest.
        for call in (1..calls).step_by(3) {
            let scripts = [Script::new(), Script::new()];
            scripts[gone].add(When::From(call), Trouble::Fail(Fault::Denied));
            failed += u32::from(!attempt(&scripts).await);
            if call % 4 == 1 {
                sound(&world, &format!("place {gone} gone from call {call} on"));
            }
        }
    }
    assert!(failed > 6, "{failed}");
    // Both are back: the next backup needs no more than its turn, and both have it.
    let began = lastgood::clock::monotonic();
    while world.run(&["backup"]).code != 0 {
        assert!(began.elapsed() < crate::support::world::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    world.ok(&["mirror"]);
    sound(&world, "at the end");
    let newest = |root: &std::path::Path| keys(root).into_iter().rfind(|key| key.contains("/snapshots/")).unwrap();
    assert_eq!(newest(&world.repository()), newest(&there(&world)));
}

/// Archiving stops while one that is required is away, and says which; WAL stays with the server; then all arrives in both.
#[tokio::test(flavor = "multi_thread")]
async fn archiving_waits_for_whichever_is_lost() {
    let world = required().await;
    world.backup(&[]);
    for place in [world.repository(), there(&world)] {
        let away = world.path("away");
        std::fs::rename(&place, &away).unwrap();
        world.sql("INSERT INTO t VALUES (0, 'while one is away')").await;
        let name = world.session().switch_segment("away").await.unwrap();
        let push = || {
            let path = format!("pg_wal/{name}");
            crate::support::world::said(world.command(&["archive-push", &path]).current_dir(world.server.data()))
        };
        let said = push();
        assert!((1..=125).contains(&said.code), "{}", said.all());
        assert!(said.err.contains(&place.display().to_string()), "it says which one is away: {}", said.all());
        // An empty directory, as an unmounted one is, is no repository and takes nothing.
        lastgood::postgres::scratch::make_directory(&place, world.user()).unwrap();
        let said = push();
        assert!((1..=125).contains(&said.code), "{}", said.all());
        assert!(keys(&place).is_empty(), "{:?}", keys(&place));
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::rename(&away, &place).unwrap();
        world.archive().await;
        for place in [world.repository(), there(&world)] {
            assert!(keys(&place).iter().any(|key| key.ends_with(&name)), "{name} in {}", place.display());
        }
    }
    sound(&world, "after both were away");
    // What PostgreSQL asks for again is stored in both, also when one has lost it.
    let lost = keys(&there(&world)).into_iter().rfind(|key| key.contains("/segments/")).unwrap();
    std::fs::remove_file(there(&world).join(&lost)).unwrap();
    let name = lost.rsplit('/').next().unwrap();
    if world.server.data().join("pg_wal").join(name).exists() {
        let mut again = world.command(&["archive-push", &format!("pg_wal/{name}")]);
        assert_eq!(crate::support::world::said(again.current_dir(world.server.data())).code, 0);
        assert!(there(&world).join(&lost).exists());
    }
}

/// A mirror that is not required never holds up anything; what it lacks is noted, shown, and caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_not_required_is_behind_and_catches_up() {
    let world = mirrored("").await;
    world.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    let said = world.run(&["check", "--no-switch"]);
    assert!(said.out.contains("holds no copy yet"), "{}", said.all());
    std::fs::rename(there(&world), world.path("away")).unwrap();
    world.backup(&[]);
    world.archive().await;
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains("WARNING") && said.out.contains("offsite"), "{}", said.all());
    std::fs::rename(world.path("away"), there(&world)).unwrap();
    assert!(world.path("spool/behind-offsite").exists());
    world.ok(&["mirror"]);
    assert!(!world.path("spool/behind-offsite").exists());
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains("offsite has every snapshot"), "{}", said.all());
    world.archive().await;
    let said = world.ok(&["check", "--no-switch"]);
    assert!(said.out.contains("is behind since"), "{}", said.all());
}

/// The first repository loses objects, has damaged ones, and is then gone altogether: restores go on from the mirror.
#[tokio::test(flavor = "multi_thread")]
async fn restores_read_what_is_sound_wherever_it_is() {
    let world = required().await;
    world.backup(&[]);
    world.sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(20001, 30000) i").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (30001, 'last')").await;
    world.archive().await;
    // In each place something else is damaged or lost; no object is bad in both.
    let all = keys(&world.repository());
    let of_kind = |kind: &str| all.iter().filter(|key| key.contains(kind)).cloned().collect::<Vec<_>>();
    for (number, kind) in ["/packs/", "/files/", "/segments/", "/snapshots/"].iter().enumerate() {
        let keys = of_kind(kind);
        let (here, other) = (world.repository(), there(&world));
        let (one, two) = if number % 2 == 0 { (&here, &other) } else { (&other, &here) };
        tamper(&one.join(&keys[0]), |bytes| {
            let third = bytes.len() / 3;
            bytes[third] ^= 0x10;
        });
        if keys.len() > 1 && *kind != "/snapshots/" {
            let last = keys.last().unwrap();
            if number % 2 == 0 {
                std::fs::remove_file(two.join(last)).unwrap();
            } else {
                tamper(&two.join(last), |bytes| bytes.truncate(bytes.len() / 2));
            }
        }
    }
    let (mut server, session) = world.restore("restored", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "30001");
    drop(session);
    server.stop(lastgood::postgres::scratch::Stop::Fast);
    // Each is repaired from the other.
    let place = there(&world).display().to_string();
    world.refused(&["verify"], 7, &["DAMAGED"]);
    let said = world.ok(&["verify", "--repair"]);
    assert!(said.out.contains("repaired") && said.out.contains("from offsite"), "{}", said.all());
    world.ok(&["verify"]);
    world.refused(&from_mirror(&place, &["verify"]), 7, &["DAMAGED"]);

    // It is gone altogether: everything is read from the mirror, and that something may be missing is said.
    let other = there(&world);
    for key in keys(&world.repository()).into_iter().filter(|key| !key.contains("/leases/")) {
        std::fs::remove_file(other.join(&key)).ok();
        std::fs::create_dir_all(other.join(&key).parent().unwrap()).unwrap();
        std::fs::copy(world.repository().join(&key), other.join(&key)).unwrap();
    }
    if let Some(user) = world.user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        assert!(std::process::Command::new("chown").args(["-R", &owner]).arg(&other).status().unwrap().success());
    }
    std::fs::rename(world.repository(), world.path("gone")).unwrap();
    let into = world.path("again").display().to_string();
    let said = world.ok(&["restore", "--to", "latest", "--into", &into]);
    assert!(said.all().contains("first could not be listed") && said.out.contains("from offsite"), "{}", said.all());
    // Recovery may not end because one place says nothing: it stops, and goes on when only the mirror is meant.
    let get = |args: &[&str]| {
        let args: Vec<&str> = args.iter().copied().chain(["archive-get", "0000000100000000000000F0", "/tmp/none"]).collect();
        world.run(&args).code
    };
    assert_eq!(get(&[]), 126);
    // A mount point where nothing is mounted is there, and says "not found" of everything.
    lastgood::postgres::scratch::make_directory(&world.repository(), world.user()).unwrap();
    assert_eq!(get(&[]), 126);
    std::fs::remove_dir(world.repository()).unwrap();
    assert_eq!(get(&["--repo", "offsite"]), 1);
    let into = world.path("once-more").display().to_string();
    world.ok(&["--repo", "offsite", "restore", "--to", "latest", "--into", &into]);
    let (_server, session) = world.recovered("once-more").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "30001");
}
