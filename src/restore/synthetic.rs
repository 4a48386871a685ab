//! Archives made up for the tests of [`super::prove`] and [`super::choose`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::archive_view::ArchiveView;
use super::error::RestoreError;
use super::prove::WalContents;
use super::wal_path::{PathSegment, WalPath};
use crate::format::manifest::{BackupKind, BackupSummary};
use crate::format::wal_index::{
    Outcome, RecordVerdict, RestorePoint, SegmentFacts, SpanningRecord, TransactionEnd, TransactionSpan,
    WalIndex, XidSet,
};
use crate::pg::{
    Lsn, PgTimestamp, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentNumber,
    WalSegmentSize,
};

pub(crate) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

pub(crate) fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

/// Seconds after 2000-01-01 00:00:00 UTC.
pub(crate) fn second(seconds: i64) -> PgTimestamp {
    PgTimestamp::new(seconds * 1_000_000)
}

pub(crate) fn segment(timeline: u32, number: u64) -> WalSegmentName {
    WalSegmentName::new(tli(timeline), WalSegmentNumber::new(number), WalSegmentSize::DEFAULT)
}

/// An archive with contents; segments of 16 MiB.
pub(crate) struct Archive {
    pub(crate) view: ArchiveView,
    indexes: BTreeMap<WalSegmentName, WalIndex>,
    ends: BTreeMap<WalSegmentName, Vec<TransactionEnd>>,
}

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive {
            view: ArchiveView::new(WalSegmentSize::DEFAULT),
            indexes: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// A segment full of records, with these transactions: offset in the segment, xid, second (negative offsets mean an
    /// abort).
    pub(crate) fn segment(mut self, timeline: u32, number: u64, transactions: &[(i64, u32, i64)]) -> Archive {
        let name = segment(timeline, number);
        let start = name.start_lsn(WalSegmentSize::DEFAULT).unwrap();
        let end_of = |(offset, xid, time): &(i64, u32, i64)| TransactionEnd {
            lsn: start.plus(offset.unsigned_abs()),
            end: start.plus(offset.unsigned_abs() + 0x30),
            xid: *xid,
            time: second(*time),
            outcome: if *offset < 0 { Outcome::Aborted } else { Outcome::Committed },
        };
        let ends: Vec<TransactionEnd> = transactions.iter().map(end_of).collect();
        let ids = |outcome| ends.iter().filter(|end| end.outcome == outcome).map(|end| end.xid).collect();
        let index = WalIndex {
            first_record: Some(start.plus(0x28)),
            last_record: Some(start.plus(0xFF_FF00)),
            valid_until: start.plus(WalSegmentSize::DEFAULT.bytes()),
            transactions: ends.first().zip(ends.last()).map(|(first, last)| TransactionSpan {
                count: ends.len() as u64,
                least_time: ends.iter().map(|end| end.time).min().unwrap(),
                greatest_time: ends.iter().map(|end| end.time).max().unwrap(),
                first: *first,
                last: *last,
                last_commit: ends.iter().rfind(|end| end.outcome == Outcome::Committed).copied(),
            }),
            committed: XidSet::from_ids(ids(Outcome::Committed)),
            aborted: XidSet::from_ids(ids(Outcome::Aborted)),
            ..WalIndex::default()
        };
        self.view.add_segment(name);
        self.indexes.insert(name, index);
        self.ends.insert(name, ends);
        self
    }

    pub(crate) fn change(
        mut self,
        timeline: u32,
        number: u64,
        change: impl FnOnce(&mut WalIndex),
    ) -> Archive {
        change(self.indexes.get_mut(&segment(timeline, number)).unwrap());
        self
    }

    pub(crate) fn damaged(self, timeline: u32, number: u64, at: &str) -> Archive {
        let problem = "wrong CRC".to_owned();
        self.change(timeline, number, |index| index.verdict = RecordVerdict::Damaged { at: lsn(at), problem })
    }

    pub(crate) fn restore_point(self, timeline: u32, number: u64, at: &str, name: &str) -> Archive {
        let point =
            RestorePoint { lsn: lsn(at), end: lsn(at).plus(0x68), time: second(7), name: name.to_owned() };
        self.change(timeline, number, |index| index.restore_points.push(point))
    }

    pub(crate) fn history(mut self, timeline: u32, text: &str) -> Archive {
        self.view.add_history(TimelineHistory::parse(tli(timeline), text).unwrap());
        self
    }
}

impl WalContents for Archive {
    fn facts(&self, path: &WalPath) -> Result<Vec<SegmentFacts>, RestoreError> {
        let facts = |segment: &PathSegment| {
            let index = self.indexes[&segment.name].clone();
            let unfinished = index.tail.record.is_valid();
            let spanning = if unfinished { SpanningRecord::Unfinished } else { SpanningRecord::None };
            SegmentFacts { index, spanning, break_after: None }
        };
        Ok(path.segments.iter().map(facts).collect())
    }

    fn transactions(&self, segment: WalSegmentName) -> Result<Arc<Vec<TransactionEnd>>, RestoreError> {
        Ok(Arc::new(self.ends[&segment].clone()))
    }
}

/// A backup on one timeline, from the beginning of segment `number` (plus 0x28) to 0x100 in it, complete at `stop`.
pub(crate) fn backup(timeline: u32, number: u64, stop: i64) -> BackupSummary {
    let name = segment(timeline, number);
    let start = name.start_lsn(WalSegmentSize::DEFAULT).unwrap();
    let started = second(stop - 1).to_jiff().unwrap();
    BackupSummary {
        id: crate::format::BackupId::new(started, name),
        system_identifier: SystemIdentifier::new(7371),
        server_version: 150018,
        kind: BackupKind::Full,
        base: None,
        from_standby: false,
        start_timeline: tli(timeline),
        stop_timeline: tli(timeline),
        start_lsn: start.plus(0x28),
        checkpoint_lsn: start.plus(0x60),
        stop_lsn: start.plus(0x100),
        start_time: second(stop - 1),
        stop_time: second(stop),
        wal_segment_size: WalSegmentSize::DEFAULT,
        block_size: 8192,
        data_checksums: true,
        cluster_bytes: 1 << 20,
        file_count: 3,
        new_bytes: 1000,
        repository_bytes: 1000,
        resumed: None,
        damaged_pages: 0,
        encrypted: false,
        changes_from: "full".to_owned(),
        time_zone: "UTC".to_owned(),
        walhold_version: "0.1.0".to_owned(),
    }
}
