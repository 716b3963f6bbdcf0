//! Every kind of object × lost in every way × every command.
//!
//! After the commands the object is put back, as `verify --repair` does from a mirror. Then everything must be there that the same
//! commands leave of the undamaged repository, byte for byte: damage of one object has cost nothing else. Before that, with the object
//! still damaged, snapshots that do not need it can be restored, and what is lost is named.
//!
//! `LASTGOOD_SEED` chooses other objects and commands; `LASTGOOD_DAMAGE=all` takes every object with every pair of commands, which
//! takes an hour.

use std::collections::{BTreeMap, BTreeSet};

use super::fixture::{self, COMMANDS, Command, DAMAGES, Damage, Fixture, kind};
use crate::mirror::copy::keys;
use crate::property::dice::Dice;

struct Case {
    key: String,
    kind: String,
    damage: Damage,
    commands: Vec<Command>,
}

fn cases(fixture: &Fixture) -> Vec<Case> {
    let seed: u64 = std::env::var("LASTGOOD_SEED").map_or(0xDA_3A_6E, |text| text.parse().unwrap());
    let all = std::env::var("LASTGOOD_DAMAGE").is_ok_and(|text| text == "all");
    println!("LASTGOOD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in keys(&fixture.world.repository()) {
        if let Some(kind) = kind(&key) {
            kinds.entry(kind).or_default().push(key);
        }
    }
    let mut cases = Vec::new();
    for (kind, keys) in kinds {
        for damage in DAMAGES {
            let chosen = if all { keys.clone() } else { vec![dice.pick(&keys).clone()] };
            for key in chosen {
                let mut pairs: Vec<Vec<Command>> = Vec::new();
                if all {
                    pairs.extend(COMMANDS.iter().flat_map(|one| COMMANDS.iter().map(|other| vec![*one, *other])));
                } else {
                    // Those that delete are in every case, in any order, and one of the others.
                    let other = *dice.pick(&COMMANDS[..5]);
                    let mut commands = vec![Command::Sweep, Command::Expire];
                    commands.insert(dice.below(3), other);
                    if dice.chance(50) {
                        commands.reverse();
                    }
                    pairs.push(commands);
                }
                cases.extend(pairs.into_iter().map(|commands| Case { key: key.clone(), kind: kind.clone(), damage, commands }));
            }
        }
    }
    cases
}

