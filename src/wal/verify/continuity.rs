//! Whether each timeline's segments are there, alone, readable, and follow on each other.

use super::cost::{CommitTimes, cost_of};
use super::{
    BackupSpan, Cost, Finding, FindingKind, MissingWal, Obstacle, SystemVerification, TimelineVerification,
};
use crate::format::wal_index::{IndexChain, RecordVerdict, SegmentFacts, WalIndex};
use crate::pg::{Lsn, TimelineId, WalSegmentName, WalSegmentNumber};
use crate::wal::archive_view::ArchiveView;
use crate::wal::stored_segments::{StoredSegments, StoredSegmentsError};

/// Indexes that are in memory at once.
const INDEXES_AT_ONCE: usize = 256;

/// Goes through every timeline that is needed.
pub(super) fn check(
    stored: &StoredSegments<'_>,
    backups: &[&BackupSpan],
    report: &mut SystemVerification,
    times: &mut CommitTimes,
) -> Result<Vec<Obstacle>, StoredSegmentsError> {
    let view = stored.view();
    let oldest_stored = stored.names().filter_map(|name| name.number(view.segment_size)).min();
    let Some(floor) = oldest_needed(view, backups).or(oldest_stored) else { return Ok(Vec::new()) };
    report.needed_from = Some(view.start_of(floor));
    let mut obstacles = Vec::new();
    for timeline in view.timelines() {
        let Some((first, last)) = needed(view, timeline, floor) else { continue };
        let gaps = gaps(view, timeline, first, last);
        let missing: u64 = gaps.iter().map(|(from, to)| to.get() - from.get() + 1).sum();
        report.timelines.push(TimelineVerification {
            timeline,
            first: view.name(timeline, first),
            last: view.name(timeline, last),
            segments: last.get() - first.get() + 1 - missing,
            missing,
        });
        obstacles.extend(gaps.into_iter().map(|(from, to)| gap(view, timeline, from, to)));
        obstacles.extend(Joining { stored, report, times }.join(timeline, first, last)?);
    }
    report.newest_commit = times.newest();
    Ok(obstacles)
}

/// Segments that are missing although the recovery of a backup has to pass them: what listings alone tell.
pub fn missing(view: &ArchiveView, backups: &[&BackupSpan]) -> Vec<MissingWal> {
    let Some(floor) = oldest_needed(view, backups) else { return Vec::new() };
    let mut missing = Vec::new();
    for timeline in view.timelines() {
        let Some((first, last)) = needed(view, timeline, floor) else { continue };
        for (from, to) in gaps(view, timeline, first, last) {
            let obstacle = gap(view, timeline, from, to);
            let cost = cost_of(&obstacle, view, backups, &CommitTimes::default());
            if let Some(cost) = cost.filter(|cost| !is_left_by_expire(&obstacle, cost, view, backups)) {
                missing.push(MissingWal {
                    first: view.name(timeline, from),
                    last: view.name(timeline, to),
                    backups_lost: cost.backups_lost,
                });
            }
        }
    }
    missing
}

/// Whether a gap is what retention makes on purpose: older backups keep the WAL that makes them consistent, and between that and the beginning
/// of a later backup there is none. `false` for anything but a gap.
pub(super) fn is_left_by_expire(
    obstacle: &Obstacle,
    cost: &Cost,
    view: &ArchiveView,
    backups: &[&BackupSpan],
) -> bool {
    let size = view.segment_size;
    let (from, next) =
        (WalSegmentNumber::containing(obstacle.from, size), WalSegmentNumber::containing(obstacle.to, size));
    let Some(before) = from.get().checked_sub(1).map(WalSegmentNumber::new) else { return false };
    let stored = |number| view.timelines().into_iter().any(|timeline| view.has(timeline, number));
    let starts =
        |number| backups.iter().any(|backup| WalSegmentNumber::containing(backup.start, size) == number);
    let last_of = |backup: &BackupSpan| {
        WalSegmentNumber::ending_at(backup.stop, size).max(WalSegmentNumber::containing(backup.start, size))
    };
    let ends = |number| backups.iter().any(|backup| last_of(backup) == number);
    obstacle.finding.kind == FindingKind::Gap
        && cost.backups_lost.is_empty()
        && (ends(before) || !stored(before))
        && (starts(next) || !stored(next))
}

/// Where the WAL begins that backups need.
fn oldest_needed(view: &ArchiveView, backups: &[&BackupSpan]) -> Option<WalSegmentNumber> {
    backups.iter().map(|backup| WalSegmentNumber::containing(backup.start, view.segment_size)).min()
}

