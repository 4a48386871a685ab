//! Delivers one archived file, or proves that there is none.
//!
//! In: a name and a destination. Out: the file, checked against its recorded length, digest, name and cluster, or a proven absence. What must hold: a failure leaves the
//! destination as it was; "absent" is said only where [`super::absence`] proved it, or where the operator allows a gap.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::codec::decode::{
    DecodeError, Expected, ObjectSource, ObjectTail, decode_object, decode_with_workers,
};
use crate::codec::encode::SinkError;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::envelope::ObjectFacts;
use crate::format::{ObjectKey, keys};
use crate::interrupt;
use crate::pg::{ArchiveFileName, WalSegmentName};
use crate::repository::{Repository, RepositoryError, RepositoryObject, StoredObject};

use super::absence::{AbsenceError, Archive, Miss, explain_miss};
use super::destination::{Destination, DestinationError, Durability};
use super::first_page::{FIRST_PAGE_BYTES, FirstPageProblem, check_first_page};
use super::interruption::{Interrupted, stop_if_asked};
use super::push::naming_of;

/// Bytes read with the request that finds the object in a far store: most compressed segments of 16 MiB whole.
pub(super) const FIRST_READ: usize = 3 << 20;

/// How often a gap is looked at while it may be filling.
const GAP_POLL: Duration = Duration::from_secs(1);

/// What a gap before stored segments means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapRule {
    /// Something is missing: wait for it until then, then fail.
    WaitUntil(Instant),
    /// The end of WAL: the host that would fill it is lost for good.
    EndOfWal,
}

/// One request.
#[derive(Debug)]
pub struct FetchRequest<'a> {
    /// What is wanted.
    pub name: ArchiveFileName,
    /// Where it goes.
    pub place: Place<'a>,
    /// What a gap means.
    pub gap: GapRule,
    /// How fast.
    pub crew: Crew,
}

/// Where a fetched file goes.
#[derive(Debug)]
pub enum Place<'a> {
    /// Under this path, where it may have to survive power loss.
    Path(&'a Path, Durability),
    /// Into this open, empty file of another process, which will give it this name or throw it away.
    Lent(&'a File, &'a Path),
}

/// How a fetch ended.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The file lies at its destination.
    Delivered(ObjectTail),
    /// The archive answers, and the file is not in it.
    Absent,
    /// Not there, though `later` is; the operator allows that to be taken for the end of WAL.
    AllowedGap {
        /// The first segment after the hole.
        later: WalSegmentName,
    },
}

/// Delivers the file, or says that there is none.
pub fn fetch_file(archive: &Archive<'_>, request: &FetchRequest<'_>) -> Result<Fetched, FetchError> {
    let key = keys::wal(archive.cluster, archive.system, request.name);
    let naming = naming_of(request.name);
    let first_read =
        if archive.repository.is_directory() { archive.repository.read_size() } else { FIRST_READ };
    let mut gap_before: Option<WalSegmentName> = None;
    loop {
        let asked = archive.repository.find_and_read(&key, naming, first_read);
        let asked = asked.map_err(|error| gap_or(error.into(), gap_before, request))?;
        if let Some((object, beginning)) = asked {
            let beginning = Mutex::new(Beginning { offset: 0, bytes: beginning });
            let source = BegunObject { repository: archive.repository, object: &object, beginning };
            return deliver(archive, request, &key, &source).map(Fetched::Delivered);
        }
        let miss = explain_miss(archive, request.name);
        let miss = miss.map_err(|error| gap_or(error.into(), gap_before, request))?;
        let Miss::Gap { later } = miss else { return Ok(Fetched::Absent) };
        let GapRule::WaitUntil(deadline) = request.gap else { return Ok(Fetched::AllowedGap { later }) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FetchError::Gap { name: request.name, later });
        }
        if gap_before.replace(later).is_none() {
            tracing::warn!(
                "{} is not in the archive, but {later} is: waiting up to {left:.0?} for the gap to be filled",
                request.name
            );
        }
        interrupt::sleep(left.min(GAP_POLL));
        if let Some(signal) = interrupt::requested() {
            return Err(Interrupted(signal).into());
        }
    }
}

/// The last question of a wait has little time, and a store that is merely slow would be called unreachable: what was seen before it is the answer.
fn gap_or(error: FetchError, gap: Option<WalSegmentName>, request: &FetchRequest<'_>) -> FetchError {
    match (request.gap, gap) {
        (GapRule::WaitUntil(deadline), Some(later))
            if error.exit_cause() == Cause::Unreachable && deadline <= Instant::now() =>
        {
            FetchError::Gap { name: request.name, later }
        }
        _ => error,
    }
}

/// Fetches a segment ahead of its time, synced, with few threads and little memory. `None` proves nothing: whoever asks for the segment finds out.
pub fn fetch_if_stored(
    archive: &Archive<'_>,
    name: WalSegmentName,
    destination: &Path,
) -> Result<Option<ObjectTail>, FetchError> {
    let name = ArchiveFileName::Segment(name);
    let key = keys::wal(archive.cluster, archive.system, name);
    let found = archive.repository.find_and_read(&key, naming_of(name), FIRST_READ)?;
    let Some((object, beginning)) = found else { return Ok(None) };
    let beginning = Mutex::new(Beginning { offset: 0, bytes: beginning });
    let source = BegunObject { repository: archive.repository, object: &object, beginning };
    let place = Place::Path(destination, Durability::Synced);
    let request = FetchRequest { name, place, gap: GapRule::EndOfWal, crew: Crew::Small };
    deliver(archive, &request, &key, &source).map(Some)
}

/// Threads that decode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crew {
    /// One per core: PostgreSQL waits.
    Full,
    /// One: nobody waits yet, and others fetch beside it.
    Small,
}

