//! Which moments can be recovered: from backups and stored WAL to "any moment from … to …".
//!
//! In: complete backups, and the names of what is stored. Out: windows, each a stretch of one line of history without a hole. Which
//! commit is the last before a window's end only an index tells; the caller reads those, which are few.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::format::BackupId;
use crate::format::manifest::BackupSummary;
use crate::pg::{Lsn, PgTimestamp, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber};
use crate::restore::choose::on_line;
use crate::wal::archive_view::ArchiveView;
use crate::wal::wal_path::{PathEnd, WalPath, trace};

/// A stretch of history, every moment of which can be recovered.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RecoveryWindow {
    /// The line that is followed.
    pub timeline: TimelineId,
    /// Whether it is the cluster's newest line.
    pub current: bool,
    /// When the first backup was complete.
    pub from: PgTimestamp,
    /// Where it was.
    pub from_lsn: Lsn,
    /// The last transaction's end that is stored; `null` if none was found, then it is `from`.
    pub to: Option<PgTimestamp>,
    /// Where the stored WAL ends.
    pub to_lsn: Lsn,
    /// The first backup.
    pub first_backup: BackupId,
    /// How many backups lie in it.
    pub backups: u64,
    /// Why it ends.
    pub end: WindowEnd,
    /// The last segment of it.
    #[serde(skip)]
    pub last_segment: Option<WalSegmentName>,
    #[serde(skip)]
    first_segment: Option<WalSegmentName>,
}

/// Why a window ends.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum WindowEnd {
    /// There is no more WAL on this line.
    Archive,
    /// Only the WAL that makes its backup consistent is stored: one moment, not a stretch.
    Backup,
    /// Segments are missing.
    Gap {
        /// The first missing segment.
        missing: WalSegmentName,
        /// The first stored one after it.
        later: WalSegmentName,
    },
    /// The line goes on on a timeline of which nothing is stored yet.
    TimelineMissing {
        /// Its first segment.
        missing: WalSegmentName,
    },
}

/// All windows, the newest line's first, each line's oldest first. `backups` in any order.
pub fn find(view: &ArchiveView, backups: &[&BackupSummary]) -> Vec<RecoveryWindow> {
    let mut timelines = view.timelines();
    timelines.extend(backups.iter().map(|backup| backup.stop_timeline));
    let current = newest_line(view, backups);
    let mut windows: Vec<RecoveryWindow> = Vec::new();
    let mut seen: Vec<TimelineHistory> = Vec::new();
    for timeline in timelines.into_iter().rev() {
        let line = view.history(timeline);
        let mut on_this: Vec<&BackupSummary> =
            backups.iter().copied().filter(|backup| on_line(backup, &line).is_ok()).collect();
        on_this.sort_by_key(|backup| (backup.start_lsn, backup.stop_lsn));
        for window in on_one_line(view, &line, &on_this) {
            // What an ancestor shares with a line that was shown already is not shown again.
            let shared = seen.iter().any(|shown| {
                shown.left_at(timeline).is_some_and(|left_at| {
                    let segment = WalSegmentNumber::ending_at(left_at, view.segment_size);
                    window.from_lsn <= left_at && window.to_lsn <= view.start_of(segment.next())
                })
            });
            if !shared {
                windows.push(RecoveryWindow { current: Some(timeline) == current, ..window });
            }
        }
        seen.push(line);
    }
    windows
}

/// The newest timeline that a backup leads to.
pub fn newest_line(view: &ArchiveView, backups: &[&BackupSummary]) -> Option<TimelineId> {
    let mut timelines: BTreeSet<TimelineId> = view.timelines();
    timelines.extend(backups.iter().map(|backup| backup.stop_timeline));
    timelines.into_iter().rev().find(|timeline| {
        let line = view.history(*timeline);
        backups.iter().any(|backup| on_line(backup, &line).is_ok())
    })
}

/// Moments that `before` has and `after` has not.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LostSpan {
    /// The line.
    pub timeline: TimelineId,
    /// The last moment before them that can be recovered, or the first lost one.
    pub from: PgTimestamp,
    /// The first moment behind them that can be recovered, or the last lost one.
    pub to: PgTimestamp,
}

