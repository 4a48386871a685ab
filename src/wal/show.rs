//! What an archive holds: timelines, contiguous runs of segments, the gaps between them, sizes and commit times.
//!
//! In: listings of the repository, and the indexes of some or all segments. Out: [`ArchiveListing`], the schema of `wal-show --json`. Needs no server. Nothing is
//! said to be there that a listing did not show; commit times come from the objects' own indexes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::codec::KeyRing;
use crate::codec::decode::{DecodeError, Expected, read_tail};
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::fan_out;
use crate::format::envelope::ObjectFacts;
use crate::format::wal_index::{RecordVerdict, WalIndex};
use crate::format::{ClusterName, ObjectKey, keys};
use crate::pg::{
    ArchiveFileName, Lsn, PgTimestamp, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName,
    WalSegmentNumber, WalSegmentSize,
};
use crate::repository::{Naming, Repository, RepositoryError, RepositoryObject, StoredObject};

use super::absence::{AbsenceError, Archive, read_history};

/// Indexes are read by this many threads: they are small reads, and what costs is the way there.
const INDEX_READERS: usize = 8;

/// Which segments' indexes are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexCoverage {
    /// The first and the last of each run: quick, and close, since commit times grow almost always.
    Ends,
    /// Every one: exact, and finds segments that were archived damaged.
    All,
}

/// Everything archived under one cluster name.
#[derive(Clone, Debug, Serialize)]
pub struct ArchiveListing {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The name.
    pub cluster: ClusterName,
    /// One entry per system identifier: more than one after `pg_upgrade` or where two clusters share a name.
    pub systems: Vec<SystemListing>,
}

/// What one cluster archived.
#[derive(Clone, Debug, Serialize)]
pub struct SystemListing {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Bytes per segment; `null` without segments.
    pub wal_segment_size: Option<WalSegmentSize>,
    /// Stored bytes of everything below.
    pub stored_bytes: u64,
    /// In order of their numbers.
    pub timelines: Vec<TimelineListing>,
    /// Last segments of timelines that a promotion left.
    pub partials: Vec<FileListing>,
    /// Backup history files.
    pub backup_histories: Vec<FileListing>,
    /// What needs attention, in words: two objects of one name, damaged segments, unreadable indexes, strangers.
    pub problems: Vec<String>,
}

/// One timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineListing {
    /// Its number.
    pub timeline: TimelineId,
    /// The timeline that it came from; `null` for the first one, or if its history is not stored.
    pub parent: Option<TimelineId>,
    /// Where it left its parent.
    pub begins_at: Option<Lsn>,
    /// Why, in PostgreSQL's words.
    pub reason: Option<String>,
    /// Whether its `.history` file is stored; always false for timeline 1, which has none.
    pub history_stored: bool,
    /// Segments stored.
    pub segments: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
    /// Runs of segments without a hole.
    pub runs: Vec<SegmentRun>,
    /// The holes between them.
    pub gaps: Vec<SegmentGap>,
}

/// Segments that follow each other without a hole.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentRun {
    /// The first segment.
    pub first: WalSegmentName,
    /// The last one.
    pub last: WalSegmentName,
    /// How many.
    pub segments: u64,
    /// Where the first begins.
    pub start_lsn: Lsn,
    /// Where the last ends.
    pub end_lsn: Lsn,
    /// Stored bytes.
    pub stored_bytes: u64,
    /// When transactions ended in it; `null` if no index that was read has any.
    pub commit_times: Option<CommitTimes>,
}

/// When transactions ended, by the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CommitTimes {
    /// The least time of a commit or abort.
    pub least: PgTimestamp,
    /// The greatest.
    pub greatest: PgTimestamp,
    /// True if every segment's index was read, false if only the first and last segment's.
    pub exact: bool,
}

/// Missing segments between two runs.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentGap {
    /// The first missing segment.
    pub first: WalSegmentName,
    /// The last missing one.
    pub last: WalSegmentName,
    /// How many.
    pub segments: u64,
}

/// Another archived file.
#[derive(Clone, Debug, Serialize)]
pub struct FileListing {
    /// Its name.
    pub name: String,
    /// Where it lies in the repository.
    pub path: String,
    /// Its stored bytes.
    pub stored_bytes: u64,
}

/// Lists everything archived under a cluster's name.
pub fn list_archive(
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
    coverage: IndexCoverage,
) -> Result<ArchiveListing, ShowError> {
    let mut systems = Vec::new();
    for system in recorded_systems(repository, cluster)? {
        systems.push(list_system(repository, cluster, system, keys, coverage)?);
    }
    Ok(ArchiveListing { repository: repository.url().to_owned(), cluster: cluster.clone(), systems })
}

