//! Segments written by a small model of the server: records of every shape, cut at every place.

use super::*;
use crate::format::wal_index::{IndexChain, Outcome, SegmentFacts, SpanningRecord};
use crate::pg::{PgTimestamp, TimelineId, WalSegmentNumber, WalSegmentSize};

const SIZE: u64 = 1 << 20;
const START: u64 = 5 * SIZE;

/// Writes records one after the other, as `CopyXLogRecordToWAL` lays them out.
struct Writer {
    bytes: Vec<u8>,
    previous: u64,
}

impl Writer {
    fn new() -> Writer {
        Writer { bytes: Vec::new(), previous: START - 100 }
    }

    fn position(&self) -> u64 {
        START + self.bytes.len() as u64
    }

    fn page_header(&mut self, flags: u16, remaining: usize) {
        let address = self.position();
        let long = address.is_multiple_of(SIZE);
        let mut header = 0xD110u16.to_le_bytes().to_vec();
        // XLP_BKP_REMOVABLE stands on most pages and means nothing.
        header.extend((flags | 4 | if long { 2 } else { 0 }).to_le_bytes());
        header.extend(1u32.to_le_bytes());
        header.extend(address.to_le_bytes());
        header.extend((remaining as u32).to_le_bytes());
        header.extend([0; 4]);
        if long {
            header.extend(42u64.to_le_bytes());
            header.extend((SIZE as u32).to_le_bytes());
            header.extend(8192u32.to_le_bytes());
        }
        self.bytes.extend(header);
    }

    fn room(&self) -> usize {
        8192 - self.bytes.len() % 8192
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Writes at most `limit` bytes of the record: a crash leaves the rest out.
    fn write(&mut self, record: &[u8], limit: usize) -> u64 {
        if self.room() == 8192 {
            self.page_header(0, 0);
        }
        let lsn = self.position();
        let mut rest = &record[..limit.min(record.len())];
        loop {
            let (piece, more) = rest.split_at(rest.len().min(self.room()));
            self.bytes.extend_from_slice(piece);
            rest = more;
            if rest.is_empty() {
                break;
            }
            let written = record.len() - rest.len() - (record.len() - limit.min(record.len()));
            self.page_header(1, record.len() - written);
        }
        self.align();
        lsn
    }

    fn record(&mut self, xid: u32, info: u8, rmgr: u8, data: &[u8]) -> u64 {
        let mut rest = vec![254];
        rest.extend((data.len() as u32).to_le_bytes());
        rest.extend(data);
        let record = crate::pg::wal_record::tests::record(xid, self.previous, info, rmgr, &rest);
        self.previous = self.write(&record, usize::MAX);
        self.previous
    }

    fn commit(&mut self, xid: u32, time: i64, padding: usize) -> u64 {
        let mut data = time.to_le_bytes().to_vec();
        data.resize(8 + padding, 0xAB);
        self.record(xid, 0, 1, &data)
    }

    /// Fills up with heap records until exactly `left` bytes remain in the current segment.
    fn fill_segment(&mut self, left: usize) {
        loop {
            let room = SIZE as usize - self.bytes.len() % SIZE as usize;
            if room % SIZE as usize == left {
                return;
            }
            // Leave space for a last record of at least 32 bytes.
            let room_in_page = self.room();
            let data = if room > 8192 + left + 64 {
                if room_in_page == 8192 { 3000 } else { 1000 }
            } else {
                let behind = room - left;
                let header = if room_in_page == 8192 { 24 } else { 0 };
                let crossing = behind > room_in_page && room_in_page != 8192;
                let bytes = behind - header - if crossing { 24 } else { 0 };
                if bytes > 4000 { bytes / 2 } else { bytes - 29 }
            };
            self.record(3, 0, 10, &vec![0x5A; data]);
        }
    }

    fn segments(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SIZE as usize), 0);
        bytes.chunks(SIZE as usize).map(<[u8]>::to_vec).collect()
    }
}

fn name(at: usize) -> WalSegmentName {
    let size = WalSegmentSize::new(SIZE).unwrap();
    WalSegmentName::new(TimelineId::FIRST, WalSegmentNumber::new(START / SIZE + at as u64), size)
}

fn scanner(at: usize, segment: &[u8]) -> SegmentScanner {
    SegmentScanner::new(name(at), &LongPageHeader::parse(segment).unwrap())
}

