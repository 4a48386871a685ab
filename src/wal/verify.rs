//! Whether the archive holds, without a gap, the WAL that its backups need: `wal-verify`.
//!
//! In: the stored segments of each cluster under a name, its backups, and what the server says of itself if it answers. Out: a report, the
//! schema of `wal-verify --json`: each finding with the names it is about and with what it costs, which backups and which span of time.
//!
//! What must hold: nothing is called healthy that was not looked at. Every segment from the oldest backup's start (without backups: from the
//! oldest stored one) to the newest of each timeline is there, alone under its name, its index readable, its records valid, and follows on the
//! one before; at a switch of timelines too. With `--deep` every object is decoded to its last byte.

use serde::Serialize;

use super::archive_view::ArchiveView;
use super::show::{ShowError, known_segment_size, recorded_systems};
use super::stored_segments::{StoredSegments, StoredSegmentsError, WalOf};
use crate::codec::KeyRing;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::manifest::BackupSummary;
use crate::format::{BackupId, ClusterName};
use crate::pg::{Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::repository::{Repository, RepositoryError};

mod continuity;
mod cost;
mod deep;
mod server;

pub use continuity::missing;
pub use server::{ServerPosition, ServerReport};

/// A backup as far as its WAL goes.
#[derive(Clone, Debug)]
pub struct BackupSpan {
    /// Its name.
    pub id: BackupId,
    /// Whose it is.
    pub system_identifier: SystemIdentifier,
    /// The timeline at its start.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// When that was.
    pub stop_time: PgTimestamp,
}

/// Segments that are missing although the recovery of a backup has to pass them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingWal {
    /// The first one.
    pub first: WalSegmentName,
    /// The last one.
    pub last: WalSegmentName,
    /// Backups that cannot become consistent without them.
    pub backups_lost: Vec<BackupId>,
}

/// How far objects are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Their indexes.
    Indexes,
    /// Every byte.
    Objects,
}

/// What is asked.
pub struct Question<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The name that the clusters archive under.
    pub cluster: &'a ClusterName,
    /// What opens encrypted objects.
    pub keys: &'a KeyRing,
    /// All backups under the name.
    pub backups: &'a [BackupSpan],
    /// How far objects are read.
    pub depth: Depth,
    /// Objects that are decoded at once.
    pub jobs: usize,
}

/// `wal-verify --json`. Field names are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The name.
    pub cluster: ClusterName,
    /// How far objects were read.
    pub depth: Depth,
    /// False if there is any finding.
    pub healthy: bool,
    /// One entry per system identifier.
    pub systems: Vec<SystemVerification>,
    /// What the server says; `null` if it was not reached.
    pub server: Option<ServerReport>,
    /// Why it was not reached.
    pub server_problem: Option<String>,
    /// What is not about one cluster's archive.
    pub findings: Vec<Finding>,
}

/// One cluster's archive.
#[derive(Clone, Debug, Serialize)]
pub struct SystemVerification {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Bytes per segment; `null` without segments.
    pub wal_segment_size: Option<WalSegmentSize>,
    /// Where the oldest WAL begins that is needed; `null` if nothing is stored.
    pub needed_from: Option<Lsn>,
    /// The last commit that is archived.
    pub newest_commit: Option<PgTimestamp>,
    /// Segments whose indexes were read and joined.
    pub segments_checked: u64,
    /// Objects decoded to their last byte.
    pub objects_decoded: u64,
    /// The timelines that are needed.
    pub timelines: Vec<TimelineVerification>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// One timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineVerification {
    /// Its number.
    pub timeline: TimelineId,
    /// The first segment that is needed of it.
    pub first: WalSegmentName,
    /// The last one that is stored or needed.
    pub last: WalSegmentName,
    /// How many are stored of these.
    pub segments: u64,
    /// How many are missing.
    pub missing: u64,
}

/// Kinds of findings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Segments are missing before stored ones.
    Gap,
    /// An object cannot be read back, or holds WAL that is not valid.
    Damaged,
    /// Two segments do not fit together.
    Broken,
    /// Two different objects are stored under one name.
    TwoObjects,
    /// A history file cannot be used.
    History,
    /// A backup needs WAL of which nothing is stored.
    NoWal,
    /// The archive has WAL that the server has not written yet.
    Ahead,
    /// The server does not archive, or fails to.
    Archiver,
    /// The server is another cluster.
    OtherServer,
}

/// Something that is wrong, and what it costs.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The timeline that it is on.
    pub timeline: Option<TimelineId>,
    /// The first segment that it is about.
    pub first: Option<WalSegmentName>,
    /// The last one.
    pub last: Option<WalSegmentName>,
    /// How many.
    pub segments: u64,
    /// In words.
    pub problem: String,
    /// What it makes unrecoverable.
    pub cost: Option<Cost>,
}

/// What a place costs that recovery cannot pass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Cost {
    /// Backups that cannot be restored at all: it lies before they are consistent.
    pub backups_lost: Vec<BackupId>,
    /// Backups that can be recovered no further than to it.
    pub backups_cut: Vec<BackupId>,
    /// Where moments begin that no backup reaches any more.
    pub lost_from: Lsn,
    /// The last commit before it, which can still be reached if a backup is before it; `null` if none is known.
    pub lost_after: Option<PgTimestamp>,
    /// When the next backup behind it is consistent, from which moments can be reached again; `null` if there is none: everything after it
    /// is lost.
    pub lost_until: Option<PgTimestamp>,
}

