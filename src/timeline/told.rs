//! An event in words: what it was, of which relations, and where to stop before it.
//!
//! Names are those that were known when the event was read: the catalogue's of the snapshot before, and what the WAL told since.
//! A relation that nobody named stays its numbers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalogue::{Named, Names};
use super::classify::Deed;
use super::events::{Event, Happened};
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::index::facts::Use;
use crate::postgres::wal::reference::RelFileLocator;

/// What a person may look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Drop,
    Truncate,
    Delete,
    Update,
    DropDatabase,
    DropTablespace,
    /// Indexes alone were dropped.
    DropIndex,
    /// What is gone had no file, and no name that is known: views, partitioned or temporary tables.
    DropEmpty,
    DropColumn,
    /// A table is no longer a partition, or a child, of another.
    Detach,
    /// Tables were written anew with other columns.
    AlterTable,
    Rewrite,
    Rebuild,
    CreateDatabase,
    MoveDatabase,
    CreateTablespace,
    RestorePoint,
    Checkpoint,
    Shutdown,
    Parameters,
    Promotion,
    /// What began before all that was read may have done anything.
    Unknown,
}

impl Kind {
    pub const ALL: [Kind; 22] = [
        Kind::Drop,
        Kind::Truncate,
        Kind::Delete,
        Kind::Update,
        Kind::DropDatabase,
        Kind::DropTablespace,
        Kind::DropIndex,
        Kind::DropEmpty,
        Kind::DropColumn,
        Kind::Detach,
        Kind::AlterTable,
        Kind::Rewrite,
        Kind::Rebuild,
        Kind::CreateDatabase,
        Kind::MoveDatabase,
        Kind::CreateTablespace,
        Kind::RestorePoint,
        Kind::Checkpoint,
        Kind::Shutdown,
        Kind::Parameters,
        Kind::Promotion,
        Kind::Unknown,
    ];

    /// As it is typed and printed.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Drop => "drop",
            Kind::Truncate => "truncate",
            Kind::Delete => "delete",
            Kind::Update => "update",
            Kind::DropDatabase => "drop-database",
            Kind::DropTablespace => "drop-tablespace",
            Kind::DropIndex => "drop-index",
            Kind::DropEmpty => "drop-empty",
            Kind::DropColumn => "drop-column",
            Kind::Detach => "detach",
            Kind::AlterTable => "alter-table",
            Kind::Rewrite => "rewrite",
            Kind::Rebuild => "rebuild",
            Kind::CreateDatabase => "create-database",
            Kind::MoveDatabase => "move-database",
            Kind::CreateTablespace => "create-tablespace",
            Kind::RestorePoint => "restore-point",
            Kind::Checkpoint => "checkpoint",
            Kind::Shutdown => "shutdown",
            Kind::Parameters => "parameters",
            Kind::Promotion => "promotion",
            Kind::Unknown => "unknown",
        }
    }

    pub fn of_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Whether data went that nothing else brings back.
    pub fn is_destructive(self) -> bool {
        use Kind::*;
        matches!(self, Drop | Truncate | Delete | Update | DropDatabase | DropTablespace | DropColumn)
    }

    /// Whether it is everyday work that only fills a list.
    pub fn is_routine(self) -> bool {
        use Kind::*;
        matches!(self, Checkpoint | Rewrite | Rebuild | DropIndex | DropEmpty)
    }
}

/// A relation of an event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Touched {
    /// `database.schema.name`; the numbers where no name is known.
    pub name: String,
    pub is_named: bool,
    /// `relkind`; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<char>,
    /// Rows and bytes when the catalogue was taken; absent where the server had not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What the transaction of an event did to rows of another relation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    pub name: String,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Beside { name, inserted, updated, deleted } = self;
        let parts = [(inserted, "inserted"), (updated, "updated"), (deleted, "deleted")];
        let said: Vec<String> =
            parts.iter().filter(|(rows, _)| **rows > 0).map(|(rows, what)| format!("{rows} rows {what}")).collect();
        write!(f, "{name}: {}", said.join(", "))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Timeline and target: what `restore --before` takes.
    pub id: String,
    pub kind: Kind,
    pub timeline: Timeline,
    pub first_lsn: Lsn,
    /// The COMMIT record, or the record itself.
    pub lsn: Lsn,
    /// Recovery to here, exclusive, is just before it.
    pub target: Lsn,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    pub xid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Tables first, each kind by name; indexes and toast tables are left out where a table stands for them.
    pub relations: Vec<Touched>,
    /// Rows that were changed or deleted, where they were counted.
    pub changed_rows: u64,
    /// Of the rows that the catalogue knew, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Facts may be missing: there was a gap, or more than is kept.
    pub is_incomplete: bool,
    /// What the same transaction did to rows of other relations: it is not there either just before the event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
    /// Some relation or database of it has no name that is known.
    pub is_unnamed: bool,
    /// The WAL up to it is in the archive; else only a restore over the server that has it gets there.
    pub is_archived: bool,
    /// Our own doing: restore points with which archiving is proven.
    #[serde(skip)]
    pub is_ours: bool,
    /// One line for people.
    pub text: String,
}

