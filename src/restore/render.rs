//! The plan for people and for programs.

use serde::Serialize;

use super::Restored;
use super::delta::Existing;
use super::place::{DirectoryState, Owner, PlacedTablespace, Space};
use super::plan::RestorePlan;
use super::prove::{Stop, StopAt};
use super::target::{Role, Target};
use super::time_text::{find_zone, show_in};
use super::wal_path::PathEnd;
use super::watch::{RecoveryEnd, Verdict};
use crate::format::wal_index::{Outcome, TransactionEnd};
use crate::output::{human_duration, human_size};
use crate::pg::recovery::{TargetInclusion, recovery_settings};
use crate::pg::{Lsn, PgTimestamp};

/// `restore --plan --json`. Field names are stable.
#[derive(Serialize)]
pub struct PlanJson<'a> {
    backup: BackupJson<'a>,
    target: TargetJson,
    timeline: TimelineJson,
    wal: WalJson,
    stop: StopJson<'a>,
    role: Role,
    pgdata: String,
    pgdata_state: DirectoryState,
    existing: Option<&'a Existing>,
    owner: Owner,
    tablespaces: &'a [PlacedTablespace],
    space: &'a [Space],
    files: usize,
    bytes: u64,
    packs: usize,
    signal_file: &'static str,
    settings: Vec<SettingJson>,
    server_programs: Option<String>,
    notes: &'a [String],
    warnings: &'a [String],
}

#[derive(Serialize)]
struct BackupJson<'a> {
    id: &'a str,
    kind: crate::format::manifest::BackupKind,
    server_version: u32,
    system_identifier: crate::pg::SystemIdentifier,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    stop_time: PgTimestamp,
}

#[derive(Serialize)]
struct TargetJson {
    kind: &'static str,
    /// The value as PostgreSQL is told.
    value: Option<String>,
    /// A time in the zone it was read in.
    local_time: Option<String>,
    inclusive: bool,
    action: &'static str,
}

#[derive(Serialize)]
struct TimelineJson {
    /// The line that is followed.
    line: u32,
    recovery_target_timeline: String,
    ancestors: Vec<crate::pg::timeline::TimelineAncestor>,
}

#[derive(Serialize)]
struct WalJson {
    first_segment: Option<String>,
    last_segment: Option<String>,
    segments: usize,
    segment_size: u64,
}

#[derive(Serialize)]
struct StopJson<'a> {
    reason: &'static str,
    lsn: Lsn,
    last_kept: Option<&'a TransactionEnd>,
    first_left_out: Option<&'a TransactionEnd>,
}

#[derive(Serialize)]
struct SettingJson {
    name: String,
    value: String,
}

