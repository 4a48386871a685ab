//! The session that holds a backup open, and the WAL that the backup needs.

use std::time::{Duration, Instant};

use super::facts::ServerState;
use super::wait_for_wal::{WalSpan, WalWait};
use super::{BackupError, BackupRequest, control};
use crate::format::manifest::Tablespace;
use crate::local::pgdata_walk::PgdataWalk;
use crate::pg::client::{ClientError, ConnectionSettings, Session, StoppedBackup};
use crate::pg::{ArchiveFileName, Lsn, TimelineHistory, TimelineId};

/// How often the session is asked for a sign of life: the server ends a backup with the session that began it, and a
/// firewall may end a session that is silent for long.
const PING_EVERY: Duration = Duration::from_secs(10);
/// So long an idle primary may keep a standby's backup waiting before it is asked for a new segment.
const IDLE_PRIMARY: Duration = Duration::from_secs(2);

/// Watches over the session.
pub struct SessionWatch {
    in_recovery: bool,
    pinged: Instant,
}

impl SessionWatch {
    /// `in_recovery` is what it was when the backup began.
    pub fn new(in_recovery: bool) -> SessionWatch {
        SessionWatch { in_recovery, pinged: Instant::now() }
    }

    /// Fails if the session was lost, or the standby promoted: the backup cannot be completed then.
    pub fn look(&mut self, session: &mut Session) -> Result<(), BackupError> {
        if self.pinged.elapsed() < PING_EVERY {
            return Ok(());
        }
        self.pinged = Instant::now();
        let in_recovery = session.in_recovery().map_err(lost)?;
        if in_recovery != self.in_recovery {
            return Err(BackupError::SessionLost("the standby was promoted".to_owned()));
        }
        Ok(())
    }
}

fn lost(error: ClientError) -> BackupError {
    BackupError::SessionLost(error.to_string())
}

/// Whatever could not be asked because the session is gone, that it is gone is what matters: the server has ended the backup.
pub fn lost_if_closed(session: &mut Session, error: BackupError) -> BackupError {
    match error {
        BackupError::Client(error) if session.client().is_closed() => lost(error),
        other => other,
    }
}

/// The tablespaces that the walk found links to, with their names.
pub fn tablespaces(session: &mut Session, found: &PgdataWalk) -> Result<Vec<Tablespace>, BackupError> {
    let known = session.tablespaces()?;
    let named = found.links.iter().map(|link| {
        let name = known.iter().find(|tablespace| tablespace.oid == link.oid).map(|known| known.name.clone());
        let location = link.location.to_string_lossy().into_owned();
        // Dropped between the walk and the question: its name is not needed any more.
        Tablespace { oid: link.oid, name: name.unwrap_or_default(), location }
    });
    Ok(named.collect())
}

/// The WAL that a backup needs.
pub struct BackupWal {
    /// The timeline that it ends on.
    pub stop_timeline: TimelineId,
    /// From start to stop.
    pub span: WalSpan,
}

/// Which WAL lies between start and stop. A standby may have followed its primary to another timeline meanwhile.
pub fn wal_of(state: &ServerState, start: &Lsn, stopped: &StoppedBackup) -> Result<BackupWal, BackupError> {
    let now = control::read(&state.pgdata)?.file;
    let newest = now.min_recovery_timeline.unwrap_or(now.checkpoint_timeline);
    let mut history = if newest == state.control.checkpoint_timeline {
        TimelineHistory::without_ancestors(newest)
    } else {
        read_history(state, newest)?
    };
    if state.in_recovery {
        history = followed(state, stopped.lsn, newest)?.unwrap_or(history);
    }
    let last_byte = Lsn::new(stopped.lsn.get().saturating_sub(1));
    Ok(BackupWal {
        stop_timeline: history.timeline_at(last_byte),
        span: WalSpan {
            history,
            start: *start,
            stop: stopped.lsn,
            segment_size: state.control.wal_segment_size,
        },
    })
}

