//! The repository goes away in the middle of a restore: it ends with what is wrong, or with the mirror.

use std::path::{Path, PathBuf};

use lastgood::postgres::scratch::{self, Stop};
use rustix::process::Signal;

use super::copy::there;
use crate::guard::{beside, picture};
use crate::support::running::Running;
use crate::support::s3::{BUCKET, S3Server};
use crate::support::world::{PATIENCE, World};

/// How it goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Moved,
    Removed,
    BucketEmptied,
    ServerKilled,
}

/// A world whose restore takes a while, in a directory or in a bucket, with or without a mirror that has everything.
struct Scene {
    world: World,
    server: Option<S3Server>,
    snapshot: String,
}

impl Scene {
    async fn new(loss: Loss, has_mirror: bool) -> Scene {
        let in_bucket = matches!(loss, Loss::BucketEmptied | Loss::ServerKilled);
        let server = if in_bucket { Some(S3Server::start().await) } else { None };
        let mut world = World::bare(15, &["--data-checksums"], "", None).await;
        scratch::make_directory(&there(&world), world.user()).unwrap();
        let mirror = format!("\n[[mirror]]\nname = \"offsite\"\nurl = \"{}\"\n", there(&world).display());
        let place = format!("s3://{BUCKET}/pg");
        world.write_config(
            server.as_ref().map(|server| (place.as_str(), server.config())),
            // One thread, so that it can be met in the middle.
            &format!("{}\n[restore]\nthreads = 1\n", if has_mirror { &mirror } else { "" }),
        );
        // What is waited for is an answer, not the usual five minutes.
        let text = std::fs::read_to_string(world.config()).unwrap();
        let impatient = "[repository.s3]\nattempt_timeout_s = 2\ncall_timeout_s = 3\n";
        std::fs::write(world.config(), text.replacen("[repository.s3]\n", impatient, 1)).unwrap();
        world.start().await;
        world.ok(&["init", "--apply"]);
        for n in 0..8 {
            let rows = "SELECT i AS x, md5(i::text) || md5((i + 1)::text) AS y FROM generate_series(1, 100000) i";
            world.sql(&format!("CREATE TABLE t{n} AS {rows}")).await;
        }
        let snapshot = format!("snapshot:{}", world.backup(&[])["id"].as_str().unwrap());
        world.archive().await;
        if has_mirror {
            world.ok(&["mirror"]);
        }
        Scene { world, server, snapshot }
    }

    /// Where the repository's files are.
    fn home(&self) -> PathBuf {
        self.server.as_ref().map_or(self.world.repository(), |server| server.file("pg"))
    }

    fn lose(&self, loss: Loss) {
        match loss {
            Loss::Moved => std::fs::rename(self.home(), self.world.path("away")).unwrap(),
            Loss::Removed | Loss::BucketEmptied => std::fs::remove_dir_all(self.home()).unwrap(),
            Loss::ServerKilled => self.server.as_ref().unwrap().kill(),
        }
    }

    /// Runs a restore until its files are appearing in `root`, loses the repository, and lets it end.
    async fn interrupted(&self, loss: Loss, args: &[&str], root: &Path) -> crate::support::world::Said {
        let running = Running::start(&mut self.world.command(args));
        let began = lastgood::clock::monotonic();
        while std::fs::read_dir(root.join("base")).map_or(0, Iterator::count) == 0 {
            assert!(began.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        running.pause();
        assert!(root.join("lastgood.restoring").exists() && !root.join("global/pg_control").exists(), "in the middle");
        self.lose(loss);
        running.signal(Signal::CONT);
        running.end()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_repository_goes_away_says_so_and_leaves_nothing_that_starts() {
    for (loss, code, words) in [
        (Loss::Moved, 4, "the repository's place does not exist"),
        (Loss::Removed, 4, "the repository's place does not exist"),
        (Loss::BucketEmptied, 4, "went away while it was read"),
        (Loss::ServerKilled, 4, "127.0.0.1"),
    ] {
        let scene = Scene::new(loss, false).await;
        let world = &scene.world;
        let into = world.path("restored");
        let args = ["restore", "--to", "latest", "--into", into.to_str().unwrap()];
        let said = scene.interrupted(loss, &args, &into).await;
        assert_eq!(said.code, code, "{loss:?}: {}", said.all());
        assert!(said.err.contains(words), "{loss:?}: {}", said.all());
        // Marked, and without the file that a server needs to start.
        assert!(into.join("lastgood.restoring").exists() && !into.join("global/pg_control").exists(), "{loss:?}");
        let is_directory = matches!(loss, Loss::Moved | Loss::Removed);
        assert!(!is_directory || !scene.home().exists(), "nothing is written where it was");
        if loss == Loss::Moved {
            std::fs::rename(world.path("away"), scene.home()).unwrap();
            world.ok(&args);
            let (_server, session) = world.recovered("restored").await;
            assert_eq!(session.value("SELECT count(*) FROM t7").await.unwrap(), "100000");
        }
    }
}

/// Over a cluster that stands there: it is as it was, to the last byte, and starts.
#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_that_was_to_be_replaced_is_untouched() {
    let mut scene = Scene::new(Loss::Moved, false).await;
    scene.world.server.stop(Stop::Fast);
    let data = scene.world.server.data().to_path_buf();
    let restore = ["restore", "--to", "latest", "--target-action", "promote", "--into", data.to_str().unwrap()];
    let (_, confirmation) = scene.world.planned(&restore);
    let before = picture(&data);
    let args = [&restore[..], &["--confirm", &confirmation]].concat();
    let staging = data.with_file_name(format!("{}.lastgood-new", data.file_name().unwrap().to_str().unwrap()));
    let said = scene.interrupted(Loss::Moved, &args, &staging).await;
    assert_eq!(said.code, 4, "{}", said.all());
    let untouched = picture(&data) == before;
    assert!(untouched && beside(&data, "replaced").is_empty());
    std::fs::rename(scene.world.path("away"), scene.home()).unwrap();
    scene.world.start().await;
    assert_eq!(scene.world.value("SELECT count(*) FROM t7").await, "100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_mirror_the_restore_goes_on() {
    for loss in [Loss::Moved, Loss::Removed, Loss::BucketEmptied, Loss::ServerKilled] {
        let scene = Scene::new(loss, true).await;
        let world = &scene.world;
        let into = world.path("restored");
        // To where the WAL is known: whether there is more cannot be told while one place says nothing, and recovery would stop.
        let args = ["restore", "--to", &scene.snapshot, "--into", into.to_str().unwrap()];
        let said = scene.interrupted(loss, &args, &into).await;
        assert_eq!(said.code, 0, "{loss:?}: {}", said.all());
        assert!(said.all().contains("offsite"), "{loss:?}: {}", said.all());
        let (_server, session) = world.recovered("restored").await;
        for n in 0..8 {
            let count = session.value(&format!("SELECT count(*) FROM t{n} WHERE left(y, 32) = md5(x::text)")).await.unwrap();
            assert_eq!(count, "100000", "{loss:?}: t{n}");
        }
    }
}