impl RestorePlan {
    /// The plan for programs.
    pub fn to_json(&self) -> PlanJson<'_> {
        let backup = &self.choice.backup;
        let segments = &self.choice.path.segments;
        let stop = &self.choice.stop;
        let settings =
            recovery_settings(&self.recovery).into_iter().chain(self.extra_settings.iter().cloned());
        PlanJson {
            backup: BackupJson {
                id: backup.id.as_str(),
                kind: backup.kind,
                server_version: backup.server_version,
                system_identifier: backup.system_identifier,
                start_lsn: backup.start_lsn,
                stop_lsn: backup.stop_lsn,
                stop_time: backup.stop_time,
            },
            target: TargetJson {
                kind: self.target.kind(),
                value: target_value(&self.target),
                local_time: match &self.target {
                    Target::Time(time) => Some(time.local()),
                    _ => None,
                },
                inclusive: self.request.inclusion == TargetInclusion::Inclusive,
                action: self.request.action.name(),
            },
            timeline: TimelineJson {
                line: self.choice.line.timeline.get(),
                recovery_target_timeline: self.recovery.timeline.to_string(),
                ancestors: self.choice.line.ancestors.clone(),
            },
            wal: WalJson {
                first_segment: segments.first().map(|segment| segment.name.to_string()),
                last_segment: segments.last().map(|segment| segment.name.to_string()),
                segments: segments.len(),
                segment_size: backup.wal_segment_size.bytes(),
            },
            stop: StopJson {
                reason: stop_reason(&stop.at),
                lsn: stop.lsn,
                last_kept: stop.last_kept.as_ref(),
                first_left_out: stop.first_left_out.as_ref(),
            },
            role: self.request.role,
            pgdata: self.place.pgdata.display().to_string(),
            pgdata_state: self.place.pgdata_state,
            existing: self.existing.as_ref(),
            owner: self.place.owner,
            tablespaces: &self.place.tablespaces,
            space: &self.place.space,
            files: self.manifest.files.len(),
            bytes: backup.cluster_bytes,
            packs: self.packs.len(),
            signal_file: self.recovery.mode.signal_file(),
            settings: settings.map(|(name, value)| SettingJson { name, value }).collect(),
            server_programs: self.binaries.as_ref().map(|found| found.directory.display().to_string()),
            notes: &self.notes,
            warnings: &self.warnings,
        }
    }

    /// The plan for people: one fact per line.
    pub fn to_text(&self) -> String {
        let backup = &self.choice.backup;
        let kind = match backup.kind {
            crate::format::manifest::BackupKind::Full => "full",
            crate::format::manifest::BackupKind::Incremental => "incremental",
        };
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12}{value}\n"));
        line(
            "backup",
            format!(
                "{} ({kind}, PostgreSQL {}), complete at {} ({})",
                backup.id,
                show_version(backup.server_version),
                self.show_time(backup.stop_time),
                backup.stop_lsn
            ),
        );
        line("target", self.show_target());
        line("timeline", self.show_timeline());
        line("WAL", self.show_wal());
        line("stops", self.show_stop());
        if let Some(kept) = &self.choice.stop.last_kept {
            line("last kept", self.show_transaction(kept));
        }
        if let Some(left_out) = &self.choice.stop.first_left_out {
            line("left out", format!("{} and everything after it", self.show_transaction(left_out)));
        }
        let state = match self.place.pgdata_state {
            DirectoryState::Absent => "to be made",
            DirectoryState::Empty => "empty",
            DirectoryState::Existing => {
                "taken over: what is right in it stays, everything else is replaced or removed"
            }
        };
        line("directory", format!("{} ({state})", self.place.pgdata.display()));
        if let Some(Existing { unarchived_wal, wal_kept_in }) =
            self.existing.as_ref().filter(|existing| !existing.unarchived_wal.is_empty())
        {
            line(
                "WAL kept",
                format!(
                    "{} files of its pg_wal that are not in the repository go to {}",
                    unarchived_wal.len(),
                    wal_kept_in.display()
                ),
            );
        }
        for tablespace in &self.place.tablespaces {
            line(
                "tablespace",
                format!("{}: {} -> {}", tablespace.name, tablespace.from, tablespace.to.display()),
            );
        }
        line(
            "data",
            format!(
                "{} in {} files, from {} packs",
                human_size(backup.cluster_bytes),
                self.manifest.files.len(),
                self.packs.len()
            ),
        );
        for space in &self.place.space {
            line(
                "space",
                format!(
                    "{}: {} needed, {} free",
                    space.directory.display(),
                    human_size(space.needed),
                    human_size(space.available)
                ),
            );
        }
        line(
            "recovery",
            format!(
                "{}, restore_command = {}",
                self.recovery.mode.signal_file(),
                self.recovery.restore_command
            ),
        );
        line(
            "afterwards",
            match self.request.role {
                Role::Clone => "a clone: archives nothing",
                Role::Standby => "a standby: follows the original",
                Role::Replacement => "takes the original's place and archives on, on a new timeline",
            }
            .to_owned(),
        );
        if let Some(binaries) = &self.binaries {
            line("server", format!("PostgreSQL {} in {}", binaries.version, binaries.directory.display()));
        }
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("WARNING: {warning}\n"));
        }
        text
    }

    /// A moment in the server's zone.
    fn show_time(&self, moment: PgTimestamp) -> String {
        match find_zone(&self.choice.backup.time_zone) {
            Some(zone) => show_in(moment, &zone),
            None => moment.to_string(),
        }
    }

    fn show_target(&self) -> String {
        let mut text = match &self.target {
            Target::Time(time) => {
                let read_in = match &time.assumed_zone {
                    Some(zone) => format!(", read in the server's time zone {zone}"),
                    None => String::new(),
                };
                format!("time {time}{read_in}")
            }
            other => other.to_string(),
        };
        if self.request.inclusion == TargetInclusion::Exclusive {
            text.push_str(", exclusive");
        }
        match self.request.role {
            Role::Standby => text,
            _ if self.target == Target::EndOfWal => format!("{text}, then promote"),
            _ => format!("{text}, then {}", self.request.action.name()),
        }
    }

    fn show_timeline(&self) -> String {
        let line = &self.choice.line;
        let mut text = self.recovery.timeline.to_string();
        if self.recovery.timeline.to_string() != line.timeline.get().to_string() {
            text.push_str(&format!(" (timeline {} now)", line.timeline.get()));
        }
        let ancestors: Vec<String> = line
            .ancestors
            .iter()
            .map(|ancestor| format!("{} until {}", ancestor.timeline.get(), ancestor.left_at))
            .collect();
        if !ancestors.is_empty() {
            text.push_str(&format!(", after {}", ancestors.join(", ")));
        }
        text
    }

    fn show_wal(&self) -> String {
        let segments = &self.choice.path.segments;
        match (segments.first(), segments.last()) {
            (Some(first), Some(last)) => {
                let end = match &self.choice.path.end {
                    PathEnd::Gap { missing, .. } => format!("; behind them {missing} is missing"),
                    _ => " without a gap".to_owned(),
                };
                format!("{} to {}, {} segments{end}", first.name, last.name, segments.len())
            }
            _ => "none".to_owned(),
        }
    }

    fn show_stop(&self) -> String {
        let Stop { lsn, at, .. } = &self.choice.stop;
        match at {
            StopAt::EndOfArchive if self.request.role == Role::Standby => {
                format!("not; the archive reaches to {lsn}")
            }
            StopAt::EndOfArchive => format!("at the end of the archive, {lsn}"),
            StopAt::Consistency => format!("as soon as the backup is consistent, {lsn}"),
            StopAt::Before(end) => format!("before the {} ({lsn})", show_end(end)),
            StopAt::After(end) => format!("after the {} ({lsn})", show_end(end)),
            StopAt::BeforeLsn(target) => format!("before the first record at or after {target}"),
            StopAt::AfterLsn(target) => format!("after the first record at or after {target}"),
            StopAt::RestorePoint(point) => {
                format!("at restore point {:?} of {} ({lsn})", point.name, self.show_time(point.time))
            }
        }
    }

    fn show_transaction(&self, end: &TransactionEnd) -> String {
        format!(
            "transaction {}, {} at {} ({})",
            end.xid,
            match end.outcome {
                Outcome::Committed => "committed",
                Outcome::Aborted => "rolled back",
            },
            self.show_time(end.time),
            end.lsn
        )
    }
}

