//! Slots added and removed, new epochs, paper, and keyrings that somebody else made.

use std::sync::Arc;

use lastgood::clock;
use lastgood::repo::RepoError;
use lastgood::repo::repository::Repository;
use lastgood::repo::seal::create::Sealing;
use lastgood::repo::seal::epoch::EpochKey;
use lastgood::repo::seal::keyring::{self, Keyring};
use lastgood::repo::seal::keys::Keys;
use lastgood::repo::seal::slot::{Slot, To};
use lastgood::repo::seal::{Role, rotation};
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::{ObjectKey, Storage};

use super::*;

/// The life of a repository's keys, by the commands that people type.
#[tokio::test(flavor = "multi_thread")]
async fn keys_come_and_go_and_every_snapshot_stays() {
    let world = encrypted(with_passphrase).await;
    let (first, _) = filled(&world).await;
    let one = world.ok(&["--json", "key", "list"]).json();
    let slot = one["slots"][0]["id"].as_str().unwrap().to_string();
    world.refused(&["key", "remove", &slot], 5, &["last reader"]);
    world.refused(&["key", "remove", "nonsense"], 5, &["there is no slot", &slot]);
    let other = put(&world, "other", "another good passphrase\n");
    let added = world.ok(&["--json", "key", "add", "--passphrase-file", &other, "--comment", "in the safe"]).json();
    assert_eq!(added["key"]["comment"], "in the safe");
    let writer =
        world.ok(&["--json", "key", "add", "--passphrase-file", &put(&world, "w", "writers only"), "--role", "writer"]).json();
    configure(&world, &format!("passphrase_file = \"{other}\""));
    world.ok(&["verify"]);
    // The first passphrase is out, and its slot is nowhere any more.
    let said = world.ok(&["key", "remove", &slot]);
    assert!(said.out.contains("key rotate"), "{}", said.out);
    assert_eq!(world.objects("keys"), ["keys/000001-000004"]);
    configure(&world, &format!("passphrase_file = \"{}\"", world.path("passphrase").display()));
    world.refused(&["list"], 3, &["opens none of the slots"]);
    configure(&world, &format!("passphrase_file = \"{}\"", world.path("w").display()));
    world.ok(&["list"]);
    world.refused(&["verify"], 3, &["is a writer's"]);
    configure(&world, &format!("passphrase_file = \"{other}\"\nkey_file = \"{}\"", world.path("writer").display()));
    world.refused(&["key", "remove", added["key"]["id"].as_str().unwrap()], 5, &["last reader"]);
    // A new epoch: passphrases that are not known here are named before they are dropped.
    let paper = world.ok(&["key", "export", "--paper"]).out;
    world.refused(&["key", "rotate"], 5, &[writer["key"]["id"].as_str().unwrap(), "--drop-unknown"]);
    let rotated = world.ok(&["--json", "key", "rotate", "--drop-unknown"]).json();
    assert_eq!((&rotated["key"]["epoch"], rotated["key"]["dropped"].as_array().unwrap().len()), (&2.into(), 1));
    // The host's writer key is of the old epoch: it goes on, and says so.
    let old = world.ok(&["backup"]);
    assert!(old.all().contains("rotated to epoch 2"), "{}", old.all());
    assert!(world.ok(&["check"]).out.contains("still writes with epoch 1"));
    std::fs::remove_file(world.path("writer")).unwrap();
    world.ok(&["key", "export", "--writer", "--to", &world.path("writer").display().to_string()]);
    world.refused(&["key", "export", "--writer", "--to", &world.path("writer").display().to_string()], 10, &["exists"]);
    world.sql("INSERT INTO t VALUES (-1, 'after the rotation')").await;
    let said = world.ok(&["backup"]);
    assert!(!said.all().contains("rotated"), "{}", said.all());
    world.archive().await;
    world.ok(&["verify"]);
    restores(&world, "new", &["--to", "latest"], "19802").await;
    restores(&world, "old", &["--to", &format!("snapshot:{first}")], "20000").await;
    // The page in the safe is of before.
    let page = put(&world, "page", &paper);
    configure(&world, "");
    // It opens what it always opened, and names what it does not.
    let said = world.ok(&["--key-file", &page, "list"]);
    assert!(said.out.contains(&first) && said.out.contains("was sealed with key epoch 2"), "{}", said.all());
    restores(&world, "by-old-page", &["--key-file", &page, "--to", &format!("snapshot:{first}")], "20000").await;
    world.refused(&["--key-file", &page, "restore", "--to", "latest", "--into", "/nowhere/x"], 5, &["does not exist"]);
}

