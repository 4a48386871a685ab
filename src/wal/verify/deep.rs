//! Every object, decoded to its last byte.

use super::{Finding, FindingKind, Obstacle, Question, SystemVerification, VerifyError};
use crate::codec::decode::{DecodeError, Expected, decode_with_workers};
use crate::fan_out;
use crate::format::envelope::ObjectFacts;
use crate::format::keys;
use crate::pg::ArchiveFileName;
use crate::repository::{RepositoryObject, StoredObject};
use crate::wal::stored_segments::{StoredSegments, StoredSegmentsError};

/// Decodes what is archived. Damage is an obstacle where a segment is damaged, else a finding.
pub(super) fn check(
    question: &Question<'_>,
    stored: &StoredSegments<'_>,
    report: &mut SystemVerification,
) -> Result<Vec<Obstacle>, VerifyError> {
    let folder = keys::wal_folder(question.cluster, stored.of().system_identifier);
    let mut objects = question.repository.list(&folder)?;
    objects.sort_by(|one, other| one.path.cmp(&other.path));
    let named = |object: StoredObject| Some((object.key.name().parse::<ArchiveFileName>().ok()?, object));
    let objects: Vec<(ArchiveFileName, StoredObject)> = objects.into_iter().filter_map(named).collect();
    let problems = fan_out::try_map(&objects, question.jobs, |(name, object)| {
        problem_of(question, stored, object, *name)
    })
    .map_err(StoredSegmentsError::from)?;
    report.objects_decoded = objects.len() as u64;
    let damaged = objects.iter().zip(problems).filter_map(|((name, _), problem)| Some((*name, problem?)));
    Ok(damaged.filter_map(|(name, problem)| obstacle(stored, report, name, problem)).collect())
}

/// What is wrong with an object; an error if that could not be found out.
fn problem_of(
    question: &Question<'_>,
    stored: &StoredSegments<'_>,
    object: &StoredObject,
    name: ArchiveFileName,
) -> Result<Option<String>, DecodeError> {
    match decode(question, stored, object, name) {
        Ok(()) => Ok(None),
        Err(error) if error.is_damage() => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

fn decode(
    question: &Question<'_>,
    stored: &StoredSegments<'_>,
    object: &StoredObject,
    name: ArchiveFileName,
) -> Result<(), DecodeError> {
    let facts = ObjectFacts::of_archive_file(name, stored.of().system_identifier, None);
    let source = RepositoryObject { repository: question.repository, object };
    let expected = Expected { facts: &facts, key: &object.key };
    decode_with_workers(&source, &expected, question.keys, 1, &mut |_| Ok(())).map(|_| ())
}

fn obstacle(
    stored: &StoredSegments<'_>,
    report: &mut SystemVerification,
    name: ArchiveFileName,
    problem: String,
) -> Option<Obstacle> {
    let ArchiveFileName::Segment(segment) = name else {
        report.findings.push(Finding::new(FindingKind::Damaged, problem));
        return None;
    };
    let size = stored.of().segment_size;
    let start = segment.start_lsn(size)?;
    // Found by its index already.
    let known = report.findings.iter().any(|finding| finding.first == Some(segment));
    (!known).then(|| Obstacle {
        finding: Finding::of_segments(FindingKind::Damaged, segment, segment, 1, problem),
        timeline: segment.timeline,
        from: start,
        to: start.plus(size.bytes()),
        passable_without_backups: false,
    })
}