/// The segments that must be stored of a timeline: from its beginning, but not from before what is needed at all, to the last one stored, and
/// at least to where a later timeline left it. `None` if none must be.
fn needed(
    view: &ArchiveView,
    timeline: TimelineId,
    floor: WalSegmentNumber,
) -> Option<(WalSegmentNumber, WalSegmentNumber)> {
    let size = view.segment_size;
    let begins = view.history(timeline).begins_at(timeline).unwrap_or(Lsn::INVALID);
    let own_first =
        if begins.is_valid() { WalSegmentNumber::containing(begins, size) } else { WalSegmentNumber::new(0) };
    let first = own_first.max(floor);
    // The segment in which it was left is in the later timeline's copy.
    let left = view.timelines().into_iter().filter_map(|later| {
        let history = view.history(later);
        let parent = history.ancestors.last().filter(|parent| parent.timeline == timeline)?;
        WalSegmentNumber::containing(parent.left_at, size).get().checked_sub(1).map(WalSegmentNumber::new)
    });
    let last = left.chain(view.last_of(timeline)).max()?;
    (first <= last).then_some((first, last))
}

fn gaps(
    view: &ArchiveView,
    timeline: TimelineId,
    first: WalSegmentNumber,
    last: WalSegmentNumber,
) -> Vec<(WalSegmentNumber, WalSegmentNumber)> {
    let mut gaps = Vec::new();
    let mut next = first;
    while next <= last {
        match view.first_from(timeline, next).filter(|found| *found <= last) {
            Some(found) if found == next => next = next.next(),
            Some(found) => {
                gaps.push((next, WalSegmentNumber::new(found.get() - 1)));
                next = found.next();
            }
            None => {
                gaps.push((next, last));
                break;
            }
        }
    }
    gaps
}

fn gap(view: &ArchiveView, timeline: TimelineId, from: WalSegmentNumber, to: WalSegmentNumber) -> Obstacle {
    let (first, last) = (view.name(timeline, from), view.name(timeline, to));
    let count = to.get() - from.get() + 1;
    let problem = if count == 1 {
        format!("segment {first} is missing")
    } else {
        format!("{count} segments are missing, {first} to {last}")
    };
    Obstacle {
        finding: Finding::of_segments(FindingKind::Gap, first, last, count, problem),
        timeline,
        from: view.start_of(from),
        to: view.start_of(to.next()),
        passable_without_backups: true,
    }
}

/// Reads the indexes of one timeline and joins them.
struct Joining<'a, 'b> {
    stored: &'a StoredSegments<'b>,
    report: &'a mut SystemVerification,
    times: &'a mut CommitTimes,
}

impl Joining<'_, '_> {
    fn join(
        &mut self,
        timeline: TimelineId,
        first: WalSegmentNumber,
        last: WalSegmentNumber,
    ) -> Result<Vec<Obstacle>, StoredSegmentsError> {
        let mut obstacles = Vec::new();
        let mut chain = IndexChain::new();
        let mut waiting: std::collections::VecDeque<WalSegmentName> = std::collections::VecDeque::new();
        let names = self.names(timeline, first, last);
        for part in names.chunks(INDEXES_AT_ONCE) {
            let (readable, doubled): (Vec<_>, Vec<_>) =
                part.iter().copied().partition(|name| self.stored.object(*name).is_ok());
            obstacles.extend(doubled.into_iter().map(|name| self.two_objects(name)));
            for (name, loaded) in readable.iter().zip(self.stored.load_indexes(&readable)?) {
                let index = WalIndex { blocks: None, ..loaded.index };
                self.report.segments_checked += u64::from(name.timeline == timeline);
                waiting.push_back(*name);
                for facts in chain.push(index) {
                    let name = waiting.pop_front();
                    obstacles.extend(name.and_then(|name| self.judge(name, facts, waiting.front())));
                }
            }
        }
        for facts in chain.finish() {
            let name = waiting.pop_front();
            obstacles.extend(name.and_then(|name| self.judge(name, facts, None)));
        }
        Ok(obstacles)
    }

    /// What is stored of the timeline, behind the segment of its parent that it goes on from.
    fn names(
        &self,
        timeline: TimelineId,
        first: WalSegmentNumber,
        last: WalSegmentNumber,
    ) -> Vec<WalSegmentName> {
        let view = self.stored.view();
        let mut names = Vec::new();
        if let Some(before) = first.get().checked_sub(1).map(WalSegmentNumber::new) {
            let history = view.history(timeline);
            let owner = history.timeline_at(Lsn::new(view.start_of(first).get().saturating_sub(1)));
            if owner != timeline && view.has(owner, before) {
                names.push(view.name(owner, before));
            }
        }
        let mut next = view.first_from(timeline, first);
        while let Some(number) = next.filter(|number| *number <= last) {
            names.push(view.name(timeline, number));
            next = view.first_from(timeline, number.next());
        }
        names
    }

    fn two_objects(&self, name: WalSegmentName) -> Obstacle {
        let problem = match self.stored.object(name) {
            Err(error) => error.to_string(),
            Ok(object) => format!("{} is stored more than once", object.path),
        };
        self.obstacle(FindingKind::TwoObjects, name, None, problem)
    }

