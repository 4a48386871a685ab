//! Every object, decoded to its last byte.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Finding, FindingKind, Obstacle, Question, SystemVerification, VerifyError};
use crate::codec::decode::{DecodeError, Expected, decode_with_workers};
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
    let next = AtomicUsize::new(0);
    let damaged: Mutex<Vec<(usize, ArchiveFileName, String)>> = Mutex::default();
    let failure = Mutex::new(None);
    let decoded = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..question.jobs.min(objects.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(object) = objects.get(at) else { return };
                    let Ok(name) = object.key.name().parse::<ArchiveFileName>() else { continue };
                    decoded.fetch_add(1, Ordering::Relaxed);
                    match decode(question, stored, object, name) {
                        Ok(()) => {}
                        Err(
                            error @ (DecodeError::Damaged { .. }
                            | DecodeError::OtherObject { .. }
                            | DecodeError::OtherCluster { .. }),
                        ) => {
                            let mut damaged = damaged.lock().unwrap_or_else(PoisonError::into_inner);
                            damaged.push((at, name, error.to_string()));
                        }
                        Err(error) => {
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            next.store(objects.len(), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(StoredSegmentsError::from(error).into());
    }
    report.objects_decoded = decoded.into_inner() as u64;
    let mut damaged = damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
    damaged.sort_by_key(|(at, _, _)| *at);
    Ok(damaged.into_iter().filter_map(|(_, name, problem)| obstacle(stored, report, name, problem)).collect())
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
