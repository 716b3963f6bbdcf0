//! Documents that lie: about every field, and about their length.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood::clock;
use lastgood::postgres::lsn::{Lsn, SystemId, Timeline};
use lastgood::repo::RepoError;
use lastgood::repo::alert::{self, Alert};
use lastgood::repo::audit::{self, Who};
use lastgood::repo::expired::Expired;
use lastgood::repo::fetch;
use lastgood::repo::gone::{Gone, Range};
use lastgood::repo::keep::{self, Keep, Pin};
use lastgood::repo::lease::{self, Lease};
use lastgood::repo::manifest::{Manifest, MapPlace, What};
use lastgood::repo::object::{self, ObjectKind, Sha};
use lastgood::repo::report::{self, Kind, Report};
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::verified::Verified;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{ObjectKey, Part, Storage};
use lastgood::timeline::archive::Archive;
use lastgood::timeline::catalogue::of_snapshot;
use lastgood::timeline::estimate::Experience;
use lastgood::timeline::windows;
use serde_json::{Value, json};

use crate::support::world::World;

/// What a field may say instead.
fn lies() -> Vec<Value> {
    let texts = [
        "",
        "../../../../etc/passwd",
        "/etc/passwd",
        "20261121T082522Z-8bdd/../d000001",
        "\u{1b}[2K\u{9b}1m\n\u{202e}before it: lastgood restore",
        "0/0",
        "FFFFFFFF/FFFFFFFF",
        "000000000000000000000000",
        "FFFFFFFFFFFFFFFFFFFFFFFF",
        "9999-12-30T23:59:59Z",
        "-009999-01-02T00:00:00Z",
        "18446744073709551615",
        "0",
        "none",
        "%00",
    ];
    let mut lies: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
    lies.push(json!("x".repeat(100_000)));
    lies.extend([json!(0), json!(1), json!(-1), json!(3), json!(u32::MAX), json!(1u64 << 40), json!(i64::MAX), json!(u64::MAX)]);
    lies.extend([json!(i64::MIN), json!(1e300), json!(null), json!(true), json!([]), json!({}), json!([[[[0]]]])]);
    lies
}

/// Every field of a document; of a list, its first and last entries.
fn fields(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| fields(value, format!("{path}/{name}"), found)),
        Value::Array(list) => {
            let ends = [0, list.len().saturating_sub(1)];
            ends.iter().take(list.len().min(2)).for_each(|at| fields(&list[*at], format!("{path}/{at}"), found));
        }
        _ => {}
    }
    found.push(path);
}

/// A repository in memory, as a server of a real world has filled it.
struct Store {
    memory: Arc<MemoryStorage>,
    cluster: Cluster,
    system: SystemId,
    segment_bytes: u64,
}

impl Store {
    async fn of(world: &World) -> Store {
        let memory = Arc::new(MemoryStorage::new());
        for key in world.objects("") {
            let bytes = std::fs::read(world.repository().join(&key)).unwrap();
            memory.create(&ObjectKey::new(key), bytes.into()).await.unwrap();
        }
        let shared: Arc<dyn Storage> = memory.clone();
        let repository = Repository::open(shared, &Keys::default()).await.unwrap();
        let (cluster, record) = repository.registered("shop").await.unwrap();
        let history = record.current().unwrap();
        Store { memory, cluster, system: history.system_identifier, segment_bytes: history.wal_segment_bytes.into() }
    }

    async fn leases(&self) -> Vec<ObjectKey> {
        let prefix = self.cluster.layout().leases();
        let all = lastgood::storage::list_all(&*self.memory, &prefix, lastgood::storage::Depth::All).await.unwrap();
        all.objects.into_iter().map(|object| object.key).collect()
    }

    async fn raw(&self, key: &ObjectKey) -> Vec<u8> {
        object::get_document(self.cluster.vault(), key).await.unwrap()
    }

    fn put(&self, key: &ObjectKey, raw: &[u8]) {
        self.memory.tamper(key, |bytes| *bytes = object::document(raw, None));
    }

