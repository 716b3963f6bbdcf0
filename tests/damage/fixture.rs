//! One small repository with an object of nearly every kind, and copies of it that are damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lastgood::monitor::Silent;
use lastgood::postgres::wal::name::SegmentName;
use lastgood::repo::alert::{self, Acknowledgement, Alert};
use lastgood::repo::audit::Who;
use lastgood::repo::expired;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::upkeep::mirror::{self, Request, Way};
use lastgood::upkeep::sweep;

use crate::mirror::copy::keys;
use crate::support::world::{Said, World};

/// An id that an unfinished snapshot left: what every sweep removes.
const UNFINISHED: &str = "20200101T000000Z-dead";

pub struct Fixture {
    pub world: World,
    /// Oldest first: expired and lending packs, pinned, about to be expired, and two that stay.
    pub ids: Vec<String>,
    /// What each snapshot that is listed needs.
    pub needs: BTreeMap<String, BTreeSet<String>>,
    /// What is left of the undamaged repository after a sweep, and after an expiry.
    pub after_sweep: BTreeSet<String>,
    pub after_expire: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Removed,
    Flipped,
    Truncated,
}

pub const DAMAGES: [Damage; 3] = [Damage::Removed, Damage::Flipped, Damage::Truncated];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    List,
    Check,
    Verify,
    Init,
    Mirror,
    Sweep,
    Expire,
}

pub const COMMANDS: [Command; 7] =
    [Command::List, Command::Check, Command::Verify, Command::Init, Command::Mirror, Command::Sweep, Command::Expire];

pub async fn fixture() -> Fixture {
    let mut world = World::bare(15, &["--wal-segsize=1"], "", None).await;
    world.write_config(None, "\n[retention]\nkeep_last = 2\n");
    world.start().await;
    world.ok(&["init", "--apply"]);
    world.sql("CREATE TABLE still AS SELECT i AS x, md5(i::text) AS y FROM generate_series(1, 20000) i").await;
    world.sql("CREATE TABLE t (x int)").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        world.sql(&format!("INSERT INTO t VALUES ({n})")).await;
        ids.push(world.backup(&[])["id"].as_str().unwrap().to_string());
        world.archive().await;
        if n == 2 {
            world.ok(&["expire"]);
            world.ok(&["pin", &ids[1], "--reason", "the audit"]);
            // Enough for a roll-up.
            for _ in 0..33 {
                world.sql("INSERT INTO t VALUES (0); SELECT pg_switch_wal()").await;
            }
            world.archive().await;
        }
    }
    let into = world.path("elsewhere").display().to_string();
    world.ok(&["restore", "--to", &format!("snapshot:{}", ids[4]), "--into", &into]);
    world.ok(&["verify", "--budget", "1GB"]);
    write_more(&world, &ids).await;
    world.ok(&["verify"]);
    // As if the three days of the restore were over.
    std::fs::remove_dir_all(world.repository().join("clusters/shop/leases")).unwrap();
    leave_unfinished(&world, &ids[4]);
    hand_over(&world, &world.repository());
    let mut fixture = Fixture { world, ids, needs: BTreeMap::new(), after_sweep: BTreeSet::new(), after_expire: BTreeSet::new() };
    fixture.needs = fixture.needs().await;
    let place = fixture.copy("baseline");
    fixture.command(&place, Command::Sweep).await;
    fixture.after_sweep = lasting(&place);
    fixture.command(&place, Command::Expire).await;
    fixture.after_expire = lasting(&place);
    // What would go is there to go, and what would not is not.
    let removed: Vec<&String> = fixture.after_sweep.difference(&fixture.after_expire).collect();
    assert!(removed.iter().any(|key| key.ends_with(&fixture.ids[2])), "{removed:?}");
    assert!(fixture.after_expire.iter().any(|key| key.contains(&fixture.ids[0])), "its packs are needed");
    assert!(!fixture.after_sweep.iter().any(|key| key.contains(UNFINISHED)));
    std::fs::remove_dir_all(&place).unwrap();
    fixture
}