/// A repository without keys has a page too, and its commands work as they stand there.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_the_clear_has_a_page() {
    let world = crate::support::world::World::new(15).await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS x").await;
    world.backup(&[]);
    let page = world.ok(&["key", "export", "--paper"]).out;
    assert!(page.contains("encryption  none by lastgood"), "{page}");
    run_commands(&world, &page);
    let (_server, session) = world.recovered("from-paper").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "100");
    world.refused(&["key", "export", "--to", "/nowhere/x"], 5, &["so it has no keys"]);
    world.refused(&["key", "export", "--paper", "--writer"], 5, &["so it has no keys"]);
}

/// The three commands of a page, as they stand there.
fn run_commands(world: &crate::support::world::World, page: &str) {
    let commands: Vec<&str> = page.lines().map(str::trim).filter(|line| line.starts_with("lastgood --repo")).collect();
    assert_eq!(commands.len(), 3, "{page}");
    for command in commands {
        let line = command.replace("/var/lib/postgresql/restored", &world.path("from-paper").display().to_string());
        let mut command = std::process::Command::new("bash");
        command.args(["-euc", &line]).current_dir(world.path("")).env("PATH", format!("{}:/bin", world.path("").display()));
        if let Some(user) = world.user() {
            std::os::unix::process::CommandExt::gid(std::os::unix::process::CommandExt::uid(&mut command, user.uid), user.gid);
        }
        let said = crate::support::world::said(&mut command);
        assert_eq!(said.code, 0, "{line}: {}", said.all());
    }
}

/// Nothing but the page: no keyring, no passphrase, typed in by hand.
#[tokio::test(flavor = "multi_thread")]
async fn paper_alone_restores() {
    let world = encrypted(with_passphrase).await;
    filled(&world).await;
    let page = world.ok(&["key", "export", "--paper"]).out;
    let url = world.repository().display().to_string();
    for words in ["lastgood reader key", "key id", &url, "--key-file paper-key list", "--key-file paper-key restore --to latest"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with('[')).collect();
    let typed = put(&world, "paper-key", &lines.join("\n").to_lowercase().replace(' ', ""));
    std::fs::remove_dir_all(world.repository().join("keys")).unwrap();
    configure(&world, "");
    world.ok(&["--key-file", &typed, "list"]);
    let verified = world.ok(&["--key-file", &typed, "verify"]);
    assert!(verified.out.contains("no keyring under keys/"), "{}", verified.out);
    run_commands(&world, &page);
    let (_server, session) = world.recovered("from-paper").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "19801");
    let mut wrong: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
    wrong[1] = wrong[1].replacen(|c: char| c.is_ascii_digit() && c != '2', "X", 1);
    let wrong = put(&world, "wrong-key", &wrong.join("\n"));
    world.refused(&["--key-file", &wrong, "list"], 3, &["line [2] has a typing error"]);
}

fn cheap(passphrase: &str) -> To<'_> {
    To::Passphrase { passphrase, memory_kib: 64 }
}

fn by_identity(identity: &age::x25519::Identity) -> Keys {
    Keys { identities: vec![identity.clone()], ..Keys::default() }
}

async fn sealed_for(identity: &age::x25519::Identity) -> (Arc<dyn Storage>, Arc<MemoryStorage>, Repository) {
    let memory = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = memory.clone();
    let recipient = identity.to_public().to_string();
    let sealing = Sealing { readers: vec![To::Recipient(&recipient)], key_file: None };
    let (repository, _) = Repository::open_or_create(storage.clone(), &by_identity(identity), Some(&sealing)).await.unwrap();
    (storage, memory, repository)
}

/// Whoever owns the bucket knows the public recipient, and can wrap a key of their own for it. It is refused.
#[tokio::test]
async fn a_keyring_that_somebody_else_made_is_refused() {
    let identity = age::x25519::Identity::generate();
    let (storage, _, repository) = sealed_for(&identity).await;
    let seal = repository.vault().seal().unwrap();
    let recipient = identity.to_public().to_string();
    let theirs = EpochKey::random();
    let refused = |forged: Keyring, signer: EpochKey| {
        let (storage, identity) = (storage.clone(), identity.clone());
        async move {
            forged.write(&storage, &signer).await.unwrap();
            let opened = Repository::open(storage.clone(), &by_identity(&identity)).await;
            storage.delete(&[forged.key()]).await.unwrap();
            assert!(matches!(opened, Err(RepoError::Damaged { .. } | RepoError::WrongKey { .. })), "{opened:?}");
        }
    };
    let slot = |epoch| {
        let place = lastgood::repo::seal::slot::Place { repository: seal.repository(), epoch };
        Slot::wrap(place, &theirs, &To::Recipient(&recipient), None, clock::now()).unwrap()
    };
    let own = keyring::newest(&storage).await.unwrap().unwrap();
    // A repository of their own under the next number: another key id.
    let mut forged = Keyring::first(seal.repository(), &theirs, vec![slot(1)], clock::now());
    forged.number = 2;
    refused(forged, theirs.clone()).await;
    // The true lineage, with their slot: the signature is not of that lineage.
    refused(own.with_slots(vec![slot(1)], clock::now()), theirs.clone()).await;
    // A next epoch that the first did not sign.
    let mut forged = own.next_epoch(seal, &theirs, vec![slot(2)], clock::now()).unwrap();
    forged.lineage[1].signature = Some(hex::encode(theirs.sign(b"anything").unwrap()));
    refused(forged, theirs.clone()).await;
    // A true keyring of another repository, whole.
    let (other, ..) = sealed_for(&identity).await;
    let foreign = keyring::newest(&other).await.unwrap().unwrap();
    let mut foreign = Keyring { number: 2, ..foreign };
    foreign.repository = seal.repository().into();
    refused(foreign, theirs.clone()).await;
    // A writer can open, and cannot sign.
    let writer = own.with_slots(own.slots.clone(), clock::now()).write(&storage, &seal.newest().1.to_writer()).await;
    assert!(matches!(writer, Err(RepoError::NeedsReader { .. })));
    Repository::open(storage, &by_identity(&identity)).await.unwrap();
}

