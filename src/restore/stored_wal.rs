//! The archived WAL of one cluster as a plan reads it: names from one listing, contents from the indexes.
//!
//! Indexes are small range reads, many at once, each read once. A segment without a usable index is downloaded and scanned
//! instead, and the plan says so. A damaged object is no failure of the plan but a place that recovery cannot pass.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::archive_view::ArchiveView;
use super::error::RestoreError;
use super::prove::WalContents;
use super::wal_path::WalPath;
use crate::codec::KeyRing;
use crate::codec::decode::{DecodeError, Expected, decode_object, read_tail};
use crate::codec::encode::SinkError;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::BackupSummary;
use crate::format::wal_index::{IndexChain, RecordVerdict, SegmentFacts, TransactionEnd, WalIndex};
use crate::format::{ClusterName, keys};
use crate::pg::wal_page::LongPageHeader;
use crate::pg::{
    ArchiveFileName, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize,
};
use crate::repository::{Repository, RepositoryError, RepositoryObject, StoredObject};
use crate::wal::scan::SegmentScanner;

/// Indexes that are read at once.
const READERS: usize = 16;
/// No history file is longer: each line is a promotion.
const LONGEST_HISTORY: usize = 1 << 20;

/// One cluster's archive.
pub struct StoredWal<'a> {
    repository: &'a Repository,
    keys: &'a KeyRing,
    system_identifier: SystemIdentifier,
    segment_size: WalSegmentSize,
    view: ArchiveView,
    objects: BTreeMap<WalSegmentName, Vec<StoredObject>>,
    indexes: Mutex<HashMap<WalSegmentName, Arc<WalIndex>>>,
    transactions: Mutex<HashMap<WalSegmentName, Arc<Vec<TransactionEnd>>>>,
    notes: Mutex<Vec<String>>,
}

