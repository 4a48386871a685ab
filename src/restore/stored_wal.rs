//! The archived WAL of one cluster as a plan reads it: every index once, and what had to be done in another way than usual.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::RestoreError;
use super::prove::WalContents;
use super::wal_path::WalPath;
use crate::codec::KeyRing;
use crate::format::ClusterName;
use crate::format::manifest::BackupSummary;
use crate::format::wal_index::{IndexChain, SegmentFacts, TablespaceEvent, TransactionEnd, WalIndex};
use crate::pg::WalSegmentName;
use crate::repository::Repository;
use crate::wal::archive_view::ArchiveView;
use crate::wal::stored_segments::{StoredSegments, WalOf};

/// One cluster's archive.
pub struct StoredWal<'a> {
    segments: StoredSegments<'a>,
    indexes: Mutex<HashMap<WalSegmentName, Arc<WalIndex>>>,
    transactions: Mutex<HashMap<WalSegmentName, Arc<Vec<TransactionEnd>>>>,
    notes: Mutex<Vec<String>>,
}

impl<'a> StoredWal<'a> {
    /// Lists the WAL of the backup's cluster and reads its histories.
    pub fn open(
        repository: &'a Repository,
        cluster: &'a ClusterName,
        keys: &'a KeyRing,
        backup: &BackupSummary,
    ) -> Result<StoredWal<'a>, RestoreError> {
        let of = WalOf {
            cluster,
            system_identifier: backup.system_identifier,
            segment_size: backup.wal_segment_size,
        };
        Ok(StoredWal {
            segments: StoredSegments::open(repository, keys, of)?,
            indexes: Mutex::default(),
            transactions: Mutex::default(),
            notes: Mutex::default(),
        })
    }

    /// What is stored, by name.
    pub fn view(&self) -> &ArchiveView {
        self.segments.view()
    }

    /// What had to be done in another way than usual.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }

    /// Tablespaces made and dropped in the path's segments, in order, and how many segments do not tell of them: at most `most` of
    /// those whose index does not are read whole.
    pub fn tablespace_events(
        &self,
        path: &WalPath,
        most: usize,
    ) -> Result<(Vec<TablespaceEvent>, usize), RestoreError> {
        self.load_missing(path)?;
        let silent: Vec<WalSegmentName> = {
            let indexes = lock(&self.indexes);
            let is_silent =
                |name: &WalSegmentName| indexes.get(name).is_none_or(|index| index.files.is_none());
            path.segments.iter().map(|segment| segment.name).filter(is_silent).collect()
        };
        for name in silent.iter().take(most) {
            let index = WalIndex { blocks: None, ..self.segments.scan(*name)?.0 };
            lock(&self.indexes).insert(*name, Arc::new(index));
        }
        let facts = self.facts(path)?;
        let events =
            facts.into_iter().filter_map(|facts| facts.index.files).flat_map(|files| files.tablespaces);
        Ok((events.collect(), silent.len().saturating_sub(most)))
    }

    /// Reads the indexes that are not known yet.
    fn load_missing(&self, path: &WalPath) -> Result<(), RestoreError> {
        let missing: Vec<WalSegmentName> = {
            let known = lock(&self.indexes);
            path.segments
                .iter()
                .map(|segment| segment.name)
                .filter(|name| !known.contains_key(name))
                .collect()
        };
        // A part at a time: what is not needed of an index is forgotten before the next ones come.
        for part in missing.chunks(256) {
            for (name, loaded) in part.iter().zip(self.segments.load_indexes(part)?) {
                lock(&self.notes).extend(loaded.read_whole);
                let index = WalIndex { blocks: None, ..loaded.index };
                lock(&self.indexes).insert(*name, Arc::new(index));
            }
        }
        Ok(())
    }
}

impl WalContents for StoredWal<'_> {
    fn facts(&self, path: &WalPath) -> Result<Vec<SegmentFacts>, RestoreError> {
        self.load_missing(path)?;
        let indexes = lock(&self.indexes);
        let mut chain = IndexChain::new();
        let mut facts = Vec::with_capacity(path.segments.len());
        for segment in &path.segments {
            let index = indexes.get(&segment.name).map(|index| WalIndex::clone(index));
            facts.extend(chain.push(index.unwrap_or_default()));
        }
        facts.extend(chain.finish());
        Ok(facts)
    }

    fn transactions(&self, name: WalSegmentName) -> Result<Arc<Vec<TransactionEnd>>, RestoreError> {
        if let Some(known) = lock(&self.transactions).get(&name) {
            return Ok(Arc::clone(known));
        }
        let ends = Arc::new(self.segments.scan(name)?.1);
        lock(&self.transactions).insert(name, Arc::clone(&ends));
        Ok(ends)
    }
}

/// An archive without WAL.
pub struct NoWal;

impl WalContents for NoWal {
    fn facts(&self, _path: &WalPath) -> Result<Vec<SegmentFacts>, RestoreError> {
        Ok(Vec::new())
    }

    fn transactions(&self, _name: WalSegmentName) -> Result<Arc<Vec<TransactionEnd>>, RestoreError> {
        Ok(Arc::default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
