//! Which segments PostgreSQL would ask for, from a backup's start along one timeline's history, and where that
//! ends.
//!
//! Follows `XLogFileReadAnyTLI` (`src/backend/access/transam/xlogrecovery.c`): for each segment it tries the timelines of
//! the history, newest first, but only those that begin in or before the segment, and never goes back to an
//! older one.

use super::archive_view::ArchiveView;
use crate::pg::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber};

/// The stored segments from a start along a history, without a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct WalPath {
    /// The line that is followed.
    pub history: TimelineHistory,
    /// Where replay starts.
    pub start: Lsn,
    /// In order, consecutive numbers.
    pub segments: Vec<PathSegment>,
    /// Why there are no more.
    pub end: PathEnd,
}

/// A stored segment on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSegment {
    /// The file.
    pub name: WalSegmentName,
    /// Where it begins.
    pub start: Lsn,
    /// Up to where its WAL belongs to the line: its end, or the point where its timeline was left.
    pub until: Lsn,
}

/// Why a path ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEnd {
    /// Nothing is stored after it: the end of the archive.
    Archive {
        /// The segment that would be next.
        next: WalSegmentName,
    },
    /// A segment is missing although a later one is stored.
    Gap {
        /// The first missing segment.
        missing: WalSegmentName,
        /// The first stored one after it.
        later: WalSegmentName,
    },
    /// The line goes on on another timeline, of which nothing is stored yet.
    TimelineMissing {
        /// The timeline that nothing is stored of.
        timeline: TimelineId,
        /// Where it begins.
        begins_at: Lsn,
        /// Its first segment.
        missing: WalSegmentName,
    },
}

impl WalPath {
    /// Where the WAL of the line is stored up to, as far as names can tell.
    pub fn reach(&self) -> Lsn {
        self.segments.last().map_or(self.start, |segment| segment.until)
    }

    /// The position in [`WalPath::segments`] of the segment that holds the byte at `lsn`.
    pub fn position_of(&self, lsn: Lsn) -> Option<usize> {
        let after = self.segments.partition_point(|segment| segment.start <= lsn);
        let position = after.checked_sub(1)?;
        self.segments.get(position).filter(|segment| lsn < segment.until).map(|_| position)
    }
}

/// Follows `history` through the archive from `start`.
pub fn trace(view: &ArchiveView, history: &TimelineHistory, start: Lsn) -> WalPath {
    let size = view.segment_size;
    let mut segments: Vec<PathSegment> = Vec::new();
    let mut number = WalSegmentNumber::containing(start, size);
    let end = loop {
        let (from, to) = (view.start_of(number), view.start_of(number.next()));
        let current = segments.last().map(|segment: &PathSegment| segment.name.timeline);
        let owner = history.timeline_at(Lsn::new(to.get().saturating_sub(1)));
        match stored_on_newest(view, history, number, current) {
            Some(timeline) => {
                let left_at = history.left_at(timeline).unwrap_or(Lsn::INVALID);
                if left_at <= from {
                    // Only a dead end of an abandoned timeline is stored at this place.
                    break end_at(view, history, number, owner);
                }
                segments.push(PathSegment {
                    name: view.name(timeline, number),
                    start: from,
                    until: left_at.min(to),
                });
                if left_at < to {
                    break end_at(view, history, number, owner);
                }
            }
            None => break end_at(view, history, number, owner),
        }
        number = number.next();
    };
    WalPath { history: history.clone(), start, segments, end }
}

/// The file that PostgreSQL would take for segment `number`.
fn stored_on_newest(
    view: &ArchiveView,
    history: &TimelineHistory,
    number: WalSegmentNumber,
    current: Option<TimelineId>,
) -> Option<TimelineId> {
    history
        .timelines()
        .rev()
        .take_while(|timeline| current.is_none_or(|current| *timeline >= current))
        .filter(|timeline| {
            let begins = history.begins_at(*timeline).unwrap_or(Lsn::MAX);
            WalSegmentNumber::containing(begins, view.segment_size) <= number
        })
        .find(|timeline| view.has(*timeline, number))
}

