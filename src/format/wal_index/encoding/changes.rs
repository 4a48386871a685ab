//! The sections about blocks and files: the longest of an index, so these are the ones that are packed.

use super::{ParseWalIndexError, Reader, Writer};
use crate::format::wal_index::LIST_LIMIT;
use crate::format::wal_index::block_changes::{BlockChanges, EVERY_FORK};
use crate::format::wal_index::file_events::{
    DatabaseMaking, DatabaseRemoval, FileEvents, REMOVED_LIMIT, Removal, TablespaceEvent, TablespaceEventKind,
};
use crate::pg::wal_record::{ForkNumber, RelFileLocator};
use crate::pg::wal_storage::DatabaseDirectory;

/// An index whose blocks take more than this is written without them.
pub(super) const BLOCKS_LIMIT: usize = 1 << 20;

/// The most blocks that one segment can name: a reference takes 8 bytes at least, a segment 1 GiB at most.
const BLOCK_COUNT_LIMIT: u64 = 1 << 27;

/// Bits of the byte in front of a fork: its number is in the upper four.
const NEW_DATABASE: u8 = 0x01;
const HAS_LIMIT: u8 = 0x02;

impl Writer {
    pub(super) fn blocks(&mut self, changes: &BlockChanges) {
        let forks = changes.sorted();
        self.varint(forks.len() as u64);
        let mut last: Option<RelFileLocator> = None;
        for fork in forks {
            let (relation, number) = (fork.key.relation, fork.key.fork);
            let near = last
                .filter(|last| (last.tablespace, last.database) == (relation.tablespace, relation.database));
            let limit = fork.limit();
            let flags =
                if near.is_none() { NEW_DATABASE } else { 0 } | if limit.is_some() { HAS_LIMIT } else { 0 };
            self.bytes.push(flags | number.0 << 4);
            if near.is_none() {
                self.varint(u64::from(relation.tablespace));
                self.varint(u64::from(relation.database));
            }
            let before = near.map_or(0, |last| last.relation);
            self.varint(u64::from(relation.relation - before));
            if let Some(limit) = limit {
                self.varint(u64::from(limit));
            }
            last = Some(relation);
            let runs: Vec<(u32, u32)> = fork.blocks().runs().collect();
            self.varint(runs.len() as u64);
            let mut next = 0u64;
            for (first, end) in runs {
                let (gap, more) = (u64::from(first) - next, u64::from(end - first));
                self.varint(gap << 1 | u64::from(more > 0));
                if more > 0 {
                    self.varint(more - 1);
                }
                next = u64::from(end) + 1;
            }
        }
    }

    pub(super) fn file_events(&mut self, events: &FileEvents) {
        self.varint(events.removals.len() as u64);
        for removal in &events.removals {
            self.lsn(removal.lsn);
            self.varint(u64::from(removal.xid));
            self.time(removal.time);
            self.varint(removal.count);
            self.varint(removal.relations.len() as u64);
            for relation in &removal.relations {
                self.varint(u64::from(relation.tablespace));
                self.varint(u64::from(relation.database));
                self.varint(u64::from(relation.relation));
            }
        }
        self.varint(events.databases.len() as u64);
        for removal in &events.databases {
            self.lsn(removal.lsn);
            self.varint(u64::from(removal.xid));
            self.varint(u64::from(removal.database));
            self.varint(removal.tablespaces.len() as u64);
            removal.tablespaces.iter().for_each(|tablespace| self.varint(u64::from(*tablespace)));
            self.optional(removal.time, Writer::time);
        }
        self.varint(events.tablespaces.len() as u64);
        for event in &events.tablespaces {
            self.lsn(event.lsn);
            self.varint(u64::from(event.xid));
            self.varint(u64::from(event.tablespace));
            match &event.kind {
                TablespaceEventKind::Created { path } => {
                    self.varint(0);
                    self.text(path);
                }
                TablespaceEventKind::Dropped => self.varint(1),
            }
        }
    }

    pub(super) fn databases_made(&mut self, made: &[DatabaseMaking]) {
        self.varint(made.len() as u64);
        for making in made {
            self.lsn(making.lsn);
            self.database_directory(making.directory);
            self.optional(making.copied_from, Writer::database_directory);
        }
    }

    fn database_directory(&mut self, directory: DatabaseDirectory) {
        self.varint(u64::from(directory.database));
        self.varint(u64::from(directory.tablespace));
    }
}

