//! The same on real servers: a ledger that is kept outside says what each history held, and every restore is compared with it.
//!
//! `make soak` runs it; it is no part of the suite. `LASTGOOD_SOAK` is the number of histories, `LASTGOOD_SEED` the first seed.

use std::process::Command;

use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::scratch::Stop;

use super::number;
use crate::property::dice::Dice;
use crate::support::world::World;

const HISTORIES: u64 = 100;

/// Each insert, and where its commit began at the latest: the position before the next one.
type Ledger = Vec<(u64, Lsn)>;

struct Soak {
    world: World,
    dice: Dice,
    /// What the server that runs has committed.
    present: Ledger,
    /// What any server ever had.
    all: Vec<Ledger>,
    images: Vec<Ledger>,
    next: u64,
    copies: usize,
    told: Vec<String>,
}

impl Soak {
    async fn new(seed: u64) -> Soak {
        let world = World::with(15, &["--wal-segsize=1"], "wal_keep_size = '256MB'\nautovacuum = off", None).await;
        world.write_config(None, "[snapshot]\narchive_timeout_s = 5\n");
        world.sql("CREATE TABLE ledger (id bigint); SELECT pg_switch_wal()").await;
        world.backup(&[]);
        let (dice, told) = (Dice::new(seed), vec!["a snapshot".into()]);
        Soak { world, dice, present: Vec::new(), all: Vec::new(), images: Vec::new(), next: 0, copies: 0, told }
    }

    async fn write(&mut self) {
        for _ in 0..1 + self.dice.below(5) {
            self.next += 1;
            let filler = [0, 3000, 60_000][self.dice.below(3)];
            let sql = format!(
                "INSERT INTO ledger VALUES ({}); SELECT pg_logical_emit_message(false, 'x', repeat('y', {filler}))",
                self.next
            );
            self.world.sql(&sql).await;
            let at = self.world.value("SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
            self.present.push((self.next, at));
        }
        self.told.push(format!("wrote up to {}", self.next));
    }

    fn keep(&mut self) {
        self.all.push(self.present.clone());
    }

    /// The server stops, and its volume is copied away, or put back.
    async fn volume(&mut self, back: bool) {
        let data = self.world.server.data().to_path_buf();
        if back && self.images.is_empty() {
            return;
        }
        self.world.server.stop(if self.dice.chance(50) { Stop::Fast } else { Stop::Immediate });
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            let _ = std::fs::remove_dir_all(to);
            assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
        };
        if back {
            let at = self.dice.below(self.images.len());
            self.keep();
            self.present = self.images[at].clone();
            copy(&self.world.path(&format!("image{at}")), &data);
            self.told.push(format!("the volume goes back to {}", self.present.len()));
        } else {
            copy(&data, &self.world.path(&format!("image{}", self.images.len())));
            self.images.push(self.present.clone());
            self.told.push("the volume is copied".into());
        }
        self.world.start().await;
    }

