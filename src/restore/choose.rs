//! Which backup, and along which line of history.
//!
//! In: the summaries of all complete backups, the archive's names, what was asked for. Out: the newest backup from which the target is
//! proven to be reached, or the reason why none is. What was passed over, and why, is told.

use super::archive_view::ArchiveView;
use super::error::RestoreError;
use super::prove::{Evidence, Limit, Stop, StopAt, Unproven, WalContents, name_used_twice};
use super::target::{BackupRequest, Role, Target};
use super::wal_path::{PathEnd, WalPath, trace};
use crate::format::manifest::BackupSummary;
use crate::pg::recovery::{TargetInclusion, TargetTimeline};
use crate::pg::{Lsn, TimelineHistory};

/// What was asked for, understood.
#[derive(Clone, Debug)]
pub struct Question {
    /// The moment.
    pub target: Target,
    /// Whether it is replayed itself.
    pub inclusion: TargetInclusion,
    /// The line.
    pub timeline: TargetTimeline,
    /// The backup.
    pub backup: BackupRequest,
    /// What the restored server will be.
    pub role: Role,
    /// Whether a hole in the archive may be taken for its end (`wal.allow_gap`).
    pub gap: GapPolicy,
}

/// What a hole before stored segments means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapPolicy {
    /// A refusal.
    Refuse,
    /// The end of the archive: the host that had the missing WAL is lost for good.
    EndOfArchive,
}

/// The answer: what to restore and where replay ends.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The backup.
    pub backup: BackupSummary,
    /// The line that was asked for.
    pub line: TimelineHistory,
    /// What is written as `recovery_target_timeline`.
    pub recovery_timeline: TargetTimeline,
    /// The WAL that replay reads.
    pub path: WalPath,
    /// Where it ends.
    pub stop: Stop,
    /// What ends the readable WAL of the line.
    pub limit: Limit,
    /// Why it is this one; what else the operator should know.
    pub notes: Vec<String>,
    /// What may not be what the operator expects.
    pub warnings: Vec<String>,
}

/// Chooses and proves.
pub fn choose(
    backups: &[BackupSummary],
    view: &ArchiveView,
    contents: &dyn WalContents,
    question: &Question,
) -> Result<Choice, RestoreError> {
    let candidates = named_backups(backups, &question.backup)?;
    let line_of = LineChoice::new(view, &candidates, question.timeline)?;
    let mut notes: Vec<String> = line_of.notes.clone();
    let mut unreachable: Option<(String, String)> = None;
    let mut usable: Vec<&BackupSummary> = Vec::new();
    let mut replayable = false;
    // Why WAL that may hold the target cannot be read.
    let mut hidden: Option<RestoreError> = None;
    for backup in &candidates {
        let line = line_of.for_backup(view, backup);
        if let Err(reason) = on_line(backup, &line) {
            notes.push(format!("backup {} is not used: {reason}", backup.id));
            unreachable.get_or_insert((backup.id.to_string(), reason));
            continue;
        }
        usable.push(backup);
        if let Err(reason) = before_target(backup, &question.target) {
            notes.push(format!("backup {} is not used: {reason}", backup.id));
            continue;
        }
        let path = trace(view, &line, backup.start_lsn);
        let evidence = Evidence::gather(&path, contents)?;
        match prove_for(&evidence, question, backup) {
            Ok(stop) => {
                refuse_ambiguous_name(view, contents, question, &candidates, &line)?;
                let recovery_timeline = TargetTimeline::Id(line.timeline);
                let (backup, warnings, limit) = (backup.clone(), Vec::new(), evidence.limit.clone());
                let mut choice =
                    Choice { backup, line, recovery_timeline, path, stop, limit, notes, warnings };
                warn_about_other_lines(&mut choice, view, contents, &candidates, question)?;
                settle_timeline(&mut choice, view, question.role);
                return Ok(choice);
            }
            Err(Unproven::TooLate(reason)) => {
                replayable = false;
                notes.push(format!("backup {} is not used: {reason}", backup.id));
            }
            Err(Unproven::NotSeen) => {
                replayable = true;
                if !matches!(evidence.limit, Limit::Path(PathEnd::Archive { .. })) {
                    let unseen =
                        format!("{} is not in the WAL that can be read, and what follows", question.target);
                    hidden.get_or_insert(evidence.out_of_reach(&unseen)?);
                }
            }
            Err(Unproven::Refused(error)) => return Err(error),
        }
    }
    match hidden {
        Some(error) if replayable => Err(error),
        _ => Err(no_backup(&usable, question, unreachable, replayable)),
    }
}

