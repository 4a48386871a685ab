//! The backup that an incremental one is based on.
//!
//! In: the cluster's backups, and where the new one starts. Out: the newest backup whose packs can be used again, and how
//! far it can be trusted. What must hold: [`Trust::Line`] is only given to a backup that this server's own WAL leads on
//! from; any other is compared byte for byte. A backup of which a pack is missing, or that expire is about to delete, is no base at all.

use super::list::{BackupName, Catalogue};
use super::{BackupError, BackupRequest, DAMAGED_BLOCKS_KEPT, tombstone};
use crate::format::BackupId;
use crate::format::manifest::{BackupSummary, Manifest};
use crate::pg::{Lsn, SystemIdentifier, TimelineHistory, WalSegmentSize};
use crate::restore::error::RestoreError;
use crate::restore::packs::find_packs;

/// A backup whose packs are used again.
pub struct Base {
    /// All of it.
    pub manifest: Manifest,
    /// How far it is trusted.
    pub trust: Trust,
}

/// What may be concluded from a base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// By its summary it lies on the server's line: what has not changed since its start is as it has it, once the WAL
    /// between is proven too.
    Line,
    /// Nothing but that its chunks hold what their digests say; why.
    Digests(String),
}

/// Where the new backup starts, and what its cluster is like.
#[derive(Clone, Debug)]
pub struct NewStart {
    /// Bytes in a page.
    pub block_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// 15 for 15.18.
    pub major: u32,
    /// Where its WAL begins.
    pub lsn: Lsn,
    /// How its timeline came to be, or why that is not known.
    pub history: Result<TimelineHistory, String>,
}

/// Backups that a new one may take over from, read while the server is still busy with the checkpoint that the new one begins with.
#[derive(Default)]
pub struct Candidates {
    /// The newest first.
    summaries: Vec<BackupSummary>,
    /// The first of them, which is nearly always the one: its name, and all of it if it can be a base.
    first: Option<(BackupId, Option<Manifest>)>,
}

/// Reads which backups there are that have packs of this cluster.
pub fn candidates(
    request: &BackupRequest<'_>,
    system_identifier: SystemIdentifier,
    wal_segment_size: WalSegmentSize,
) -> Result<Candidates, BackupError> {
    let catalogue = catalogue_of(request);
    let doomed = tombstone::list(request.repository, request.cluster)?;
    let mut summaries = Vec::new();
    for backup in catalogue.list()?.into_iter().rev() {
        match backup.summary {
            Ok(_) if doomed.iter().any(|(_, tombstone)| tombstone.names(&backup.id)) => {}
            Ok(summary) if shares_packs(&summary, system_identifier, wal_segment_size) => {
                summaries.push(summary);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("backup {} is not used as a base: {error}", backup.id),
        }
    }
    let first = match summaries.first() {
        Some(newest) => Some((newest.id.clone(), load(request, &catalogue, newest)?)),
        None => None,
    };
    Ok(Candidates { summaries, first })
}

/// Chooses the base; `None` if there is no backup that can be one.
pub fn choose(
    request: &BackupRequest<'_>,
    candidates: Candidates,
    new: &NewStart,
) -> Result<Option<Base>, BackupError> {
    let catalogue = catalogue_of(request);
    let mut first = candidates.first;
    for (summary, trust) in in_order(candidates.summaries, new) {
        let manifest = match first.take_if(|(id, _)| *id == summary.id) {
            Some((_, loaded)) => loaded,
            None => load(request, &catalogue, &summary)?,
        };
        if let Some(manifest) = manifest {
            return Ok(Some(Base { manifest, trust }));
        }
    }
    Ok(None)
}

fn catalogue_of<'a>(request: &BackupRequest<'a>) -> Catalogue<'a> {
    Catalogue { repository: request.repository, cluster: request.cluster, keys: request.keys }
}

/// All of a backup; `None` if it cannot be a base, which is said.
fn load(
    request: &BackupRequest<'_>,
    catalogue: &Catalogue<'_>,
    summary: &BackupSummary,
) -> Result<Option<Manifest>, BackupError> {
    let manifest = match catalogue.manifest(&BackupName::Id(summary.id.clone())) {
        Ok(manifest) => manifest,
        Err(error @ BackupError::Repository(_)) => return Err(error),
        Err(error) => {
            tracing::warn!("backup {} is not used as a base: {error}", summary.id);
            return Ok(None);
        }
    };
    match find_packs(request.repository, request.cluster, &manifest) {
        Ok(_) => Ok(Some(manifest)),
        Err(RestoreError::Repository(error)) => Err(error.into()),
        Err(error) => {
            tracing::warn!("backup {} is not used as a base: {error}", summary.id);
            Ok(None)
        }
    }
}

/// Whether its packs can be named in the new backup's manifest: they carry the cluster's identity and segment size.
fn shares_packs(
    summary: &BackupSummary,
    system_identifier: SystemIdentifier,
    wal_segment_size: WalSegmentSize,
) -> bool {
    summary.system_identifier == system_identifier && summary.wal_segment_size == wal_segment_size
}

/// Those on the server's line first, then the others; the newest first in both.
fn in_order(backups: Vec<BackupSummary>, new: &NewStart) -> Vec<(BackupSummary, Trust)> {
    let judge = |summary: BackupSummary| {
        let trust = match doubt(&summary, new) {
            None => Trust::Line,
            Some(reason) => Trust::Digests(reason),
        };
        (summary, trust)
    };
    let mut judged: Vec<(BackupSummary, Trust)> = backups.into_iter().map(judge).collect();
    // Stable, and false comes first.
    judged.sort_by_key(|(_, trust)| *trust != Trust::Line);
    judged
}

