//! Which segments PostgreSQL asks for next.
//!
//! In: the segment that was asked for, and the history files that are stored. Out: names, in order. A wrong guess costs a fetch that nobody needs, and nothing else: what is asked for decides.

use crate::pg::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize};
use crate::wal::absence::{AbsenceError, Archive, read_history};

/// Timelines probed beyond the asked one, as a promotion's search for a free one would.
const PROBES: u32 = 64;

/// A line of timelines that recovery may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    size: WalSegmentSize,
    /// Each timeline with the segment that it begins in, newest first.
    shares: Vec<(TimelineId, u64)>,
}

impl Line {
    /// The line of one timeline alone.
    pub fn single(timeline: TimelineId, size: WalSegmentSize) -> Line {
        Line { size, shares: vec![(timeline, 0)] }
    }

    /// The line that a history describes.
    pub fn of(history: &TimelineHistory, size: WalSegmentSize) -> Line {
        let all = history.ancestors.iter().map(|ancestor| ancestor.timeline).chain([history.timeline]);
        let begins = |timeline| {
            let begin = history.begins_at(timeline).unwrap_or(Lsn::INVALID);
            (timeline, WalSegmentNumber::containing(begin, size).get())
        };
        let mut shares: Vec<_> = all.map(begins).collect();
        shares.reverse();
        Line { size, shares }
    }

    /// The names that a segment may have, in the order in which PostgreSQL asks: newest timeline first, none before its beginning
    /// (`src/backend/access/transam/xlogrecovery.c`, `XLogFileReadAnyTLI`), and none that is older than `since`.
    pub fn names(&self, number: u64, since: TimelineId) -> Vec<WalSegmentName> {
        let reaches = |(timeline, begin): &&(TimelineId, u64)| *begin <= number && *timeline >= since;
        let name = |(timeline, _): &(TimelineId, u64)| {
            WalSegmentName::new(*timeline, WalSegmentNumber::new(number), self.size)
        };
        self.shares.iter().filter(reaches).map(name).collect()
    }

    /// Whether recovery along this line may ask for `name`.
    pub fn leads_through(&self, name: WalSegmentName) -> bool {
        let Some(number) = name.number(self.size) else { return false };
        self.names(number.get(), name.timeline).contains(&name)
    }

    /// The newest stored line that goes through `asked`: the one that `recovery_target_timeline = latest` follows.
    pub fn find(archive: &Archive<'_>, asked: WalSegmentName) -> Result<Line, AbsenceError> {
        let size = archive.segment_size;
        let mut line = match read_history(archive, asked.timeline)? {
            Some(history) => Line::of(&history, size),
            None => Line::single(asked.timeline, size),
        };
        for next in 1..=PROBES {
            let Some(timeline) = asked.timeline.get().checked_add(next).and_then(TimelineId::new) else {
                break;
            };
            let Some(history) = read_history(archive, timeline)? else { break };
            let candidate = Line::of(&history, size);
            if candidate.leads_through(asked) {
                line = candidate;
            }
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

    fn history() -> TimelineHistory {
        TimelineHistory::parse(
            "00000003".parse().unwrap(),
            "1\t0/5000100\tno recovery target specified\n2\t0/8000000\tbefore something\n",
        )
        .unwrap()
    }

    fn names(line: &Line, number: u64, since: u32) -> Vec<String> {
        let since = TimelineId::new(since).unwrap();
        line.names(number, since).iter().map(|name| format!("{:?}", name)[7..].to_owned()).collect()
    }

    #[test]
    fn follows_the_switches_of_the_history() {
        let line = Line::of(&history(), SIZE);
        assert_eq!(names(&line, 4, 1), ["10000000000000004"]);
        assert_eq!(names(&line, 5, 1), ["20000000000000005", "10000000000000005"]);
        assert_eq!(names(&line, 7, 2), ["20000000000000007"]);
        assert_eq!(names(&line, 8, 2), ["30000000000000008", "20000000000000008"]);
        assert_eq!(names(&line, 9, 3), ["30000000000000009"]);
    }

    #[test]
    fn knows_which_requests_are_on_it() {
        let line = Line::of(&history(), SIZE);
        let through = |name: &str| line.leads_through(name.parse().unwrap());
        assert!(through("000000010000000000000004"));
        assert!(through("000000020000000000000005"));
        assert!(!through("000000020000000000000004"));
        assert!(!through("000000040000000000000009"));
        let single = Line::single(TimelineId::FIRST, SIZE);
        assert!(single.leads_through("000000010000000000000009".parse().unwrap()));
        assert!(!single.leads_through("000000020000000000000009".parse().unwrap()));
    }
}