/// Decodes into an invisible file, checks everything, and only then gives it its name.
fn deliver(
    archive: &Archive<'_>,
    request: &FetchRequest<'_>,
    key: &ObjectKey,
    source: &dyn ObjectSource,
) -> Result<ObjectTail, FetchError> {
    let facts = expected_facts(archive, request.name);
    let (mut destination, durability) = match request.place {
        Place::Path(path, durability) => (Destination::create(path)?, durability),
        Place::Lent(file, path) => {
            let failed = |source| DestinationError::File { verb: "write", path: path.to_owned(), source };
            (Destination::lent(file.try_clone().map_err(failed)?, path), Durability::LeftToPostgres)
        }
    };
    let mut first_page: Vec<u8> = Vec::with_capacity(FIRST_PAGE_BYTES);
    let expected = Expected { facts: &facts, key };
    let mut take = |bytes: &[u8]| {
        stop_if_asked()?;
        let missing = FIRST_PAGE_BYTES.saturating_sub(first_page.len());
        first_page.extend_from_slice(bytes.get(..missing.min(bytes.len())).unwrap_or_default());
        destination.write(bytes).map_err(|error| Box::new(error) as SinkError)
    };
    let tail = match request.crew {
        Crew::Full => decode_object(source, &expected, archive.keys, &mut take),
        Crew::Small => decode_with_workers(source, &expected, archive.keys, 1, &mut take),
    }?;
    // A segment of another place that was pushed by something else, or under a key made by hand.
    if let ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment) = request.name {
        check_first_page(segment, &first_page, tail.plaintext_length, Some(archive.system))
            .map_err(|problem| FetchError::NotTheSegment { key: key.to_string(), problem })?;
    }
    destination.deliver(durability)?;
    Ok(tail)
}

/// What the object must claim to be.
pub(super) fn expected_facts(archive: &Archive<'_>, name: ArchiveFileName) -> ObjectFacts {
    ObjectFacts::of_archive_file(name, archive.system, Some(archive.segment_size))
}

/// A stored object whose first bytes came with the request that found it.
struct BegunObject<'a> {
    repository: &'a Repository,
    object: &'a StoredObject,
    beginning: Mutex<Beginning>,
}

/// What is left of the first bytes: each is handed out once, front to back, and not kept, because promise 7 counts every MiB.
struct Beginning {
    offset: u64,
    bytes: Vec<u8>,
}

impl Beginning {
    /// Up to `length` bytes from `offset`; none if they were handed out or are not here.
    fn take(&mut self, offset: u64, length: usize) -> Vec<u8> {
        if offset != self.offset {
            return Vec::new();
        }
        let rest = self.bytes.split_off(length.min(self.bytes.len()));
        let taken = std::mem::replace(&mut self.bytes, rest);
        self.offset += taken.len() as u64;
        taken
    }
}

impl ObjectSource for BegunObject<'_> {
    fn stored_length(&self) -> u64 {
        self.object.size
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        self.read_range_reusing(offset, length, Vec::new())
    }

    fn read_range_reusing(&self, offset: u64, length: usize, spare: Vec<u8>) -> Result<Vec<u8>, SinkError> {
        let mut bytes = self.beginning.lock().unwrap_or_else(PoisonError::into_inner).take(offset, length);
        if bytes.len() < length {
            let rest = RepositoryObject { repository: self.repository, object: self.object };
            let (offset, missing) = (offset + bytes.len() as u64, length - bytes.len());
            let more = rest.read_range_reusing(offset, missing, spare)?;
            if bytes.is_empty() {
                return Ok(more);
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    fn read_size(&self) -> usize {
        self.repository.read_size()
    }
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The object is not intact, not the right one, or can't be opened.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The destination failed.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// It was not found, and whether it is absent is not known.
    #[error(transparent)]
    Absence(#[from] AbsenceError),
    /// The object is intact but does not hold the segment of its name.
    #[error("object {key} is not the segment that its name says: {problem}")]
    NotTheSegment {
        /// The object.
        key: String,
        /// What differs.
        problem: FirstPageProblem,
    },
    /// Asked to end while waiting.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A hole that nothing filled.
    #[error("{name} is missing from the archive, although {later} is there")]
    Gap {
        /// What was asked for.
        name: ArchiveFileName,
        /// The first segment after the hole.
        later: WalSegmentName,
    },
}

impl Explain for FetchError {
    fn exit_cause(&self) -> Cause {
        match self {
            FetchError::Repository(error) => error.exit_cause(),
            FetchError::Decode(error) => error.exit_cause(),
            FetchError::Destination(error) => error.exit_cause(),
            FetchError::Absence(error) => error.exit_cause(),
            FetchError::Interrupted(error) => error.exit_cause(),
            FetchError::NotTheSegment { problem: FirstPageProblem::OtherCluster { .. }, .. } => {
                Cause::OtherCluster
            }
            FetchError::NotTheSegment { .. } => Cause::Damaged,
            FetchError::Gap { .. } => Cause::Gap,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            FetchError::Repository(error) => error.hint(),
            FetchError::Decode(error) => error.hint(),
            FetchError::Destination(error) => error.hint(),
            FetchError::Absence(error) => error.hint(),
            FetchError::Interrupted(error) => error.hint(),
            FetchError::NotTheSegment { .. } => Some(
                "restore this object from a copy of the repository, or recover to a moment that does not need it"
                    .to_owned(),
            ),
            FetchError::Gap { .. } => Some(
                "archive the missing segment from the server that has it; if that is lost for good, wal.allow_gap = true ends recovery here"
                    .to_owned(),
            ),
        }
    }
}