impl<'a> StoredWal<'a> {
    /// Lists the WAL of the backup's cluster and reads its histories.
    pub fn open(
        repository: &'a Repository,
        cluster: &ClusterName,
        keys: &'a KeyRing,
        backup: &BackupSummary,
    ) -> Result<StoredWal<'a>, RestoreError> {
        let (system_identifier, segment_size) = (backup.system_identifier, backup.wal_segment_size);
        let mut this = StoredWal {
            repository,
            keys,
            system_identifier,
            segment_size,
            view: ArchiveView::new(segment_size),
            objects: BTreeMap::new(),
            indexes: Mutex::default(),
            transactions: Mutex::default(),
            notes: Mutex::default(),
        };
        for object in repository.list(&keys::wal_folder(cluster, system_identifier))? {
            match object.key.name().parse() {
                Ok(ArchiveFileName::Segment(name)) => {
                    this.view.add_segment(name);
                    this.objects.entry(name).or_default().push(object);
                }
                Ok(ArchiveFileName::Partial(name)) => this.view.add_partial(name),
                Ok(ArchiveFileName::TimelineHistory(timeline)) => this.read_history(timeline, &object)?,
                Ok(ArchiveFileName::BackupHistory { .. }) | Err(_) => {}
            }
        }
        Ok(this)
    }

    /// What is stored, by name.
    pub fn view(&self) -> &ArchiveView {
        &self.view
    }

    /// What had to be done in another way than usual.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }

    fn read_history(&mut self, timeline: TimelineId, object: &StoredObject) -> Result<(), RestoreError> {
        let facts = self.facts(ObjectKind::TimelineHistory, object);
        let mut text = Vec::new();
        let read = self.decode(object, &facts, &mut |bytes| {
            if text.len() + bytes.len() <= LONGEST_HISTORY {
                text.extend_from_slice(bytes);
            }
            Ok(())
        });
        let parsed = match read {
            Ok(()) => {
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).map_err(|e| e.to_string())
            }
            Err(error) if is_damage(&error) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        match parsed {
            Ok(history) => self.view.add_history(history),
            Err(problem) => {
                self.view.unusable_histories.insert(timeline, problem);
            }
        }
        Ok(())
    }

    fn facts(&self, kind: ObjectKind, object: &StoredObject) -> ObjectFacts {
        ObjectFacts {
            kind,
            name: object.key.name().to_owned(),
            system_identifier: self.system_identifier,
            segment_size: Some(self.segment_size),
        }
    }

    fn decode(
        &self,
        object: &StoredObject,
        facts: &ObjectFacts,
        deliver: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
    ) -> Result<(), DecodeError> {
        let source = RepositoryObject { repository: self.repository, object };
        decode_object(&source, &Expected { facts, key: &object.key }, self.keys, deliver).map(|_| ())
    }

    fn object(&self, name: WalSegmentName) -> Result<&StoredObject, RestoreError> {
        match self.objects.get(&name).map(Vec::as_slice) {
            Some([object]) => Ok(object),
            Some([first, second, ..]) => Err(RepositoryError::TwoObjects {
                key: first.key.to_string(),
                first: first.path.clone(),
                second: second.path.clone(),
            }
            .into()),
            _ => Err(RepositoryError::Missing { verb: "read", key: name.to_string() }.into()),
        }
    }

    /// One segment's index: as stored, else found by scanning the segment.
    fn load_index(&self, name: WalSegmentName) -> Result<WalIndex, RestoreError> {
        let object = self.object(name)?;
        let facts = self.facts(ObjectKind::WalSegment, object);
        let source = RepositoryObject { repository: self.repository, object };
        let expected = Expected { facts: &facts, key: &object.key };
        let tail = match read_tail(&source, &expected, self.keys) {
            Ok(tail) => tail,
            Err(error) if is_damage(&error) => return Ok(self.unreadable(name, error.to_string())),
            Err(error) => return Err(error.into()),
        };
        match WalIndex::decode(&tail.index) {
            Ok(index) => Ok(index),
            Err(error) => {
                lock(&self.notes)
                    .push(format!("segment {name} has no usable index ({error}): it was read whole"));
                Ok(self.scan(name)?.0)
            }
        }
    }

    /// Reads a whole segment: its index and every commit and abort that begins in it and ends in it.
    fn scan(&self, name: WalSegmentName) -> Result<(WalIndex, Vec<TransactionEnd>), RestoreError> {
        let object = self.object(name)?;
        let facts = self.facts(ObjectKind::WalSegment, object);
        let mut scanner: Option<SegmentScanner> = None;
        let mut problem = None;
        let mut ends = Vec::new();
        let read = self.decode(object, &facts, &mut |bytes| {
            if scanner.is_none() && problem.is_none() {
                match LongPageHeader::parse(bytes) {
                    Ok(header) => scanner = Some(SegmentScanner::new(name, &header).with_transaction_ends()),
                    Err(error) => problem = Some(error.to_string()),
                }
            }
            if let Some(scanner) = &mut scanner {
                scanner.feed(bytes);
                ends.append(&mut scanner.take_transaction_ends());
            }
            Ok(())
        });
        match (read, scanner) {
            (Ok(()), Some(scanner)) => Ok((scanner.finish(), ends)),
            (Ok(()), None) => Ok((self.unreadable(name, problem.unwrap_or_default()), Vec::new())),
            (Err(error), _) if is_damage(&error) => {
                Ok((self.unreadable(name, error.to_string()), Vec::new()))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The index of a segment that nothing can be read of: damage from its first byte on.
    fn unreadable(&self, name: WalSegmentName, problem: String) -> WalIndex {
        let start = name.start_lsn(self.segment_size).unwrap_or_default();
        WalIndex {
            start,
            end: start.plus(self.segment_size.bytes()),
            valid_until: start,
            verdict: RecordVerdict::Damaged { at: start, problem },
            ..WalIndex::default()
        }
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
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(missing.len()) {
                scope.spawn(|| {
                    while let Some(name) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.load_index(*name) {
                            Ok(index) => {
                                lock(&self.indexes).insert(*name, Arc::new(index));
                            }
                            Err(error) => {
                                lock(&failure).get_or_insert(error);
                                next.store(missing.len(), Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
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
        let ends = Arc::new(self.scan(name)?.1);
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

/// Whether recovery would fail on this object too, whatever is configured.
fn is_damage(error: &DecodeError) -> bool {
    matches!(
        error,
        DecodeError::Damaged { .. } | DecodeError::OtherObject { .. } | DecodeError::OtherCluster { .. }
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