/// The clusters that archive under this name, by their identity records.
pub fn recorded_systems(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<Vec<SystemIdentifier>, RepositoryError> {
    let records = repository.list(&keys::identities(cluster))?;
    let system = |record: &StoredObject| record.key.name().strip_suffix(".json")?.parse().ok();
    let mut systems: Vec<SystemIdentifier> = records.iter().filter_map(system).collect();
    systems.sort_unstable();
    systems.dedup();
    Ok(systems)
}

/// One stored segment's index.
pub fn segment_index(
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
    segment: WalSegmentName,
) -> Result<WalIndex, ShowError> {
    for system in recorded_systems(repository, cluster)? {
        let key = keys::wal(cluster, system, ArchiveFileName::Segment(segment));
        if let Some(object) = repository.find(&key, Naming::ByStore)? {
            return match read_index(repository, keys, system, segment, &object)?.index {
                Some(index) => Ok(index),
                None => Err(ShowError::NoIndex { segment }),
            };
        }
    }
    Err(ShowError::NotStored { segment, cluster: cluster.clone() })
}

fn list_system(
    repository: &Repository,
    cluster: &ClusterName,
    system: SystemIdentifier,
    key_ring: &KeyRing,
    coverage: IndexCoverage,
) -> Result<SystemListing, ShowError> {
    let folder = keys::wal_folder(cluster, system);
    let inventory = Inventory::of(repository.list(&folder)?, &folder);
    let size = segment_size(repository, key_ring, system, &inventory)?;
    let mut listing = SystemListing {
        system_identifier: system,
        wal_segment_size: size,
        stored_bytes: inventory.stored_bytes,
        timelines: Vec::new(),
        partials: inventory.partials,
        backup_histories: inventory.backup_histories,
        problems: inventory.problems,
    };
    let archive = Archive {
        repository,
        keys: key_ring,
        cluster,
        system,
        segment_size: size.unwrap_or(WalSegmentSize::DEFAULT),
    };
    for timeline in inventory.timelines {
        let segments = inventory.segments.get(&timeline).map(Vec::as_slice).unwrap_or_default();
        let history = read_history(&archive, timeline)?;
        let stored = Timeline { timeline, segments, history: history.as_ref() };
        listing.timelines.push(list_timeline(&archive, &stored, coverage, &mut listing.problems));
    }
    Ok(listing)
}

/// What a listing of one cluster's WAL folder shows, sorted by kind.
#[derive(Default)]
struct Inventory {
    timelines: Vec<TimelineId>,
    segments: BTreeMap<TimelineId, Vec<(WalSegmentName, StoredObject)>>,
    partials: Vec<FileListing>,
    backup_histories: Vec<FileListing>,
    stored_bytes: u64,
    problems: Vec<String>,
}

impl Inventory {
    fn of(objects: Vec<StoredObject>, folder: &str) -> Inventory {
        let mut inventory = Inventory::default();
        for object in objects {
            inventory.stored_bytes += object.size;
            match object.key.name().parse::<ArchiveFileName>() {
                Ok(name) => inventory.take(name, object),
                Err(_) => inventory
                    .problems
                    .push(format!("{} is no archived file: a stranger below {folder}", object.path)),
            }
        }
        for segments in inventory.segments.values_mut() {
            segments.sort_by_key(|(name, _)| *name);
            for pair in segments.windows(2) {
                if let [(first, one), (second, other)] = pair
                    && first == second
                {
                    inventory.problems.push(format!(
                        "two different objects are stored as {first}: {} and {}",
                        one.path, other.path
                    ));
                }
            }
            segments.dedup_by_key(|(name, _)| *name);
        }
        inventory.timelines.extend(inventory.segments.keys());
        inventory.timelines.sort_unstable();
        inventory.timelines.dedup();
        inventory
    }

    fn take(&mut self, name: ArchiveFileName, object: StoredObject) {
        let file = |object: StoredObject| FileListing {
            name: name.to_string(),
            path: object.path,
            stored_bytes: object.size,
        };
        match name {
            ArchiveFileName::Segment(segment) => {
                self.segments.entry(segment.timeline).or_default().push((segment, object));
            }
            ArchiveFileName::Partial(_) => self.partials.push(file(object)),
            ArchiveFileName::TimelineHistory(timeline) => self.timelines.push(timeline),
            ArchiveFileName::BackupHistory { .. } => self.backup_histories.push(file(object)),
        }
    }
}

/// The cluster's segment size, from the first stored segment that tells; `None` without segments.
pub fn known_segment_size(
    repository: &Repository,
    cluster: &ClusterName,
    key_ring: &KeyRing,
    system: SystemIdentifier,
) -> Result<Option<WalSegmentSize>, ShowError> {
    let folder = keys::wal_folder(cluster, system);
    segment_size(repository, key_ring, system, &Inventory::of(repository.list(&folder)?, &folder))
}

/// The cluster's segment size, from the first segment that tells.
fn segment_size(
    repository: &Repository,
    key_ring: &KeyRing,
    system: SystemIdentifier,
    inventory: &Inventory,
) -> Result<Option<WalSegmentSize>, ShowError> {
    let mut failure = None;
    for (name, object) in inventory.segments.values().flatten().take(3) {
        match read_index(repository, key_ring, system, *name, object) {
            Ok(SegmentFacts { size: Some(size), .. }) => return Ok(Some(size)),
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// The same from a listing of its WAL.
pub fn segment_size_of(
    repository: &Repository,
    key_ring: &KeyRing,
    system: SystemIdentifier,
    objects: &[StoredObject],
) -> Result<Option<WalSegmentSize>, ShowError> {
    let is_segment = |object: &&StoredObject| object.key.name().parse::<WalSegmentName>().is_ok();
    let few: Vec<StoredObject> = objects.iter().filter(is_segment).take(3).cloned().collect();
    segment_size(repository, key_ring, system, &Inventory::of(few, ""))
}

/// A timeline as the listing shows it.
struct Timeline<'a> {
    timeline: TimelineId,
    segments: &'a [(WalSegmentName, StoredObject)],
    history: Option<&'a TimelineHistory>,
}

fn list_timeline(
    archive: &Archive<'_>,
    stored: &Timeline<'_>,
    coverage: IndexCoverage,
    problems: &mut Vec<String>,
) -> TimelineListing {
    let size = archive.segment_size;
    let parent = stored.history.and_then(|history| history.ancestors.last());
    let mut listing = TimelineListing {
        timeline: stored.timeline,
        parent: parent.map(|parent| parent.timeline),
        begins_at: parent.map(|parent| parent.left_at),
        reason: parent.map(|parent| parent.reason.clone()),
        history_stored: stored.history.is_some(),
        segments: stored.segments.len() as u64,
        stored_bytes: stored.segments.iter().map(|(_, object)| object.size).sum(),
        runs: Vec::new(),
        gaps: Vec::new(),
    };
    let mut previous: Option<WalSegmentNumber> = None;
    for run in contiguous_runs(stored.segments, size, problems) {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
        let (Some(begin), Some(end)) = (first.number(size), last.number(size)) else { continue };
        if let Some(previous) = previous {
            listing.gaps.push(gap_between(stored.timeline, previous, begin, size));
        }
        previous = Some(end);
        listing.runs.push(SegmentRun {
            first: *first,
            last: *last,
            segments: run.len() as u64,
            start_lsn: begin.start_lsn(size),
            end_lsn: end.next().start_lsn(size),
            stored_bytes: run.iter().map(|(_, object)| object.size).sum(),
            commit_times: commit_times(archive, run, coverage, problems),
        });
    }
    listing
}

fn gap_between(
    timeline: TimelineId,
    before: WalSegmentNumber,
    after: WalSegmentNumber,
    size: WalSegmentSize,
) -> SegmentGap {
    let last = WalSegmentNumber::new(after.get().saturating_sub(1));
    SegmentGap {
        first: WalSegmentName::new(timeline, before.next(), size),
        last: WalSegmentName::new(timeline, last, size),
        segments: last.get().saturating_sub(before.get()),
    }
}

/// Splits segments, in order and without duplicates, where a number is missing.
fn contiguous_runs<'a>(
    segments: &'a [(WalSegmentName, StoredObject)],
    size: WalSegmentSize,
    problems: &mut Vec<String>,
) -> Vec<&'a [(WalSegmentName, StoredObject)]> {
    for (name, object) in segments {
        if name.number(size).is_none() {
            problems.push(format!("{}: no segment of {} bytes has this name", object.path, size.bytes()));
        }
    }
    let follows = |(one, _): &(WalSegmentName, StoredObject), (other, _): &(WalSegmentName, StoredObject)| {
        one.number(size).map(WalSegmentNumber::next) == other.number(size)
    };
    segments.chunk_by(follows).collect()
}

/// The commit times of a run, from as many indexes as `coverage` asks for.
fn commit_times(
    archive: &Archive<'_>,
    run: &[(WalSegmentName, StoredObject)],
    coverage: IndexCoverage,
    problems: &mut Vec<String>,
) -> Option<CommitTimes> {
    let wanted: Vec<&(WalSegmentName, StoredObject)> = match (coverage, run) {
        (IndexCoverage::All, _) | (_, [] | [_] | [_, _]) => run.iter().collect(),
        (IndexCoverage::Ends, [first, .., last]) => vec![first, last],
    };
    let exact = wanted.len() == run.len();
    let mut times: Option<CommitTimes> = None;
    for (name, facts) in read_indexes(archive, &wanted) {
        let index = match facts {
            Ok(facts) => facts.index,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        let Some(index) = index else { continue };
        if let RecordVerdict::Damaged { at, problem } = &index.verdict {
            problems.push(format!("{name} was archived damaged: at {at}: {problem}"));
        }
        let Some(span) = index.transactions else { continue };
        let known =
            times.unwrap_or(CommitTimes { least: span.least_time, greatest: span.greatest_time, exact });
        times = Some(CommitTimes {
            least: known.least.min(span.least_time),
            greatest: known.greatest.max(span.greatest_time),
            exact,
        });
    }
    times
}

/// What the end of a segment's object says.
struct SegmentFacts {
    size: Option<WalSegmentSize>,
    index: Option<WalIndex>,
}

type IndexRead = (WalSegmentName, Result<SegmentFacts, ShowError>);

/// Reads indexes in parallel; the results are in the order of the segments.
fn read_indexes(archive: &Archive<'_>, segments: &[&(WalSegmentName, StoredObject)]) -> Vec<IndexRead> {
    fan_out::map(segments, INDEX_READERS, |(name, object)| {
        (*name, read_index(archive.repository, archive.keys, archive.system, *name, object))
    })
}

fn read_index(
    repository: &Repository,
    key_ring: &KeyRing,
    system: SystemIdentifier,
    name: WalSegmentName,
    object: &StoredObject,
) -> Result<SegmentFacts, ShowError> {
    let facts = ObjectFacts::of_archive_file(ArchiveFileName::Segment(name), system, None);
    let expected = Expected { facts: &facts, key: &object.key };
    let tail = read_tail(&RepositoryObject { repository, object }, &expected, key_ring)?;
    Ok(SegmentFacts { size: tail.facts.segment_size, index: decode_index(&object.key, &tail.index)? })
}

/// `None` for an object that was stored without an index, as those of a newer PostgreSQL are.
fn decode_index(key: &ObjectKey, bytes: &[u8]) -> Result<Option<WalIndex>, ShowError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = WalIndex::decode(bytes).map(Some);
    decoded.map_err(|problem| ShowError::BadIndex { key: key.to_string(), problem: problem.to_string() })
}

/// Why the archive could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object could not be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A history could not be read.
    #[error(transparent)]
    History(#[from] AbsenceError),
    /// An index makes no sense.
    #[error("read the index of {key}: {problem}")]
    BadIndex {
        /// The object.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The segment asked for is not there.
    #[error("{segment} is not stored under the name {cluster}")]
    NotStored {
        /// What was asked for.
        segment: WalSegmentName,
        /// The name.
        cluster: ClusterName,
    },
    /// It is there, but has no index.
    #[error(
        "{segment} was archived without an index: its PostgreSQL is newer than the walhold that archived it"
    )]
    NoIndex {
        /// What was asked for.
        segment: WalSegmentName,
    },
}

impl Explain for ShowError {
    fn exit_cause(&self) -> Cause {
        match self {
            ShowError::Repository(error) => error.exit_cause(),
            ShowError::Decode(error) => error.exit_cause(),
            ShowError::History(error) => error.exit_cause(),
            ShowError::BadIndex { .. } => Cause::Damaged,
            ShowError::NotStored { .. } | ShowError::NoIndex { .. } => Cause::NotFound,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ShowError::Repository(error) => error.hint(),
            ShowError::Decode(error) => error.hint(),
            ShowError::History(error) => error.hint(),
            ShowError::NotStored { .. } => {
                Some("walhold wal-show lists what is stored; check WALHOLD_CLUSTER".to_owned())
            }
            ShowError::BadIndex { .. } => {
                Some("it was written by another version of walhold, or is damaged: upgrade walhold, or fetch the segment and read it with pg_waldump".to_owned())
            }
            ShowError::NoIndex { .. } => None,
        }
    }
}