/// The newest timeline that a standby knows of and that left `timeline` at or after the stop. It matters where it began
/// in the stop's own segment: the old timeline's segment was never completed, so only the new one's is archived.
fn followed(
    state: &ServerState,
    stop: Lsn,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>, BackupError> {
    let directory = state.pgdata.join("pg_wal");
    let names = std::fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let names = names.map_err(|error| BackupError::Read { path: directory, error })?;
    let parse = |name: &std::ffi::OsString| match name.to_str()?.parse() {
        Ok(ArchiveFileName::TimelineHistory(known)) if known > timeline => Some(known),
        _ => None,
    };
    let mut known: Vec<TimelineId> = names.iter().filter_map(parse).collect();
    known.sort_unstable();
    for newer in known.into_iter().rev() {
        // A file that cannot be read is no timeline that this standby follows.
        if let Ok(history) = read_history(state, newer)
            && history.left_at(timeline).is_some_and(|left_at| left_at >= stop)
        {
            return Ok(Some(history));
        }
    }
    Ok(None)
}

/// How the server's timeline came to be.
pub fn history_of(state: &ServerState, timeline: TimelineId) -> Result<TimelineHistory, BackupError> {
    match timeline {
        TimelineId::FIRST => Ok(TimelineHistory::without_ancestors(timeline)),
        _ => read_history(state, timeline),
    }
}

/// A timeline's history, which a server that is on it keeps in its pg_wal.
fn read_history(state: &ServerState, timeline: TimelineId) -> Result<TimelineHistory, BackupError> {
    let path = state.pgdata.join(format!("pg_wal/{timeline}.history"));
    let text =
        std::fs::read_to_string(&path).map_err(|error| BackupError::Read { path: path.clone(), error })?;
    TimelineHistory::parse(timeline, &text).map_err(|error| BackupError::Unusable {
        what: format!("read {}", path.display()),
        problem: error.to_string(),
    })
}

/// Waits until the WAL is in the repository.
pub fn wait_for_wal(
    session: &mut Session,
    request: &BackupRequest<'_>,
    state: &ServerState,
    wal: &BackupWal,
) -> Result<(), BackupError> {
    let files = wal.span.files();
    tracing::debug!("waiting for {} WAL files, the last of which is {:?}", files.len(), files.last());
    let wait = WalWait {
        repository: request.repository,
        cluster: request.cluster,
        system_identifier: state.system_identifier(),
        patience: request.wal_patience,
    };
    let mut primary_asked = !state.in_recovery;
    let mut told = false;
    let while_waiting = |waited: Duration| {
        if waited >= IDLE_PRIMARY && !primary_asked {
            primary_asked = true;
            switch_on_primary(session);
        }
        if waited >= Duration::from_secs(10) && !told {
            told = true;
            let says = archiver_says(session, state, request);
            tracing::info!(
                "waiting for the backup's WAL to arrive in the repository; if it does not: {says}"
            );
        }
        Ok(())
    };
    match wait.wait(files, while_waiting) {
        Err(BackupError::WalMissing { segment, waited, .. }) => {
            let hint = archiver_says(session, state, request);
            Err(BackupError::WalMissing { segment, waited, hint })
        }
        other => other,
    }
}

/// An idle primary never finishes its last segment. A standby knows how to reach it, but its role there may not be
/// allowed to do this: then the operator is told.
fn switch_on_primary(session: &mut Session) {
    let switch = |session: &mut Session| {
        let conninfo =
            session.settings(&["primary_conninfo"])?.remove("primary_conninfo").unwrap_or_default();
        if conninfo.is_empty() {
            return Ok(None);
        }
        // The first dbname is a default: of two, the last one counts.
        let connection = Some(format!("dbname=postgres {conninfo}"));
        Session::connect(&ConnectionSettings { connection })?.switch_wal().map(Some)
    };
    match switch(session) {
        Ok(Some(lsn)) => tracing::info!("the primary was asked to finish its WAL segment, at {lsn}"),
        Ok(None) => {}
        Err(error) => {
            let error: ClientError = error;
            tracing::info!("the primary could not be asked to finish its WAL segment: {error}");
        }
    }
}

/// What to do when WAL does not arrive.
fn archiver_says(session: &mut Session, state: &ServerState, request: &BackupRequest<'_>) -> String {
    let place = format!("{}, cluster {}", request.repository.url(), request.cluster);
    if state.in_recovery {
        return format!(
            "an idle primary does not finish its last segment: run SELECT pg_switch_wal() there, and check that it archives into {place}"
        );
    }
    let sql = "SELECT last_failed_wal FROM pg_stat_archiver \
               WHERE last_failed_time > coalesce(last_archived_time, '-infinity')";
    let failed = session.client().query_opt(sql, &[]).ok().flatten();
    match failed.and_then(|row| row.try_get::<_, Option<String>>(0).ok().flatten()) {
        Some(failed) => {
            format!("archiving {failed} fails: look at the server's log for what archive_command says")
        }
        None => format!(
            "archive_command does not archive into {place}: walhold wal-push must be told the same WALHOLD_REPOSITORY and WALHOLD_CLUSTER"
        ),
    }
}