    /// Everything that is read of a repository and depends on `key` is read. Answers with all that was found wrong.
    async fn read_all(&self, key: &str) -> Vec<String> {
        let mut wrong: Vec<String> = match key.contains("/snapshots/") || key.contains("/files/") {
            true => self.read_snapshots().await,
            false => self.read_others().await,
        };
        if key.contains("audit/") {
            match audit::read(&self.cluster, &[]).await {
                Ok(chain) => wrong.extend(chain.problems.iter().map(|(entry, what)| format!("audit/ entry {entry}: {what}"))),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        wrong
    }

    /// Of what costs only itself, what is shown in its place is an answer too.
    async fn read_others(&self) -> Vec<String> {
        let cluster = &self.cluster;
        let pins = keep::all(cluster).await.unwrap();
        let alerts = alert::open(cluster).await.unwrap();
        let unreadable_pins = pins.values().filter(|pin| matches!(pin, Pin::Unreadable { .. })).map(Pin::describe);
        let mut said: Vec<String> = unreadable_pins.chain(alerts.into_iter().filter_map(|(_, alert)| alert.err())).collect();
        let shared: Arc<dyn Storage> = self.memory.clone();
        let record = cluster.record().await;
        let current = record.as_ref().ok().and_then(|record| record.as_ref()?.current().cloned());
        let mut results = vec![
            Repository::open(shared, &Keys::default()).await.err(),
            record.err(),
            lease::at_work(cluster).await.map(|living| living.iter().for_each(|one| drop(one.describe()))).err(),
            Verified::read(cluster).await.err(),
            report::newest(cluster, 10).await.err(),
            Experience::load(cluster).await.map(|known| known.estimate((1 << 30, 1000), 1 << 30).is_some()).err(),
        ];
        for id in lastgood::repo::expired::ids(cluster).await.unwrap() {
            results.push(Expired::read(cluster, &id).await.err());
        }
        if let Some(history) = current {
            let loaded = Archive::load(cluster, history.system_identifier, history.wal_segment_bytes.into()).await;
            said.extend(loaded.as_ref().ok().and_then(|archive| archive.gone().unreadable.clone()));
            results.push(loaded.err());
        }
        said.extend(results.into_iter().flatten().map(|error| error.to_string()));
        said
    }

    async fn read_snapshots(&self) -> Vec<String> {
        let (mut wrong, mut manifests) = (Vec::new(), Vec::new());
        for (id, manifest) in self.cluster.manifests().await.unwrap() {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => wrong.push(format!("{}: {error}", self.cluster.layout().manifest(&id))),
            }
        }
        if let Some(newest) = manifests.last() {
            wrong.extend(self.snapshot(newest).await.err().map(|error| error.to_string()));
        }
        match Archive::load(&self.cluster, self.system, self.segment_bytes).await {
            Ok(archive) => wrong.extend(windows::windows(&archive, &manifests).await.err().map(|error| error.to_string())),
            Err(error) => wrong.push(error.to_string()),
        }
        wrong
    }

    async fn snapshot(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let cluster = &self.cluster;
        if let Some(what) = manifest.contradiction(cluster).await? {
            return Err(RepoError::damaged(&cluster.layout().manifest(&manifest.id), what));
        }
        lastgood::repo::presence::missing_packs(cluster, &manifest.packs(cluster).await?).await?;
        manifest.wal(cluster).await?;
        of_snapshot(cluster, manifest).await?;
        for index in 0..manifest.file_lists.len() {
            let lines = manifest.files(cluster, index).await?;
            let far = lines.iter().filter_map(|line| match &line.what {
                What::File { map: MapPlace::MapFrame { frame, .. }, .. } => Some(frame.clone()),
                _ => None,
            });
            let mut frames: Vec<_> = far.take(4).collect();
            fetch::sort(&mut frames);
            fetch::maps(cluster, Arc::new(frames)).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(())
    }
}

/// One document of each kind, and those of which a backup has none.
async fn documents(store: &Store) -> Vec<ObjectKey> {
    let (cluster, system) = (&store.cluster, store.system);
    let (id, manifest) = cluster.manifests().await.unwrap().pop().unwrap();
    let manifest = manifest.unwrap();
    let who = Who { user: "dba".into(), host: "db1".into(), pid: 1, ..Who::default() };
    let now = clock::now();
    Keep { pinned: true, until: Some(now), reason: "x".into(), at: now, who: who.clone() }.put(cluster, &id).await.unwrap();
    let mut report = Report::begin(Kind::Drill, cluster, system, &who, "latest".into());
    report.phases.push(report::Phase { name: report::RESTORE.into(), seconds: 1.0, bytes: 1 << 30, files: 1000 });
    report.put(cluster).await.unwrap();
    let alert = Alert {
        noticed: now,
        host: "db1".into(),
        system_identifier: system,
        timeline: Timeline(1),
        target: Lsn(0x500_0000),
        event: "e".into(),
        time: Some(now),
        xid: 7,
        rule: "drop".into(),
        what: "DROP TABLE".into(),
        restore: "lastgood restore".into(),
    };
    alert.raise(cluster).await.unwrap();
    let far = "0000000100000F0000000000".parse().unwrap();
    Gone { ranges: vec![Range(far, far)], unreadable: None }.put(cluster, system).await.unwrap();
    let stretches = [("clusters/a".to_string(), Some(now))].into_iter();
    Verified::of_keys(now, stretches).put(cluster).await.unwrap();
    let other = Manifest { id: "20200101T000000Z-0000".into(), ..manifest.clone() };
    let other_id = other.id.clone();
    Expired { at: now, why: "old".into(), manifest: Some(other) }.put(cluster, &other_id).await.unwrap();
    // One whose heartbeat stands still: nobody holds it any more.
    let lease = Lease::take(cluster, "restore", &id).await.unwrap();
    let held = store.leases().await;
    let held = (held[0].clone(), store.memory.read(&held[0], Part::Whole).await.unwrap().bytes);
    lease.release().await;
    for key in store.leases().await {
        store.memory.delete(&[key]).await.unwrap();
    }
    store.memory.create(&held.0, held.1.to_vec().into()).await.unwrap();
    let refusal = audit::Event::refusal("restore", "shop", "nobody confirmed it".into());
    audit::append(cluster, &audit::Who::default(), refusal).await.unwrap();
    let layout = cluster.layout();
    let mut keys = vec![lastgood::repo::layout::repository(), layout.manifest(&id), layout.files(&id, 1)];
    keys.extend([layout.pack_table(&id), layout.wal_table(&id), layout.catalogue(&id)]);
    keys.extend([layout.record(1), layout.keep(&id, 1), layout.report(&report.id), layout.alert(&alert.id())]);
    keys.extend([layout.gone_number(system, 1), layout.verified_number(1), layout.expired("20200101T000000Z-0000")]);
    keys.push(lastgood::repo::layout::audit_entry(1));
    keys.extend(store.leases().await);
    keys
}

/// Lines of a table of which each kind is taken once.
fn lines_of(raw: &[u8]) -> Vec<(usize, Value)> {
    let mut kinds: BTreeMap<String, (usize, Value)> = BTreeMap::new();
    for (at, line) in raw.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let value: Value = serde_json::from_slice(line).unwrap();
        let shape: Vec<&String> = value.as_object().map(|map| map.keys().collect()).unwrap_or_default();
        let kind = format!("{shape:?}{}", value["kind"]);
        kinds.entry(kind).or_insert((at, value));
    }
    kinds.into_values().collect()
}

/// After the file list of a manifest was changed, the manifest vouches for the new one: whoever may write the one writes the other.
async fn vouch(store: &Store, key: &ObjectKey, raw: &[u8]) {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let ["clusters", _, "files", id, name] = parts[..] else { return };
    let manifest_key = store.cluster.layout().manifest(id);
    let mut manifest: Value = serde_json::from_slice(&store.raw(&manifest_key).await).unwrap();
    let part = match name {
        "packs" => &mut manifest["pack_table"],
        "wal" => &mut manifest["wal_table"],
        "catalogue" => &mut manifest["catalogue"],
        number => &mut manifest["file_lists"][number.parse::<usize>().unwrap() - 1],
    };
    *part = json!({ "raw_bytes": raw.len(), "sha256": Sha::of(raw) });
    store.put(&manifest_key, &serde_json::to_vec(&manifest).unwrap());
}

/// Peak memory of this process, in bytes.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

async fn filled() -> World {
    let world = World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS what FROM generate_series(1, 60000) i").await;
    world.backup(&[]);
    world.sql("UPDATE t SET i = i + 1 WHERE i % 50 = 0").await;
    world.backup(&[]);
    world
}

/// Whatever a field says, reading ends with an answer or with an error that names an object, and takes little memory.
#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_every_document_may_lie() {
    let world = filled().await;
    let store = Store::of(&world).await;
    let keys = documents(&store).await;
    for key in &keys {
        assert_eq!(store.read_all(key.as_str()).await, Vec::<String>::new(), "all is well before");
    }
    let (lies, mut told) = (lies(), BTreeMap::new());
    for key in &keys {
        let is_plain = key.as_str() == "lastgood.json";
        let raw = match is_plain {
            true => std::fs::read(world.repository().join("lastgood.json")).unwrap(),
            false => store.raw(key).await,
        };
        let is_table = key.as_str().contains("/files/");
        // Of the file lists and tables, which the manifest vouches for.
        let manifest = is_table.then(|| store.cluster.layout().manifest(key.as_str().split('/').nth(3).unwrap()));
        let before = match &manifest {
            Some(manifest) => Some(store.raw(manifest).await),
            None => None,
        };
        let values = if is_table { lines_of(&raw) } else { vec![(0, serde_json::from_slice(&raw).unwrap())] };
        for (line, value) in values {
            let mut paths = Vec::new();
            fields(&value, String::new(), &mut paths);
            for path in paths {
                for lie in &lies {
                    let mut lying = value.clone();
                    *lying.pointer_mut(&path).unwrap() = lie.clone();
                    let lying = serde_json::to_vec(&lying).unwrap();
                    let document = if is_table {
                        let mut lines: Vec<&[u8]> = raw.split(|b| *b == b'\n').collect();
                        lines[line] = &lying;
                        lines.join(&b'\n')
                    } else {
                        lying
                    };
                    match is_plain {
                        true => store.memory.tamper(key, |bytes| *bytes = document.clone()),
                        false => store.put(key, &document),
                    }
                    vouch(&store, key, &document).await;
                    for error in store.read_all(key.as_str()).await {
                        let names = ["clusters/shop/", "lastgood.json", "audit/"].iter().any(|name| error.contains(name));
                        assert!(names, "{key}{path} = {lie}: {error}");
                        *told.entry(key.clone()).or_insert(0) += 1;
                    }
                    if let (Some(manifest), Some(before)) = (&manifest, &before) {
                        store.put(manifest, before);
                    }
                }
            }
        }
        match is_plain {
            true => store.memory.tamper(key, |bytes| *bytes = raw.clone()),
            false => store.put(key, &raw),
        }
    }
    // A name is enough for a segment to be listed, and a roll-up.
    let (layout, system) = (store.cluster.layout(), store.system);
    for name in ["FFFFFFFFFFFFFFFF000000FF", "00000001FFFFFFFF000000FF", "000000000000000000000001", "00000001FFFFFFDE000000FF"] {
        let key = layout.wal(system, &name.parse().unwrap());
        store.memory.create(&key, b"x".to_vec().into()).await.unwrap();
    }
    for name in ["00000001FFFFFFF000000000", "00000001FFFFFFDF00000000"] {
        let key = layout.rollup(system, 3, name.parse().unwrap());
        store.memory.create(&key, b"x".to_vec().into()).await.unwrap();
    }
    store.read_all(layout.manifest("x").as_str()).await;
    let silent: Vec<_> = keys.iter().filter(|key| !told.contains_key(*key) && !key.as_str().contains("/leases/")).collect();
    // Reports that cannot be read are left out of estimates; the audit vouches for them. Without a record of what was verified, all is
    // read again.
    let may_be_silent = |key: &ObjectKey| ["/reports/", "/verified/"].iter().any(|kind| key.as_str().contains(kind));
    assert!(silent.iter().all(|key| may_be_silent(key)), "nothing was noticed of {silent:?}");
    assert!(peak() < 1 << 30, "{} MiB", peak() >> 20);
}