fn prove_for(evidence: &Evidence<'_>, question: &Question, backup: &BackupSummary) -> Result<Stop, Unproven> {
    let open_ended = question.target == Target::EndOfWal;
    if open_ended && (question.role == Role::Standby || question.gap == GapPolicy::EndOfArchive) {
        // A standby reads on by itself whatever comes; only the backup's own WAL has to be there.
        let mut stop = evidence.prove_consistent(backup.stop_lsn)?;
        stop.lsn = evidence.reach;
        stop.at = StopAt::EndOfArchive;
        stop.last_kept = evidence.last_before(evidence.reach)?;
        stop.first_left_out = None;
        return Ok(stop);
    }
    evidence.prove(&question.target, question.inclusion, backup.stop_lsn)
}

/// The backups to look at, newest first.
fn named_backups(
    backups: &[BackupSummary],
    request: &BackupRequest,
) -> Result<Vec<BackupSummary>, RestoreError> {
    let mut candidates = backups.to_vec();
    candidates.sort_by(|a, b| (b.stop_time, &b.id).cmp(&(a.stop_time, &a.id)));
    if let BackupRequest::Id(id) = request {
        candidates.retain(|backup| backup.id == *id);
        if candidates.is_empty() {
            return Err(RestoreError::NotFound {
                message: format!("there is no complete backup {id}"),
                hint: Some("walhold backup-list shows the ones there are".to_owned()),
            });
        }
    }
    let Some(newest) = candidates.first() else {
        return Err(RestoreError::refused(
            "there is no complete backup to restore",
            "take one with walhold backup-push; check the repository and the cluster's name (walhold config)",
        ));
    };
    if let Some(other) = candidates.iter().find(|backup| backup.system_identifier != newest.system_identifier)
    {
        return Err(RestoreError::refused(
            format!(
                "backups of different clusters lie under this name: {} is of system {}, {} of {}",
                newest.id, newest.system_identifier, other.id, other.system_identifier
            ),
            "name the backup with --backup",
        ));
    }
    Ok(candidates)
}

/// The lines that backups are followed along.
struct LineChoice {
    fixed: Option<TimelineHistory>,
    notes: Vec<String>,
}

impl LineChoice {
    fn new(
        view: &ArchiveView,
        candidates: &[BackupSummary],
        request: TargetTimeline,
    ) -> Result<LineChoice, RestoreError> {
        let mut known = view.timelines();
        known.extend(candidates.iter().map(|backup| backup.stop_timeline));
        let mut notes = Vec::new();
        let fixed = match request {
            TargetTimeline::Current => None,
            TargetTimeline::Id(timeline) => {
                if let Some(problem) = view.unusable_histories.get(&timeline) {
                    return Err(RestoreError::refused(
                        format!("the history of timeline {} cannot be used: {problem}", timeline.get()),
                        "restore that object from a copy of the repository",
                    ));
                }
                if !known.contains(&timeline) {
                    let list: Vec<String> = known.iter().map(|timeline| timeline.get().to_string()).collect();
                    return Err(RestoreError::refused(
                        format!("timeline {} is not in the archive", timeline.get()),
                        format!("there are: {}", list.join(", ")),
                    ));
                }
                Some(view.history(timeline))
            }
            TargetTimeline::Latest => {
                let mut found = None;
                for timeline in known.iter().rev() {
                    let line = view.history(*timeline);
                    if candidates.iter().any(|backup| on_line(backup, &line).is_ok()) {
                        found = Some(line);
                        break;
                    }
                    notes.push(format!("timeline {} is not followed: no backup leads to it", timeline.get()));
                }
                found
            }
        };
        Ok(LineChoice { fixed, notes })
    }