    /// A backup that says yes can be restored, and is the present.
    async fn backup(&mut self) {
        let said = self.world.run(&["--json", "backup"]);
        self.told.push(format!("backup: {}", said.code));
        if said.code != 0 {
            return;
        }
        let id = said.json()["snapshot"]["id"].as_str().unwrap().to_string();
        let ids = self.restored(&["--to", &id]).await;
        let present: Vec<u64> = self.present.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, present, "snapshot {id} is not the present");
    }

    /// A random promised moment is what one history held then.
    async fn moment(&mut self) {
        self.keep();
        let said = self.world.run(&["--json", "list"]);
        let listed = said.json();
        let histories = listed["histories"].as_array().cloned().unwrap_or_default();
        let windows: Vec<_> =
            histories.iter().flat_map(|history| history["windows"].as_array().cloned().unwrap_or_default()).collect();
        if windows.is_empty() {
            return;
        }
        let window = self.dice.pick(&windows).clone();
        let lsn = |key: &str| window[key].as_str().unwrap().parse::<Lsn>().unwrap().0;
        let (from, to) = (lsn("from_lsn"), lsn("to_lsn"));
        let at = Lsn(from + self.dice.next() % (to - from + 1));
        let timeline = format!("{:X}", window["timeline"].as_u64().unwrap());
        self.told.push(format!("restore to {at} of timeline {timeline}"));
        let ids = self.restored(&["--to", &at.to_string(), "--timeline", &timeline]).await;
        let held = |ledger: &Ledger| -> Vec<u64> { ledger.iter().map(|(id, _)| *id).take(ids.len()).collect() };
        assert!(self.all.iter().any(|ledger| held(ledger) == ids), "{ids:?} is no beginning of any history: {:?}", self.all);
        // A record at the target may end behind it.
        let is_complete = |ledger: &Ledger| {
            let before = ledger.iter().filter(|(_, end)| *end <= at).count();
            held(ledger) == ids && ids.len() >= before
        };
        assert!(self.all.iter().any(is_complete), "{ids:?} lacks something that was committed before {at}: {:?}", self.all);
    }

    /// What a restored server holds.
    async fn restored(&mut self, args: &[&str]) -> Vec<u64> {
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let (mut server, session) = self.world.restore(&name, args).await;
        let text = session.value("SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM ledger").await.unwrap();
        drop(session);
        server.stop(Stop::Immediate);
        for name in [name.clone(), format!("{name}.sockets")] {
            let _ = std::fs::remove_dir_all(self.world.path(&name));
        }
        text.split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    /// The present goes back to one of its moments, and on from there as the successor.
    async fn back(&mut self) {
        if self.present.is_empty() {
            return;
        }
        let (_, at) = *self.dice.pick(&self.present);
        self.keep();
        self.world.server.stop(Stop::Fast);
        let data = self.world.server.data().to_str().unwrap().to_string();
        let target = at.to_string();
        let args = ["restore", "--into", &data, "--to", &target, "--target-action", "promote"];
        let said = self.world.run(&[&["--json"], &args[..], &["--dry-run"]].concat());
        self.told.push(format!("restore over the server to {at}: {}", said.code));
        if said.code == 0 {
            self.world.confirmed(&args);
            self.present.retain(|(_, end)| *end <= at);
            self.world.start().await;
            let until = "SELECT pg_is_in_recovery()";
            while self.world.value(until).await == "t" {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let ids = self.world.value("SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM ledger").await;
            let present: Vec<String> = self.present.iter().map(|(id, _)| id.to_string()).collect();
            assert_eq!(ids, present.join(" "), "restored over the server to {at}");
            self.world.confirmed(&["release", "--data-directory", &data]);
            self.world.sql("SELECT pg_reload_conf()").await;
            self.world.server.stop(Stop::Fast);
        }
        self.world.start().await;
    }

    async fn step(&mut self) {
        match self.dice.below(10) {
            0..4 => self.write().await,
            4 => self.world.sql("SELECT pg_switch_wal()").await,
            5 => self.backup().await,
            6 => self.volume(false).await,
            7 => self.volume(true).await,
            8 => self.back().await,
            _ => self.moment().await,
        }
    }
}

/// Histories on PostgreSQL 15.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour: make soak"]
async fn real_servers_keep_their_histories() {
    let first = number("LASTGOOD_SEED").unwrap_or_else(|| u64::from_str_radix(&lastgood::clock::random_hex(4), 16).unwrap());
    for seed in first..first + number("LASTGOOD_SOAK").unwrap_or(HISTORIES) {
        eprintln!("LASTGOOD_SEED={seed} LASTGOOD_SOAK=1 repeats this one");
        let mut soak = Soak::new(seed).await;
        for _ in 0..12 {
            soak.step().await;
            eprintln!("  {}", soak.told.last().unwrap());
        }
        soak.moment().await;
    }
}