/// What is lost between two lists of windows of one cluster, the second with less.
pub fn lost(before: &[RecoveryWindow], after: &[RecoveryWindow]) -> Vec<LostSpan> {
    let mut lost = Vec::new();
    for window in before {
        let inside = after.iter().filter(|other| {
            other.timeline == window.timeline
                && other.from_lsn >= window.from_lsn
                && other.to_lsn <= window.to_lsn
        });
        let mut from = window.from;
        let mut reached = window.from_lsn;
        let mut begun = false;
        for other in inside {
            if begun || other.from_lsn > window.from_lsn {
                lost.push(LostSpan { timeline: window.timeline, from, to: other.from });
            }
            (from, reached, begun) = (other.to.unwrap_or(other.from), other.to_lsn, true);
        }
        if !begun || reached < window.to_lsn {
            lost.push(LostSpan { timeline: window.timeline, from, to: window.to.unwrap_or(from).max(from) });
        }
    }
    lost
}

fn on_one_line(
    view: &ArchiveView,
    line: &TimelineHistory,
    backups: &[&BackupSummary],
) -> Vec<RecoveryWindow> {
    let mut windows: Vec<RecoveryWindow> = Vec::new();
    for backup in backups {
        if let Some(last) = windows.last_mut()
            && backup.start_lsn < last.to_lsn
            && backup.stop_lsn <= last.to_lsn
            && last.end != WindowEnd::Backup
        {
            last.backups += 1;
            // A lagging standby's backup may be consistent earlier than one that began before it.
            if backup.stop_lsn < last.from_lsn {
                (last.from, last.from_lsn) = (backup.stop_time, backup.stop_lsn);
                last.first_backup = backup.id.clone();
            }
            continue;
        }
        let path = trace(view, line, backup.start_lsn);
        if path.reach() < backup.stop_lsn {
            continue;
        }
        windows.push(window_of(view, backup, &path));
    }
    windows
}

fn window_of(view: &ArchiveView, backup: &BackupSummary, path: &WalPath) -> RecoveryWindow {
    let stop_segment = WalSegmentNumber::ending_at(backup.stop_lsn, view.segment_size);
    let only_consistent = path.reach() <= view.start_of(stop_segment.next());
    let end = match &path.end {
        PathEnd::Archive { .. } => WindowEnd::Archive,
        PathEnd::Gap { .. } if only_consistent => WindowEnd::Backup,
        PathEnd::Gap { missing, later } => WindowEnd::Gap { missing: *missing, later: *later },
        PathEnd::TimelineMissing { missing, .. } => WindowEnd::TimelineMissing { missing: *missing },
    };
    RecoveryWindow {
        timeline: path.history.timeline,
        current: false,
        from: backup.stop_time,
        from_lsn: backup.stop_lsn,
        to: None,
        to_lsn: path.reach(),
        first_backup: backup.id.clone(),
        backups: 1,
        end,
        last_segment: path.segments.last().map(|segment| segment.name),
        first_segment: path.segments.first().map(|segment| segment.name),
    }
}

/// So many indexes are read backwards from a window's end to find its last transaction.
const LOOK_BACK: u64 = 16;

impl RecoveryWindow {
    /// Finds the last transaction's end, by indexes from the window's end backwards; `time_of` gives the greatest time in a segment.
    pub fn find_end<E>(
        &mut self,
        view: &ArchiveView,
        mut times_of: impl FnMut(&[WalSegmentName]) -> Result<Option<PgTimestamp>, E>,
    ) -> Result<(), E> {
        if self.end == WindowEnd::Backup {
            self.to = Some(self.from);
            return Ok(());
        }
        let names = self.last_names(view);
        // Mostly the first one tells; where it does not, the others cost one more wait for the store and not one each.
        let (newest, others) = names.split_at(names.len().min(1));
        for names in [newest, others] {
            if names.is_empty() {
                continue;
            }
            if let Some(time) = times_of(names)? {
                self.to = Some(time.max(self.from));
                break;
            }
        }
        Ok(())
    }