/// Losses that `list`, `check` or `verify` tell. A document that was removed and that nothing refers to cannot be missed, and a frame that
/// no snapshot uses is read by nobody.
fn is_named(case: &Case) -> bool {
    let gone = ["snapshots", "file list", "pack table", "WAL table", "pack d", "pack m", "lastgood.json"];
    let cut =
        ["snapshots", "file list", "pack table", "WAL table", "pack d", "pack m", "lastgood.json", "audit", "pins", "wal/gone"];
    match case.damage {
        Damage::Removed => gone.contains(&case.kind.as_str()),
        _ if case.kind == "record" => case.key.ends_with("/00000002"),
        Damage::Flipped if case.kind.starts_with("pack ") => false,
        _ => cut.contains(&case.kind.as_str()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_object_costs_nothing_else() {
    let fixture = fixture::fixture().await;
    let cases = cases(&fixture);
    let kinds: BTreeSet<&str> = cases.iter().map(|case| case.kind.as_str()).collect();
    assert!(kinds.len() >= 19, "{kinds:?}");
    for (at, case) in cases.iter().enumerate() {
        check(&fixture, &format!("case-{at}"), case).await;
    }
}

async fn check(fixture: &Fixture, name: &str, case: &Case) {
    let Case { key, kind, damage, commands } = case;
    let what = format!("{key} {damage:?}, then {commands:?}");
    let place = fixture.copy(name);
    fixture.damage(&place, key, *damage);
    if is_named(case) {
        named(fixture, &place, case, &what).await;
    }
    for command in commands {
        let said = fixture.command(&place, *command).await;
        let panicked = said.as_ref().is_some_and(|said| said.err.contains("panicked"));
        assert!(!panicked, "{what}: {said:?}");
    }
    let mut unaffected = fixture.needs.iter().filter(|(id, needs)| !needs.contains(key) && has_all(fixture, &place, needs, id));
    if let Some((id, _)) = unaffected.next_back() {
        let into = fixture.world.path("nowhere").display().to_string();
        let said = fixture.run(&place, &["restore", "--dry-run", "--to", &format!("snapshot:{id}"), "--into", &into]);
        assert_eq!(said.code, 0, "{what}: snapshot {id} does not need it, and cannot be restored: {}", said.all());
    }
    let expires = commands.contains(&Command::Expire);
    // Nothing else tells that somebody had pinned it.
    let is_unpinned = kind == "pins" && *damage == Damage::Removed;
    let left = if expires { &fixture.after_expire } else { &fixture.after_sweep };
    // What the rules let go needs not come back.
    let stays = left.iter().any(|left| left == key);
    if stays {
        fixture.put_back(&place, key, *damage);
    }
    let lost: Vec<&String> = left.iter().filter(|left| *left != key && !fixture.has(&place, left)).collect();
    assert!(lost.is_empty() || (expires && is_unpinned), "{what}: this went with it: {lost:#?}");
    assert!(!stays || place.join(key).exists(), "{what}: it is not there");
    // Entries that were written behind a damaged one do not vouch for it.
    if kind != "audit" && stays {
        let said = fixture.run(&place, &["verify", "--quick"]);
        assert_eq!(said.code, 0, "{what}, and put back: {}", said.all());
    }
    std::fs::remove_dir_all(&place).unwrap();
}

fn has_all(fixture: &Fixture, place: &std::path::Path, needs: &BTreeSet<String>, id: &str) -> bool {
    // What the rules let go is no concern of a damage.
    fixture.after_expire.iter().any(|key| key.ends_with(&format!("/snapshots/{id}")))
        && needs.iter().all(|key| place.join(key).exists())
}

/// Somebody who looks learns which object it is, or of which snapshot.
async fn named(fixture: &Fixture, place: &std::path::Path, case: &Case, what: &str) {
    let mut said = String::new();
    for command in [Command::Verify, Command::Check, Command::List] {
        said.push_str(&fixture.command(place, command).await.unwrap().all());
    }
    let snapshot = case.key.split('/').nth(3).unwrap_or_default();
    let is_of_snapshot = matches!(case.kind.as_str(), "snapshots" | "file list" | "pack table" | "WAL table" | "pins");
    assert!(said.contains(&case.key) || (is_of_snapshot && said.contains(snapshot)), "{what} is not named: {said}");
}

/// The real thing: a backup on the server, and an expiry, after each loss that used to spread.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_after_a_loss_takes_nothing_along() {
    let fixture = fixture::fixture().await;
    let manifest = |n: usize| format!("clusters/shop/snapshots/{}", fixture.ids[n]);
    let note = format!("clusters/shop/expired/{}", fixture.ids[0]);
    let whole = fixture.copy("whole");
    let (lost, kept) = (|key: &str| fixture.world.repository().join(key), |key: &str| whole.join(key));
    for key in [manifest(1), manifest(3), manifest(4), note] {
        std::fs::remove_file(lost(&key)).unwrap();
        fixture.world.ok(&["backup"]);
        // It may be there again: a note that was lost is written again.
        let _ = std::fs::hard_link(kept(&key), lost(&key));
        fixture.world.ok(&["verify"]);
    }
    // The pinned one: an expiry takes nothing of it, and nothing that it needs.
    std::fs::remove_file(lost(&manifest(1))).unwrap();
    let said = fixture.world.ok(&["expire"]);
    assert!(said.out.contains(&format!("the manifest of snapshot {} is missing", fixture.ids[1])), "{}", said.all());
    fixture.world.ok(&["backup"]);
    std::fs::hard_link(kept(&manifest(1)), lost(&manifest(1))).unwrap();
    fixture.world.ok(&["verify"]);
    let (_server, session) = fixture.world.restore("latest", &["--to", "latest"]).await;
    assert_eq!(session.value("SELECT count(*) FROM still").await.unwrap(), "20000");
}
