//! Relations, databases and tablespaces that came and went: what commands that look for the moment before an accident read, and plans
//! that must know about directories outside the data directory.

use serde::Serialize;

use super::{TransactionEnd, push_limited};
use crate::pg::wal_event::Outcome;
use crate::pg::wal_record::RelFileLocator;
use crate::pg::wal_storage::{DatabaseDirectory, StorageChange};
use crate::pg::{Lsn, PgTimestamp};

/// The most removed relations that an index names; more are counted.
pub const REMOVED_LIMIT: usize = 1 << 14;

/// What happened to whole files in one segment, in LSN order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FileEvents {
    /// Commits that removed relations' files: by `DROP`, `TRUNCATE`, or a rewrite under a new number (`VACUUM FULL`, `CLUSTER`,
    /// `REINDEX`, `ALTER TABLE`, `REFRESH MATERIALIZED VIEW`).
    pub removals: Vec<Removal>,
    /// Databases whose directories were removed: dropped, or moved to another tablespace.
    pub databases: Vec<DatabaseRemoval>,
    /// Tablespaces made and dropped.
    pub tablespaces: Vec<TablespaceEvent>,
}

/// A commit that removed relations' files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Removal {
    /// Where the commit record begins.
    pub lsn: Lsn,
    /// The transaction, of a prepared one its own.
    pub xid: u32,
    /// When it committed.
    pub time: PgTimestamp,
    /// How many relations.
    pub count: u64,
    /// The relations; fewer than `count` if there were too many.
    pub relations: Vec<RelFileLocator>,
}

/// A record that removed a database's directories.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DatabaseRemoval {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The transaction.
    pub xid: u32,
    /// The database.
    pub database: u32,
    /// The tablespaces that it had directories in.
    pub tablespaces: Vec<u32>,
    /// When the transaction committed; `null` if its commit is in a later segment: look for the xid there.
    pub time: Option<PgTimestamp>,
}

/// A record that made a database's directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DatabaseMaking {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The directory.
    pub directory: DatabaseDirectory,
    /// What its files were copied from, where its pages are not logged: `STRATEGY file_copy`, a move to another tablespace, and all of
    /// PostgreSQL before 15.
    pub copied_from: Option<DatabaseDirectory>,
}

/// A tablespace made or dropped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TablespaceEvent {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The transaction.
    pub xid: u32,
    /// The tablespace.
    pub tablespace: u32,
    /// Which of the two.
    pub kind: TablespaceEventKind,
}

/// What happened to a tablespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TablespaceEventKind {
    /// Made, at this place: replay makes it there again, whatever machine it runs on. Empty if inside the data directory.
    Created {
        /// The directory; bytes that are not UTF-8 are replaced.
        path: String,
    },
    /// Dropped.
    Dropped,
}

impl FileEvents {
    /// Takes in what one record did. `end` is the end of a transaction that this record is, `xid` the record's own. False if a list had to be cut.
    #[must_use]
    pub(super) fn add(
        &mut self,
        lsn: Lsn,
        xid: u32,
        end: Option<&TransactionEnd>,
        change: StorageChange,
    ) -> bool {
        match change {
            StorageChange::Removed { relations, outcome: Outcome::Committed } => {
                end.is_some_and(|end| self.add_removal(lsn, end, relations))
            }
            StorageChange::DatabaseDropped { database, tablespaces } => push_limited(
                &mut self.databases,
                DatabaseRemoval { lsn, xid, database, tablespaces, time: None },
            ),
            StorageChange::TablespaceCreated { tablespace, path } => {
                let path = String::from_utf8_lossy(&path).into_owned();
                let kind = TablespaceEventKind::Created { path };
                push_limited(&mut self.tablespaces, TablespaceEvent { lsn, xid, tablespace, kind })
            }
            StorageChange::TablespaceDropped { tablespace } => {
                let kind = TablespaceEventKind::Dropped;
                push_limited(&mut self.tablespaces, TablespaceEvent { lsn, xid, tablespace, kind })
            }
            StorageChange::Created { .. }
            | StorageChange::Truncated { .. }
            | StorageChange::DatabaseCreated { .. }
            | StorageChange::Removed { outcome: Outcome::Aborted, .. } => true,
        }
    }

    fn add_removal(&mut self, lsn: Lsn, end: &TransactionEnd, mut relations: Vec<RelFileLocator>) -> bool {
        let named: usize = self.removals.iter().map(|removal| removal.relations.len()).sum();
        let count = relations.len() as u64;
        relations.truncate(REMOVED_LIMIT.saturating_sub(named));
        push_limited(&mut self.removals, Removal { lsn, xid: end.xid, time: end.time, count, relations })
    }

    /// A transaction ended: databases that it dropped are gone since then.
    pub(super) fn note_end(&mut self, end: &TransactionEnd) {
        if end.outcome == Outcome::Committed {
            let own =
                self.databases.iter_mut().filter(|removal| removal.xid == end.xid && removal.time.is_none());
            own.for_each(|removal| removal.time = Some(end.time));
        }
    }
}
