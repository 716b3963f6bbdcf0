//! Random things that a server does to its files.

use lastgood::postgres::scratch::{self, Stop};
use lastgood::postgres::session::Session;

use crate::property::dice::Dice;
use crate::support::world::World;

/// Sessions that extend one relation together, and leave empty pages behind.
const TOGETHER: usize = 6;

pub struct Workload {
    next: usize,
    databases: Vec<String>,
    tables: Vec<String>,
    prepared: Vec<String>,
}

impl Workload {
    pub async fn begin(world: &World) -> Workload {
        let place = world.path("space");
        scratch::make_directory(&place, world.user()).unwrap();
        world.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display())).await;
        for table in ["a", "b", "c"] {
            world.sql(&format!("CREATE TABLE {table} (id serial PRIMARY KEY, what text) WITH (fillfactor = 70)")).await;
            world.sql(&format!("INSERT INTO {table} (what) SELECT repeat('x', i % 300) FROM generate_series(1, 3000) i")).await;
        }
        world.sql("CREATE UNLOGGED TABLE unlogged AS SELECT i AS id, 'u' AS what FROM generate_series(1, 1000) i").await;
        world.sql("CREATE INDEX ON b USING hash (what); CREATE INDEX ON c USING gin (to_tsvector('simple', what))").await;
        world.sql("CREATE DATABASE pattern").await;
        let inside = world.session().in_database("pattern").await.unwrap();
        inside.run("CREATE TABLE public.t AS SELECT i, repeat('p', 100) FROM generate_series(1, 2000) i").await.unwrap();
        Workload { next: 0, databases: Vec::new(), tables: Vec::new(), prepared: Vec::new() }
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    pub async fn step(&mut self, world: &mut World, dice: &mut Dice) {
        let table = *dice.pick(&["a", "b", "c"]);
        let number = self.number();
        match dice.below(24) {
            0..5 => world.sql(&rows(table, number, dice)).await,
            5 => world.sql(&format!("TRUNCATE {table}")).await,
            6..8 => {
                // Cut at the end, and grown again.
                world.sql(&format!("DELETE FROM {table} WHERE ctid > '({},0)'", dice.below(60))).await;
                world.sql(&format!("VACUUM {table}")).await;
                if dice.chance(70) {
                    together(world, table, 200 + dice.below(400)).await;
                }
            }
            8 => self.table(world, dice, number).await,
            9..12 => self.database(world, dice, number).await,
            12 => world.sql(&format!("VACUUM (FREEZE) {table}")).await,
            13 => world.sql(&format!("{} {table}", dice.pick(&["VACUUM FULL", "REINDEX TABLE", "ANALYZE"]))).await,
            14 => {
                let space = *dice.pick(&["space", "pg_default"]);
                world.sql(&format!("ALTER TABLE {table} SET TABLESPACE {space}")).await;
            }
            15 => {
                let sql = *dice.pick(&[
                    "INSERT INTO unlogged SELECT i, 'v' FROM generate_series(1, 500) i",
                    "ALTER TABLE unlogged SET LOGGED",
                    "ALTER TABLE unlogged SET UNLOGGED",
                ]);
                world.sql(sql).await;
            }
            // Hint bits.
            16 => drop(world.value(&format!("SELECT count(*) FROM {table} WHERE what LIKE '%y%'")).await),
            17 => subtransactions(world, table, dice).await,
            18..20 => self.two_phases(world, dice, table, number).await,
            20 => world.sql("CHECKPOINT").await,
            21 => world.sql("SELECT pg_switch_wal()").await,
            22 => {
                world.sql("BEGIN").await;
                world.sql(&format!("CREATE TABLE gone AS SELECT * FROM {table}; {}", rows(table, number, dice))).await;
                world.sql("ROLLBACK").await;
            }
            _ => {
                world.server.stop(if dice.chance(50) { Stop::Immediate } else { Stop::Fast });
                world.start().await;
            }
        }
    }

    async fn table(&mut self, world: &World, dice: &mut Dice, number: usize) {
        if !self.tables.is_empty() && dice.chance(50) {
            let table = self.tables.swap_remove(dice.below(self.tables.len()));
            return world.sql(&format!("DROP TABLE {table}")).await;
        }
        let space = *dice.pick(&["space", "pg_default"]);
        world
            .sql(&format!(
                "CREATE TABLE t{number} TABLESPACE {space} AS SELECT i AS id, 't' AS what FROM generate_series(1, 900) i"
            ))
            .await;
        self.tables.push(format!("t{number}"));
    }

    async fn database(&mut self, world: &World, dice: &mut Dice, number: usize) {
        match dice.below(4) {
            0 if !self.databases.is_empty() => {
                let database = self.databases.swap_remove(dice.below(self.databases.len()));
                world.sql(&format!("DROP DATABASE {database}")).await;
            }
            1 if !self.databases.is_empty() => {
                let (database, space) = (dice.pick(&self.databases), dice.pick(&["space", "pg_default"]));
                world.sql(&format!("ALTER DATABASE {database} SET TABLESPACE {space}")).await;
            }
            2 if !self.databases.is_empty() => {
                let inside = world.session().in_database(dice.pick::<String>(&self.databases)).await.unwrap();
                inside
                    .run("UPDATE public.t SET i = i + 1 WHERE i % 7 = 0; CREATE TABLE IF NOT EXISTS public.u AS SELECT 1")
                    .await
                    .unwrap();
            }
            _ => {
                let strategy = *dice.pick(&["wal_log", "file_copy"]);
                world.sql(&format!("CREATE DATABASE d{number} TEMPLATE pattern STRATEGY {strategy}")).await;
                self.databases.push(format!("d{number}"));
            }
        }
    }

    /// Prepares a transaction, or ends one that was prepared some time ago.
    async fn two_phases(&mut self, world: &World, dice: &mut Dice, table: &str, number: usize) {
        if let Some(name) = self.prepared.pop() {
            return world.sql(&format!("{} PREPARED '{name}'", dice.pick(&["COMMIT", "ROLLBACK"]))).await;
        }
        world.sql(&format!("CREATE TABLE p{number} AS SELECT * FROM {table}")).await;
        world.sql("BEGIN").await;
        world.sql(&format!("DROP TABLE p{number}; CREATE TABLE q{number} AS SELECT 1; SAVEPOINT s")).await;
        world.sql(&format!("CREATE TABLE r{number} AS SELECT generate_series(1, 2000); RELEASE s")).await;
        world.sql(&format!("PREPARE TRANSACTION 'prepared {number}'")).await;
        self.prepared.push(format!("prepared {number}"));
    }
}

