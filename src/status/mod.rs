//! What an operator wants to know first: which moments can be recovered, how much would be lost now, what is wrong.
//!
//! In: an inventory (listings, the ends of manifests) and the few WAL indexes at the ends of recovery windows. Out: a report, and problems
//! by the thresholds of the configuration. Data files and WAL are not read: that is what verify is for, whose newest result is told.

pub mod render;

use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::error::Failure;
use crate::format::manifest::{BackupKind, BackupSummary};
use crate::format::marker::CreateOnly;
use crate::format::wal_index::RecordVerdict;
use crate::format::{BackupId, ClusterName};
use crate::output::{human_duration, seconds_between};
use crate::pg::{Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName};
use crate::retention::inventory::{Inventory, SystemWal};
use crate::retention::policy::Policy;
use crate::retention::windows::{self, RecoveryWindow, WindowEnd};
use crate::verify::record::VerifyRecord;
use crate::wal::verify::{BackupSpan, missing};

/// The state of a cluster's backups.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// When this was read, by this machine's clock.
    pub read_at: jiff::Timestamp,
    /// False if there are problems.
    pub healthy: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What should be known and is not wrong.
    pub notes: Vec<String>,
    /// One entry per cluster that archives under the name, the one with the newest backup first.
    pub systems: Vec<SystemStatus>,
    /// Backups without a manifest: at work, or interrupted.
    pub unfinished: Vec<BackupId>,
    /// The retention policies in words; `null` if there are none.
    pub retention: Option<String>,
    /// Whether new objects are encrypted, by this configuration.
    pub encrypts: bool,
    /// Whether the store itself refuses to replace an object.
    pub create_only: CreateOnly,
    /// The newest result of `verify`; `null` if there is none.
    pub verified: Option<VerifyRecord>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// One line.
    pub text: String,
    /// The next step.
    pub hint: String,
}

/// One cluster.
#[derive(Debug, Serialize)]
pub struct SystemStatus {
    /// Which.
    pub system_identifier: SystemIdentifier,
    /// The server's `TimeZone`; UTC without a backup.
    pub time_zone: String,
    /// Which moments can be recovered, the newest line's first.
    pub windows: Vec<RecoveryWindow>,
    /// The last transaction's end that can be recovered.
    pub last_commit: Option<PgTimestamp>,
    /// How long ago that was, in seconds: what would be lost now, if the server has been busy.
    pub last_commit_age_seconds: Option<u64>,
    /// The segment that was archived last.
    pub newest_segment: Option<NewestSegment>,
    /// The last complete backup.
    pub last_backup: Option<LastBackup>,
    /// When the next backup is due, by `status.max_backup_age`.
    pub next_backup_due: Option<PgTimestamp>,
    /// Complete backups.
    pub backups: u64,
    /// Stored segments.
    pub wal_segments: u64,
    /// Stored bytes of all WAL.
    pub wal_bytes: u64,
}

/// The segment that was archived last.
#[derive(Debug, Serialize)]
pub struct NewestSegment {
    /// Its name.
    pub name: WalSegmentName,
    /// When it was stored, by the store's clock.
    pub archived: jiff::Timestamp,
    /// How long ago, in seconds.
    pub age_seconds: u64,
    /// Where it begins.
    pub start_lsn: Option<Lsn>,
}

/// A backup in short.
#[derive(Debug, Serialize)]
pub struct LastBackup {
    /// Its name.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// When it was complete.
    pub stop_time: PgTimestamp,
    /// How long ago, in seconds.
    pub age_seconds: u64,
}

impl StatusReport {
    /// Looks at what was read; `verified` is the newest result of `verify`.
    pub fn of(
        inventory: &Inventory<'_>,
        verified: Option<VerifyRecord>,
        config: &Config,
    ) -> Result<StatusReport, Failure> {
        let mut report = StatusReport {
            repository: inventory.repository.url().to_owned(),
            cluster: inventory.cluster.clone(),
            read_at: inventory.taken_at,
            healthy: true,
            problems: Vec::new(),
            notes: Vec::new(),
            systems: Vec::new(),
            unfinished: unfinished(inventory),
            retention: Policy::new(&config.retention).map(|policy| policy.to_string()),
            encrypts: config.encryption.encrypts(),
            create_only: inventory.repository.marker().create_only,
            verified,
        };
        for (system, wal) in &inventory.systems {
            let status = report.system(inventory, config, *system, wal)?;
            report.systems.push(status);
        }
        report.systems.sort_by_key(|system| {
            let stopped = system.last_backup.as_ref().map(|backup| backup.stop_time);
            (std::cmp::Reverse(stopped), system.system_identifier)
        });
        report.judge(inventory, config);
        report.healthy = report.problems.is_empty();
        Ok(report)
    }

