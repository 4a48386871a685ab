//! What a place costs that recovery cannot pass: which backups, which moments.

use std::collections::BTreeMap;

use super::{BackupSpan, Cost, Obstacle};
use crate::pg::{Lsn, PgTimestamp, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber};
use crate::wal::archive_view::ArchiveView;

/// The last commit in each segment that has one.
#[derive(Debug, Default)]
pub(super) struct CommitTimes {
    last: BTreeMap<TimelineId, BTreeMap<WalSegmentName, PgTimestamp>>,
}

impl CommitTimes {
    pub(super) fn add(&mut self, name: WalSegmentName, last: PgTimestamp) {
        self.last.entry(name.timeline).or_default().insert(name, last);
    }

    pub(super) fn newest(&self) -> Option<PgTimestamp> {
        self.last.values().flat_map(BTreeMap::values).max().copied()
    }

    /// The last commit on a line in a segment before `number`.
    fn before(
        &self,
        view: &ArchiveView,
        line: &TimelineHistory,
        number: WalSegmentNumber,
    ) -> Option<PgTimestamp> {
        line.timelines().rev().find_map(|timeline| {
            let left_at = line.left_at(timeline).unwrap_or(Lsn::MAX);
            let end = WalSegmentNumber::containing(left_at, view.segment_size).next().min(number);
            let earlier = self.last.get(&timeline)?.range(..view.name(timeline, end));
            earlier.map(|(_, time)| *time).next_back()
        })
    }
}

/// `None` if no backup has to pass it.
pub(super) fn cost_of(
    obstacle: &Obstacle,
    view: &ArchiveView,
    backups: &[&BackupSpan],
    times: &CommitTimes,
) -> Option<Cost> {
    let line = view.history(obstacle.timeline);
    let on_line = |backup: &&&BackupSpan| lies_on(&line, backup);
    let before = || backups.iter().filter(on_line).filter(|backup| backup.start < obstacle.to);
    let lost: Vec<_> = before().filter(|backup| backup.stop > obstacle.from).collect();
    let cut: Vec<_> = before().filter(|backup| backup.stop <= obstacle.from).collect();
    if lost.is_empty() && cut.is_empty() {
        return None;
    }
    // On this timeline or on one that left it behind the obstacle.
    let goes_on = |backup: &&&BackupSpan| {
        backup.start >= obstacle.to && lies_behind(&view.history(backup.timeline), obstacle)
    };
    let next = backups.iter().filter(goes_on).min_by_key(|backup| backup.stop);
    let number = WalSegmentNumber::containing(obstacle.from, view.segment_size);
    Some(Cost {
        backups_lost: lost.into_iter().map(|backup| backup.id.clone()).collect(),
        backups_cut: cut.into_iter().map(|backup| backup.id.clone()).collect(),
        lost_from: obstacle.from,
        lost_after: times.before(view, &line, number),
        lost_until: next.map(|backup| backup.stop_time),
    })
}

/// Whether replay of the backup can follow this line.
fn lies_on(line: &TimelineHistory, backup: &BackupSpan) -> bool {
    let left_at = line.left_at(backup.timeline);
    left_at.is_some_and(|left_at| backup.start < left_at)
}

/// Whether the line passes over the place of the obstacle on its timeline.
fn lies_behind(line: &TimelineHistory, obstacle: &Obstacle) -> bool {
    line.left_at(obstacle.timeline).is_some_and(|left_at| obstacle.from < left_at)
}
