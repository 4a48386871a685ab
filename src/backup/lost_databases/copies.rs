//! What WAL says of databases' directories: made, copied, removed.

use std::collections::BTreeMap;

use crate::backup::BackupError;
use crate::backup::wait_for_wal::WalSpan;
use crate::format::wal_index::{IndexChain, LIST_LIMIT, SegmentFacts};
use crate::pg::wal_storage::DatabaseDirectory;
use crate::pg::{ArchiveFileName, Lsn, WalSegmentName};
use crate::wal::stored_segments::StoredSegments;

/// Indexes that are in memory at once.
const INDEXES_AT_ONCE: usize = 64;

/// What a record does to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DirectoryEvent {
    /// It is made; from another one's files, or with pages that are logged.
    Made { directory: DatabaseDirectory, copied_from: Option<DatabaseDirectory> },
    /// It is removed.
    Removed { directory: DatabaseDirectory },
}

/// Directories that replay of these events, in order, leaves with files from one that a backup of that time may not have, and which one that is.
pub(super) fn lost(events: &[DirectoryEvent]) -> Vec<(DatabaseDirectory, DatabaseDirectory)> {
    // Those that replay makes; `Some` if out of files that may be missing.
    let mut made: BTreeMap<DatabaseDirectory, Option<DatabaseDirectory>> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match *event {
            DirectoryEvent::Made { directory, copied_from: None } => drop(made.insert(directory, None)),
            DirectoryEvent::Made { directory, copied_from: Some(origin) } => {
                let later = events.get(at..).unwrap_or_default();
                let goes = later.contains(&DirectoryEvent::Removed { directory: origin });
                // What replay made it has, whatever the backup read. Else the backup has it if it was there to the end.
                let missing = made.get(&origin).copied().unwrap_or(goes.then_some(origin));
                made.insert(directory, missing);
            }
            DirectoryEvent::Removed { directory } => drop(made.remove(&directory)),
        }
    }
    made.into_iter().filter_map(|(directory, missing)| Some((directory, missing?))).collect()
}

/// What happened in this stretch of WAL, in order; or why that is not known.
pub(super) fn events(
    stored: &StoredSegments<'_>,
    span: &WalSpan,
) -> Result<Result<Vec<DirectoryEvent>, String>, BackupError> {
    let segment = |file| match file {
        ArchiveFileName::Segment(name) => Some(name),
        _ => None,
    };
    let names: Vec<WalSegmentName> = span.files().into_iter().filter_map(segment).collect();
    let mut chain = IndexChain::new();
    let mut facts = Vec::new();
    for part in names.chunks(INDEXES_AT_ONCE) {
        for (name, loaded) in part.iter().zip(stored.load_indexes(part)?) {
            // Archived by a walhold that did not know of these yet.
            let index = match loaded.index.databases_made {
                Some(_) => loaded.index,
                None => stored.scan(*name)?.0,
            };
            facts.extend(chain.push(index));
        }
    }
    facts.extend(chain.finish());
    let mut events = Vec::new();
    for (at, (name, facts)) in names.iter().zip(&facts).enumerate() {
        let is_last = at + 1 == names.len();
        match events_of(facts, is_last) {
            Ok(found) => events.extend(found),
            Err(reason) => return Ok(Err(format!("segment {name}: {reason}"))),
        }
    }
    events.retain(|(at, _)| (span.start..span.stop).contains(at));
    events.sort_by_key(|(at, _)| *at);
    Ok(Ok(events.into_iter().map(|(_, event)| event).collect()))
}

fn events_of(facts: &SegmentFacts, is_last: bool) -> Result<Vec<(Lsn, DirectoryEvent)>, String> {
    if let Some(problem) = facts.break_after.as_ref().filter(|_| !is_last) {
        return Err(problem.clone());
    }
    let removals = facts.index.files.as_ref().map(|files| &files.databases);
    let (Some(made), Some(removals)) = (&facts.index.databases_made, removals) else {
        return Err("its records of databases are not understood".to_owned());
    };
    if removals.len() >= LIST_LIMIT {
        return Err("it removes too many databases".to_owned());
    }
    let mut events: Vec<(Lsn, DirectoryEvent)> = Vec::new();
    for making in made {
        let (directory, copied_from) = (making.directory, making.copied_from);
        events.push((making.lsn, DirectoryEvent::Made { directory, copied_from }));
    }
    for removal in removals {
        for tablespace in removal.tablespaces.iter().copied() {
            let directory = DatabaseDirectory { database: removal.database, tablespace };
            events.push((removal.lsn, DirectoryEvent::Removed { directory }));
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(database: u32, tablespace: u32) -> DatabaseDirectory {
        DatabaseDirectory { database, tablespace }
    }

    fn made(database: u32) -> DirectoryEvent {
        DirectoryEvent::Made { directory: directory(database, 1), copied_from: None }
    }

    fn copied(database: u32, from: u32) -> DirectoryEvent {
        DirectoryEvent::Made { directory: directory(database, 1), copied_from: Some(directory(from, 1)) }
    }

    fn removed(database: u32) -> DirectoryEvent {
        DirectoryEvent::Removed { directory: directory(database, 1) }
    }

    fn lost_databases(events: &[DirectoryEvent]) -> Vec<(u32, u32)> {
        lost(events).into_iter().map(|(lost, origin)| (lost.database, origin.database)).collect()
    }

    #[test]
    fn a_copy_is_lost_with_its_template() {
        assert_eq!(lost_databases(&[copied(8, 7), removed(7)]), [(8, 7)]);
        // The template stays: it is in the backup.
        assert_eq!(lost_databases(&[copied(8, 7), removed(6)]), []);
        // Nobody misses a copy that went too, but a copy of it.
        assert_eq!(lost_databases(&[copied(8, 7), removed(7), removed(8)]), []);
        assert_eq!(lost_databases(&[copied(8, 7), removed(7), copied(9, 8), removed(8)]), [(9, 7)]);
        // Its pages are logged.
        assert_eq!(lost_databases(&[made(8), removed(7)]), []);
    }

    #[test]
    fn what_replay_made_is_whole() {
        assert_eq!(lost_databases(&[made(7), copied(8, 7), removed(7)]), []);
        assert_eq!(lost_databases(&[copied(7, 1), copied(8, 7), removed(7)]), []);
    }

    #[test]
    fn a_database_that_moves_is_lost_even_if_it_comes_back() {
        let moved = |from, to| {
            let copy =
                DirectoryEvent::Made { directory: directory(7, to), copied_from: Some(directory(7, from)) };
            [copy, DirectoryEvent::Removed { directory: directory(7, from) }]
        };
        assert_eq!(lost(&moved(1, 2)), [(directory(7, 2), directory(7, 1))]);
        assert_eq!(lost(&[moved(1, 2), moved(2, 1)].concat()), [(directory(7, 1), directory(7, 1))]);
        // One that was made meanwhile may move.
        assert_eq!(lost(&[&[copied(7, 4)][..], &moved(1, 2)].concat()), []);
    }
}
