//! Which source tells what has changed since a base, and what it says.
//!
//! In: the base, the operator's wish. Out: the best source that can be trusted, with its changes, and why the better ones
//! were passed over; one that was asked for by name fails instead. What must hold: only "compare" is used unless WAL leads from the
//! base's start to the new backup's without a gap, none of it written with `wal_level=minimal`, and the archive's WAL is the server's own.

use super::base::{Base, Trust};
use super::changes::{ChangeSource, Changes, ChangesFrom, summaries};
use super::facts::ServerState;
use super::{BackupError, BackupRequest, Started, session};
use crate::format::manifest::ServerFacts;
use crate::format::wal_index::BlockChanges;
use crate::pg::client::Session;
use crate::pg::{Lsn, TimelineHistory};
use crate::wal::changes::{ChangesError, RangeChanges, WalRange, changes_in};
use crate::wal::stored_segments::{StoredSegments, WalOf};

/// The source that was found, and what it says.
pub(super) struct FoundChanges {
    pub(super) source: ChangeSource,
    pub(super) changes: Changes,
    /// Why not a better one; empty if there is none or it was asked for.
    pub(super) passed_over: Vec<String>,
}

/// Finds out what has changed between the base's start and the new backup's.
pub(super) fn find_changes(
    session: &mut Session,
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    base: &Base,
    from: ChangesFrom,
) -> Result<FoundChanges, BackupError> {
    let mut finding = Finding { from, passed_over: Vec::new() };
    if from == ChangesFrom::Only(ChangeSource::Compare) {
        return Ok(finding.found(ChangeSource::Compare, Changes::Unknown));
    }
    let start = base.manifest.summary.start_lsn;
    let (history, proven) = match prove_line(request, state, started, base)? {
        Ok(proof) => proof,
        Err(reason) => {
            finding.pass_over(&reason)?;
            return Ok(finding.found(ChangeSource::Compare, Changes::Unknown));
        }
    };
    if let Some(source) = finding.next(ChangeSource::Summaries) {
        match summaries::read(session, &history, start, started.lsn)? {
            Ok(blocks) => return Ok(finding.blocks(source, blocks)),
            Err(reason) => finding.pass_over(&format!("{source}: {reason}"))?,
        }
    }
    if let Some(source) = finding.next(ChangeSource::Index) {
        match proven.blocks {
            Ok(blocks) => return Ok(finding.blocks(source, blocks)),
            Err(reason) => finding.pass_over(&format!("{source}: {reason}"))?,
        }
    }
    if let Some(source) = finding.next(ChangeSource::Scan) {
        match doubt_of_scan(&base.manifest.server, state, proven.restarted) {
            None => return Ok(finding.found(source, Changes::PagesSince(start))),
            Some(reason) => finding.pass_over(&format!("{source}: {reason}"))?,
        }
    }
    Ok(finding.found(ChangeSource::Compare, Changes::Unknown))
}

/// What was tried so far.
struct Finding {
    from: ChangesFrom,
    passed_over: Vec<String>,
}

impl Finding {
    fn next(&self, source: ChangeSource) -> Option<ChangeSource> {
        self.from.allows(source).then_some(source)
    }

    /// A source cannot be used: the next one is tried, unless this one was asked for.
    fn pass_over(&mut self, reason: &str) -> Result<(), BackupError> {
        match self.from {
            ChangesFrom::Auto => {
                self.passed_over.push(reason.to_owned());
                Ok(())
            }
            ChangesFrom::Only(source) => Err(BackupError::Refused {
                problem: format!(
                    "changes cannot be taken from {source}: {}",
                    reason.strip_prefix(&format!("{source}: ")).unwrap_or(reason)
                ),
                hint:
                    "--changes-from auto falls back to a source that can be trusted; --full stores everything"
                        .to_owned(),
            }),
        }
    }

    fn blocks(self, source: ChangeSource, blocks: BlockChanges) -> FoundChanges {
        tracing::debug!(
            "{} blocks in {} forks are named as changed",
            blocks.block_count(),
            blocks.fork_count()
        );
        self.found(source, Changes::Blocks(Box::new(blocks)))
    }

    fn found(self, source: ChangeSource, changes: Changes) -> FoundChanges {
        FoundChanges { source, changes, passed_over: self.passed_over }
    }
}

/// Shows that the server's present comes from the base by WAL alone; else the reason why that cannot be shown.
fn prove_line(
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    base: &Base,
) -> Result<Result<(TimelineHistory, RangeChanges), String>, BackupError> {
    if let Trust::Digests(reason) = &base.trust {
        return Ok(Err(reason.clone()));
    }
    let history = match session::history_of(state, started.segment.timeline) {
        Ok(history) => history,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let of = WalOf {
        cluster: request.cluster,
        system_identifier: state.system_identifier(),
        segment_size: state.control.wal_segment_size,
    };
    let mut stored = StoredSegments::open(request.repository, request.keys, of)?;
    let range = WalRange { history: &history, start: base.manifest.summary.start_lsn, stop: started.lsn };
    let pg_wal = state.pgdata.join("pg_wal");
    match changes_in(&mut stored, &range, Some(&pg_wal)) {
        Ok(changes) => Ok(Ok((history, changes))),
        Err(ChangesError::Unproven(reason)) => {
            Ok(Err(format!("the WAL since backup {} is not proven: {reason}", base.manifest.summary.id)))
        }
        Err(ChangesError::Stored(error)) => Err(error.into()),
    }
}

/// Why pages may have changed without a new LSN. Vacuum sets a heap page's all-visible bit so where hint bits are not
/// logged: the map, which is always read, would then say more than the page that is kept.
fn doubt_of_scan(base: &ServerFacts, state: &ServerState, restarted: Option<Lsn>) -> Option<String> {
    let on = |facts: &ServerFacts, name: &str| facts.settings.get(name).is_some_and(|value| value == "on");
    let logged = |facts: &ServerFacts| on(facts, "data_checksums") || on(facts, "wal_log_hints");
    if !logged(base) || !logged(&state.facts) {
        return Some("hint bits are not logged (no page checksums, wal_log_hints is off)".to_owned());
    }
    // Both can only be switched while the server is down.
    restarted.map(|at| {
        format!(
            "the server may have been restarted at {at}, with page checksums or wal_log_hints off for a while"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_asked_for_by_name_fails() {
        let mut finding = Finding { from: ChangesFrom::Only(ChangeSource::Scan), passed_over: Vec::new() };
        assert_eq!(finding.next(ChangeSource::Index), None);
        let error = finding.pass_over("scan: no reason").unwrap_err();
        assert_eq!(error.to_string(), "changes cannot be taken from scan: no reason");
        let mut finding = Finding { from: ChangesFrom::Auto, passed_over: Vec::new() };
        finding.pass_over("scan: no reason").unwrap();
        assert_eq!(finding.found(ChangeSource::Compare, Changes::Unknown).passed_over, ["scan: no reason"]);
    }
}