/// Each byte of a keyring is proven by its envelope; and each character of what is in it by the signature.
#[tokio::test]
async fn every_character_of_a_keyring_is_proven() {
    let identity = age::x25519::Identity::generate();
    let (storage, memory, repository) = sealed_for(&identity).await;
    rotation::add(repository.vault(), &cheap("a good passphrase"), Role::Reader, Some("comment".into())).await.unwrap();
    let key = ObjectKey::new("keys/000001-000002");
    let whole = storage.read(&key, lastgood::storage::Part::Whole).await.unwrap().bytes;
    let good = keyring::newest(&storage).await.unwrap().unwrap();
    for at in 0..whole.len() {
        memory.tamper(&key, |bytes| bytes[at] ^= 1);
        // Some bits of a zstd frame mean nothing: then it is the same keyring.
        if let Ok(opened) = keyring::newest(&storage).await {
            assert_eq!(opened.as_ref(), Some(&good), "byte {at} of {}", whole.len());
        }
        memory.tamper(&key, |bytes| bytes[at] ^= 1);
    }
    // Rewritten with a good envelope.
    let plain = lastgood::repo::vault::Vault::plain(storage.clone());
    let raw = lastgood::repo::object::get_document(&plain, &key).await.unwrap();
    for at in (0..raw.len()).step_by(3) {
        let mut changed = raw.clone();
        changed[at] ^= 1;
        memory.tamper(&key, |bytes| *bytes = lastgood::repo::object::document(&changed, None));
        let opened = Repository::open(storage.clone(), &by_identity(&identity)).await;
        assert!(opened.is_err(), "character {at}: {}", String::from_utf8_lossy(&raw[at.saturating_sub(20)..at]));
    }
    memory.tamper(&key, |bytes| *bytes = lastgood::repo::object::document(&raw, None));
    Repository::open(storage, &by_identity(&identity)).await.unwrap();
}

/// Three epochs: whoever has the newest has all, as a reader or as a writer, and no more than that.
#[tokio::test]
async fn an_epoch_brings_those_before_it() {
    let identity = age::x25519::Identity::generate();
    let (storage, _, repository) = sealed_for(&identity).await;
    rotation::add(repository.vault(), &cheap("for the writers"), Role::Writer, None).await.unwrap();
    let word = |text: &str| Keys { passphrase: Some(text.to_string().into()), ..Keys::default() };
    let mut keys = by_identity(&identity);
    keys.passphrase = Some("for the writers".to_string().into());
    for epoch in 2..=3 {
        let repository = Repository::open(storage.clone(), &keys).await.unwrap();
        let rotated = rotation::rotate(repository.vault(), &keys, 64, false).await.unwrap();
        assert_eq!((rotated.seal.newest().0, rotated.slots.len()), (epoch, 2));
    }
    let reader = Repository::open(storage.clone(), &by_identity(&identity)).await.unwrap();
    let writer = Repository::open(storage, &word("for the writers")).await.unwrap();
    let (reader, writer) = (reader.vault().seal().unwrap().clone(), writer.vault().seal().unwrap().clone());
    assert_eq!((reader.role(), writer.role()), (Role::Reader, Role::Writer));
    assert_eq!(reader.key_id(), writer.key_id());
    for epoch in 1..=3 {
        let (a, b) = (&reader.epochs()[&epoch], &writer.epochs()[&epoch]);
        assert_eq!(*a.to_writer().to_bytes(), *b.to_bytes(), "epoch {epoch}");
        assert!(a.root().is_some() && b.root().is_none() && b.data().is_none());
    }
    // The first holder's key ends with the first epoch.
    assert_eq!(repository.vault().seal().unwrap().epochs().len(), 1);
}
