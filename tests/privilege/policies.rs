//! The policies of `docs/policies`, with a moto server that enforces them.
//!
//! What moto cannot do: it judges DeleteObjects by the bucket and not by each key, so the bucket is added to the expiry host's
//! policy here; single deletes are judged by their key. It knows no rights of its own for locks: setting one is `s3:PutObject` there, seeing one
//! `s3:GetObject`, and asking for the bucket's locks `s3:ListBucket`.

use std::path::Path;
use std::sync::Arc;

use lastgood::config::S3;
use lastgood::repo::RepoError;
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::{Depth, Fault, ObjectKey, Part, Storage, StorageError, list_all};
use lastgood::upkeep::sweep;

use crate::support::moto::{BUCKET, Kept, Moto};
use crate::support::s3::write_credentials;
use crate::support::world::{Said, World, said};

const HOSTS: [&str; 3] = ["database-host", "restore-host", "expiry-host"];
const PREFIX: &str = "pg";

/// The policy of a host, as a reader of the documentation would fill it in.
fn policy(host: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/policies/{host}.json"));
    let text = std::fs::read_to_string(path).unwrap().replace("BUCKET", BUCKET).replace("PREFIX", PREFIX);
    serde_json::from_str(&text).unwrap()
}

/// Every action of a policy, in order.
fn actions(policy: &serde_json::Value) -> Vec<String> {
    let statements = policy["Statement"].as_array().unwrap().iter();
    statements.flat_map(|s| s["Action"].as_array().unwrap()).map(|a| a.as_str().unwrap().to_string()).collect()
}

/// A policy without one of its actions.
fn without(policy: &serde_json::Value, action: &str) -> serde_json::Value {
    let mut policy = policy.clone();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        statement["Action"].as_array_mut().unwrap().retain(|a| a != action);
    }
    policy["Statement"].as_array_mut().unwrap().retain(|s| !s["Action"].as_array().unwrap().is_empty());
    policy
}

/// A world on a moto that knows one user for each host, with the repository made and nothing enforced yet.
struct Stage {
    moto: Moto,
    world: World,
    keys: Vec<(String, String)>,
}

impl Stage {
    async fn new() -> Stage {
        let moto = Moto::start();
        let config = moto.config();
        Stage::of(moto, config).await
    }

    async fn of(moto: Moto, config: S3) -> Stage {
        let keys = HOSTS.map(|host| moto.user(host)).to_vec();
        for host in HOSTS {
            moto.set_policy(host, &policy(host));
        }
        let world = World::with(15, &[], "", Some((&format!("s3://{BUCKET}/{PREFIX}"), config))).await;
        let stage = Stage { moto, world, keys };
        stage.become_host("database-host");
        stage
    }

    /// From now on the program runs with the credentials of that host, and its policy is enforced.
    fn become_host(&self, host: &str) {
        let (access, secret) = &self.keys[HOSTS.iter().position(|h| *h == host).unwrap()];
        let text = format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
        self.world.write_private("credentials", &text);
        self.moto.enforce(true);
    }

    fn change(&self, host: &str, policy: &serde_json::Value) {
        self.moto.enforce(false);
        self.moto.set_policy(host, policy);
        self.moto.enforce(true);
    }

    /// The store as the library sees it, with a host's credentials.
    async fn store(&self, host: &str, prefix: &str) -> Arc<dyn Storage> {
        let (access, secret) = &self.keys[HOSTS.iter().position(|h| *h == host).unwrap()];
        let path = self.world.path(&format!("credentials-{host}"));
        write_credentials(&path, access, secret);
        let s3 = S3 { credentials_file: Some(path), ..self.moto.config() };
        let repository = lastgood::config::Repository { url: format!("s3://{BUCKET}/{prefix}"), s3, ..Default::default() };
        lastgood::storage::open::open(&repository, lastgood::repo::layout::is_passing, &Default::default()).await.unwrap()
    }

    async fn cluster(&self, host: &str) -> Result<Cluster, RepoError> {
        Ok(Repository::open(self.store(host, PREFIX).await, &Keys::default()).await?.cluster("shop"))
    }