fn scan_in(at: usize, segment: &[u8], chunk: usize) -> WalIndex {
    let mut scanner = scanner(at, segment);
    segment.chunks(chunk).for_each(|chunk| scanner.feed(chunk));
    scanner.finish()
}

/// Scans in three ways that must not differ, and through the encoding.
fn scan(at: usize, segment: &[u8]) -> WalIndex {
    let index = scan_in(at, segment, 1 << 20);
    assert_eq!(index, scan_in(at, segment, 8192 * 5));
    assert_eq!(index, scan_in(at, segment, 4099));
    assert_eq!(WalIndex::decode(&index.encode()).as_ref(), Ok(&index));
    index
}

fn scan_all(writer: &Writer) -> Vec<WalIndex> {
    writer.segments().iter().enumerate().map(|(at, segment)| scan(at, segment)).collect()
}

fn chain(indexes: Vec<WalIndex>) -> Vec<SegmentFacts> {
    let mut chain = IndexChain::new();
    let mut facts: Vec<_> = indexes.into_iter().flat_map(|index| chain.push(index)).collect();
    facts.extend(chain.finish());
    facts
}

fn problem(index: &WalIndex) -> &str {
    match &index.verdict {
        RecordVerdict::Intact => "intact",
        RecordVerdict::Damaged { problem, .. } => problem,
    }
}

#[test]
fn finds_what_records_mean() {
    let mut writer = Writer::new();
    let first = writer.commit(700, 1000, 0);
    writer.record(701, 0x20, 1, &900i64.to_le_bytes());
    let last = writer.commit(702, 950, 20_000);
    let mut point = 960i64.to_le_bytes().to_vec();
    point.extend_from_slice(b"here");
    point.resize(72, 0);
    let point_lsn = writer.record(0, 0x70, 0, &point);
    let end = writer.position();
    writer.record(0, 0x40, 0, &[]);
    let index = &scan_all(&writer)[0];
    assert_eq!((problem(index), index.valid_until), ("intact", index.end));
    assert_eq!((index.record_count, index.first_record), (5, Some(Lsn::new(first))));
    assert_eq!(index.previous_record, Some(Lsn::new(START - 100)));
    let span = index.transactions.unwrap();
    assert_eq!((span.count, span.least_time.get(), span.greatest_time.get()), (3, 900, 1000));
    assert_eq!((span.first.lsn.get(), span.first.xid, span.first.outcome), (first, 700, Outcome::Committed));
    assert_eq!((span.last.lsn.get(), span.last.end.get()), (last, point_lsn));
    assert_eq!(span.last_commit, Some(span.last));
    assert_eq!(index.committed.runs(), [(700, 700), (702, 702)]);
    assert_eq!(index.aborted.runs(), [(701, 701)]);
    let point = &index.restore_points[0];
    assert_eq!((point.lsn.get(), point.end.get(), point.name.as_str()), (point_lsn, end, "here"));
    assert_eq!(point.time, PgTimestamp::new(960));
    assert!(!index.abridged && !index.head.exists() && !index.tail.exists());
}

#[test]
fn keeps_the_ends_of_transactions_on_demand() {
    let mut writer = Writer::new();
    let lsns: Vec<u64> = (0..500).map(|xid| writer.commit(xid + 10, 5, 300)).collect();
    let segment = &writer.segments()[0];
    let mut scanner = scanner(0, segment).with_transaction_ends();
    let mut found = Vec::new();
    for chunk in segment.chunks(65536) {
        scanner.feed(chunk);
        found.extend(scanner.take_transaction_ends().iter().map(|end| end.lsn.get()));
    }
    assert_eq!(found, lsns);
}

