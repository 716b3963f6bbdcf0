//! `lastgood` brings a PostgreSQL cluster back to its last good moment.
//!
//! What we value, in this order: data comes back; nothing good is ever destroyed by us; it comes back fast; it is
//! simple to see through; it is cheap.
//!
//! # The rooms
//! - [`cli`]: what people type. One file per command. Text, JSON, progress bars and exit codes live there and nowhere else.
//! - [`snapshot`]: take one: list the data directory, choose what changed, read, pack, commit.
//! - [`archive`]: WAL in (`archive-push`), WAL out (`archive-get`), look-ahead in both directions.
//! - [`lineage`]: which WAL belongs together, judged by content and LSN: forks, chains of digests, comparisons.
//! - [`timeline`]: which moments the archive can reach: windows, gaps, and the record a restore target means.
//! - [`restore`]: plan, fetch, verify, configure recovery.
//! - [`drill`]: restore somewhere safe, start, question, report.
//! - [`upkeep`]: verify what is stored, sweep what was never committed.
//! - [`watch`]: the tripwire: what passes through the archive and looks like a mistake.
//! - [`repo`]: the format: layout, objects, frames, packs, file maps, manifests, segments, leases, seal.
//! - [`postgres`]: what we know of PostgreSQL: LSNs, control file, pages, WAL records, data directory, session, scratch server.
//! - [`storage`]: objects: a small trait with its contract, three stores, and wrappers that add behaviour.
//! - [`config`], [`child`], [`clock`], [`durable`], [`aligned`], [`monitor`], [`owner`], [`tls`]: one file each, for everybody.
//!
//! # Who may call whom
//! `cli` calls the operations (`snapshot`, `archive`, `timeline`, `restore`, `drill`, `upkeep`, `watch`); operations call
//! `lineage`, `repo` and `postgres`; `repo` calls `storage`. `repo` knows of PostgreSQL only names and LSNs (`postgres::lsn`,
//! `postgres::wal::name`); `postgres` and `storage` know no repository. Operations never print, never exit, never read the
//! environment: they report to a [`monitor::Monitor`]. `tests/tidy.rs` keeps these rules.
//!
//! # The way of the bytes
//! PostgreSQL → pages → frames → packs → storage, and back. CPU work runs on threads of its own, network on tokio,
//! with bounded channels in between.

pub mod aligned;
pub mod archive;
pub mod child;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drill;
pub mod durable;
pub mod lineage;
pub mod monitor;
pub mod owner;
pub mod postgres;
pub mod repo;
pub mod restore;
pub mod snapshot;
pub mod storage;
pub mod timeline;
pub mod tls;
pub mod upkeep;
pub mod watch;