/// Segment `number` of `owner` is not there: what does that mean?
fn end_at(
    view: &ArchiveView,
    history: &TimelineHistory,
    number: WalSegmentNumber,
    owner: TimelineId,
) -> PathEnd {
    let missing = view.name(owner, number);
    // Each timeline of the line is searched within its own share only: what an abandoned timeline has beyond is no gap.
    let later = history.timelines().filter(|timeline| *timeline >= owner).find_map(|timeline| {
        let begins = history.begins_at(timeline).unwrap_or(Lsn::MAX);
        let first = number.next().max(WalSegmentNumber::containing(begins, view.segment_size));
        let found = view.first_from(timeline, first)?;
        let left_at = history.left_at(timeline)?;
        (view.start_of(found) < left_at).then(|| view.name(timeline, found))
    });
    if let Some(later) = later {
        return PathEnd::Gap { missing, later };
    }
    let timeline = history.timeline;
    let begins_at = history.begins_at(timeline).unwrap_or(Lsn::INVALID);
    if begins_at.is_valid() && number <= WalSegmentNumber::containing(begins_at, view.segment_size) {
        return PathEnd::TimelineMissing { timeline, begins_at, missing };
    }
    PathEnd::Archive { next: missing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::WalSegmentSize;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    /// Segments of 16 MiB: `(timeline, numbers)`.
    fn view(segments: &[(u32, &[u64])], histories: &[(u32, &str)]) -> ArchiveView {
        let mut view = ArchiveView::new(WalSegmentSize::DEFAULT);
        for (timeline, numbers) in segments {
            for number in *numbers {
                view.add_segment(view.name(tli(*timeline), WalSegmentNumber::new(*number)));
            }
        }
        for (timeline, text) in histories {
            view.add_history(TimelineHistory::parse(tli(*timeline), text).unwrap());
        }
        view
    }

    fn path(view: &ArchiveView, timeline: u32, start: &str) -> (String, PathEnd) {
        let path = trace(view, &view.history(tli(timeline)), lsn(start));
        let names: Vec<_> = path
            .segments
            .iter()
            .map(|segment| {
                format!(
                    "{}:{}",
                    segment.name.timeline.get(),
                    segment.name.number(view.segment_size).unwrap().get()
                )
            })
            .collect();
        (names.join(" "), path.end)
    }

    fn name(timeline: u32, number: u64) -> WalSegmentName {
        WalSegmentName::new(tli(timeline), WalSegmentNumber::new(number), WalSegmentSize::DEFAULT)
    }

    #[test]
    fn follows_one_timeline_to_the_end() {
        let view = view(&[(1, &[1, 2, 3, 4])], &[]);
        assert_eq!(
            path(&view, 1, "0/2000028"),
            ("1:2 1:3 1:4".to_owned(), PathEnd::Archive { next: name(1, 5) })
        );
    }

    #[test]
    fn a_missing_segment_before_a_stored_one_is_a_gap() {
        let view = view(&[(1, &[1, 2, 4])], &[]);
        let gap = PathEnd::Gap { missing: name(1, 3), later: name(1, 4) };
        assert_eq!(path(&view, 1, "0/2000028"), ("1:2".to_owned(), gap));
        let gap = PathEnd::Gap { missing: name(1, 3), later: name(1, 4) };
        assert_eq!(path(&view, 1, "0/3000028"), (String::new(), gap));
    }

    #[test]
    fn at_a_switch_the_newer_timelines_file_is_read() {
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3, 4, 5]), (2, &[3, 4])];
        let view = view(stored, &[(2, "1 0/3000100 x")]);
        assert_eq!(
            path(&view, 2, "0/2000028"),
            ("1:2 2:3 2:4".to_owned(), PathEnd::Archive { next: name(2, 5) })
        );
        assert_eq!(path(&view, 1, "0/2000028").0, "1:2 1:3 1:4 1:5");
    }

    #[test]
    fn a_timeline_of_which_nothing_is_stored_ends_the_path_at_the_switch() {
        let whole = view(&[(1, &[2, 3, 4, 5])], &[(2, "1 0/3000100 x")]);
        let end =
            PathEnd::TimelineMissing { timeline: tli(2), begins_at: lsn("0/3000100"), missing: name(2, 3) };
        assert_eq!(path(&whole, 2, "0/2000028"), ("1:2 1:3".to_owned(), end.clone()));
        let partial = view(&[(1, &[2])], &[(2, "1 0/3000100 x")]);
        assert_eq!(path(&partial, 2, "0/2000028"), ("1:2".to_owned(), end));
    }

    #[test]
    fn a_switch_on_a_boundary_needs_no_copy_of_the_old_segment() {
        let stored: &[(u32, &[u64])] = &[(1, &[2]), (2, &[3])];
        let view = view(stored, &[(2, "1 0/3000000 x")]);
        assert_eq!(path(&view, 2, "0/2000028").0, "1:2 2:3");
    }

    #[test]
    fn a_missing_first_segment_of_the_new_timeline_is_a_gap() {
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3, 4]), (2, &[4, 5])];
        let view = view(stored, &[(2, "1 0/3000100 x")]);
        let gap = PathEnd::Gap { missing: name(2, 3), later: name(2, 4) };
        assert_eq!(path(&view, 2, "0/2000028"), ("1:2 1:3".to_owned(), gap));
    }

    #[test]
    fn two_switches_in_one_segment_read_the_newest_file() {
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3]), (2, &[3]), (3, &[3, 4])];
        let view = view(stored, &[(2, "1 0/3000100 x"), (3, "1 0/3000100 x\n2 0/3000200 y")]);
        let traced = trace(&view, &view.history(tli(3)), lsn("0/2000028"));
        assert_eq!(path(&view, 3, "0/2000028").0, "1:2 3:3 3:4");
        assert_eq!(traced.position_of(lsn("0/3000150")), Some(1));
        assert_eq!(traced.position_of(lsn("0/5000000")), None);
    }
}