/// Kinds that the program writes only now and then.
async fn write_more(world: &World, ids: &[String]) {
    let cluster = open(&world.repository()).await.unwrap();
    let record = cluster.record().await.unwrap().unwrap();
    let system = record.histories[0].system_identifier;
    let number = record.number + 1;
    let second = lastgood::repo::record::ClusterRecord { number, label: Some("test".into()), ..record };
    assert!(cluster.put_record(&second).await.unwrap());
    let who = Who { user: "somebody".into(), host: "here".into(), ..Who::default() };
    expired::accept(&cluster, &ids[4], lastgood::clock::now(), &who).await.unwrap();
    let alert = Alert {
        noticed: lastgood::clock::now(),
        host: "db".into(),
        system_identifier: system,
        timeline: lastgood::postgres::lsn::Timeline(1),
        target: lastgood::postgres::lsn::Lsn(0x30_0000),
        event: "1:0/300000".into(),
        time: None,
        xid: 7,
        rule: "drop-table".into(),
        what: "table orders was dropped".into(),
        restore: "lastgood restore".into(),
    };
    assert!(alert.raise(&cluster).await.unwrap());
    let by = Acknowledgement { at: lastgood::clock::now(), user: "me".into(), host: "here".into(), reason: String::new() };
    alert::acknowledge(&cluster, &alert.id(), &by).await.unwrap();
    hand_over(world, &world.repository());
}

fn leave_unfinished(world: &World, of: &str) {
    let cluster = world.repository().join("clusters/shop");
    for (folder, name) in [("packs", "d000001"), ("files", "000001")] {
        let to = cluster.join(folder).join(UNFINISHED);
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(cluster.join(folder).join(of).join(name), to.join(name)).unwrap();
    }
}

/// What a test writes as root is the server's user's too.
pub fn hand_over(world: &World, place: &Path) {
    if let Some(user) = world.user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        std::process::Command::new("chown").arg("-R").arg(owner).arg(place).status().unwrap();
    }
}

pub async fn open(place: &Path) -> Option<Cluster> {
    let store = Arc::new(DirectoryStorage::new(place));
    Some(Repository::open(store, &Keys::default()).await.ok()?.cluster("shop"))
}

/// Everything but what is about who is there, and what the newest replaces.
pub fn lasting(place: &Path) -> BTreeSet<String> {
    let passing = ["/leases/", "/verified/", "/gone/"];
    keys(place).into_iter().filter(|key| !key.starts_with("probe/") && passing.iter().all(|part| !key.contains(part))).collect()
}

/// The kind of an object, by the key table of the format; `None` for what no command depends on.
pub fn kind(key: &str) -> Option<String> {
    if key.contains(UNFINISHED) || key.contains("/leases/") || key.starts_with("probe/") {
        return None;
    }
    let parts: Vec<&str> = key.split('/').collect();
    Some(match parts[..] {
        ["clusters", _, "wal", _, kind, ..] => format!("wal/{kind}"),
        ["clusters", _, "files", _, "packs"] => "pack table".into(),
        ["clusters", _, "files", _, "wal"] => "WAL table".into(),
        ["clusters", _, "files", _, "catalogue"] => "catalogue".into(),
        ["clusters", _, "files", ..] => "file list".into(),
        ["clusters", _, "packs", _, name] => format!("pack {}", &name[..1]),
        ["clusters", _, "alerts", _, name] => name.into(),
        ["clusters", _, kind, ..] => kind.into(),
        [first, ..] => first.into(),
        [] => return None,
    })
}

impl Fixture {
    /// A copy that shares its files: nothing is ever written over.
    pub fn copy(&self, name: &str) -> PathBuf {
        let to = self.world.path(name);
        let status = std::process::Command::new("cp").arg("-al").arg(self.world.repository()).arg(&to).status().unwrap();
        assert!(status.success());
        to
    }

