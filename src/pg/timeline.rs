//! Timelines and the history files that tell where each one left its parent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lsn::Lsn;
use super::wal_segment::parse_upper_hex_8;

/// A timeline's number: 1 after initdb, a new one at every promotion and recovery. Never 0.
///
/// Prints as in file names: `0000000A`; JSON carries the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(u32);

impl TimelineId {
    /// The timeline that initdb starts.
    pub const FIRST: TimelineId = TimelineId(1);

    /// `None` for 0, which is no timeline.
    pub fn new(number: u32) -> Option<TimelineId> {
        (number != 0).then_some(TimelineId(number))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

/// Text that is not a timeline as file names spell it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a timeline; expected 8 hexadecimal digits, not all zero")]
pub struct ParseTimelineIdError(pub String);

impl FromStr for TimelineId {
    type Err = ParseTimelineIdError;

    /// Parses the 8 digits of file names, not the decimal number of `recovery_target_timeline`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_upper_hex_8(text).and_then(TimelineId::new).ok_or_else(|| ParseTimelineIdError(text.to_owned()))
    }
}

impl Serialize for TimelineId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for TimelineId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TimelineId::new(u32::deserialize(deserializer)?)
            .ok_or_else(|| serde::de::Error::custom("0 is not a timeline"))
    }
}

/// One line of a history file: an ancestor and where it was left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineAncestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that is *not* part of the ancestor's share of this history.
    pub left_at: Lsn,
    /// The rest of the line, written for people.
    pub reason: String,
}

/// How `timeline` came to be: its ancestors, oldest first.
///
/// Invariants: ancestors' numbers increase and are below `timeline`; switch points never decrease (equal ones mean that the
/// later ancestor has no share).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline that this is the history of.
    pub timeline: TimelineId,
    /// Oldest first; empty for timeline 1.
    pub ancestors: Vec<TimelineAncestor>,
}

/// A history file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("history of timeline {timeline}: line {line}: {problem}")]
pub struct ParseHistoryError {
    /// The timeline that the file is named after.
    pub timeline: TimelineId,
    /// 1-based; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub problem: &'static str,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, as timeline 1 is: it has no history file.
    pub fn without_ancestors(timeline: TimelineId) -> TimelineHistory {
        TimelineHistory { timeline, ancestors: Vec::new() }
    }

    /// Parses the text of `<timeline>.history` (`src/backend/access/transam/timeline.c`,
    /// `readTimeLineHistory`): lines of "timeline, switch point, reason", `#` starts a comment line.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<TimelineHistory, ParseHistoryError> {
        let mut ancestors: Vec<TimelineAncestor> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let error = |problem| ParseHistoryError { timeline, line: index + 1, problem };
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let ancestor = parse_ancestor(content).map_err(error)?;
            if ancestor.timeline >= timeline {
                return Err(error("an ancestor's number is not below the timeline's own"));
            }
            if ancestors.last().is_some_and(|last| ancestor.timeline <= last.timeline) {
                return Err(error("timelines do not increase"));
            }
            ancestors.push(ancestor);
        }
        if ancestors.is_empty() && timeline != TimelineId::FIRST {
            return Err(ParseHistoryError { timeline, line: 0, problem: "no ancestor is named" });
        }
        cut_overlaps(&mut ancestors);
        Ok(TimelineHistory { timeline, ancestors })
    }

    /// The timeline that wrote the byte at `lsn` in this history (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let ancestor = self.ancestors.iter().find(|ancestor| lsn < ancestor.left_at);
        ancestor.map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// Where this history left `timeline`: [`Lsn::MAX`] for the timeline itself, `None` for one that is not in
    /// the history.
    pub fn left_at(&self, timeline: TimelineId) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(Lsn::MAX);
        }
        self.ancestors.iter().find(|ancestor| ancestor.timeline == timeline).map(|ancestor| ancestor.left_at)
    }

    /// Where `timeline`'s own share of this history begins: the point where its parent was left, 0 for the
    /// oldest. `None` for a timeline that is not in the history.
    pub fn begins_at(&self, timeline: TimelineId) -> Option<Lsn> {
        let position = if timeline == self.timeline {
            self.ancestors.len()
        } else {
            self.ancestors.iter().position(|ancestor| ancestor.timeline == timeline)?
        };
        let parent = position.checked_sub(1).and_then(|parent| self.ancestors.get(parent));
        Some(parent.map_or(Lsn::INVALID, |parent| parent.left_at))
    }

    /// Every timeline of this history, oldest first, the timeline itself last.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.ancestors.iter().map(|ancestor| ancestor.timeline).chain(std::iter::once(self.timeline))
    }
}

