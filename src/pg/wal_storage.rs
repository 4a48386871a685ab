//! What a WAL record does to files: relations created, truncated, removed; databases and tablespaces that come and go.
//!
//! A decoded record goes in, [`StorageChange`]s come out: what a page's own block references do not say. Layouts follow
//! `src/include/catalog/storage_xlog.h`, `src/include/commands/dbcommands_xlog.h`, `src/include/commands/tablespace.h` and
//! `src/backend/access/rmgrdesc/xactdesc.c` of PostgreSQL 13 to 18.

use serde::Serialize;

use super::wal_event::{DecodeEventError, Outcome};
use super::wal_page::read_u32;
use super::wal_record::{
    DecodedRecord, ForkNumber, RMGR_DATABASE, RMGR_STORAGE, RMGR_TABLESPACE, RMGR_TRANSACTION, RecordHeader,
    RelFileLocator,
};

/// Heap pages that one page of the visibility map speaks of (`HEAPBLOCKS_PER_PAGE`): two bits each, behind a page header
/// of 24 bytes.
const HEAP_BLOCKS_PER_MAP_BLOCK: u32 = (8192 - 24) * 4;

/// What a database has in one tablespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct DatabaseDirectory {
    /// The database.
    pub database: u32,
    /// The tablespace.
    pub tablespace: u32,
}

/// Files that a record creates, cuts or removes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StorageChange {
    /// A fork begins anew, empty (`XLOG_SMGR_CREATE`).
    Created {
        /// The relation.
        relation: RelFileLocator,
        /// Its fork.
        fork: ForkNumber,
    },
    /// A fork ends at this block (`XLOG_SMGR_TRUNCATE`).
    ///
    /// Of the visibility map it is the first *map* block that changed, the one whose last bits were cleared included: its change is
    /// logged only where hint bits are. PostgreSQL's own summaries have the map's new length.
    Truncated {
        /// The relation.
        relation: RelFileLocator,
        /// Its fork.
        fork: ForkNumber,
        /// The first block that is gone or was changed by the cut.
        from: u32,
    },
    /// A transaction ended, and these relations are gone with all their forks: dropped, truncated or rewritten if it
    /// committed; created in it if it was rolled back.
    Removed {
        /// The relations.
        relations: Vec<RelFileLocator>,
        /// How it ended.
        outcome: Outcome,
    },
    /// A database's directory was made, empty or as a copy that is not logged page by page.
    DatabaseCreated {
        /// The database.
        database: u32,
        /// The tablespace that the directory lies in.
        tablespace: u32,
        /// The directory that its files were copied from, which replay copies again; `None` if its pages are logged one by one.
        copied_from: Option<DatabaseDirectory>,
    },
    /// A database's directories were removed: it was dropped, or moved to another tablespace.
    DatabaseDropped {
        /// The database.
        database: u32,
        /// The tablespaces that it had directories in.
        tablespaces: Vec<u32>,
    },
    /// A tablespace was made.
    TablespaceCreated {
        /// Its oid.
        tablespace: u32,
        /// Where its directory is; empty for one inside the data directory (`allow_in_place_tablespaces`).
        path: Vec<u8>,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its oid.
        tablespace: u32,
    },
}

/// Whether records with this header can do what [`decode_storage_change`] looks for.
pub fn changes_storage(header: &RecordHeader) -> bool {
    match header.rmgr {
        // Only with XLOG_XACT_HAS_INFO can a commit or abort name relations.
        RMGR_TRANSACTION => {
            header.info & 0x80 != 0 && matches!(header.info & 0x70, 0x00 | 0x20 | 0x30 | 0x40)
        }
        RMGR_STORAGE | RMGR_DATABASE | RMGR_TABLESPACE => true,
        _ => false,
    }
}

/// What the record does to files, beyond the blocks that it refers to; `None` if nothing.
///
/// Unlike for the meaning of a record, a record cut short is an error here if anything is missing.
pub fn decode_storage_change(
    record: &DecodedRecord<'_>,
    major: Option<u32>,
) -> Result<Vec<StorageChange>, DecodeEventError> {
    let (header, data) = (&record.header, record.main_data);
    if !changes_storage(header) {
        return Ok(Vec::new());
    }
    let info = header.info & 0xF0;
    let changes = match header.rmgr {
        RMGR_TRANSACTION => removed_relations(header.info, data),
        RMGR_STORAGE => smgr_change(info, data),
        RMGR_DATABASE => database_change(info, data, major).map(Vec::from_iter),
        RMGR_TABLESPACE if data.len() < usize::try_from(record.main_data_length).unwrap_or(usize::MAX) => {
            None
        }
        RMGR_TABLESPACE => tablespace_change(info, data).map(Vec::from_iter),
        _ => Some(Vec::new()),
    };
    changes.ok_or(DecodeEventError("record that creates or removes files is too short or of an unknown kind"))
}

