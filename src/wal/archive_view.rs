//! What WAL is stored, by name: segments per timeline, partial segments, histories.
//!
//! In: one listing and the history files. Out: questions of path and timeline answered without further reads.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize};

/// A snapshot of the names in one cluster's archive.
#[derive(Clone, Debug)]
pub struct ArchiveView {
    /// Bytes in a segment.
    pub segment_size: WalSegmentSize,
    /// Complete segments.
    segments: BTreeMap<TimelineId, BTreeSet<WalSegmentNumber>>,
    /// Segments of which only the beginning belongs to their timeline.
    partials: BTreeSet<WalSegmentName>,
    /// Histories that could be read.
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Histories that are stored but cannot be used, and why.
    pub unusable_histories: BTreeMap<TimelineId, String>,
}

impl ArchiveView {
    /// An archive without anything in it.
    pub fn new(segment_size: WalSegmentSize) -> ArchiveView {
        ArchiveView {
            segment_size,
            segments: BTreeMap::new(),
            partials: BTreeSet::new(),
            histories: BTreeMap::new(),
            unusable_histories: BTreeMap::new(),
        }
    }

    /// Adds a complete segment; one whose name does not exist at this segment size is left out.
    pub fn add_segment(&mut self, name: WalSegmentName) {
        if let Some(number) = name.number(self.segment_size) {
            self.segments.entry(name.timeline).or_default().insert(number);
        }
    }

    /// Takes a segment out, as if it had been deleted.
    pub fn remove_segment(&mut self, name: WalSegmentName) {
        if let (Some(numbers), Some(number)) =
            (self.segments.get_mut(&name.timeline), name.number(self.segment_size))
        {
            numbers.remove(&number);
        }
    }

    /// Adds a `.partial` segment.
    pub fn add_partial(&mut self, name: WalSegmentName) {
        self.partials.insert(name);
    }

    /// Adds a history.
    pub fn add_history(&mut self, history: TimelineHistory) {
        self.histories.insert(history.timeline, history);
    }

    /// Whether this segment is stored whole.
    pub fn has(&self, timeline: TimelineId, number: WalSegmentNumber) -> bool {
        self.segments.get(&timeline).is_some_and(|numbers| numbers.contains(&number))
    }

    /// Whether this segment's beginning is stored as `.partial`.
    pub fn has_partial(&self, name: WalSegmentName) -> bool {
        self.partials.contains(&name)
    }

    /// The first stored segment of `timeline` from `number` on, `number` included.
    pub fn first_from(&self, timeline: TimelineId, number: WalSegmentNumber) -> Option<WalSegmentNumber> {
        self.segments.get(&timeline)?.range(number..).next().copied()
    }

    /// The last stored segment of `timeline`.
    pub fn last_of(&self, timeline: TimelineId) -> Option<WalSegmentNumber> {
        self.segments.get(&timeline)?.last().copied()
    }

    /// A segment's name on a timeline.
    pub fn name(&self, timeline: TimelineId, number: WalSegmentNumber) -> WalSegmentName {
        WalSegmentName::new(timeline, number, self.segment_size)
    }

    /// Every timeline of which a segment or a history is stored.
    pub fn timelines(&self) -> BTreeSet<TimelineId> {
        self.segments
            .keys()
            .copied()
            .chain(self.histories.keys().copied())
            .chain(self.histories.values().flat_map(|history| history.timelines()))
            .collect()
    }

    /// True if the history file itself is stored: PostgreSQL takes a timeline's number only then
    /// (`validateRecoveryParameters`, `existsTimeLineHistory`). Timeline 1 never has one.
    pub fn history_is_stored(&self, timeline: TimelineId) -> bool {
        timeline == TimelineId::FIRST || self.histories.contains_key(&timeline)
    }

    /// How `timeline` came to be. A timeline without a stored history has no known ancestors, as PostgreSQL assumes
    /// too (`readTimeLineHistory`).
    pub fn history(&self, timeline: TimelineId) -> TimelineHistory {
        let stored = self.histories.get(&timeline).cloned();
        stored.unwrap_or_else(|| TimelineHistory::without_ancestors(timeline))
    }

    /// The position where segment `number` begins.
    pub fn start_of(&self, number: WalSegmentNumber) -> Lsn {
        number.start_lsn(self.segment_size)
    }
}