/// Recovery along timeline 2 that stops before timeline 2 even began writes "1 left at 0/5000000, 2 left at 0/4000000": PostgreSQL names the
/// timeline that it was told to follow as the parent (`StartupXLOG`, `writeTimeLineHistory`), and looks positions up newest
/// timeline first (`tliOfPointInHistory`). So an ancestor is left where any later one is, at the latest.
fn cut_overlaps(ancestors: &mut [TimelineAncestor]) {
    let mut limit = Lsn::MAX;
    for ancestor in ancestors.iter_mut().rev() {
        limit = limit.min(ancestor.left_at);
        ancestor.left_at = limit;
    }
}

fn parse_ancestor(line: &str) -> Result<TimelineAncestor, &'static str> {
    let mut fields = line.splitn(2, char::is_whitespace);
    let number = fields.next().unwrap_or_default();
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let timeline = number.parse().ok().filter(|_| digits).and_then(TimelineId::new);
    let timeline = timeline.ok_or("does not begin with a timeline number")?;
    let mut fields = fields.next().unwrap_or_default().trim_start().splitn(2, char::is_whitespace);
    let left_at =
        fields.next().unwrap_or_default().parse().map_err(|_| "no switch point after the timeline")?;
    let reason = fields.next().unwrap_or_default().trim().to_owned();
    Ok(TimelineAncestor { timeline, left_at, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    const HISTORY: &str =
        "1\t0/3000000\tno recovery target specified\n\n# a comment\n2 0/5000028   before 2026-11-20\n";

    #[test]
    fn says_which_timeline_wrote_a_byte() {
        let history = TimelineHistory::parse(tli(4), HISTORY).unwrap();
        let at = |text: &str| history.timeline_at(text.parse().unwrap()).get();
        assert_eq!((at("0/2FFFFFF"), at("0/3000000"), at("0/5000027"), at("0/5000028")), (1, 2, 2, 4));
        assert_eq!(history.ancestors[1].reason, "before 2026-11-20");
    }

    #[test]
    fn says_where_timelines_begin_and_end() {
        let history = TimelineHistory::parse(tli(4), HISTORY).unwrap();
        assert_eq!(history.begins_at(tli(1)), Some(Lsn::INVALID));
        assert_eq!(history.begins_at(tli(2)), Some("0/3000000".parse().unwrap()));
        assert_eq!(history.begins_at(tli(4)), Some("0/5000028".parse().unwrap()));
        assert_eq!(history.left_at(tli(2)), Some("0/5000028".parse().unwrap()));
        assert_eq!(history.left_at(tli(4)), Some(Lsn::MAX));
        assert_eq!((history.left_at(tli(3)), history.begins_at(tli(3))), (None, None));
    }

    #[test]
    fn a_parent_that_recovery_never_reached_has_no_share() {
        let history =
            TimelineHistory::parse(tli(3), "1 0/5000000 x\n2 0/4000000 before 2026-11-20\n").unwrap();
        let at = |text: &str| history.timeline_at(text.parse().unwrap()).get();
        assert_eq!((at("0/3FFFFFF"), at("0/4000000"), at("0/5000000")), (1, 3, 3));
        assert_eq!(history.left_at(tli(1)), Some("0/4000000".parse().unwrap()));
    }

    #[test]
    fn refuses_histories_that_postgresql_refuses() {
        for text in ["", "x", "1", "1 zero", "2 0/1\n1 0/2", "4 0/1", "+1 0/1", "0 0/1"] {
            assert!(TimelineHistory::parse(tli(4), text).is_err(), "{text:?} was accepted");
        }
    }
}
