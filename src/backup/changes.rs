//! What may have changed in the cluster's relation files since a base backup began, and which source says so.

pub mod summaries;

use std::fmt;

use crate::format::wal_index::BlockChanges;
use crate::pg::Lsn;

/// A way to find out what has changed, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChangeSource {
    /// The server's own WAL summaries, PostgreSQL 17 and later.
    Summaries,
    /// The WAL index in the repository, and the server's `pg_wal` for what is not archived yet.
    Index,
    /// Every page is read; one that was written after the base began has a later LSN.
    Scan,
    /// Everything is read and compared with the base's digests.
    Compare,
}

impl ChangeSource {
    /// As the summary and the command line spell it.
    pub fn word(self) -> &'static str {
        match self {
            ChangeSource::Summaries => "summaries",
            ChangeSource::Index => "index",
            ChangeSource::Scan => "scan",
            ChangeSource::Compare => "compare",
        }
    }
}

impl fmt::Display for ChangeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Which source a backup may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangesFrom {
    /// The best one that can be trusted.
    Auto,
    /// This one or none.
    Only(ChangeSource),
}

impl ChangesFrom {
    /// Whether this source may be tried.
    pub fn allows(self, source: ChangeSource) -> bool {
        match self {
            ChangesFrom::Auto => true,
            ChangesFrom::Only(only) => only == source,
        }
    }
}

/// What may have changed in relations' main forks. Other forks are always compared: the free space map is not fully logged,
/// and bits of the visibility map are cleared without a block reference and without a new LSN.
#[derive(Clone, Debug)]
pub enum Changes {
    /// These blocks and no others: any other one has the contents now, but for hint bits, that it has in the base.
    Blocks(Box<BlockChanges>),
    /// Pages whose LSN is this one or later, and pages that are all zeros.
    PagesSince(Lsn),
    /// Anything.
    Unknown,
}