/// A length that a trailer claims takes no memory, and costs the document alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_claims_a_tebibyte_costs_only_itself() {
    let world = filled().await;
    let snapshots = world.objects("clusters/shop/snapshots");
    let (first, second) = (&snapshots[0], &snapshots[1]);
    let id = |key: &str| key.rsplit('/').next().unwrap().to_string();
    let path = world.repository().join(second);
    let sound = std::fs::read(&path).unwrap();
    let raw = zstd::decode_all(&sound[..]).unwrap();
    let into = world.path("elsewhere").display().to_string();
    let costs_itself = |why: &str| {
        let said = world.ok(&["list"]);
        assert!(said.out.contains(&id(first)) && said.all().contains(second.as_str()), "{why}: {}", said.all());
        let said = world.run(&["verify", "--quick"]);
        assert!(said.code == 7 && said.out.contains(second.as_str()), "{why}: {}", said.all());
        assert!(!said.out.contains(&format!("costs snapshot {}", id(first))), "{why}: {}", said.out);
        world.ok(&["restore", "--to", &format!("snapshot:{}", id(first)), "--into", &into, "--dry-run"]);
        std::fs::write(&path, &sound).unwrap();
        world.ok(&["verify", "--quick"]);
    };
    for claimed in [1u64 << 40, u64::MAX, 0] {
        let content = zstd::bulk::compress(&raw, 3).unwrap();
        let body = serde_json::to_vec(&json!({ "raw_bytes": claimed, "sha256": Sha::of(&raw) })).unwrap();
        let trailer = object::trailer(ObjectKind::Document, &body, content.len() as u64, None);
        std::fs::write(&path, [content, trailer].concat()).unwrap();
        costs_itself(&format!("{claimed} bytes"));
    }
    // Content that says so itself: zeros take next to no room.
    let content = zstd::bulk::compress(&vec![b' '; 100 << 20], 3).unwrap();
    let body = serde_json::to_vec(&json!({ "raw_bytes": 100 << 20, "sha256": Sha([0; 32]) })).unwrap();
    let trailer = object::trailer(ObjectKind::Document, &body, content.len() as u64, None);
    std::fs::write(&path, [content, trailer].concat()).unwrap();
    costs_itself("a bomb");
    let spoiled = |name: &str, value: Value| {
        let mut manifest: Value = serde_json::from_slice(&raw).unwrap();
        manifest[name] = value;
        std::fs::write(&path, object::document(&serde_json::to_vec(&manifest).unwrap(), None)).unwrap();
    };
    spoiled("wal_segment_bytes", json!(0));
    costs_itself("wal_segment_bytes of 0");
    spoiled("tablespaces", json!([{ "oid": "../../../../tmp", "target": "/tmp" }]));
    costs_itself("a tablespace that leads elsewhere");
    // A file list that leads out of packs/, with a manifest that vouches for it.
    let list = world.repository().join(format!("clusters/shop/files/{}/000001", id(second)));
    let lines = zstd::decode_all(&std::fs::read(&list).unwrap()[..]).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    for (from, to) in [
        (format!("\"{}/d", id(second)), "\"../../../x/d".to_string()),
        ("\"path\":\"PG_VERSION\"".into(), "\"path\":\"../PG_VERSION\"".into()),
        ("\"path\":\"PG_VERSION\"".into(), "\"path\":\"base\"".into()),
        ("\"path\":\"PG_VERSION\"".into(), "\"path\":\"nowhere/PG_VERSION\"".into()),
    ] {
        let changed = lines.replacen(&from, &to, 1);
        assert_ne!(changed, lines, "{from}");
        std::fs::write(&list, object::document(changed.as_bytes(), None)).unwrap();
        spoiled("file_lists", json!([{ "raw_bytes": changed.len(), "sha256": Sha::of(changed.as_bytes()) }]));
        // What `verify` passes, `restore` takes: both ask the same.
        let said = world.run(&["verify"]);
        assert!(said.code == 7 && said.out.contains(&format!("costs snapshot {}", id(second))), "{to}: {}", said.all());
        let said = world.run(&["restore", "--to", &format!("snapshot:{}", id(second)), "--into", &into]);
        assert!(said.code == 7 && said.err.contains("is damaged"), "{to}: {}", said.all());
        let _ = std::fs::remove_dir_all(&into);
        std::fs::write(&list, object::document(lines.as_bytes(), None)).unwrap();
        std::fs::write(&path, &sound).unwrap();
    }
    world.ok(&["verify"]);
}