    fn judge(
        &mut self,
        name: WalSegmentName,
        facts: SegmentFacts,
        next: Option<&WalSegmentName>,
    ) -> Option<Obstacle> {
        if let Some(last) = facts.index.transactions.and_then(|span| span.last_commit) {
            self.times.add(name, last.time);
        }
        if let RecordVerdict::Damaged { at, problem } = &facts.index.verdict {
            let words = format!("segment {name} is damaged at {at}: {problem}");
            return Some(self.obstacle(FindingKind::Damaged, name, Some(*at), words));
        }
        let problem = facts.break_after?;
        let size = self.stored.view().segment_size;
        // A hole between the two was told as a gap.
        let follows =
            next.and_then(|next| next.number(size)) == name.number(size).map(WalSegmentNumber::next);
        follows.then(|| {
            let words = format!("what follows segment {name} does not fit: {problem}");
            self.obstacle(FindingKind::Broken, name, Some(facts.index.end), words)
        })
    }

    fn obstacle(
        &self,
        kind: FindingKind,
        name: WalSegmentName,
        at: Option<Lsn>,
        problem: String,
    ) -> Obstacle {
        let view = self.stored.view();
        let start = name.start_lsn(view.segment_size).unwrap_or_default();
        Obstacle {
            finding: Finding::of_segments(kind, name, name, 1, problem),
            timeline: name.timeline,
            from: at.unwrap_or(start),
            to: start.plus(view.segment_size.bytes()),
            passable_without_backups: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{PgTimestamp, SystemIdentifier, TimelineHistory, WalSegmentSize};

    const SIZE: u64 = 16 << 20;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn view(segments: &[(u32, &[u64])], histories: &[(u32, &str)]) -> ArchiveView {
        let mut view = ArchiveView::new(WalSegmentSize::DEFAULT);
        for (timeline, numbers) in segments {
            for number in *numbers {
                let name = view.name(tli(*timeline), WalSegmentNumber::new(*number));
                view.add_segment(name);
            }
        }
        for (timeline, text) in histories {
            view.add_history(TimelineHistory::parse(tli(*timeline), text).unwrap());
        }
        view
    }

    /// A backup in the middle of these segments.
    fn backup(timeline: u32, first: u64, last: u64) -> BackupSpan {
        BackupSpan {
            id: format!("20261120T2246{first:02}Z-{timeline:08}-0000000000000001").parse().unwrap(),
            system_identifier: SystemIdentifier::new(1),
            timeline: tli(timeline),
            start: Lsn::new(first * SIZE + 40),
            stop: Lsn::new(last * SIZE + 400),
            stop_time: PgTimestamp::new(0),
        }
    }

    /// `first-last`, and how many backups it costs altogether.
    fn found(view: &ArchiveView, backups: &[BackupSpan]) -> Vec<String> {
        let missing = missing(view, &backups.iter().collect::<Vec<_>>());
        let number = |name: WalSegmentName| name.number(WalSegmentSize::DEFAULT).unwrap().get();
        let line = |gap: &MissingWal| {
            format!(
                "{}: {}-{} lost {}",
                gap.first.timeline.get(),
                number(gap.first),
                number(gap.last),
                gap.backups_lost.len()
            )
        };
        missing.iter().map(line).collect()
    }

    #[test]
    fn what_a_backup_has_to_pass_is_missed() {
        let backups = [backup(1, 3, 4), backup(1, 10, 10)];
        assert_eq!(found(&view(&[(1, &[3, 4, 5, 6, 9, 10, 11])], &[]), &backups), ["1: 7-8 lost 0"]);
        assert_eq!(found(&view(&[(1, &[3, 5, 6, 7, 8, 9, 10])], &[]), &backups), ["1: 4-4 lost 1"]);
        // The first segment of the oldest backup, and the last one of the newest.
        assert_eq!(
            found(&view(&[(1, &[4, 5, 6, 7, 8, 9, 11])], &[]), &backups),
            ["1: 3-3 lost 1", "1: 10-10 lost 1"]
        );
        assert_eq!(found(&view(&[(1, &[1, 3, 4, 5, 6, 7, 8, 9, 10])], &[]), &backups), Vec::<String>::new());
    }

    #[test]
    fn what_expire_leaves_is_not_missed() {
        let backups = [backup(1, 3, 4), backup(1, 10, 10)];
        assert_eq!(found(&view(&[(1, &[3, 4, 10, 11])], &[]), &backups), Vec::<String>::new());
        // A segment less on either side is a loss.
        assert_eq!(found(&view(&[(1, &[3, 4, 5, 10, 11])], &[]), &backups), ["1: 6-9 lost 0"]);
        assert_eq!(found(&view(&[(1, &[3, 4, 9, 10, 11])], &[]), &backups), ["1: 5-8 lost 0"]);
        // Over a switch of timelines, in segment 7.
        let backups = [backup(1, 3, 4), backup(2, 10, 10)];
        let history = [(2, "1\t0/7000100\tx")];
        assert_eq!(found(&view(&[(1, &[3, 4]), (2, &[10, 11])], &history), &backups), Vec::<String>::new());
        let lost = found(&view(&[(1, &[3, 4, 5, 6]), (2, &[10, 11])], &history), &backups);
        assert_eq!(lost, ["2: 7-9 lost 0"]);
    }
}
