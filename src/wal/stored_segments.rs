//! The archived WAL of one cluster: names from one listing, contents from the objects' indexes.
//!
//! In: the repository. Out: which segments and histories are stored, and what a segment holds. Indexes are small range reads, many at
//! once. A segment without a usable index is downloaded and scanned instead, and that is said. A damaged object is no failure, but a
//! place that recovery cannot pass.

use std::collections::BTreeMap;

use super::archive_view::ArchiveView;
use super::scan::SegmentScanner;
use crate::codec::KeyRing;
use crate::codec::decode::{DecodeError, Expected, decode_object, read_tail};
use crate::codec::encode::SinkError;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::fan_out;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::wal_index::{RecordVerdict, TransactionEnd, WalIndex};
use crate::format::{ClusterName, keys};
use crate::pg::wal_page::LongPageHeader;
use crate::pg::{
    ArchiveFileName, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize,
};
use crate::repository::{Naming, Repository, RepositoryError, RepositoryObject, StoredObject};

/// Indexes that are read at once.
const READERS: usize = 16;
/// No history file is longer: each line is a promotion.
const LONGEST_HISTORY: usize = 1 << 20;

/// Whose WAL it is.
#[derive(Clone, Copy)]
pub struct WalOf<'a> {
    /// The name that the cluster archives under.
    pub cluster: &'a ClusterName,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
}

/// One cluster's archive.
pub struct StoredSegments<'a> {
    repository: &'a Repository,
    keys: &'a KeyRing,
    of: WalOf<'a>,
    view: ArchiveView,
    objects: BTreeMap<WalSegmentName, Vec<StoredObject>>,
}

/// What reading one segment gave.
#[derive(Debug)]
pub struct LoadedIndex {
    /// What the segment holds.
    pub index: WalIndex,
    /// Why the segment had to be read whole, if it had to.
    pub read_whole: Option<String>,
}