fn locator(data: &[u8], at: usize) -> Option<RelFileLocator> {
    Some(RelFileLocator {
        tablespace: read_u32(data, at)?,
        database: read_u32(data, at.checked_add(4)?)?,
        relation: read_u32(data, at.checked_add(8)?)?,
    })
}

fn smgr_change(info: u8, data: &[u8]) -> Option<Vec<StorageChange>> {
    match info {
        // xl_smgr_create
        0x10 => {
            let fork = ForkNumber(u8::try_from(read_u32(data, 12)?).ok()?);
            Some(vec![StorageChange::Created { relation: locator(data, 0)?, fork }])
        }
        // xl_smgr_truncate: the flags say which forks; the free space map is not fully logged and never looked at.
        0x20 => {
            let (blocks, relation, flags) = (read_u32(data, 0)?, locator(data, 4)?, read_u32(data, 16)?);
            let heap = StorageChange::Truncated { relation, fork: ForkNumber::MAIN, from: blocks };
            let map = StorageChange::Truncated {
                relation,
                fork: ForkNumber::VISIBILITY_MAP,
                from: blocks / HEAP_BLOCKS_PER_MAP_BLOCK,
            };
            let chosen = [(0x01, heap), (0x02, map)].into_iter().filter(|(flag, _)| flags & flag != 0);
            Some(chosen.map(|(_, change)| change).collect())
        }
        _ => None,
    }
}

/// The relations to remove in `ParseCommitRecord` and `ParseAbortRecord`.
fn removed_relations(info: u8, data: &[u8]) -> Option<Vec<StorageChange>> {
    let outcome = match info & 0x70 {
        0x00 | 0x30 => Outcome::Committed,
        _ => Outcome::Aborted,
    };
    let xinfo = read_u32(data, 8)?;
    if xinfo & 0x04 == 0 {
        return Some(Vec::new());
    }
    let mut at = 12usize;
    if xinfo & 0x01 != 0 {
        at += 8; // xl_xact_dbinfo
    }
    if xinfo & 0x02 != 0 {
        let count = usize::try_from(read_u32(data, at)?).ok()?;
        at = at.checked_add(4)?.checked_add(count.checked_mul(4)?)?;
    }
    let count = usize::try_from(read_u32(data, at)?).ok()?;
    let list = data.get(at.checked_add(4)?..)?.get(..count.checked_mul(12)?)?;
    let relations = list.chunks_exact(12).map(|item| locator(item, 0)).collect::<Option<Vec<_>>>()?;
    Some(vec![StorageChange::Removed { relations, outcome }])
}

/// 15 put the copy by WAL between the copy by files and the drop.
fn database_change(info: u8, data: &[u8], major: Option<u32>) -> Option<Option<StorageChange>> {
    let database = read_u32(data, 0)?;
    let drop_info = if major.is_some_and(|major| major < 15) { 0x10 } else { 0x20 };
    match info {
        _ if info == drop_info => {
            let count = usize::try_from(read_u32(data, 4)?).ok()?;
            let list = data.get(8..)?.get(..count.checked_mul(4)?)?;
            let tablespaces =
                list.chunks_exact(4).map(|item| read_u32(item, 0)).collect::<Option<Vec<_>>>()?;
            Some(Some(StorageChange::DatabaseDropped { database, tablespaces }))
        }
        // xl_dbase_create_file_copy_rec, xl_dbase_create_wal_log_rec
        0x00 | 0x10 => {
            let from = |data| {
                Some(DatabaseDirectory { database: read_u32(data, 8)?, tablespace: read_u32(data, 12)? })
            };
            let copied_from = if info == 0x00 { Some(from(data)?) } else { None };
            Some(Some(StorageChange::DatabaseCreated {
                database,
                tablespace: read_u32(data, 4)?,
                copied_from,
            }))
        }
        _ => None,
    }
}

