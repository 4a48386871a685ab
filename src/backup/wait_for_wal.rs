//! Waiting until the repository holds the WAL that a backup needs: the repository's word, not the server's.
//!
//! In: where the backup starts and stops, on which history of timelines. Out: nothing but the certainty that every
//! segment and history file between is stored.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::BackupError;
use crate::format::{ClusterName, keys};
use crate::interrupt;
use crate::pg::{
    ArchiveFileName, Lsn, SystemIdentifier, TimelineHistory, WalSegmentName, WalSegmentNumber, WalSegmentSize,
};
use crate::repository::{Naming, Repository};

/// A stretch of WAL.
#[derive(Clone, Debug)]
pub struct WalSpan {
    /// The history of the timeline that the stretch ends on.
    pub history: TimelineHistory,
    /// Its first byte.
    pub start: Lsn,
    /// One byte behind its last.
    pub stop: Lsn,
    /// Bytes in a segment.
    pub segment_size: WalSegmentSize,
}

impl WalSpan {
    /// The files that hold it, in the order in which they are written: a timeline's history file comes before its
    /// first segment. Where a timeline was left within a segment, the next timeline's segment holds its bytes too, and
    /// that is the one that recovery reads and an archive can count on.
    pub fn files(&self) -> Vec<ArchiveFileName> {
        let first = WalSegmentNumber::containing(self.start, self.segment_size);
        let last = WalSegmentNumber::ending_at(self.stop, self.segment_size).max(first);
        let mut files = Vec::new();
        let mut timeline_before = None;
        for number in first.get()..=last.get() {
            let number = WalSegmentNumber::new(number);
            // The newest timeline that had begun when this segment ended.
            let began = |timeline| {
                let begins = self.history.begins_at(timeline).unwrap_or(Lsn::MAX);
                WalSegmentNumber::containing(begins, self.segment_size) <= number
            };
            let timeline = self.history.timelines().rev().find(|timeline| began(*timeline));
            let timeline = timeline.unwrap_or(self.history.timeline);
            if timeline_before.is_some_and(|before| before != timeline) {
                files.push(ArchiveFileName::TimelineHistory(timeline));
            }
            timeline_before = Some(timeline);
            files.push(ArchiveFileName::Segment(WalSegmentName::new(timeline, number, self.segment_size)));
        }
        files
    }
}

/// Pauses between looks: short at first, because the last segment usually comes at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// From so many missing files on, folders are listed instead of asking for each file.
const WORTH_LISTING: usize = 8;

/// Whose WAL is waited for, and how long.
pub struct WalWait<'a> {
    /// Where it must arrive.
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a ClusterName,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// How long to wait while nothing new arrives.
    pub patience: Duration,
}

impl WalWait<'_> {
    /// Waits until all of `files` are stored. `while_waiting` is called between looks, with how long nothing arrived; its
    /// error ends the wait.
    pub fn wait(
        &self,
        files: Vec<ArchiveFileName>,
        mut while_waiting: impl FnMut(Duration) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let mut missing = files;
        let mut last_arrival = Instant::now();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let before = missing.len();
            missing = self.still_missing(missing)?;
            let Some(first) = missing.first() else { return Ok(()) };
            if missing.len() < before {
                (last_arrival, pause) = (Instant::now(), SHORTEST_PAUSE);
            }
            let waited = last_arrival.elapsed();
            if waited >= self.patience {
                let segment = first.to_string();
                return Err(BackupError::WalMissing { segment, waited, hint: String::new() });
            }
            if !interrupt::sleep(pause.min(self.patience - waited)) {
                return Err(BackupError::Interrupted);
            }
            while_waiting(waited)?;
            // A look comes late by an eighth of the wait at most.
            pause = (last_arrival.elapsed() / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
    }

    /// Those of the files that are not stored yet, in order. PostgreSQL archives in order, so that the first one that
    /// is missing says enough until it comes.
    fn still_missing(&self, files: Vec<ArchiveFileName>) -> Result<Vec<ArchiveFileName>, BackupError> {
        if files.len() >= WORTH_LISTING {
            return self.not_listed(files);
        }
        let mut stored = 0;
        for file in &files {
            let key = keys::wal(self.cluster, self.system_identifier, *file);
            if self.repository.find(&key, Naming::ByStore)?.is_none() {
                break;
            }
            stored += 1;
        }
        Ok(files.into_iter().skip(stored).collect())
    }

    fn not_listed(&self, files: Vec<ArchiveFileName>) -> Result<Vec<ArchiveFileName>, BackupError> {
        let mut listed: HashSet<String> = HashSet::new();
        let mut folders: HashSet<String> = HashSet::new();
        for file in &files {
            let key = keys::wal(self.cluster, self.system_identifier, *file);
            let Some((folder, _)) = key.as_str().rsplit_once('/') else { continue };
            // History files lie beside all segments: listing their folder would list everything.
            if matches!(file, ArchiveFileName::Segment(_)) && folders.insert(folder.to_owned()) {
                listed.extend(self.repository.list(folder)?.into_iter().map(|object| object.key.to_string()));
            } else if !matches!(file, ArchiveFileName::Segment(_))
                && self.repository.find(&key, Naming::ByStore)?.is_some()
            {
                listed.insert(key.to_string());
            }
        }
        let is_missing = |file: &ArchiveFileName| {
            !listed.contains(keys::wal(self.cluster, self.system_identifier, *file).as_str())
        };
        Ok(files.into_iter().filter(is_missing).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TimelineId;

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

    fn names(history: TimelineHistory, start: &str, stop: &str) -> Vec<String> {
        let span = WalSpan {
            history,
            start: start.parse().unwrap(),
            stop: stop.parse().unwrap(),
            segment_size: SIZE,
        };
        span.files().iter().map(ToString::to_string).collect()
    }

    fn first() -> TimelineHistory {
        TimelineHistory::without_ancestors(TimelineId::FIRST)
    }

    #[test]
    fn a_stop_on_a_boundary_needs_the_segment_before() {
        assert_eq!(names(first(), "0/2000028", "0/2000100"), ["000000010000000000000002"]);
        assert_eq!(names(first(), "0/2000028", "0/3000000"), ["000000010000000000000002"]);
        assert_eq!(
            names(first(), "0/2000028", "0/3000001"),
            ["000000010000000000000002", "000000010000000000000003"]
        );
    }

    #[test]
    fn a_span_over_timelines_follows_the_history() {
        let history = |text| TimelineHistory::parse(TimelineId::new(3).unwrap(), text).unwrap();
        assert_eq!(
            names(history("1\t0/3000100\tx\n2\t0/5000000\ty\n"), "0/2000028", "0/5000100"),
            [
                "000000010000000000000002",
                "00000002.history",
                "000000020000000000000003",
                "000000020000000000000004",
                "00000003.history",
                "000000030000000000000005",
            ]
        );
        // A timeline that ended within the segment in which it began leaves none of its own.
        assert_eq!(
            names(history("1\t0/3000100\tx\n2\t0/3000200\ty\n"), "0/3000028", "0/3000300"),
            ["000000030000000000000003"]
        );
    }
}