/// A commit that begins `left` bytes before a segment's end, whatever of its header lies before it.
#[test]
fn puts_spanning_records_back() {
    for (left, padding) in [(8, 0), (16, 0), (24, 5), (32, 0), (8, 40_000), (4000, 9000), (8, 2 << 20)] {
        let mut writer = Writer::new();
        writer.fill_segment(left);
        let lsn = writer.commit(900, 77, padding);
        let end = writer.position();
        let after = writer.commit(901, 78, 0);
        writer.record(0, 0x40, 0, &[]);
        let indexes = scan_all(&writer);
        assert!(indexes.iter().all(|index| problem(index) == "intact"), "{left} {padding}");
        assert!(indexes[0].transactions.is_none());
        assert_eq!(indexes[0].last_record, Some(Lsn::new(lsn)));
        let count: u64 = indexes.iter().map(|index| index.record_count).sum();
        let facts = chain(indexes);
        assert!(facts.iter().all(|facts| facts.break_after.is_none()), "{facts:?}");
        assert_eq!(facts[0].spanning, SpanningRecord::Complete { end: Lsn::new(end) }, "{left} {padding}");
        let span = facts[0].index.transactions.unwrap();
        assert_eq!((span.first.lsn.get(), span.first.end.get(), span.first.xid), (lsn, end, 900));
        assert!(facts[0].index.committed.contains(900));
        let last = &facts.last().unwrap().index;
        assert_eq!(last.transactions.unwrap().first.lsn.get(), after);
        assert_eq!(last.previous_record, Some(Lsn::new(lsn)));
        assert!(count > 300);
    }
}

#[test]
fn a_switch_may_span_segments_too() {
    for left in [8, 16] {
        let mut writer = Writer::new();
        writer.fill_segment(left);
        let record = crate::pg::wal_record::tests::record(0, writer.previous, 0x40, 0, &[]);
        writer.previous = writer.write(&record, usize::MAX);
        writer.bytes.resize(2 * SIZE as usize, 0);
        let next = writer.commit(5, 5, 0);
        writer.record(0, 0x40, 0, &[]);
        assert_eq!(next, START + 2 * SIZE + 40);
        let indexes = scan_all(&writer);
        let found: Vec<_> = indexes.iter().map(|i| (problem(i), i.end == i.valid_until)).collect();
        assert_eq!(found, [("intact", true); 3], "{left}");
        assert!(chain(indexes).iter().all(|facts| facts.break_after.is_none()));
    }
}

#[test]
fn a_record_given_up_in_a_crash_is_none() {
    let mut writer = Writer::new();
    writer.fill_segment(4000);
    let lost = crate::pg::wal_record::tests::record(9, writer.previous, 0, 10, &[254, 0x20, 0x4E, 0, 0]);
    let mut lost = lost;
    lost.resize(20_005 + 24, 1);
    lost[..4].copy_from_slice(&20_029u32.to_le_bytes());
    let begun = writer.write(&lost, 4000);
    writer.page_header(8, 0);
    let mut data = begun.to_le_bytes().to_vec();
    data.extend([0; 8]);
    writer.record(0, 0xD0, 0, &data);
    writer.commit(10, 5, 0);
    writer.record(0, 0x40, 0, &[]);
    let indexes = scan_all(&writer);
    assert_eq!((problem(&indexes[0]), problem(&indexes[1])), ("intact", "intact"));
    assert_eq!(indexes[1].abandoned, Some(Lsn::new(begun)));
    let facts = chain(indexes);
    assert_eq!((facts[0].spanning, facts[0].break_after.as_deref()), (SpanningRecord::Abandoned, None));
}

#[test]
fn every_flipped_bit_shows() {
    let mut writer = Writer::new();
    for xid in 0..40 {
        writer.commit(xid, 5, 700);
    }
    let used = writer.bytes.len();
    writer.record(0, 0x40, 0, &[]);
    let segment = &writer.segments()[0];
    for at in (40..used).step_by(13) {
        let mut damaged = segment.clone();
        damaged[at] ^= 0x10;
        let index = scan_in(0, &damaged, 8192);
        // Bits that nothing covers: a record's alignment, and unused fields of page headers.
        let covered = !(at % 8192 < 24 && at % 8192 >= 16);
        if covered && damaged[at] != 0x10 {
            assert_ne!(problem(&index), "intact", "byte {at}");
            let RecordVerdict::Damaged { at: place, .. } = index.verdict else { unreachable!() };
            assert!(index.valid_until <= place && place.get() <= START + at as u64, "byte {at}: {place}");
        }
    }
}