fn show_end(end: &TransactionEnd) -> String {
    let what = match end.outcome {
        Outcome::Committed => "commit",
        Outcome::Aborted => "rollback",
    };
    format!("{what} of transaction {}", end.xid)
}

fn stop_reason(at: &StopAt) -> &'static str {
    match at {
        StopAt::EndOfArchive => "end-of-archive",
        StopAt::Consistency => "consistency",
        StopAt::Before(_) => "before-transaction",
        StopAt::After(_) => "after-transaction",
        StopAt::BeforeLsn(_) => "before-lsn",
        StopAt::AfterLsn(_) => "after-lsn",
        StopAt::RestorePoint(_) => "restore-point",
    }
}

fn target_value(target: &Target) -> Option<String> {
    match target {
        Target::EndOfWal | Target::Immediate => None,
        Target::Time(time) => Some(time.moment.to_string()),
        Target::Lsn(lsn) => Some(lsn.to_string()),
        Target::Xid(xid) => Some(xid.to_string()),
        Target::Name(name) => Some(name.clone()),
    }
}

/// `15.18` for 150018.
fn show_version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

/// What was done, in one or two lines.
pub fn outcome_text(plan: &RestorePlan, restored: &Restored) -> String {
    let pgdata = plan.place.pgdata.display();
    let mut text = format!(
        "restored {} in {} files to {pgdata} in {} (fetch {}, sync {})\n",
        human_size(restored.bytes),
        restored.files,
        human_duration(restored.fetching + restored.syncing),
        human_duration(restored.fetching),
        human_duration(restored.syncing),
    );
    match &restored.verdict {
        Some(verdict) => text.push_str(&verdict_text(plan, verdict)),
        None => text.push_str(&format!(
            "start the server on it (pg_ctl start -D {pgdata}); it recovers to {} by itself\n",
            plan.target
        )),
    }
    text
}

fn verdict_text(plan: &RestorePlan, verdict: &Verdict) -> String {
    let reached = match &verdict.stopped {
        Some(words) => format!("target reached: {words}"),
        None => "the end of the archive is reached".to_owned(),
    };
    let mut facts = Vec::new();
    facts.extend(verdict.last_transaction.as_ref().map(|time| format!("last transaction at {time}")));
    facts.extend(verdict.replayed_to.map(|lsn| format!("replayed to {lsn}")));
    facts.push(format!("{} segments in {}", verdict.segments, human_duration(verdict.elapsed)));
    let now = match verdict.end {
        RecoveryEnd::Promoted => {
            let timeline =
                verdict.timeline.map_or(String::new(), |timeline| format!(" on timeline {timeline}"));
            format!("the server accepts connections{timeline}")
        }
        RecoveryEnd::Paused => {
            "the server is paused at the target, read-only: SELECT pg_wal_replay_resume() promotes it"
                .to_owned()
        }
        RecoveryEnd::ShutDown => "the server has shut down at the target".to_owned(),
        RecoveryEnd::Following => {
            "the standby accepts read-only connections and follows the original".to_owned()
        }
    };
    let reached = if verdict.end == RecoveryEnd::Following { "consistent".to_owned() } else { reached };
    let log = plan.place.pgdata.join(crate::local::pgdata_walk::RECOVERY_LOG);
    format!("{reached}; {}\n{now}; it logs to {} until it is restarted\n", facts.join(", "), log.display())
}