impl<'a> StoredSegments<'a> {
    /// Lists the cluster's WAL and reads its histories.
    pub fn open(
        repository: &'a Repository,
        keys: &'a KeyRing,
        of: WalOf<'a>,
    ) -> Result<StoredSegments<'a>, StoredSegmentsError> {
        let objects = repository.list(&keys::wal_folder(of.cluster, of.system_identifier))?;
        StoredSegments::from_objects(repository, keys, of, objects)
    }

    /// The same from a listing that the caller has already.
    pub fn from_objects(
        repository: &'a Repository,
        keys: &'a KeyRing,
        of: WalOf<'a>,
        objects: Vec<StoredObject>,
    ) -> Result<StoredSegments<'a>, StoredSegmentsError> {
        let view = ArchiveView::new(of.segment_size);
        let mut this = StoredSegments { repository, keys, of, view, objects: BTreeMap::new() };
        let mut histories = Vec::new();
        for object in objects {
            match object.key.name().parse() {
                Ok(ArchiveFileName::Segment(name)) => {
                    this.view.add_segment(name);
                    this.objects.entry(name).or_default().push(object);
                }
                Ok(ArchiveFileName::Partial(name)) => this.view.add_partial(name),
                Ok(ArchiveFileName::TimelineHistory(timeline)) => histories.push((timeline, object)),
                Ok(ArchiveFileName::BackupHistory { .. }) | Err(_) => {}
            }
        }
        let read =
            fan_out::map(&histories, READERS, |(timeline, object)| this.read_history(*timeline, object));
        for ((timeline, _), history) in histories.iter().zip(read) {
            match history? {
                Ok(history) => this.view.add_history(history),
                Err(problem) => {
                    this.view.unusable_histories.insert(*timeline, problem);
                }
            }
        }
        Ok(this)
    }

    /// What is stored, by name.
    pub fn view(&self) -> &ArchiveView {
        &self.view
    }

    /// Whose WAL it is.
    pub fn of(&self) -> WalOf<'a> {
        self.of
    }

    /// Stored bytes of a segment; 0 if it is not stored.
    pub fn stored_bytes(&self, name: WalSegmentName) -> u64 {
        self.objects.get(&name).map_or(0, |objects| objects.iter().map(|object| object.size).sum())
    }

    /// Every stored segment, in order.
    pub fn names(&self) -> impl Iterator<Item = WalSegmentName> {
        self.objects.keys().copied()
    }

    /// Looks again for a segment that the listing did not show. True if it is stored by now.
    pub fn look_again(&mut self, name: WalSegmentName) -> Result<bool, StoredSegmentsError> {
        let key = keys::wal(self.of.cluster, self.of.system_identifier, ArchiveFileName::Segment(name));
        let Some(object) = self.repository.find(&key, Naming::ByStore)? else { return Ok(false) };
        self.view.add_segment(name);
        self.objects.insert(name, vec![object]);
        Ok(true)
    }

    /// The stored segments; more than one object under a name is damage.
    pub fn objects(&self) -> &BTreeMap<WalSegmentName, Vec<StoredObject>> {
        &self.objects
    }

    /// The history, or why it cannot be used.
    fn read_history(
        &self,
        timeline: TimelineId,
        object: &StoredObject,
    ) -> Result<Result<TimelineHistory, String>, StoredSegmentsError> {
        let facts = self.facts(ObjectKind::TimelineHistory, object);
        let mut text = Vec::new();
        let read = self.decode(object, &facts, &mut |bytes| {
            if text.len() + bytes.len() <= LONGEST_HISTORY {
                text.extend_from_slice(bytes);
            }
            Ok(())
        });
        match read {
            Ok(()) => Ok(TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
                .map_err(|error| error.to_string())),
            Err(error) if error.is_damage() => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn facts(&self, kind: ObjectKind, object: &StoredObject) -> ObjectFacts {
        ObjectFacts {
            kind,
            name: object.key.name().to_owned(),
            system_identifier: self.of.system_identifier,
            segment_size: Some(self.of.segment_size),
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

    /// The object of a segment; an error unless there is exactly one.
    pub fn object(&self, name: WalSegmentName) -> Result<&StoredObject, StoredSegmentsError> {
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
    pub fn load_index(&self, name: WalSegmentName) -> Result<LoadedIndex, StoredSegmentsError> {
        let object = self.object(name)?;
        let facts = self.facts(ObjectKind::WalSegment, object);
        let source = RepositoryObject { repository: self.repository, object };
        let expected = Expected { facts: &facts, key: &object.key };
        let tail = match read_tail(&source, &expected, self.keys) {
            Ok(tail) => tail,
            Err(error) if error.is_damage() => {
                return Ok(LoadedIndex { index: self.unreadable(name, error.to_string()), read_whole: None });
            }
            Err(error) => return Err(error.into()),
        };
        match WalIndex::decode(&tail.index) {
            Ok(index) => Ok(LoadedIndex { index, read_whole: None }),
            Err(error) => {
                let why = format!("segment {name} has no usable index ({error}): it was read whole");
                Ok(LoadedIndex { index: self.scan(name)?.0, read_whole: Some(why) })
            }
        }
    }

    /// Many segments' indexes, in the order of the names.
    pub fn load_indexes(&self, names: &[WalSegmentName]) -> Result<Vec<LoadedIndex>, StoredSegmentsError> {
        fan_out::try_map(names, READERS, |name| self.load_index(*name))
    }

    /// Reads a whole segment: its index and every commit and abort that begins in it and ends in it.
    pub fn scan(&self, name: WalSegmentName) -> Result<(WalIndex, Vec<TransactionEnd>), StoredSegmentsError> {
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
            (Err(error), _) if error.is_damage() => {
                Ok((self.unreadable(name, error.to_string()), Vec::new()))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The index of a segment that nothing can be read of: damage from its first byte on.
    fn unreadable(&self, name: WalSegmentName, problem: String) -> WalIndex {
        let start = name.start_lsn(self.of.segment_size).unwrap_or_default();
        WalIndex {
            start,
            end: start.plus(self.of.segment_size.bytes()),
            valid_until: start,
            verdict: RecordVerdict::Damaged { at: start, problem },
            ..WalIndex::default()
        }
    }
}

/// Why the archive could not be read. Damage is no error here: it is what a segment holds.
#[derive(Debug, thiserror::Error)]
pub enum StoredSegmentsError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object could not be opened.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Explain for StoredSegmentsError {
    fn exit_cause(&self) -> Cause {
        match self {
            StoredSegmentsError::Repository(error) => error.exit_cause(),
            StoredSegmentsError::Decode(error) => error.exit_cause(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            StoredSegmentsError::Repository(error) => error.hint(),
            StoredSegmentsError::Decode(error) => error.hint(),
        }
    }
}