impl Reader<'_> {
    pub(super) fn blocks(&mut self) -> Result<BlockChanges, ParseWalIndexError> {
        let mut changes = BlockChanges::default();
        let mut total = 0u64;
        let mut last: Option<(RelFileLocator, u8)> = None;
        for _ in 0..self.count(3, usize::MAX)? {
            let [flags] = self.array()?;
            let number = flags >> 4;
            if flags & 0x0C != 0 || !matches!(number, 0 | 2..=15) {
                return Err(self.error("an unknown fork"));
            }
            let relation = match last {
                _ if flags & NEW_DATABASE != 0 => {
                    RelFileLocator { tablespace: self.u32()?, database: self.u32()?, relation: self.u32()? }
                }
                None => return Err(self.error("a relation of no database")),
                Some((last, _)) => {
                    let relation = last.relation.checked_add(self.u32()?);
                    let relation = relation.ok_or_else(|| self.error("a number above 32 bits"))?;
                    RelFileLocator { relation, ..last }
                }
            };
            if last.is_some_and(|last| last >= (relation, number)) {
                return Err(self.error("forks out of order"));
            }
            last = Some((relation, number));
            let fork = ForkNumber(number);
            if flags & HAS_LIMIT != 0 {
                let limit = self.u32()?;
                if fork == EVERY_FORK && limit != 0 {
                    return Err(self.error("a limit that cannot be"));
                }
                changes.set_limit_as_read(relation, fork, limit);
            } else if fork == EVERY_FORK {
                return Err(self.error("a limit that cannot be"));
            }
            total = self.runs(&mut changes, relation, fork, total)?;
        }
        Ok(changes)
    }

    /// The blocks of one fork. Counted before they are put into the set, so that no few bytes make it large.
    fn runs(
        &mut self,
        changes: &mut BlockChanges,
        relation: RelFileLocator,
        fork: ForkNumber,
        mut total: u64,
    ) -> Result<u64, ParseWalIndexError> {
        let mut next = 0u64;
        changes.add_fork(relation, fork);
        for _ in 0..self.count(1, usize::MAX)? {
            let head = self.varint()?;
            let first = next.checked_add(head >> 1).filter(|first| *first <= u64::from(u32::MAX));
            let more = if head & 1 == 1 { self.varint()?.saturating_add(1) } else { 0 };
            let last =
                first.and_then(|first| first.checked_add(more)).filter(|last| *last <= u64::from(u32::MAX));
            let (Some(first), Some(last)) = (first, last) else {
                return Err(self.error("a block above 32 bits"));
            };
            total += more + 1;
            if total > BLOCK_COUNT_LIMIT {
                return Err(self.error("more blocks than a segment can name"));
            }
            changes.add_run(relation, fork, first as u32, last as u32);
            next = last + 1;
        }
        Ok(total)
    }

    pub(super) fn file_events(&mut self) -> Result<FileEvents, ParseWalIndexError> {
        Ok(FileEvents {
            removals: self.list(5, LIST_LIMIT, |reader| {
                let (lsn, xid, time, count) =
                    (reader.lsn()?, reader.u32()?, reader.time()?, reader.varint()?);
                let relations = reader.list(3, REMOVED_LIMIT, |reader| {
                    Ok(RelFileLocator {
                        tablespace: reader.u32()?,
                        database: reader.u32()?,
                        relation: reader.u32()?,
                    })
                })?;
                Ok(Removal { lsn, xid, time, count, relations })
            })?,
            databases: self.list(5, LIST_LIMIT, |reader| {
                Ok(DatabaseRemoval {
                    lsn: reader.lsn()?,
                    xid: reader.u32()?,
                    database: reader.u32()?,
                    tablespaces: reader.list(1, usize::MAX, Reader::u32)?,
                    time: reader.optional(Reader::time)?,
                })
            })?,
            tablespaces: self.list(4, LIST_LIMIT, |reader| {
                let (lsn, xid, tablespace) = (reader.lsn()?, reader.u32()?, reader.u32()?);
                let kind = match reader.varint()? {
                    0 => TablespaceEventKind::Created { path: reader.text()? },
                    1 => TablespaceEventKind::Dropped,
                    _ => return Err(reader.error("an unknown change of a tablespace")),
                };
                Ok(TablespaceEvent { lsn, xid, tablespace, kind })
            })?,
        })
    }

    pub(super) fn databases_made(&mut self) -> Result<Vec<DatabaseMaking>, ParseWalIndexError> {
        self.list(4, LIST_LIMIT, |reader| {
            Ok(DatabaseMaking {
                lsn: reader.lsn()?,
                directory: reader.database_directory()?,
                copied_from: reader.optional(Reader::database_directory)?,
            })
        })
    }

    fn database_directory(&mut self) -> Result<DatabaseDirectory, ParseWalIndexError> {
        Ok(DatabaseDirectory { database: self.u32()?, tablespace: self.u32()? })
    }
}