    fn system(
        &mut self,
        inventory: &Inventory<'_>,
        config: &Config,
        system: SystemIdentifier,
        wal: &SystemWal<'_>,
    ) -> Result<SystemStatus, Failure> {
        let mut good: Vec<&BackupSummary> = Vec::new();
        for (id, backup, summary) in inventory.readable() {
            if summary.system_identifier != system {
                continue;
            }
            match inventory.defect(backup, summary) {
                None => good.push(summary),
                Some(defect) => self.problem(
                    format!("backup {id} cannot be restored: {defect}"),
                    "walhold verify tells what it costs and what to copy back",
                ),
            }
        }
        let view = wal.stored.view();
        let mut windows = windows::find(view, &good);
        for window in &mut windows {
            window.find_end(view, |names| -> Result<_, Failure> {
                for (name, loaded) in names.iter().zip(wal.stored.load_indexes(names)?) {
                    if let RecordVerdict::Damaged { at, problem } = &loaded.index.verdict {
                        self.problem(
                            format!("WAL segment {name} is damaged at {at}: {problem}"),
                            "nothing after it can be recovered from the backups before it: take a backup now (walhold backup-push)",
                        );
                    }
                    if let Some(span) = loaded.index.transactions {
                        return Ok(Some(span.greatest_time));
                    }
                }
                Ok(None)
            })?;
        }
        let spans: Vec<BackupSpan> = good.iter().map(|summary| BackupSpan::of(summary)).collect();
        let current: Vec<TimelineId> = windows
            .iter()
            .filter(|window| window.current)
            .flat_map(|window| view.history(window.timeline).timelines().collect::<Vec<_>>())
            .collect();
        let missing = missing(view, &spans.iter().collect::<Vec<_>>());
        for gap in missing.iter().filter(|gap| current.contains(&gap.first.timeline)) {
            let what = match gap.first == gap.last {
                true => format!("WAL segment {} is missing", gap.first),
                false => format!("WAL is missing from {} to {}", gap.first, gap.last),
            };
            self.problem(
                what,
                "copy these segments from a copy of the repository, or archive them from the server's pg_wal (walhold wal-push)",
            );
        }
        let last = good.iter().max_by_key(|summary| (summary.stop_time, &summary.id));
        let last_commit = windows.iter().filter(|window| window.current).filter_map(|window| window.to).max();
        let max_age = i64::try_from(config.status.max_backup_age.as_micros()).unwrap_or(i64::MAX);
        Ok(SystemStatus {
            system_identifier: system,
            time_zone: last.map_or_else(|| "UTC".to_owned(), |summary| summary.time_zone.clone()),
            last_commit,
            last_commit_age_seconds: last_commit.and_then(|at| self.age(at)),
            newest_segment: newest_segment(wal, self.read_at),
            next_backup_due: last
                .map(|summary| PgTimestamp::new(summary.stop_time.get().saturating_add(max_age))),
            last_backup: last.map(|summary| LastBackup {
                id: summary.id.clone(),
                kind: summary.kind,
                stop_time: summary.stop_time,
                age_seconds: self.age(summary.stop_time).unwrap_or(0),
            }),
            backups: good.len() as u64,
            wal_segments: wal.stored.objects().len() as u64,
            wal_bytes: wal.stored_bytes,
            windows,
        })
    }

    fn age(&self, at: PgTimestamp) -> Option<u64> {
        Some(seconds_between(at.to_jiff()?, self.read_at))
    }

    fn problem(&mut self, text: String, hint: &str) {
        self.problems.push(Problem { text, hint: hint.to_owned() });
    }

    fn judge(&mut self, inventory: &Inventory<'_>, config: &Config) {
        for (id, backup) in &inventory.backups {
            if let Err(error) = &backup.summary {
                self.problem(
                    format!("the manifest of backup {id} cannot be read: {error}"),
                    "restore that object from a copy of the repository, or give the backup up: walhold expire --drop-damaged",
                );
            }
        }
        for (system, wal) in &inventory.systems {
            for (timeline, problem) in &wal.stored.view().unusable_histories {
                self.problem(
                    format!(
                        "the history of timeline {} of system {system} cannot be used: {problem}",
                        timeline.get()
                    ),
                    "restore that object from a copy of the repository",
                );
            }
            for (name, objects) in wal.stored.objects() {
                if let [first, second, ..] = objects.as_slice() {
                    self.problem(
                        format!("two different objects are stored as {name}: {} and {}", first.path, second.path),
                        "two servers wrote under one name: find out which one belongs to this cluster's history, move the other object away",
                    );
                }
            }
        }
        self.judge_current(config);
        self.judge_verification(config);
        if self.systems.len() > 1 {
            self.notes.push(
                "several clusters archive under this name: the one with the newest backup is judged"
                    .to_owned(),
            );
        }
        if !self.encrypts {
            self.notes.push("new objects are not encrypted".to_owned());
        }
        if self.create_only == CreateOnly::Suffixed {
            self.notes.push(
                "the store does not refuse to replace objects: names carry digests, so that nothing is replaced"
                    .to_owned(),
            );
        }
        if self.retention.is_none() {
            self.notes.push("no retention policy is configured: nothing is ever deleted".to_owned());
        }
    }