impl BackupSpan {
    /// What a manifest's summary says.
    pub fn of(summary: &BackupSummary) -> BackupSpan {
        BackupSpan {
            id: summary.id.clone(),
            system_identifier: summary.system_identifier,
            timeline: summary.start_timeline,
            start: summary.start_lsn,
            stop: summary.stop_lsn,
            stop_time: summary.stop_time,
        }
    }
}

impl Finding {
    fn new(kind: FindingKind, problem: String) -> Finding {
        Finding { kind, timeline: None, first: None, last: None, segments: 0, problem, cost: None }
    }

    fn of_segments(
        kind: FindingKind,
        first: WalSegmentName,
        last: WalSegmentName,
        segments: u64,
        problem: String,
    ) -> Finding {
        Finding {
            timeline: Some(first.timeline),
            first: Some(first),
            last: Some(last),
            segments,
            ..Finding::new(kind, problem)
        }
    }
}

/// Looks at everything that is archived under a name. `server` is what the server says, or why it was not asked.
pub fn verify(
    question: &Question<'_>,
    server: Result<ServerPosition, String>,
) -> Result<Verification, VerifyError> {
    let mut systems = Vec::new();
    let mut views: Vec<(SystemIdentifier, ArchiveView)> = Vec::new();
    for system in recorded_systems(question.repository, question.cluster)? {
        let (report, view) = verify_system(question, system)?;
        systems.push(report);
        views.extend(view.map(|view| (system, view)));
    }
    let mut findings = Vec::new();
    let (server, server_problem) = match server {
        Ok(position) => {
            let view = views.iter().find(|(system, _)| *system == position.system_identifier);
            let known = systems.iter().any(|report| report.system_identifier == position.system_identifier);
            let (report, found) = server::compare(&position, view.map(|(_, view)| view), known);
            findings.extend(found);
            (Some(report), None)
        }
        Err(problem) => (None, Some(problem)),
    };
    let healthy = findings.is_empty() && systems.iter().all(|system| system.findings.is_empty());
    Ok(Verification {
        repository: question.repository.url().to_owned(),
        cluster: question.cluster.clone(),
        depth: question.depth,
        healthy,
        systems,
        server,
        server_problem,
        findings,
    })
}

fn verify_system(
    question: &Question<'_>,
    system: SystemIdentifier,
) -> Result<(SystemVerification, Option<ArchiveView>), VerifyError> {
    let backups: Vec<&BackupSpan> =
        question.backups.iter().filter(|backup| backup.system_identifier == system).collect();
    let mut report = SystemVerification {
        system_identifier: system,
        wal_segment_size: known_segment_size(question.repository, question.cluster, question.keys, system)?,
        needed_from: None,
        newest_commit: None,
        segments_checked: 0,
        objects_decoded: 0,
        timelines: Vec::new(),
        findings: Vec::new(),
    };
    let Some(segment_size) = report.wal_segment_size else {
        report.findings.extend(backups.iter().map(|backup| {
            Finding::new(FindingKind::NoWal, format!("no WAL is stored, but backup {} needs some", backup.id))
        }));
        return Ok((report, None));
    };
    let of = WalOf { cluster: question.cluster, system_identifier: system, segment_size };
    let stored = StoredSegments::open(question.repository, question.keys, of)?;
    for (timeline, problem) in &stored.view().unusable_histories {
        let problem = format!("the history of timeline {} cannot be used: {problem}", timeline.get());
        let finding = Finding::new(FindingKind::History, problem);
        report.findings.push(Finding { timeline: Some(*timeline), ..finding });
    }
    let mut times = cost::CommitTimes::default();
    let mut obstacles = continuity::check(&stored, &backups, &mut report, &mut times)?;
    if question.depth == Depth::Objects {
        obstacles.extend(deep::check(question, &stored, &mut report)?);
    }
    obstacles.dedup_by(|later, earlier| {
        later.finding.kind == earlier.finding.kind && later.finding.first == earlier.finding.first
    });
    for obstacle in obstacles {
        let cost = cost::cost_of(&obstacle, stored.view(), &backups, &times);
        let is_expired =
            |cost: &Cost| continuity::is_left_by_expire(&obstacle, cost, stored.view(), &backups);
        if cost.as_ref().is_some_and(is_expired) {
            continue;
        }
        // What no backup needs any more is no loss.
        if cost.is_some() || backups.is_empty() || !obstacle.passable_without_backups {
            report.findings.push(Finding { cost, ..obstacle.finding });
        }
    }
    Ok((report, Some(stored.view().clone())))
}

/// A place that recovery cannot pass.
struct Obstacle {
    finding: Finding,
    timeline: TimelineId,
    /// Where it begins.
    from: Lsn,
    /// Where WAL goes on behind it.
    to: Lsn,
    /// Whether it means nothing if no backup has to pass it: a gap. Damage is told all the same.
    passable_without_backups: bool,
}

/// Why the archive could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object could not be opened.
    #[error(transparent)]
    Stored(#[from] StoredSegmentsError),
    /// The segment size could not be found.
    #[error(transparent)]
    Show(#[from] ShowError),
}

impl Explain for VerifyError {
    fn exit_cause(&self) -> Cause {
        match self {
            VerifyError::Repository(error) => error.exit_cause(),
            VerifyError::Stored(error) => error.exit_cause(),
            VerifyError::Show(error) => error.exit_cause(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            VerifyError::Repository(error) => error.hint(),
            VerifyError::Stored(error) => error.hint(),
            VerifyError::Show(error) => error.hint(),
        }
    }
}