fn rows(table: &str, number: usize, dice: &mut Dice) -> String {
    let some = 2 + dice.below(40);
    match dice.below(4) {
        0 => format!("UPDATE {table} SET what = 'row {number}' || left(what, 200) WHERE id % {some} = 0"),
        1 => format!("DELETE FROM {table} WHERE id % {some} = 1"),
        // Long values go to TOAST.
        2 => format!(
            "INSERT INTO {table} (what) SELECT string_agg(md5((i * {number})::text), '') FROM generate_series(1, 3000) i GROUP BY i / 300"
        ),
        _ => format!(
            "INSERT INTO {table} (what) SELECT repeat('y', (i * {number}) % 400) FROM generate_series(1, {}) i",
            20 * some
        ),
    }
}

async fn subtransactions(world: &World, table: &str, dice: &mut Dice) {
    world.sql("BEGIN").await;
    for number in 0..2 + dice.below(70) {
        world.sql(&format!("SAVEPOINT s; INSERT INTO {table} (what) VALUES ('sub {number}')")).await;
        world.sql(dice.pick::<&str>(&["RELEASE s", "ROLLBACK TO s"])).await;
    }
    world.sql(dice.pick::<&str>(&["COMMIT", "ROLLBACK"])).await;
}

/// Several sessions insert at once: who waits for the lock to extend a file extends it by more than it needs, and pages stay zero.
pub async fn together(world: &World, table: &str, rows: usize) {
    let mut sessions: Vec<Session> = Vec::new();
    for _ in 0..TOGETHER {
        sessions.push(world.connect().await);
    }
    let sql = format!("INSERT INTO {table} (what) SELECT repeat('z', 1500) FROM generate_series(1, {rows})");
    futures::future::join_all(sessions.iter().map(|session| session.run(&sql))).await.into_iter().for_each(Result::unwrap);
}