    /// The cluster with the newest backup is the one that lives.
    fn judge_current(&mut self, config: &Config) {
        let mut found: Vec<(String, &str)> = Vec::new();
        match self.systems.first() {
            None => found.push((
                "nothing was ever archived under this name".to_owned(),
                "check WALHOLD_CLUSTER and archive_command; walhold backup-push takes a first backup",
            )),
            Some(system) => {
                let limit = config.status.max_backup_age;
                match &system.last_backup {
                    None => found.push((
                        "there is no complete backup: nothing can be recovered".to_owned(),
                        "take one: walhold backup-push",
                    )),
                    Some(last) if last.age_seconds > limit.as_secs() => found.push((
                        format!(
                            "the last backup is {} old, more than {} (status.max_backup_age)",
                            human_duration(Duration::from_secs(last.age_seconds)),
                            human_duration(limit)
                        ),
                        "take one: walhold backup-push, and look at why it was not taken",
                    )),
                    Some(_) => {}
                }
                if let (Some(limit), Some(newest)) = (config.status.max_archive_age, &system.newest_segment)
                    && newest.age_seconds > limit.as_secs()
                {
                    found.push((
                        format!(
                            "the newest segment, {}, was archived {} ago, more than {} (status.max_archive_age)",
                            newest.name,
                            human_duration(Duration::from_secs(newest.age_seconds)),
                            human_duration(limit)
                        ),
                        "look at pg_stat_archiver and the server's log; an idle server archives only with archive_timeout",
                    ));
                }
                let current: Vec<&RecoveryWindow> =
                    system.windows.iter().filter(|window| window.current).collect();
                if let Some(newest) = current.last() {
                    let last_backup = system.last_backup.as_ref().map(|last| last.stop_time);
                    if matches!(newest.end, WindowEnd::Gap { .. } | WindowEnd::Backup)
                        && last_backup.is_none_or(|last| last <= newest.from)
                    {
                        found.push((
                            "the newest WAL cannot be reached from any backup".to_owned(),
                            "take a backup now: walhold backup-push",
                        ));
                    }
                }
            }
        }
        for (text, hint) in found {
            self.problem(text, hint);
        }
    }

    fn judge_verification(&mut self, config: &Config) {
        let age = self.verified.as_ref().map(|verified| seconds_between(verified.finished, self.read_at));
        if let Some(verified) = self.verified.as_ref().filter(|verified| verified.findings > 0) {
            let text =
                format!("the last verification found {} damaged or missing objects", verified.findings);
            self.problem(text, "walhold verify tells what they cost and what to copy back");
        }
        let Some(limit) = config.status.max_verify_age else { return };
        if age.is_none_or(|age| age > limit.as_secs()) {
            let text = match age {
                Some(age) => format!(
                    "the last verification is {} old, more than {} (status.max_verify_age)",
                    human_duration(Duration::from_secs(age)),
                    human_duration(limit)
                ),
                None => "the repository was never verified (status.max_verify_age)".to_owned(),
            };
            self.problem(text, "walhold verify --deep");
        }
    }
}

fn unfinished(inventory: &Inventory<'_>) -> Vec<BackupId> {
    let announced = inventory.intents.keys().filter(|id| !inventory.backups.contains_key(id));
    announced.cloned().collect()
}

fn newest_segment(wal: &SystemWal<'_>, now: jiff::Timestamp) -> Option<NewestSegment> {
    let newest =
        |objects: &[crate::repository::StoredObject]| objects.iter().map(|object| object.modified).max();
    let (name, archived) = wal
        .stored
        .objects()
        .iter()
        .filter_map(|(name, objects)| Some((*name, newest(objects)?)))
        .max_by_key(|(name, archived)| (*archived, *name))?;
    Some(NewestSegment {
        name,
        archived,
        age_seconds: seconds_between(archived, now),
        start_lsn: name.start_lsn(wal.segment_size),
    })
}
