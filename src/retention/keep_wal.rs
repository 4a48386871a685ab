//! Which WAL stays: all of it from a floor on, and below the floor what each older kept backup needs to become
//! consistent.
//!
//! The floor holds for every timeline: positions on different timelines compare where they share a history, and where they
//! do not (a line that was left), keeping too much is the safe side. `.history` files always stay: they are small, and
//! PostgreSQL finds out by them which timeline numbers are taken.

use crate::format::manifest::BackupSummary;
use crate::pg::{ArchiveFileName, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize};

/// What stays of one cluster's WAL.
#[derive(Clone, Debug)]
pub struct KeepWal {
    size: WalSegmentSize,
    /// Everything from here on; `None` keeps nothing but the ranges.
    pub floor: Option<WalSegmentNumber>,
    ranges: Vec<ConsistencyRange>,
}

/// From a backup's start to its stop.
#[derive(Clone, Copy, Debug)]
pub struct ConsistencyRange {
    /// The segment with the start.
    pub first: WalSegmentNumber,
    /// The segment with the last byte before the stop.
    pub last: WalSegmentNumber,
    timelines: (TimelineId, TimelineId),
}

impl ConsistencyRange {
    /// What this backup needs to become consistent.
    pub fn of(backup: &BackupSummary) -> ConsistencyRange {
        let size = backup.wal_segment_size;
        let first = WalSegmentNumber::containing(backup.start_lsn, size);
        ConsistencyRange {
            first,
            last: WalSegmentNumber::ending_at(backup.stop_lsn, size).max(first),
            timelines: (backup.start_timeline, backup.stop_timeline),
        }
    }

    /// Whether an archived file may be a part of it.
    pub fn covers_file(&self, name: ArchiveFileName, size: WalSegmentSize) -> bool {
        match name {
            ArchiveFileName::TimelineHistory(_) => true,
            ArchiveFileName::Segment(segment)
            | ArchiveFileName::Partial(segment)
            | ArchiveFileName::BackupHistory { segment, .. } => {
                segment.number(size).is_none_or(|number| self.covers(segment.timeline, number))
            }
        }
    }

    /// Every name that may hold a part of it: a segment may be stored under any timeline between start and stop.
    fn covers(&self, timeline: TimelineId, number: WalSegmentNumber) -> bool {
        let (from, to) = self.timelines;
        (self.first..=self.last).contains(&number) && (from.min(to)..=to.max(from)).contains(&timeline)
    }
}

impl KeepWal {
    /// Keeps all WAL from the least start among `continuous` and `at_work` (first segments of unfinished backups), and the
    /// ranges of `others`.
    pub fn new<'a>(
        size: WalSegmentSize,
        continuous: impl Iterator<Item = &'a BackupSummary>,
        at_work: impl Iterator<Item = WalSegmentNumber>,
        others: impl Iterator<Item = &'a BackupSummary>,
    ) -> KeepWal {
        let starts = continuous.map(|backup| WalSegmentNumber::containing(backup.start_lsn, size));
        KeepWal {
            size,
            floor: starts.chain(at_work).min(),
            ranges: others.map(ConsistencyRange::of).collect(),
        }
    }

    /// Keeps everything: for a cluster of which nothing is known to be superfluous.
    pub fn everything(size: WalSegmentSize) -> KeepWal {
        KeepWal { size, floor: Some(WalSegmentNumber::new(0)), ranges: Vec::new() }
    }

    /// Whether an archived file stays.
    pub fn keeps(&self, name: ArchiveFileName) -> bool {
        match name {
            ArchiveFileName::TimelineHistory(_) => true,
            ArchiveFileName::Segment(segment)
            | ArchiveFileName::Partial(segment)
            | ArchiveFileName::BackupHistory { segment, .. } => self.keeps_segment(segment),
        }
    }

    fn keeps_segment(&self, segment: WalSegmentName) -> bool {
        // A name that does not exist at this segment size is a stranger: not ours to delete.
        let Some(number) = segment.number(self.size) else { return true };
        self.floor.is_some_and(|floor| number >= floor)
            || self.ranges.iter().any(|range| range.covers(segment.timeline, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::synthetic::{backup, segment};

    #[test]
    fn the_floor_holds_for_every_timeline_and_older_backups_keep_their_own() {
        let size = WalSegmentSize::DEFAULT;
        let (new, old) = (backup(2, 20, 2000), backup(1, 5, 500));
        let keep = KeepWal::new(size, [&new].into_iter(), std::iter::empty(), [&new, &old].into_iter());
        let stays = |timeline, number| keep.keeps(ArchiveFileName::Segment(segment(timeline, number)));
        assert!(stays(1, 20) && stays(2, 20) && stays(2, 21) && stays(1, 500));
        assert!(stays(1, 5) && !stays(2, 5) && !stays(1, 4) && !stays(1, 6) && !stays(2, 19));
        assert!(keep.keeps("00000001.history".parse().unwrap()));
        assert!(!keep.keeps(ArchiveFileName::Partial(segment(1, 6))));
        let history = |number| ArchiveFileName::BackupHistory { segment: segment(1, number), offset: 0x28 };
        assert!(keep.keeps(history(5)) && !keep.keeps(history(6)));
    }

    #[test]
    fn a_backup_at_work_lowers_the_floor() {
        let size = WalSegmentSize::DEFAULT;
        let new = backup(1, 20, 2000);
        let at_work = std::iter::once(WalSegmentNumber::new(17));
        let keep = KeepWal::new(size, [&new].into_iter(), at_work, std::iter::empty());
        assert_eq!(keep.floor, Some(WalSegmentNumber::new(17)));
    }

    #[test]
    fn without_anything_to_recover_only_ranges_stay_and_everything_means_everything() {
        let size = WalSegmentSize::DEFAULT;
        let old = backup(1, 5, 500);
        let keep = KeepWal::new(size, std::iter::empty(), std::iter::empty(), [&old].into_iter());
        assert!(keep.keeps(ArchiveFileName::Segment(segment(1, 5))));
        assert!(!keep.keeps(ArchiveFileName::Segment(segment(1, 6))));
        assert!(KeepWal::everything(size).keeps(ArchiveFileName::Segment(segment(1, 0))));
    }
}
