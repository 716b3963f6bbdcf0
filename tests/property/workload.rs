//! Random transactions, and what PostgreSQL's own `pg_walinspect` says about the WAL they left.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::session::Session;
use tokio::task::JoinHandle;

use super::dice::Dice;
use super::model::{Event, Model, Snapshot};
use crate::support::world::{Said, World, said};

/// All tables and what is in them, small; works in a server that only reads.
const CONTENT: &str = "CREATE FUNCTION content() RETURNS text LANGUAGE plpgsql AS $$
    DECLARE answer text := ''; t name; part text;
    BEGIN
        FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'data'::regnamespace AND relkind = 'r' ORDER BY relname LOOP
            EXECUTE format('SELECT count(*) || '' '' || md5(coalesce(string_agg(r::text, chr(10) ORDER BY r::text COLLATE \"C\"), ''''))
                FROM data.%I r', t) INTO part;
            answer := answer || t || ' ' || part || chr(10);
        END LOOP;
        RETURN answer;
    END $$";

struct Workload<'a> {
    world: &'a World,
    /// Reads what was committed.
    reader: Session,
    noise: Session,
    model: Model,
    next: usize,
    /// Tables that come and go.
    tables: Vec<String>,
    prepared: Vec<(u32, String)>,
    backup: Option<JoinHandle<Said>>,
}

/// Plays 60 to 150 steps and answers the model.
pub async fn run(world: &World, dice: &mut Dice) -> Model {
    world.sql("ALTER SYSTEM SET archive_timeout = 0").await;
    world.sql("SELECT pg_reload_conf(); CREATE EXTENSION pg_walinspect; CREATE SCHEMA data").await;
    world.sql("CREATE TABLE noise (xid bigint); CREATE TABLE data.prepared (id int, what text)").await;
    for table in ["a", "b", "c"] {
        let sql = "(id serial, what text, at timestamptz DEFAULT clock_timestamp())";
        world.sql(&format!("CREATE TABLE data.{table} {sql}; CREATE INDEX ON data.{table} (id)")).await;
    }
    world.sql(CONTENT).await;
    let begin = world.value("SELECT pg_current_wal_flush_lsn()").await;
    let (reader, noise) = (world.connect().await, world.connect().await);
    let first = reader.value("SELECT content()").await.unwrap();
    let model = Model {
        contents: HashMap::new(),
        noise: HashSet::new(),
        subtransactions: Vec::new(),
        events: Vec::new(),
        records: Vec::new(),
        points: BTreeMap::new(),
        snapshots: Vec::new(),
        first,
    };
    let mut work = Workload { world, reader, noise, model, next: 0, tables: Vec::new(), prepared: Vec::new(), backup: None };
    // Some of it happens before the first snapshot, and cannot be reached.
    for _ in 0..dice.below(5) {
        work.step(dice, false).await;
    }
    work.start_backup(&[]).await;
    for _ in 0..60 + dice.below(91) {
        work.step(dice, true).await;
    }
    work.finish_backup().await;
    work.step(dice, false).await;
    world.archive().await;
    work.read_wal(&begin).await;
    work.model
}

impl Workload<'_> {
    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// Something random; the second session writes at the same time.
    async fn step(&mut self, dice: &mut Dice, may_backup: bool) {
        let noise = match dice.chance(60) {
            true => Some("INSERT INTO noise VALUES (txid_current()) RETURNING xid"),
            false => None,
        };
        let written = {
            let (world, mine) = (self.world, self.noise.value(noise.unwrap_or("SELECT ''")));
            let other = async {
                if dice.chance(10) {
                    world.sql("CHECKPOINT").await
                }
            };
            tokio::join!(mine, other).0.unwrap()
        };
        self.model.noise.extend(written.parse::<u32>());
        match dice.below(100) {
            0..50 => self.simple(dice).await,
            50..60 => self.with_subtransactions(dice).await,
            60..70 => self.ddl(dice).await,
            70..80 => self.two_phases(dice).await,
            80..85 => self.world.sql(["VACUUM", "VACUUM (FREEZE)", "VACUUM FULL data.a", "ANALYZE"][dice.below(4)]).await,
            85..92 => {
                let name = format!("point {} é", self.number());
                self.world.sql(&format!("SELECT pg_create_restore_point('{name}')")).await;
            }
            92..95 => self.world.sql("SELECT pg_switch_wal()").await,
            _ if may_backup => {
                self.finish_backup().await;
                let args: &[&str] = if dice.chance(30) { &["--full"] } else { &[] };
                self.start_backup(args).await;
                if dice.chance(50) {
                    self.finish_backup().await;
                }
            }
            _ => {}
        }
    }

    /// A change of rows that others may see or not.
    fn change(&mut self, dice: &mut Dice) -> String {
        let table = *dice.pick(&["a", "b", "c"]);
        let (some, number) = (2 + dice.below(20), self.number());
        match dice.below(8) {
            0..3 => {
                // Sometimes long values: they go to TOAST, and full pages of WAL follow.
                let long = if dice.chance(30) { 400 } else { 2 };
                let text = format!("(SELECT string_agg(md5(({number} * i * j)::text), '') FROM generate_series(1, {long}) j)");
                format!("INSERT INTO data.{table} (what) SELECT {text} FROM generate_series(1, {}) i", 1 + dice.below(40))
            }
            3..6 => format!("UPDATE data.{table} SET what = 'step {number}' || left(what, 500) WHERE id % {some} = 0"),
            6 => format!("DELETE FROM data.{table} WHERE id % {some} = 1"),
            _ if dice.chance(30) => format!("TRUNCATE data.{table}"),
            _ => format!("INSERT INTO data.{table} (what) VALUES ('{number}')"),
        }
    }

    async fn xid(&self) -> u32 {
        self.world.value("SELECT txid_current()").await.parse().unwrap()
    }

    /// Remembers what the tables hold after a commit.
    async fn committed(&mut self, xid: u32) {
        let content = self.reader.value("SELECT content()").await.unwrap();
        self.model.contents.insert(xid, content);
    }

    async fn end(&mut self, dice: &mut Dice) {
        let xid = self.xid().await;
        if dice.chance(20) {
            self.world.sql("ROLLBACK").await;
        } else {
            self.world.sql("COMMIT").await;
            self.committed(xid).await;
        }
    }

    async fn simple(&mut self, dice: &mut Dice) {
        self.world.sql("BEGIN").await;
        for _ in 0..1 + dice.below(3) {
            self.world.sql(&self.change(dice)).await;
        }
        self.end(dice).await;
    }

    async fn with_subtransactions(&mut self, dice: &mut Dice) {
        self.world.sql("BEGIN").await;
        self.world.sql(&self.change(dice)).await;
        let top = self.xid().await;
        let mut kept = Vec::new();
        // More than 64 do not fit into a backend's memory of them, and are logged on their own.
        let count = if dice.chance(20) { 70 } else { 1 + dice.below(5) };
        for _ in 0..count {
            let number = self.number();
            self.world.sql("SAVEPOINT s").await;
            let sql = format!("INSERT INTO data.b (what) VALUES ('sub {number}') RETURNING xmin");
            let xid: u32 = self.world.value(&sql).await.parse().unwrap();
            if dice.chance(30) {
                self.world.sql("ROLLBACK TO s").await;
            } else {
                kept.push(xid);
            }
            if dice.chance(50) {
                self.world.sql("RELEASE s").await;
            }
        }
        let commits = dice.chance(80);
        self.world.sql(if commits { "COMMIT" } else { "ROLLBACK" }).await;
        // Open savepoints below a rolled back one are gone with it; the model only needs some that were surely kept.
        if commits {
            self.committed(top).await;
            self.model.subtransactions.extend(self.surely_kept(&kept).await);
        }
    }

    /// Those of the ids whose rows are there.
    async fn surely_kept(&self, ids: &[u32]) -> Vec<u32> {
        let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let sql = format!("SELECT string_agg(DISTINCT xmin::text, ' ') FROM data.b WHERE xmin::text = ANY('{{{list}}}')");
        self.reader.value(&sql).await.unwrap().split_whitespace().map(|xid| xid.parse().unwrap()).collect()
    }

    async fn ddl(&mut self, dice: &mut Dice) {
        let number = self.number();
        self.world.sql("BEGIN").await;
        let drops = !self.tables.is_empty() && dice.chance(40);
        let table = if drops { self.tables[dice.below(self.tables.len())].clone() } else { format!("t{number}") };
        let sql = match drops {
            true => format!("DROP TABLE data.{table}"),
            false => format!("CREATE TABLE data.{table} AS SELECT i, repeat('{number}', i) FROM generate_series(1, 300) i"),
        };
        self.world.sql(&sql).await;
        if dice.chance(30) {
            self.world.sql(&format!("ALTER TABLE data.c ADD COLUMN c{number} int DEFAULT {number}")).await;
        }
        if dice.chance(30) {
            self.world.sql(&format!("CREATE INDEX i{number} ON data.a (md5(what))")).await;
        }
        let xid = self.xid().await;
        self.end(dice).await;
        if self.model.contents.contains_key(&xid) {
            if drops { self.tables.retain(|t| *t != table) } else { self.tables.push(table) }
        }
    }

    /// Prepares a transaction, or ends one that was prepared some time ago.
    async fn two_phases(&mut self, dice: &mut Dice) {
        if !self.prepared.is_empty() && dice.chance(60) {
            let (xid, name) = self.prepared.swap_remove(dice.below(self.prepared.len()));
            let commits = dice.chance(70);
            self.world.sql(&format!("{} PREPARED '{name}'", if commits { "COMMIT" } else { "ROLLBACK" })).await;
            if commits {
                self.committed(xid).await;
            }
            return;
        }
        let number = self.number();
        self.world.sql("BEGIN").await;
        self.world.sql(&format!("INSERT INTO data.prepared SELECT i, '{number}' FROM generate_series(1, {number}) i")).await;
        self.world.sql(&format!("SAVEPOINT s; INSERT INTO data.prepared VALUES (-1, '{number}'); RELEASE s")).await;
        let drops = (!self.tables.is_empty() && dice.chance(30)).then(|| self.tables.pop().unwrap());
        match &drops {
            Some(table) => self.world.sql(&format!("DROP TABLE data.{table}")).await,
            None if dice.chance(50) => self.world.sql(&format!("CREATE TABLE data.p{number} AS SELECT 1 AS one")).await,
            None => {}
        }
        let (xid, name) = (self.xid().await, format!("prepared {number}"));
        self.world.sql(&format!("PREPARE TRANSACTION '{name}'")).await;
        // Nobody could read a table that is being dropped.
        if drops.is_some() {
            self.world.sql(&format!("COMMIT PREPARED '{name}'")).await;
            self.committed(xid).await;
        } else {
            self.prepared.push((xid, name));
        }
    }

    async fn start_backup(&mut self, args: &[&str]) {
        let mut command = self.world.command(&[&["--json", "backup"], args].concat());
        self.backup = Some(tokio::task::spawn_blocking(move || said(&mut command)));
        if self.model.snapshots.is_empty() {
            self.finish_backup().await;
        }
    }

    async fn finish_backup(&mut self) {
        let Some(backup) = self.backup.take() else { return };
        let said = backup.await.unwrap();
        assert_eq!(said.code, 0, "{}", said.all());
        let snapshot = &said.json()["snapshot"];
        let field = |name: &str| snapshot[name].as_str().unwrap();
        self.model.snapshots.push(Snapshot {
            id: field("id").into(),
            stop_lsn: field("stop_lsn").parse::<Lsn>().unwrap().0,
            stop_time: field("stop_time").parse().unwrap(),
        });
    }

    /// All records from `begin` to the end of the archive, as PostgreSQL reads them.
    async fn read_wal(&mut self, begin: &str) {
        let (world, model) = (self.world, &mut self.model);
        let wal = format!("pg_get_wal_records_info('{begin}', pg_current_wal_flush_lsn())");
        let segment = "(SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')";
        // The segment after the archived ones has begun, and may hold records already.
        let archived = format!("start_lsn - '0/0' < floor((pg_current_wal_insert_lsn() - '0/0') / {segment}) * {segment}");
        let records = format!("SELECT string_agg(start_lsn::text, ' ' ORDER BY start_lsn) FROM {wal} WHERE {archived}");
        let lsn = |text: &str| text.parse::<Lsn>().unwrap().0;
        model.records = world.value(&records).await.split(' ').map(lsn).collect();
        let points = format!(
            "SELECT string_agg(start_lsn || ' ' || description, chr(10)) FROM {wal} WHERE record_type = 'RESTORE_POINT' AND {archived}"
        );
        for line in world.value(&points).await.lines() {
            let (at, name) = line.split_once(' ').unwrap();
            model.points.entry(name.into()).or_default().push(lsn(at));
        }
        let ends = format!(
            "SELECT string_agg(concat_ws('|', start_lsn, coalesce(found[1], xid::text), found[2], record_type), chr(10) ORDER BY start_lsn)
             FROM (SELECT *, regexp_match(description, '^(?:(\\d+): )?(\\d+-\\S+ [0-9:.]+)') AS found FROM {wal}) ends
             WHERE resource_manager = 'Transaction' AND record_type ~ '^(COMMIT|ABORT)' AND {archived}"
        );
        for line in world.value(&ends).await.lines() {
            let fields: Vec<&str> = line.split('|').collect();
            let time: Timestamp = format!("{}Z", fields[2]).parse().unwrap();
            let is_commit = fields[3].starts_with("COMMIT");
            model.events.push(Event { lsn: lsn(fields[0]), time, xid: fields[1].parse().unwrap(), is_commit });
        }
        // A subtransaction that was rolled back has an end of its own.
        let events = &model.events;
        model.subtransactions.retain(|xid| events.iter().all(|event| event.xid != *xid));
        let commits: HashSet<u32> = events.iter().filter(|e| e.is_commit).map(|e| e.xid).collect();
        let lost: Vec<_> = model.contents.keys().filter(|xid| !commits.contains(xid)).collect();
        assert!(lost.is_empty(), "transactions that pg_walinspect does not know: {lost:?}");
    }
}