    /// All keys, past every policy.
    async fn keys(&self) -> Vec<String> {
        self.moto.enforce(false);
        let page = list_all(&*self.store("restore-host", PREFIX).await, "", Depth::All).await.unwrap();
        self.moto.enforce(true);
        page.objects.into_iter().map(|o| o.key.to_string()).collect()
    }

    /// The program in the data directory, as the server calls it.
    fn in_data(&self, args: &[&str]) -> Said {
        said(self.world.command(args).current_dir(self.world.server.data()))
    }

    /// A segment that PostgreSQL has archived and not yet removed, relative to the data directory.
    fn archived_segment(&self) -> String {
        let status = self.world.server.data().join("pg_wal/archive_status");
        let mut names: Vec<String> = std::fs::read_dir(status)
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_str()?.strip_suffix(".done").map(str::to_string))
            .filter(|name| name.len() == 24 && self.world.server.data().join("pg_wal").join(name).exists())
            .collect();
        names.sort();
        names.pop().expect("something was archived")
    }
}

/// For each action: without it, one of the calls fails; with all of them, none does.
fn each_action_is_needed(stage: &Stage, host: &str, policy: &serde_json::Value, calls: &dyn Fn() -> Vec<Said>) {
    let all_is_well = || {
        let bad: Vec<Said> = calls().into_iter().filter(|said| said.code != 0).collect();
        assert!(bad.is_empty(), "{host}: {bad:#?}");
    };
    all_is_well();
    for action in actions(policy) {
        stage.change(host, &without(policy, &action));
        let all = calls();
        assert!(all.iter().any(|said| said.code != 0), "{host} does not need {action}: {all:#?}");
        assert!(
            all.iter().any(|said| said.all().contains("denied") || said.all().contains("AccessDenied")),
            "{action}: {all:#?}"
        );
    }
    stage.change(host, policy);
    all_is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_host_writes_and_reads_back_and_deletes_nothing() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    // Not only an administrator's: what `init` does at the store is creating, too.
    world.ok(&["init"]);
    let first = world.backup(&[]);
    world.sql("INSERT INTO t VALUES (0)").await;
    let second = world.backup(&[]);
    assert_eq!(second["parent"], first["id"]);
    world.archive().await;
    let check = world.ok(&["check"]);
    assert!(check.out.contains("WARNING repository      objects cannot be deleted from here"), "{check:?}");
    world.ok(&["list"]);
    world.ok(&["verify"]);

    let segment = stage.archived_segment();
    let push = format!("pg_wal/{segment}");
    let calls = || vec![world.run(&["list"]), stage.in_data(&["archive-push", &push]), world.run(&["check", "--no-switch"])];
    each_action_is_needed(&stage, "database-host", &policy("database-host"), &calls);

    let cluster = stage.cluster("database-host").await.unwrap();
    let key = cluster.layout().manifest(first["id"].as_str().unwrap());
    assert!(is_denied(cluster.storage().delete(std::slice::from_ref(&key)).await), "{key}");
    assert!(cluster.storage().read(&key, Part::Whole).await.is_ok());
    // Garbage of a snapshot that was never committed stays, and the next one goes on.
    let garbage = ObjectKey::new("clusters/shop/packs/20200101T000000Z-dead/d000001");
    cluster.storage().create(&garbage, b"x".to_vec().into()).await.unwrap();
    let said = world.ok(&["backup"]);
    assert!(said.all().contains("may not be deleted from here and stay"), "{said:?}");
    assert!(cluster.storage().stat(&garbage).await.unwrap().is_some());
}

