//! The archive against the server: how far behind it is, and whether it can be this server's at all.

use serde::Serialize;

use super::{Finding, FindingKind};
use crate::pg::client::{ClientError, ConnectionSettings, Session};
use crate::pg::{
    Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize,
};
use crate::wal::archive_view::ArchiveView;

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct ServerPosition {
    /// Where it was reached.
    pub address: String,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline that it writes.
    pub timeline: TimelineId,
    /// Where the next record goes; on a standby, what was replayed.
    pub lsn: Lsn,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Bytes in a segment.
    pub segment_size: WalSegmentSize,
    /// How long the oldest finished segment waits, in seconds; 0 if none does, `None` if the role may not see it.
    pub oldest_waiting_seconds: Option<f64>,
    /// Whether `archive_mode` is on.
    pub archives: bool,
    /// The file whose last attempt failed and was not followed by a success, and when.
    pub failing: Option<(String, Option<PgTimestamp>)>,
}

/// The archive against the server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    /// Where it was reached.
    pub address: String,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline that it is on.
    pub timeline: TimelineId,
    /// Where it is.
    pub lsn: Lsn,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The last segment of this timeline that is archived.
    pub last_archived: Option<WalSegmentName>,
    /// Where archived WAL of this timeline ends.
    pub archived_until: Option<Lsn>,
    /// Finished segments that are not archived.
    pub lag_segments: u64,
    /// Bytes written that are not archived, those of the current segment included.
    pub lag_bytes: u64,
    /// How long the oldest finished segment waits; 0 if none does, `null` if the role may not see it.
    pub lag_seconds: Option<f64>,
}

impl ServerPosition {
    /// Asks the server.
    pub fn ask(settings: &ConnectionSettings) -> Result<ServerPosition, ClientError> {
        let mut session = Session::connect(settings)?;
        let in_recovery = session.in_recovery()?;
        let what = "read the server's position";
        let sql = if in_recovery {
            "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') - '0/0', timeline_id FROM pg_control_checkpoint()"
        } else {
            // pg_control's timeline is that of the last checkpoint: right after a promotion, an older one.
            "SELECT pg_current_wal_insert_lsn() - '0/0', ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
        };
        let sql = sql.replacen(" - '0/0',", " - '0/0'::pg_lsn,", 1);
        let row = session
            .client()
            .query_one(&format!("SELECT lsn::int8, tli::int4 FROM ({sql}) AS p (lsn, tli)"), &[]);
        let row = row.map_err(|error| ClientError::query(what, &error))?;
        let unexpected = |text: &str| ClientError::unexpected(what, text);
        let lsn: i64 = row.try_get(0).map_err(|_| unexpected("no position"))?;
        let timeline: i32 = row.try_get(1).map_err(|_| unexpected("no timeline"))?;
        let timeline = TimelineId::new(timeline.cast_unsigned()).ok_or_else(|| unexpected("timeline 0"))?;
        let settings = session.settings(&["wal_segment_size", "archive_mode"])?;
        let size =
            settings.get("wal_segment_size").and_then(|size| size.parse().ok()).and_then(WalSegmentSize::new);
        let waiting = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)::float8 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
        let oldest_waiting_seconds =
            session.client().query_one(waiting, &[]).ok().and_then(|row| row.try_get(0).ok());
        let failing = "SELECT last_failed_wal, (extract(epoch FROM last_failed_time) * 1000000)::int8 FROM pg_stat_archiver
             WHERE last_failed_time > coalesce(last_archived_time, '-infinity')";
        let failing = session.client().query_opt(failing, &[]);
        let failing = failing.map_err(|error| ClientError::query("ask for the archiver", &error))?;
        let failing = failing.and_then(|row| {
            let moment = |micros| jiff::Timestamp::from_microsecond(micros).ok().map(PgTimestamp::from_jiff);
            Some((row.try_get::<_, String>(0).ok()?, row.try_get::<_, i64>(1).ok().and_then(moment)))
        });
        Ok(ServerPosition {
            address: session.address(),
            system_identifier: session.system_identifier()?,
            timeline,
            lsn: Lsn::new(lsn.cast_unsigned()),
            in_recovery,
            segment_size: size.ok_or_else(|| unexpected("no wal_segment_size"))?,
            oldest_waiting_seconds,
            archives: settings.get("archive_mode").is_some_and(|mode| mode != "off"),
            failing,
        })
    }
}

/// Compares; `known` tells whether the server's cluster has anything stored under the name.
pub(super) fn compare(
    position: &ServerPosition,
    view: Option<&ArchiveView>,
    known: bool,
) -> (ServerReport, Vec<Finding>) {
    let size = position.segment_size;
    let current = WalSegmentNumber::containing(position.lsn, size);
    let last = view.and_then(|view| view.last_of(position.timeline));
    let begins = view
        .map(|view| view.history(position.timeline))
        .and_then(|history| history.begins_at(position.timeline));
    let archived_until = last.map(|last| last.next().start_lsn(size));
    // Where nothing of this timeline is archived, what is missing begins where the timeline does.
    let unarchived_from = archived_until.or(begins).unwrap_or(Lsn::INVALID);
    let first_missing = WalSegmentNumber::containing(unarchived_from, size);
    let report = ServerReport {
        address: position.address.clone(),
        system_identifier: position.system_identifier,
        timeline: position.timeline,
        lsn: position.lsn,
        in_recovery: position.in_recovery,
        last_archived: last.map(|last| WalSegmentName::new(position.timeline, last, size)),
        archived_until,
        lag_segments: current.get().saturating_sub(first_missing.get()),
        lag_bytes: position.lsn.bytes_since(unarchived_from),
        lag_seconds: position.oldest_waiting_seconds,
    };
    let mut findings = Vec::new();
    if !known {
        findings.push(Finding::new(
            FindingKind::OtherServer,
            format!(
                "the server at {} is system {}, of which nothing is archived under this name",
                position.address, position.system_identifier
            ),
        ));
    }
    if let Some(last) = last.filter(|last| *last >= current && !position.in_recovery) {
        let name = WalSegmentName::new(position.timeline, last, size);
        let problem = format!(
            "segment {name} is archived, but the server at {} has only come to {}: it was set back to an older state, or another one archives into its place",
            position.address, position.lsn
        );
        findings.push(Finding::of_segments(FindingKind::Ahead, name, name, 1, problem));
    }
    if !position.archives {
        let problem =
            format!("archive_mode is off on the server at {}: nothing more is archived", position.address);
        findings.push(Finding::new(FindingKind::Archiver, problem));
    }
    if let Some((file, when)) = &position.failing {
        let when = when.map(|when| format!(" at {when}")).unwrap_or_default();
        let problem = format!(
            "the server at {} last failed to archive {file}{when}, and has archived nothing since",
            position.address
        );
        findings.push(Finding::new(FindingKind::Archiver, problem));
    }
    (report, findings)
}