    fn for_backup(&self, view: &ArchiveView, backup: &BackupSummary) -> TimelineHistory {
        self.fixed.clone().unwrap_or_else(|| view.history(backup.stop_timeline))
    }
}

/// Whether replay from this backup stays on the line.
pub fn on_line(backup: &BackupSummary, line: &TimelineHistory) -> Result<(), String> {
    let sections =
        [(backup.start_timeline, backup.start_lsn.plus(1)), (backup.stop_timeline, backup.stop_lsn)];
    for (timeline, position) in sections {
        match line.left_at(timeline) {
            None => {
                return Err(format!(
                    "it was taken on timeline {}, from which timeline {} does not descend",
                    timeline.get(),
                    line.timeline.get()
                ));
            }
            Some(left_at) if left_at < position => {
                return Err(format!(
                    "it ends at {} on timeline {}, which timeline {} left before, at {left_at}",
                    backup.stop_lsn,
                    timeline.get(),
                    line.timeline.get()
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether the backup was complete before the target, as far as its summary tells.
fn before_target(backup: &BackupSummary, target: &Target) -> Result<(), String> {
    match target {
        Target::Time(time) if backup.stop_time > time.moment => {
            Err(format!("it was complete only at {}, after the target", backup.stop_time))
        }
        Target::Lsn(lsn) if backup.stop_lsn > *lsn => {
            Err(format!("it is consistent only from {}, after the target", backup.stop_lsn))
        }
        _ => Ok(()),
    }
}

/// A name may say one moment after the newest backup and another one after an older backup.
fn refuse_ambiguous_name(
    view: &ArchiveView,
    contents: &dyn WalContents,
    question: &Question,
    candidates: &[BackupSummary],
    line: &TimelineHistory,
) -> Result<(), RestoreError> {
    let Target::Name(name) = &question.target else { return Ok(()) };
    let oldest = candidates.iter().rfind(|backup| on_line(backup, line).is_ok());
    let Some(oldest) = oldest else { return Ok(()) };
    let path = trace(view, line, oldest.start_lsn);
    let points = Evidence::gather(&path, contents)?.restore_points(name);
    if points.len() > 1 { Err(name_used_twice(name, &points)) } else { Ok(()) }
}

/// Writes the number of the timeline that the stop lies on, if its own files lead there. PostgreSQL names the line that it was told as the
/// new timeline's parent, even if it stops before that line's own beginning; the history would then run
/// backwards.
fn settle_timeline(choice: &mut Choice, view: &ArchiveView, role: Role) {
    if role == Role::Standby {
        choice.recovery_timeline = TargetTimeline::Latest;
        return;
    }
    let asked = choice.line.timeline;
    let last_byte = Lsn::new(choice.stop.lsn.get().saturating_sub(1));
    let owner = choice.line.timeline_at(last_byte.max(choice.backup.start_lsn));
    if owner != asked {
        let own_line = view.history(owner);
        let own_path = trace(view, &own_line, choice.backup.start_lsn);
        if own_path.position_of(last_byte).is_some() && on_line(&choice.backup, &own_line).is_ok() {
            choice.notes.push(format!(
                "the target lies on timeline {}, before timeline {} leaves it: recovery follows timeline {0}",
                owner.get(),
                asked.get()
            ));
            choice.line = own_line;
            choice.path = own_path;
        }
    }
    let number = choice.line.timeline;
    choice.recovery_timeline = TargetTimeline::Id(number);
    if !view.history_is_stored(number) && number == choice.backup.start_timeline {
        choice.recovery_timeline = TargetTimeline::Current;
    }
}

/// Tells of lines that were not followed but hold more.
fn warn_about_other_lines(
    choice: &mut Choice,
    view: &ArchiveView,
    contents: &dyn WalContents,
    candidates: &[BackupSummary],
    question: &Question,
) -> Result<(), RestoreError> {
    let line = &choice.line;
    let unusable = view.unusable_histories.iter();
    choice.warnings.extend(unusable.map(|(timeline, problem)| {
        format!("the history of timeline {} cannot be used, so it is not followed: {problem}", timeline.get())
    }));
    let beside = candidates
        .iter()
        .find(|backup| backup.stop_time > choice.backup.stop_time && on_line(backup, line).is_err());
    if let Some(newer) = beside.filter(|newer| before_target(newer, &question.target).is_ok()) {
        choice.warnings.push(format!(
            "backup {} is newer, but lies on timeline {} beside the line that is followed (timeline {}); to follow that one use --timeline {1}",
            newer.id,
            newer.stop_timeline.get(),
            line.timeline.get(),
        ));
    }
    if let PathEnd::Archive { next } = &choice.path.end
        && view.has_partial(*next)
        && choice.stop.at == StopAt::EndOfArchive
    {
        choice.warnings.push(format!(
            "the end of timeline {} is stored only as {next}.partial, which PostgreSQL does not ask for: what it holds is not recovered",
            next.timeline.get()
        ));
    }
    if let Target::Time(time) = &question.target {
        for ancestor in &line.ancestors {
            let dead_end = trace(view, &view.history(ancestor.timeline), ancestor.left_at);
            let evidence = Evidence::gather(&dead_end, contents)?;
            let kept = choice.stop.last_kept.map(|end| end.time);
            let missed = evidence.first_in_time(kept, time.moment)?;
            if let Some(end) = missed {
                choice.warnings.push(format!(
                    "timeline {0} went on after timeline {1} left it at {2}: transaction {3} ended there at {4}, before the target, and is not on this line; to follow timeline {0} use --timeline {0}",
                    ancestor.timeline.get(),
                    line.timeline.get(),
                    ancestor.left_at,
                    end.xid,
                    end.time,
                ));
            }
        }
    }
    Ok(())
}

/// The refusal when no backup will do: `on_line` are those that lie on the line, newest first.
fn no_backup(
    on_line: &[&BackupSummary],
    question: &Question,
    unreachable: Option<(String, String)>,
    replayable: bool,
) -> RestoreError {
    let target = &question.target;
    let Some(earliest) = on_line.last() else {
        let (id, reason) = unreachable.unwrap_or_default();
        return RestoreError::refused(
            format!("backup {id} cannot be used: {reason}"),
            "choose another line with --timeline (walhold wal-show) or another backup with --backup (walhold backup-list)",
        );
    };
    match target {
        Target::Xid(xid) if replayable => RestoreError::refused(
            format!(
                "transaction {xid} neither committed nor was rolled back in the WAL that is archived since backup {}",
                earliest.id
            ),
            "a subtransaction's number is never a target, and a transaction that still ran has no end: use --target-time or --target-lsn",
        ),
        Target::Name(name) if replayable => RestoreError::refused(
            format!("restore point {name:?} is not in the WAL that is archived since backup {}", earliest.id),
            "names are compared letter by letter; use --target-time or --target-lsn if it was never archived",
        ),
        _ => RestoreError::refused(
            format!(
                "{target} is before the {} was complete: the earliest moment that can be reached is {} ({})",
                if on_line.len() == 1 {
                    format!("backup {}", earliest.id)
                } else {
                    format!("first backup {}", earliest.id)
                },
                earliest.stop_time,
                earliest.stop_lsn,
            ),
            "choose a later target; --target-immediate recovers to a backup's own end",
        ),
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