fn is_denied(deleted: Result<Vec<(ObjectKey, StorageError)>, StorageError>) -> bool {
    match deleted {
        Ok(failed) => !failed.is_empty() && failed.iter().all(|(_, error)| error.fault == Fault::Denied),
        Err(error) => error.fault == Fault::Denied,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restore_host_reads_and_writes_nothing() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    world.backup(&[]);
    world.sql("INSERT INTO t VALUES (0)").await;
    world.archive().await;
    let segment = stage.archived_segment();
    // Archiving is over: it would fail with the rights of a restore host, and rightly so.
    world.sql("ALTER SYSTEM SET archive_command = ''").await;
    world.sql("SELECT pg_reload_conf()").await;
    let before = stage.keys().await;
    stage.become_host("restore-host");

    let into = world.path("restored");
    let said = world.ok(&["restore", "--to", "latest", "--into", into.to_str().unwrap()]);
    assert!(said.all().contains("the restore goes on without a lease"), "{said:?}");
    let (_server, session) = world.recovered("restored").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "1001");
    world.ok(&["verify"]);
    let destination = world.path("fetched");
    let calls = || {
        let get = stage.in_data(&["archive-get", &segment, destination.to_str().unwrap()]);
        vec![world.run(&["list"]), get, world.run(&["verify", "--quick"])]
    };
    each_action_is_needed(&stage, "restore-host", &policy("restore-host"), &calls);
    world.refused(&["backup"], 4, &["permission denied"]);
    assert_eq!(stage.keys().await, before, "nothing was written");
}

/// What a clean-up needs is tried one by one; writing is for what expiry says about itself, and for nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_host_deletes_and_writes_only_what_it_says() {
    let stage = Stage::new().await;
    let world = &stage.world;
    for _ in 0..2 {
        world.backup(&[]);
    }
    let garbage = ObjectKey::new("clusters/shop/packs/20200101T000000Z-dead/d000001");
    let host = "expiry-host";
    let mut ours = policy(host);
    // See the module: moto asks for the right to delete in the bucket.
    let deletes = |s: &serde_json::Value| s["Action"].as_array().unwrap().contains(&"s3:DeleteObject".into());
    let statement = ours["Statement"].as_array_mut().unwrap().iter_mut().find(|s| deletes(s)).unwrap();
    *statement = serde_json::json!({ "Effect": "Allow", "Action": statement["Action"],
        "Resource": [statement["Resource"][0], format!("arn:aws:s3:::{BUCKET}")] });

    let put = "s3:PutObject";
    let all = std::iter::once(None).chain(actions(&ours).into_iter().filter(|action| action != put).map(Some));
    for missing in all {
        let writer = stage.cluster("database-host").await.unwrap();
        writer.storage().create(&garbage, b"x".to_vec().into()).await.unwrap();
        stage.change(host, &missing.as_ref().map_or(ours.clone(), |action| without(&ours, action)));
        let swept = match stage.cluster(host).await {
            Ok(cluster) => sweep::sweep(&cluster, "20210101T000000Z-0000").await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let is_clean = swept.as_ref().is_ok_and(|swept| (swept.objects, swept.kept) == (1, 0));
        assert_eq!(is_clean, missing.is_none(), "without {missing:?}: {swept:?}");
        assert_eq!(writer.storage().stat(&garbage).await.unwrap().is_none(), missing.is_none(), "without {missing:?}");
    }
    stage.become_host(host);
    world.ok(&["list"]);
    let denied = stage.cluster(host).await.unwrap().storage().create(&garbage, b"x".to_vec().into()).await;
    assert_eq!(denied.unwrap_err().fault, Fault::Denied, "it writes no pack");
    let url = format!("s3://{BUCKET}/{PREFIX}");
    world.write_config(Some((&url, stage.moto.config())), "\n[retention]\nkeep_last = 1\n");
    stage.become_host("database-host");
    // A database host may look, and delete nothing.
    assert!(world.ok(&["expire", "--dry-run"]).out.contains("goes "));
    world.refused(&["expire"], 4, &["could not be deleted", "expiry-host.json"]);
    stage.become_host(host);
    stage.change(host, &without(&ours, put));
    world.refused(&["expire"], 4, &["permission denied"]);
    stage.change(host, &ours);
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("removed 1 snapshot"), "{}", said.all());
    world.ok(&["verify"]);
}

