//! Proof that a file is not in the archive.
//!
//! "Not found" proves nothing: a missing bucket, a wrong prefix and an unmounted disk answer so too. The proof is that the repository's marker and
//! the cluster's identity record both answer, and that no later segment of the same timeline is stored.

use crate::codec::KeyRing;
use crate::codec::decode::{Expected, decode_object};
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::{ClusterName, keys};
use crate::pg::{
    ArchiveFileName, Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber,
    WalSegmentSize,
};
use crate::repository::{Naming, Repository, RepositoryError, RepositoryObject};

use super::fetch::expected_facts;
use super::identity::{IdentityError, prove_recorded};

/// The archive of one cluster, as a fetch reads it.
#[derive(Clone, Copy)]
pub struct Archive<'a> {
    /// Where it lies.
    pub repository: &'a Repository,
    /// The keys that open it.
    pub keys: &'a KeyRing,
    /// The name that the cluster archives under.
    pub cluster: &'a ClusterName,
    /// The cluster's identity.
    pub system: SystemIdentifier,
    /// The cluster's segment size.
    pub segment_size: WalSegmentSize,
}

/// What a miss means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Miss {
    /// The archive answers, and the file is not in it.
    Absent,
    /// A later segment of the timeline is stored: this one must have been, or is still on its way.
    Gap {
        /// The first later one.
        later: WalSegmentName,
    },
}

/// Decides what it means that the store has no object of this name. An error if the archive cannot be relied on: then
/// nothing is known.
pub fn explain_miss(archive: &Archive<'_>, name: ArchiveFileName) -> Result<Miss, AbsenceError> {
    archive.repository.prove_present()?;
    prove_recorded(archive.repository, archive.cluster, archive.system)?;
    let ArchiveFileName::Segment(segment) = name else { return Ok(Miss::Absent) };
    let Some(later) = first_later_segment(archive, segment)? else { return Ok(Miss::Absent) };
    if lies_before_its_timeline(archive, segment)? {
        return Ok(Miss::Absent);
    }
    Ok(Miss::Gap { later })
}

/// The first stored segment after `segment` on its timeline.
fn first_later_segment(
    archive: &Archive<'_>,
    segment: WalSegmentName,
) -> Result<Option<WalSegmentName>, AbsenceError> {
    let timeline = keys::timeline_folder(archive.cluster, archive.system, segment.timeline);
    let logs = archive.repository.list_folders(&timeline)?;
    let own_log = format!("{:08X}", segment.log());
    // Eight digits each: the order of the text is the order of the numbers.
    for log in logs.iter().filter(|log| **log >= own_log) {
        let stored = archive.repository.list(&format!("{timeline}/{log}"))?;
        let later = stored
            .iter()
            .filter_map(|object| object.key.name().parse::<WalSegmentName>().ok())
            .filter(|name| name.timeline == segment.timeline && *name > segment)
            .min();
        if later.is_some() {
            return Ok(later);
        }
    }
    Ok(None)
}

/// Whether the timeline begins after this segment: PostgreSQL may ask for such a one, and it never existed.
fn lies_before_its_timeline(archive: &Archive<'_>, segment: WalSegmentName) -> Result<bool, AbsenceError> {
    let Some(number) = segment.number(archive.segment_size) else { return Ok(false) };
    if segment.timeline == TimelineId::FIRST {
        return Ok(false);
    }
    let Some(history) = read_history(archive, segment.timeline)? else { return Ok(false) };
    let begins_at = history.begins_at(segment.timeline).unwrap_or(Lsn::INVALID);
    Ok(number < WalSegmentNumber::containing(begins_at, archive.segment_size))
}

/// The history of a timeline, `None` if none is stored or it makes no sense.
pub fn read_history(
    archive: &Archive<'_>,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>, AbsenceError> {
    let name = ArchiveFileName::TimelineHistory(timeline);
    let key = keys::wal(archive.cluster, archive.system, name);
    let Some(object) = archive.repository.find(&key, Naming::ByStore)? else { return Ok(None) };
    let facts = expected_facts(archive, name);
    let mut text = Vec::new();
    let source = RepositoryObject { repository: archive.repository, object: &object };
    let expected = Expected { facts: &facts, key: &key };
    decode_object(&source, &expected, archive.keys, &mut |bytes| {
        text.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).ok())
}

/// Why it is not known whether a file is absent.
#[derive(Debug, thiserror::Error)]
pub enum AbsenceError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The cluster's identity could not be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A history could not be read.
    #[error(transparent)]
    History(#[from] crate::codec::decode::DecodeError),
}

impl AbsenceError {
    fn inner(&self) -> &dyn Explain {
        match self {
            AbsenceError::Repository(error) => error,
            AbsenceError::Identity(error) => error,
            AbsenceError::History(error) => error,
        }
    }
}

impl Explain for AbsenceError {
    fn exit_cause(&self) -> Cause {
        self.inner().exit_cause()
    }

    fn hint(&self) -> Option<String> {
        self.inner().hint()
    }
}