#[test]
fn says_what_is_wrong() {
    let mut writer = Writer::new();
    writer.commit(5, 5, 9000);
    writer.commit(6, 6, 9000);
    let clean = writer.segments()[0].clone();
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut segment = clean.clone();
        change(&mut segment);
        match scan_in(0, &segment, 8192).verdict {
            RecordVerdict::Damaged { at, problem } => format!("{at} {problem}"),
            RecordVerdict::Intact => "intact".to_owned(),
        }
    };
    assert_eq!(damage(&|_| {}), "0/5046F8 nothing was written from here on");
    assert_eq!(damage(&|s| s[100] ^= 1), "0/500028 record has a wrong CRC");
    assert_eq!(damage(&|s| s[8192] = 0), "0/502000 page has magic D100 and flags 0005");
    assert_eq!(damage(&|s| s[8192 + 2] = 16), "0/502000 page has magic D110 and flags 0010");
    assert_eq!(damage(&|s| s[8192 + 4] = 2), "0/502000 page has timeline 2");
    assert_eq!(damage(&|s| s[8192 + 9] = 0x40), "0/502000 page has the address 0/504000");
    assert_eq!(
        damage(&|s| s[8192 + 16] += 1),
        "0/500028 the page at 0/502000 does not go on with the record's last 885 bytes"
    );
    assert_eq!(
        damage(&|s| s[40] ^= 1),
        "0/500028 the page at 0/502000 does not go on with the record's last 884 bytes"
    );
    assert_eq!(damage(&|s| s[43] = 0x80), "0/500028 a record of 2147492685 bytes is impossible");
    assert_eq!(damage(&|s| s[40 + 8] ^= 1), "0/500028 record has a wrong CRC");
    assert_eq!(damage(&|s| s[40 + 15] = 1), "0/500028 record has the wrong previous record 1000000/4FFF9C");
    assert_eq!(damage(&|s| s[40 + 17] = 22), "0/500028 record has the unknown resource manager 22");
    assert_eq!(damage(&|s| s.truncate(8192 * 7)), "0/5046F8 nothing was written from here on");
    assert_eq!(damage(&|s| s.truncate(8192 * 2)), "0/504000 the segment ends here");
}

#[test]
fn a_partial_segment_may_end_anywhere() {
    let mut writer = Writer::new();
    writer.commit(5, 5, 9000);
    let end = writer.position();
    let mut segment = writer.segments()[0].clone();
    for rest in [0u8, 0x77] {
        segment[writer.bytes.len()..].fill(rest);
        let header = LongPageHeader::parse(&segment).unwrap();
        let mut scanner = SegmentScanner::of_partial(name(0), &header);
        scanner.feed(&segment);
        let index = scanner.finish();
        assert_eq!((problem(&index), index.valid_until.get()), ("intact", end));
        assert!(index.committed.contains(5));
    }
}

#[test]
fn a_chain_shows_gaps_and_strangers() {
    let write = |filler: u8| {
        let mut writer = Writer::new();
        writer.record(1, 0, 10, &[filler; 50]);
        writer.fill_segment(96);
        writer.commit(5, 5, 3000);
        writer.fill_segment(0);
        writer.commit(6, 6, 0);
        writer.record(0, 0x40, 0, &[]);
        scan_all(&writer)
    };
    let ours = write(1);
    let breaks = |indexes: Vec<WalIndex>| -> Vec<_> {
        chain(indexes).into_iter().map(|facts| facts.break_after).collect()
    };
    assert_eq!(breaks(ours.clone()), [None, None, None]);
    let gap = vec![ours[0].clone(), ours[2].clone()];
    assert_eq!(breaks(gap), [Some("the next segment begins at 0/700000, not at 0/600000".to_owned()), None]);
    let mut stranger = ours.clone();
    stranger[0].tail.crc ^= 1;
    assert!(breaks(stranger)[0].as_ref().unwrap().ends_with("has a wrong CRC"));
    let mut stranger = ours.clone();
    stranger[1].head.total_length += 1;
    assert!(breaks(stranger)[0].as_ref().unwrap().starts_with("it continues another record"));
    let mut stranger = ours.clone();
    stranger[2].previous_record = Some(Lsn::new(7));
    assert!(breaks(stranger)[1].as_ref().unwrap().starts_with("the next segment follows a record at 0/7"));
    let mut stranger = ours;
    stranger[1].head = Fragment::default();
    assert!(breaks(stranger)[0].as_ref().unwrap().ends_with("has no end"));
}