/// Why pages of this backup may not be pages of the cluster's past; `None` if there is no such reason.
fn doubt(summary: &BackupSummary, new: &NewStart) -> Option<String> {
    let id: &BackupId = &summary.id;
    if summary.block_size != new.block_size || summary.server_version / 10_000 != new.major {
        return Some(format!("backup {id} is of another build of PostgreSQL"));
    }
    if summary.data_checksums != new.data_checksums {
        return Some(format!(
            "page checksums were switched since backup {id}, which rewrites pages without WAL"
        ));
    }
    if summary.damaged_pages > DAMAGED_BLOCKS_KEPT as u64 {
        return Some(format!("backup {id} has more damaged pages than it could name"));
    }
    if summary.stop_lsn > new.lsn {
        return Some(format!(
            "backup {id} ended at {}, after this one starts at {}",
            summary.stop_lsn, new.lsn
        ));
    }
    let history = match &new.history {
        Ok(history) => history,
        Err(reason) => return Some(reason.clone()),
    };
    match history.left_at(summary.stop_timeline) {
        Some(left_at) if summary.stop_lsn <= left_at => None,
        Some(left_at) => Some(format!(
            "the server left timeline {} at {left_at}, before backup {id} ended at {}",
            summary.stop_timeline.get(),
            summary.stop_lsn
        )),
        None => Some(format!(
            "backup {id} ended on timeline {}, which the server's timeline {} does not come from",
            summary.stop_timeline.get(),
            history.timeline.get()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::tests::summary;
    use crate::pg::TimelineId;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn new(history: &str, of: u32, lsn: &str) -> NewStart {
        let summary = backup(1, "0/2000028", "0/2000100");
        NewStart {
            block_size: summary.block_size,
            data_checksums: summary.data_checksums,
            major: summary.server_version / 10_000,
            lsn: lsn.parse().unwrap(),
            history: Ok(match of {
                1 => TimelineHistory::without_ancestors(timeline(1)),
                of => TimelineHistory::parse(timeline(of), history).unwrap(),
            }),
        }
    }

    fn backup(on: u32, start: &str, stop: &str) -> BackupSummary {
        BackupSummary {
            stop_timeline: timeline(on),
            start_timeline: timeline(on),
            start_lsn: start.parse().unwrap(),
            stop_lsn: stop.parse().unwrap(),
            ..summary()
        }
    }

    #[test]
    fn a_base_lies_before_on_the_same_line() {
        let first = backup(1, "0/2000028", "0/2000100");
        assert_eq!(doubt(&first, &new("", 1, "0/2000100")), None);
        // A standby that lags behind the one that was backed up.
        let doubted = doubt(&first, &new("", 1, "0/20000F8")).unwrap();
        assert!(doubted.ends_with("ended at 0/2000100, after this one starts at 0/20000F8"), "{doubted}");
        // A promotion after the base's end, at its end, before its end.
        assert_eq!(doubt(&first, &new("1\t0/3000000\tx", 2, "0/4000000")), None);
        assert_eq!(doubt(&first, &new("1\t0/2000100\tx", 2, "0/4000000")), None);
        let doubted = doubt(&first, &new("1\t0/20000F8\tx", 2, "0/4000000")).unwrap();
        assert!(doubted.contains("left timeline 1 at 0/20000F8, before backup"), "{doubted}");
        // A timeline beside the server's.
        let doubted = doubt(&backup(2, "0/2000028", "0/2000100"), &new("1\t0/1000000\tx", 3, "0/4000000"));
        assert!(
            doubted
                .unwrap()
                .contains("ended on timeline 2, which the server's timeline 3 does not come from")
        );
    }

    #[test]
    fn what_writes_pages_without_wal_ends_trust() {
        let new = new("", 1, "0/4000000");
        let base = backup(1, "0/2000028", "0/2000100");
        let doubted = |change: fn(&mut BackupSummary)| {
            let mut base = base.clone();
            change(&mut base);
            doubt(&base, &new)
        };
        assert_eq!(doubted(|_| {}), None);
        assert!(doubted(|base| base.data_checksums = !base.data_checksums).unwrap().contains("checksums"));
        assert!(doubted(|base| base.block_size *= 2).unwrap().contains("another build"));
        assert!(doubted(|base| base.damaged_pages = 1001).unwrap().contains("damaged"));
        assert_eq!(doubted(|base| base.damaged_pages = 1000), None);
        let unknown = NewStart { history: Err("the history is lost".to_owned()), ..new.clone() };
        assert_eq!(doubt(&base, &unknown).unwrap(), "the history is lost");
    }

    #[test]
    fn the_newest_that_is_trusted_comes_first() {
        let new = new("1\t0/3000000\tx", 2, "0/9000000");
        // Newest first, as they are listed: the second lies on the abandoned end of timeline 1.
        let backups = vec![
            backup(1, "0/4000028", "0/4000100"),
            backup(1, "0/2800028", "0/2800100"),
            backup(1, "0/2000028", "0/2000100"),
        ];
        let order: Vec<(String, bool)> = in_order(backups, &new)
            .into_iter()
            .map(|(summary, trust)| (summary.start_lsn.to_string(), trust == Trust::Line))
            .collect();
        let expected = [("0/2800028", true), ("0/2000028", true), ("0/4000028", false)];
        assert_eq!(order, expected.map(|(lsn, trusted)| (lsn.to_owned(), trusted)));
    }
}