/// The id of an event: the timeline, and where recovery must stop.
pub fn id(timeline: Timeline, target: Lsn) -> String {
    format!("{}:{target}", timeline.0)
}

impl Told {
    pub fn new(event: &Event, timeline: Timeline, names: &Names) -> Told {
        let mut told = Told {
            id: id(timeline, event.target),
            kind: Kind::Checkpoint,
            timeline,
            first_lsn: event.first,
            lsn: event.lsn,
            target: event.target,
            time: event.time,
            xid: event.xid,
            database: None,
            relations: Vec::new(),
            changed_rows: 0,
            share: None,
            is_incomplete: event.is_incomplete,
            beside: event.beside.iter().filter_map(|used| beside(used, names)).collect(),
            is_unnamed: false,
            is_archived: true,
            is_ours: matches!(&event.what, Happened::RestorePoint { name } if name.starts_with("lastgood ")),
            text: String::new(),
        };
        told.tell(&event.what, names);
        told.is_unnamed |= told.relations.iter().any(|touched| !touched.is_named);
        told
    }

    fn tell(&mut self, what: &Happened, names: &Names) {
        let database = |oid: u32| names.database(oid).map_or(format!("database {oid}"), |known| known.name.clone());
        let shown = |oid: u32| names.database(oid).map_or(format!("(OID {oid})"), |known| known.name.clone());
        if let Happened::DatabaseDropped { oid, .. } | Happened::DatabaseCreated { oid, .. } = what {
            (self.database, self.is_unnamed) = (Some(database(*oid)), names.database(*oid).is_none());
        }
        (self.kind, self.text) = match what {
            Happened::Relations(deed) => return self.tell_deed(deed, names),
            Happened::DatabaseDropped { oid, moved: false, .. } => (Kind::DropDatabase, format!("DROP DATABASE {}", shown(*oid))),
            Happened::DatabaseDropped { oid, .. } => {
                (Kind::MoveDatabase, format!("ALTER DATABASE {} SET TABLESPACE", shown(*oid)))
            }
            Happened::DatabaseCreated { oid, .. } => (Kind::CreateDatabase, format!("CREATE DATABASE {}", shown(*oid))),
            Happened::TablespaceDropped { oid } => (Kind::DropTablespace, format!("DROP TABLESPACE (OID {oid})")),
            Happened::TablespaceCreated { oid, location } => {
                (Kind::CreateTablespace, format!("CREATE TABLESPACE (OID {oid}) in {location}"))
            }
            Happened::RestorePoint { name } => (Kind::RestorePoint, format!("restore point {name:?}")),
            Happened::Checkpoint { shutdown: true } => {
                (Kind::Shutdown, "the server was shut down, or started again after a crash".into())
            }
            Happened::Checkpoint { shutdown: false } => (Kind::Checkpoint, "checkpoint".into()),
            Happened::ParameterChange(parameters) => {
                (Kind::Parameters, format!("settings changed: max_connections {}, …", parameters.max_connections))
            }
            Happened::BegunBefore => {
                let text = "commit of a transaction that began before the WAL that was read: what it did until then is not known";
                (Kind::Unknown, text.into())
            }
            Happened::EndOfRecovery { timeline, previous_timeline } => {
                (Kind::Promotion, format!("promoted: timeline {previous_timeline} was left for {timeline}"))
            }
        };
    }

    fn tell_deed(&mut self, deed: &Deed, names: &Names) {
        match deed {
            Deed::Drop { relations, files, only_indexes } => {
                self.kind = if *only_indexes { Kind::DropIndex } else { Kind::Drop };
                self.touch(relations, files, names);
                self.text = format!("DROP {}", self.list());
                if files.is_empty() && !self.relations.iter().any(|touched| touched.is_named) {
                    self.kind = Kind::DropEmpty;
                    self.text += " (without files: views, partitioned or temporary tables)";
                }
            }
            Deed::DropColumns { relations, count } => {
                self.kind = Kind::DropColumn;
                self.touch(relations, &[], names);
                let columns = if *count == 1 { "a column".into() } else { format!("{count} columns") };
                self.text = format!("DROP of {columns} of {}", self.list());
            }
            Deed::Detach { relations } => {
                self.kind = Kind::Detach;
                self.touch(relations, &[], names);
                self.text = format!("partition or child detached, of {}", self.list());
            }
            Deed::Truncate { relations, files } => {
                self.kind = Kind::Truncate;
                self.touch(relations, files, names);
                self.text = format!("TRUNCATE {}", self.list());
            }
            Deed::Rewrite { relations, files, changes_columns } => {
                self.touch(relations, files, names);
                let list = self.list();
                (self.kind, self.text) = match changes_columns {
                    true => (Kind::AlterTable, format!("ALTER TABLE {list}: written anew with changed columns")),
                    false => (Kind::Rewrite, format!("rewrite of {list} (VACUUM FULL, CLUSTER or ALTER TABLE)")),
                };
            }
            Deed::Rebuild { files } => {
                self.kind = Kind::Rebuild;
                self.touch(&[], files, names);
                self.text = format!("rebuild of {} (REINDEX, or another tablespace)", self.list());
            }
            Deed::Rows { used } => {
                let rows = used.updated.saturating_add(used.deleted);
                let is_update = used.updated > used.deleted;
                self.kind = if is_update { Kind::Update } else { Kind::Delete };
                self.changed_rows = rows;
                self.touch(&[], &[used.locator], names);
                let known = self.relations.first().and_then(|touched| touched.rows).filter(|known| *known > 0);
                self.share = known.map(|known| (rows as f64 / known as f64).min(1.0));
                let percent = |share: f64| match share * 100.0 {
                    few if few < 1.0 => " (less than 1 %)".to_string(),
                    many => format!(" (about {many:.0} %)"),
                };
                let share = self.share.map(percent).unwrap_or_default();
                let (verb, of) = if is_update { ("UPDATE", "in") } else { ("DELETE", "from") };
                self.text = format!("{verb} of {rows} rows {of} {}{share}", self.list());
            }
        }
    }