fn tablespace_change(info: u8, data: &[u8]) -> Option<Option<StorageChange>> {
    let tablespace = read_u32(data, 0)?;
    match info {
        0x00 => {
            let path = data.get(4..)?.split(|byte| *byte == 0).next()?.to_vec();
            Some(Some(StorageChange::TablespaceCreated { tablespace, path }))
        }
        0x10 => Some(Some(StorageChange::TablespaceDropped { tablespace })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wal_record::{decode_record, tests::record};
    use super::*;

    fn changes(info: u8, rmgr: u8, data: &[u8], major: u32) -> Option<Vec<StorageChange>> {
        let mut rest = vec![254];
        rest.extend_from_slice(&(data.len() as u32).to_le_bytes());
        rest.extend_from_slice(data);
        let bytes = record(7, 0, info, rmgr, &rest);
        decode_storage_change(&decode_record(&bytes, Some(major)).unwrap(), Some(major)).ok()
    }

    fn words(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    const TABLE: RelFileLocator = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };

    #[test]
    fn reads_creations_and_cuts_of_forks() {
        let created = StorageChange::Created { relation: TABLE, fork: ForkNumber(3) };
        assert_eq!(changes(0x10, 2, &words(&[1663, 5, 16384, 3]), 14), Some(vec![created]));
        let cut = |fork, from| StorageChange::Truncated { relation: TABLE, fork, from };
        let truncate = |blocks, flags| changes(0x20, 2, &words(&[blocks, 1663, 5, 16384, flags]), 18);
        assert_eq!(truncate(9, 5), Some(vec![cut(ForkNumber::MAIN, 9)]));
        let both = vec![cut(ForkNumber::MAIN, 70_000), cut(ForkNumber::VISIBILITY_MAP, 2)];
        assert_eq!(truncate(70_000, 7), Some(both));
        assert_eq!(changes(0x20, 2, &words(&[1, 1663, 5, 16384]), 18), None);
        assert_eq!(changes(0x30, 2, &words(&[1, 1663, 5, 16384, 7]), 18), None);
    }

    #[test]
    fn reads_relations_that_go_with_a_transaction() {
        let list = [2, 1663, 5, 16384, 1664, 0, 1260];
        let second = RelFileLocator { tablespace: 1664, database: 0, relation: 1260 };
        let removed =
            |outcome| Some(vec![StorageChange::Removed { relations: vec![TABLE, second], outcome }]);
        let plain = words(&[&[5, 0, 0x04], &list[..]].concat());
        assert_eq!(changes(0x80, 1, &plain, 15), removed(Outcome::Committed));
        assert_eq!(changes(0xA0, 1, &plain, 15), removed(Outcome::Aborted));
        let long = words(&[&[5, 0, 0x07, 1, 2, 2, 71, 72], &list[..]].concat());
        assert_eq!(changes(0xB0, 1, &long, 15), removed(Outcome::Committed));
        assert_eq!(changes(0x80, 1, &long[..long.len() - 4], 15), None);
        assert_eq!(changes(0x00, 1, &words(&[5, 0]), 15), Some(Vec::new()));
        assert_eq!(changes(0x80, 1, &words(&[5, 0, 0x08]), 15), Some(Vec::new()));
    }

    #[test]
    fn the_kinds_of_database_records_moved_in_15() {
        let made = |copied_from| {
            Some(vec![StorageChange::DatabaseCreated { database: 9, tablespace: 1663, copied_from }])
        };
        let copied = made(Some(DatabaseDirectory { database: 1, tablespace: 1664 }));
        let dropped =
            Some(vec![StorageChange::DatabaseDropped { database: 9, tablespaces: vec![1663, 1700] }]);
        let drop = words(&[9, 2, 1663, 1700]);
        assert_eq!(changes(0x00, 4, &words(&[9, 1663, 1, 1664]), 14), copied);
        assert_eq!(changes(0x10, 4, &drop, 14), dropped);
        assert_eq!(changes(0x20, 4, &drop, 14), None);
        assert_eq!(changes(0x00, 4, &words(&[9, 1663, 1, 1664]), 18), copied);
        assert_eq!(changes(0x00, 4, &words(&[9, 1663, 1]), 18), None);
        assert_eq!(changes(0x10, 4, &words(&[9, 1663]), 15), made(None));
        assert_eq!(changes(0x20, 4, &drop, 15), dropped);
        assert_eq!(changes(0x20, 4, &drop[..12], 15), None);
    }

    #[test]
    fn reads_tablespaces() {
        let mut data = words(&[16390]);
        data.extend_from_slice(b"/srv/fast\0");
        let created = StorageChange::TablespaceCreated { tablespace: 16390, path: b"/srv/fast".to_vec() };
        assert_eq!(changes(0x00, 5, &data, 14), Some(vec![created]));
        let dropped = StorageChange::TablespaceDropped { tablespace: 16390 };
        assert_eq!(changes(0x10, 5, &words(&[16390]), 14), Some(vec![dropped]));
        assert_eq!(changes(0x20, 5, &words(&[16390]), 14), None);
    }
}