    /// The last [`LOOK_BACK`] segments of the window, the newest first.
    fn last_names(&self, view: &ArchiveView) -> Vec<WalSegmentName> {
        let (Some(last), Some(first)) = (self.last_segment, self.first_segment) else { return Vec::new() };
        let size = view.segment_size;
        let line = view.history(self.timeline);
        let (Some(end), Some(begin)) = (last.number(size), first.number(size)) else { return Vec::new() };
        let numbers = (0..LOOK_BACK).map_while(|step| end.get().checked_sub(step).map(WalSegmentNumber::new));
        let stored = numbers.take_while(|number| *number >= begin).filter_map(|number| {
            let mut timelines = line.timelines().rev();
            let timeline =
                timelines.find(|timeline| *timeline <= last.timeline && view.has(*timeline, number))?;
            Some(view.name(timeline, number))
        });
        stored.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::WalSegmentSize;
    use crate::restore::synthetic::{backup, segment, tli};

    fn view(segments: &[(u32, &[u64])], histories: &[(u32, &str)]) -> ArchiveView {
        let mut view = ArchiveView::new(WalSegmentSize::DEFAULT);
        for (timeline, numbers) in segments {
            numbers.iter().for_each(|number| view.add_segment(segment(*timeline, *number)));
        }
        for (timeline, text) in histories {
            view.add_history(TimelineHistory::parse(tli(*timeline), text).unwrap());
        }
        view
    }

    /// `timeline: from (second) - end of WAL, backups, why`.
    fn shown(view: &ArchiveView, backups: &[BackupSummary]) -> Vec<String> {
        let windows = find(view, &backups.iter().collect::<Vec<_>>());
        let line = |window: &RecoveryWindow| {
            let kind = match &window.end {
                WindowEnd::Archive => "archive".to_owned(),
                WindowEnd::Backup => "backup".to_owned(),
                WindowEnd::Gap { missing, .. } => format!("gap {}", &missing.to_string()[22..]),
                WindowEnd::TimelineMissing { .. } => "timeline missing".to_owned(),
            };
            let beside = if window.current { "" } else { " beside" };
            format!(
                "{}{beside}: {} to {} x{} {kind}",
                window.timeline.get(),
                window.from.get() / 1_000_000,
                window.to_lsn,
                window.backups
            )
        };
        windows.iter().map(line).collect()
    }

    #[test]
    fn backups_on_one_stretch_make_one_window() {
        let view = view(&[(1, &[2, 3, 4, 5, 6])], &[]);
        let backups = [backup(1, 5, 500), backup(1, 2, 200), backup(1, 4, 400)];
        assert_eq!(shown(&view, &backups), ["1: 200 to 0/7000000 x3 archive"]);
    }

    #[test]
    fn a_hole_parts_windows_and_a_backup_s_own_wal_is_one_moment() {
        let view = view(&[(1, &[2, 4, 5, 8, 9])], &[]);
        let backups = [backup(1, 2, 200), backup(1, 4, 400), backup(1, 8, 800)];
        assert_eq!(
            shown(&view, &backups),
            [
                "1: 200 to 0/3000000 x1 backup",
                "1: 400 to 0/6000000 x1 gap 06",
                "1: 800 to 0/A000000 x1 archive"
            ]
        );
    }

    #[test]
    fn a_backup_without_its_own_wal_recovers_nothing() {
        let view = view(&[(1, &[4, 5])], &[]);
        assert_eq!(shown(&view, &[backup(1, 2, 200), backup(1, 4, 400)]), ["1: 400 to 0/6000000 x1 archive"]);
        assert_eq!(shown(&view, &[backup(1, 2, 200)]), Vec::<String>::new());
    }

    #[test]
    fn a_promotion_goes_on_and_what_the_old_line_did_afterwards_lies_beside() {
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3, 4, 5, 6]), (2, &[4, 5])];
        let view = view(stored, &[(2, "1 0/4000100 x")]);
        let backups = [backup(1, 2, 200), backup(1, 5, 600), backup(2, 5, 700)];
        assert_eq!(
            shown(&view, &backups),
            ["2: 200 to 0/6000000 x2 archive", "1 beside: 200 to 0/7000000 x2 archive"]
        );
        // The old server stopped at the promotion: nothing lies beside.
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3]), (2, &[4, 5])];
        let quiet = super::tests::view(stored, &[(2, "1 0/4000100 x")]);
        assert_eq!(shown(&quiet, &[backup(1, 2, 200)]), ["2: 200 to 0/6000000 x1 archive"]);
    }

    #[test]
    fn a_new_timeline_without_wal_of_its_own_ends_the_window_there() {
        let view = view(&[(1, &[2, 3])], &[(2, "1 0/4000100 x")]);
        assert_eq!(shown(&view, &[backup(1, 2, 200)]), ["2: 200 to 0/4000000 x1 timeline missing"]);
    }
}