    /// Names what an event touched, by OID where that is known, and by file where not.
    fn touch(&mut self, relations: &[(u32, u32)], files: &[RelFileLocator], names: &Names) {
        let mut found: Vec<Touched> = Vec::new();
        let mut has_named_table = false;
        let mut add = |named: Option<Named<'_>>, numbers: String| {
            let touched = match named {
                Some(Named { relation, .. }) => {
                    has_named_table |= is_table(relation.kind);
                    Touched {
                        name: named.map(|named| named.to_string()).unwrap_or_default(),
                        is_named: true,
                        kind: Some(relation.kind),
                        rows: (relation.rows >= 0.0).then_some(relation.rows as u64),
                        bytes: (relation.bytes > 0).then_some(relation.bytes),
                    }
                }
                None => Touched { name: numbers, is_named: false, kind: None, rows: None, bytes: None },
            };
            if !found.iter().any(|known| known.name == touched.name) {
                found.push(touched);
            }
        };
        let mut database = None;
        for (place, oid) in relations {
            database = database.or(Some(*place)).filter(|place| *place != 0);
            add(names.relation(*place, *oid), format!("relation {oid} of database {place}"));
        }
        // The same relations again, by their files, where nothing else tells of them.
        let by_oid = !relations.is_empty();
        for file in files {
            database = database.or(Some(file.database)).filter(|place| *place != 0);
            match names.file(*file) {
                Some(named) => add(Some(named), String::new()),
                None if by_oid => {}
                None => add(None, format!("file {}/{}/{}", file.tablespace, file.database, file.number)),
            }
        }
        if has_named_table {
            // An index, a toast table or a sequence goes with its table; what has no name beside one that has is seldom more.
            let has_rows = found.iter().any(|touched| touched.kind.is_some_and(|kind| is_table(kind) && kind != 'S'));
            found.retain(|touched| touched.kind.is_some_and(|kind| is_table(kind) && !(has_rows && kind == 'S')));
        }
        found.sort_by(|a, b| (!a.kind.is_some_and(is_table), &a.name).cmp(&(!b.kind.is_some_and(is_table), &b.name)));
        self.relations = found;
        self.database = database.and_then(|oid| names.database(oid)).map(|known| known.name.clone());
    }

    fn list(&self) -> String {
        const SHOWN: usize = 4;
        let mut names: Vec<String> = self.relations.iter().take(SHOWN).map(|touched| touched.name.clone()).collect();
        if names.is_empty() {
            return "relations that are not known".into();
        }
        if self.relations.len() > SHOWN {
            names.push(format!("and {} more", self.relations.len() - SHOWN));
        }
        names.join(", ")
    }

    /// Rows that went, as far as they were counted or the catalogue knew them.
    pub fn rows(&self) -> u64 {
        self.changed_rows.max(self.relations.iter().filter_map(|touched| touched.rows).fold(0, u64::saturating_add))
    }

    pub fn bytes(&self) -> u64 {
        self.relations.iter().filter_map(|touched| touched.bytes).fold(0, u64::saturating_add)
    }

    /// Whether it touched a relation that is called so: all of the name, or its end from a dot on.
    pub fn touches(&self, name: &str) -> bool {
        let matches = |known: &str| known == name || known.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        self.relations.iter().any(|touched| touched.is_named && matches(&touched.name))
    }
}

/// In words, unless it says nothing of its own: the parts of a table's long values change with the table.
fn beside(used: &Use, names: &Names) -> Option<Beside> {
    const TOAST: char = 't';
    let Use { locator, inserted, updated, deleted } = *used;
    let name = match names.file(locator) {
        Some(named) if named.relation.kind == TOAST => return None,
        Some(named) => named.to_string(),
        None => format!("file {}/{}/{}", locator.tablespace, locator.database, locator.number),
    };
    Some(Beside { name, inserted, updated, deleted })
}

/// Tables, partitioned and foreign ones, views, materialized views, sequences.
fn is_table(kind: char) -> bool {
    matches!(kind, 'r' | 'p' | 'f' | 'v' | 'm' | 'S')
}