/// A policy and what a bucket with locks needs besides, in moto's words.
fn with_locks(host: &str) -> serde_json::Value {
    let mut all = policy(host);
    let more = policy(&format!("{host}-object-lock"))["Statement"].as_array().unwrap().clone();
    all["Statement"].as_array_mut().unwrap().extend(more);
    for statement in all["Statement"].as_array_mut().unwrap() {
        let actions = statement["Action"].as_array_mut().unwrap();
        if actions.iter().any(|action| action == "s3:PutObjectRetention") {
            actions.push("s3:PutObject".into());
        }
        if actions.iter().any(|action| action == "s3:DeleteObject") {
            statement["Resource"].as_array_mut().unwrap().push(format!("arn:aws:s3:::{BUCKET}").into());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_versions_need_rights_of_their_own() {
    let moto = Moto::keeping(Kept::Locks);
    let config = S3 { object_lock_days: Some(1), delete_versions: true, ..moto.config() };
    let stage = Stage::of(moto, config.clone()).await;
    let (world, url) = (&stage.world, format!("s3://{BUCKET}/{PREFIX}"));
    world.write_config(Some((&url, config)), "\n[retention]\nkeep_last = 1\n");
    stage.become_host("database-host");
    let (first, second) = (world.backup(&[]), world.backup(&["--full"]));
    let check: &[&str] = &["check", "--no-switch"];
    world.refused(check, 9, &["FAILED  versions", "s3:GetBucketVersioning"]);
    let database = with_locks("database-host");
    stage.change("database-host", &database);
    assert!(world.ok(check).out.contains("objects are locked for 1 days"));
    stage.change("database-host", &without(&database, "s3:GetBucketVersioning"));
    world.refused(check, 9, &["FAILED  versions", "s3:GetBucketVersioning"]);
    stage.change("database-host", &database);

    let (host, expiry) = ("expiry-host", with_locks("expiry-host"));
    stage.become_host(host);
    stage.change(host, &expiry);
    let said = world.ok(&["expire"]);
    assert!(said.out.contains("it is locked until") && said.out.contains("left "), "{}", said.all());
    stage.moto.travel(3);
    stage.change(host, &without(&expiry, "s3:ListBucketVersions"));
    world.refused(&["expire"], 4, &["could not be deleted", "expiry-host.json"]);
    stage.change(host, &expiry);
    assert!(world.ok(&["expire"]).out.contains("removed 1 snapshot"));
    let versions = |id: &serde_json::Value| {
        stage.moto.enforce(false);
        let versions = stage.moto.versions(&format!("{PREFIX}/clusters/shop/snapshots/{}", id.as_str().unwrap()));
        stage.moto.enforce(true);
        versions
    };
    assert_eq!((versions(&first["id"]), versions(&second["id"])), ((0, 0), (1, 0)));

    // Somebody who may delete hides the snapshot that is left.
    let key = stage.cluster(host).await.unwrap().layout().manifest(second["id"].as_str().unwrap());
    stage.moto.enforce(false);
    stage.moto.ask("DELETE", &format!("{PREFIX}/{key}"));
    stage.change(host, &without(&expiry, "s3:DeleteObjectVersion"));
    world.refused(&["verify", "--repair"], 7, &["the bucket still has the version", "left "]);
    stage.change(host, &expiry);
    world.ok(&["verify", "--repair"]);
    assert_eq!(versions(&second["id"]), (1, 0));
}

/// A bucket may be shared: what is beside the prefix is neither read nor written.
#[tokio::test(flavor = "multi_thread")]
async fn no_host_gets_beyond_its_prefix() {
    let stage = Stage::new().await;
    let key = ObjectKey::new("theirs");
    for host in HOSTS {
        let beyond = stage.store(host, "pg-of-others").await;
        let created = beyond.create(&key, b"x".to_vec().into()).await;
        assert_eq!(created.unwrap_err().fault, Fault::Denied, "{host}");
        assert_eq!(beyond.read(&key, Part::Whole).await.unwrap_err().fault, Fault::Denied, "{host}");
    }
}