    async fn needs(&self) -> BTreeMap<String, BTreeSet<String>> {
        let cluster = open(&self.world.repository()).await.unwrap();
        let all = keys(&self.world.repository());
        let record = all.iter().rfind(|key| key.contains("/record/")).unwrap();
        let mut needs = BTreeMap::new();
        for (id, manifest) in cluster.manifests().await.unwrap() {
            let manifest = manifest.unwrap();
            let packs = manifest.packs(&cluster).await.unwrap();
            let is_of_it = |key: &String| {
                let name = key.rsplit('/').next().unwrap();
                let segment = name
                    .parse::<SegmentName>()
                    .is_ok_and(|name| (manifest.first_segment..=manifest.last_segment).contains(&name));
                key.contains(&format!("/files/{id}/"))
                    || key.ends_with(&format!("/snapshots/{id}"))
                    || packs.iter().any(|pack| key.ends_with(&format!("/packs/{}", pack.name)))
                    || (key.contains("/segments/") && segment)
            };
            let of_place = ["lastgood.json".to_string(), record.clone()];
            let needed = all.iter().filter(|key| is_of_it(key)).cloned().chain(of_place).collect();
            needs.insert(id.clone(), needed);
        }
        needs
    }

    /// The program on a copy.
    pub fn run(&self, place: &Path, args: &[&str]) -> Said {
        self.world.run(&[&["--repo", place.to_str().unwrap()], args].concat())
    }

    /// What it says is looked at elsewhere: it may fail, and must not do harm.
    pub async fn command(&self, place: &Path, command: Command) -> Option<Said> {
        match command {
            Command::List => Some(self.run(place, &["list"])),
            Command::Check => Some(self.run(place, &["check", "--no-switch"])),
            Command::Verify => Some(self.run(place, &["verify"])),
            Command::Init => Some(self.run(place, &["init"])),
            Command::Expire => Some(self.run(place, &["expire"])),
            Command::Sweep => {
                if let Some(cluster) = open(place).await {
                    let _ = sweep::sweep(&cluster, "").await;
                }
                hand_over(&self.world, place);
                None
            }
            Command::Mirror => {
                let store = Arc::new(DirectoryStorage::new(place));
                let to = self.world.path(&format!("{}.mirror", place.file_name().unwrap().to_str().unwrap()));
                if let Ok(from) = Repository::open(store, &Keys::default()).await {
                    let request = Request { way: Way::Copy, dry_run: false, parallel: 2 };
                    let storage = Arc::new(DirectoryStorage::new(&to));
                    let _ = storage.prepare();
                    let _ = mirror::mirror(&from, storage, &request, Arc::new(Silent)).await;
                    let _ = std::fs::remove_dir_all(&to);
                }
                hand_over(&self.world, place);
                None
            }
        }
    }

    /// Damages one object of a copy.
    pub fn damage(&self, place: &Path, key: &str, damage: Damage) {
        let path = place.join(key);
        let mut bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        match damage {
            Damage::Removed => return,
            Damage::Flipped => {
                let at = bytes.len() / 3;
                bytes[at] ^= 0x10;
            }
            Damage::Truncated => bytes.truncate(bytes.len() / 2),
        }
        std::fs::write(&path, bytes).unwrap();
        hand_over(&self.world, &path);
    }

    /// Unless a command has written the name again, as the next entry of the audit or a note that was lost.
    pub fn put_back(&self, place: &Path, key: &str, damage: Damage) {
        let path = place.join(key);
        if damage == Damage::Removed && path.exists() {
            return;
        }
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::hard_link(self.world.repository().join(key), path).unwrap();
    }

    /// Whether a copy still has an object as it was.
    pub fn has(&self, place: &Path, key: &str) -> bool {
        let (here, there) = (place.join(key), self.world.repository().join(key));
        let same = |one: &Path, other: &Path| Some(one.metadata().ok()?.ino() == other.metadata().ok()?.ino());
        match std::fs::read(&there) {
            Ok(bytes) => same(&here, &there) == Some(true) || std::fs::read(&here).is_ok_and(|here| here == bytes),
            // A command wrote it, and may have had a reason not to: with an acknowledgement lost, an expiry stops.
            Err(_) => true,
        }
    }
}
