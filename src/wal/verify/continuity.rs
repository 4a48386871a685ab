//! Whether each timeline's segments are there, alone, readable, and follow on each other.

use super::cost::CommitTimes;
use super::{BackupSpan, Finding, FindingKind, Obstacle, SystemVerification, TimelineVerification};
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
    let size = view.segment_size;
    let oldest_needed = backups.iter().map(|backup| WalSegmentNumber::containing(backup.start, size)).min();
    let oldest_stored = stored.names().filter_map(|name| name.number(size)).min();
    let Some(floor) = oldest_needed.or(oldest_stored) else { return Ok(Vec::new()) };
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
