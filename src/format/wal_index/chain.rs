//! Indexes of consecutive segments, with the records that span segments put back.
//!
//! Indexes go in one after the other, in LSN order; what comes out is the same indexes, each with the record that begins
//! in it and ends in a later one, once that end was seen. Each join is checked: positions, lengths, links and CRC.

use super::{Fragment, RecordVerdict, WalIndex};
use crate::pg::Lsn;
use crate::pg::record_crc::record_crc;
use crate::pg::wal_page::{LONG_HEADER_SIZE, SHORT_HEADER_SIZE, WAL_PAGE_SIZE};
use crate::pg::wal_record::{RECORD_HEADER_SIZE, RecordHeader};

/// One segment with everything that begins in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentFacts {
    /// Its index; a record that begins in it and ends in a later segment is included.
    pub index: WalIndex,
    /// What became of that record.
    pub spanning: SpanningRecord,
    /// Why the next index does not follow on this one, if it does not: a gap, a segment of another history, damage.
    pub break_after: Option<String>,
}

/// The record that begins in a segment and does not end in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpanningRecord {
    /// There is none.
    None,
    /// It is complete and its CRC fits; what it means was added to the index.
    Complete {
        /// Where it ends.
        end: Lsn,
    },
    /// It is complete and its CRC fits, but it was too long to be kept and its beginning does not say enough.
    TooLong {
        /// Where it ends.
        end: Lsn,
    },
    /// A crash left it unfinished; the server gave it up.
    Abandoned,
    /// Its end is not known: no later index was fed, or the next one does not follow.
    Unfinished,
}

/// Joins the indexes of consecutive segments. See [`WalIndex`] for what a plan may conclude from them.
///
/// Along a timeline history, feed for each segment number the file that recovery would read: that of the newest timeline
/// of the history that has one.
#[derive(Debug, Default)]
pub struct IndexChain {
    /// The segments from the one whose record is unfinished (or the last one fed) on.
    waiting: Vec<WalIndex>,
    open: Option<OpenRecord>,
}

/// The pieces so far of a record that begins in the first waiting segment.
#[derive(Debug)]
struct OpenRecord {
    record: Lsn,
    total_length: u32,
    length: u32,
    crc: u32,
    bytes: Vec<u8>,
}

impl IndexChain {
    /// An empty chain.
    pub fn new() -> IndexChain {
        IndexChain::default()
    }

    /// Takes the next segment's index and gives back the segments that are complete by it, in order.
    pub fn push(&mut self, next: WalIndex) -> Vec<SegmentFacts> {
        let Some(last) = self.waiting.last() else {
            return self.start(next);
        };
        if let Some(problem) = break_between(last, &next) {
            return self.release(SpanningRecord::Unfinished, Some(problem), next);
        }
        let Some(open) = &mut self.open else {
            let problem =
                next.head.exists().then(|| "it begins inside a record that no segment begins".to_owned());
            let problem = problem.or_else(|| wrong_link(last.last_record, &next));
            return self.release(SpanningRecord::None, problem, next);
        };
        if !next.head.exists() {
            if next.abandoned == Some(open.record) {
                return self.release(SpanningRecord::Abandoned, None, next);
            }
            let problem = format!("the record at {} has no end", open.record);
            return self.release(SpanningRecord::Unfinished, Some(problem), next);
        }
        if !open.append(&next.head) {
            let problem = format!("it continues another record than the one at {}", open.record);
            return self.release(SpanningRecord::Unfinished, Some(problem), next);
        }
        if open.length < open.total_length {
            self.waiting.push(next);
            return Vec::new();
        }
        let problem = wrong_link(Some(open.record), &next);
        let (spanning, damage) = self.close(&next);
        self.release(spanning, damage.or(problem), next)
    }

    /// The last segments: a record that they do not finish stays unfinished.
    pub fn finish(mut self) -> Vec<SegmentFacts> {
        let spanning = if self.open.is_some() { SpanningRecord::Unfinished } else { SpanningRecord::None };
        self.take_waiting(spanning, None)
    }

    fn start(&mut self, next: WalIndex) -> Vec<SegmentFacts> {
        self.open = next.tail.exists().then(|| OpenRecord::begin(&next.tail));
        self.waiting.push(next);
        Vec::new()
    }

    fn release(
        &mut self,
        spanning: SpanningRecord,
        break_after: Option<String>,
        next: WalIndex,
    ) -> Vec<SegmentFacts> {
        let facts = self.take_waiting(spanning, break_after);
        self.start(next);
        facts
    }

    fn take_waiting(&mut self, spanning: SpanningRecord, break_after: Option<String>) -> Vec<SegmentFacts> {
        self.open = None;
        let waiting = std::mem::take(&mut self.waiting);
        let last = waiting.len().saturating_sub(1);
        let facts = |(at, index)| SegmentFacts {
            index,
            spanning: if at == 0 { spanning } else { SpanningRecord::None },
            break_after: break_after.clone().filter(|_| at == last),
        };
        waiting.into_iter().enumerate().map(facts).collect()
    }

    /// Checks the record that ends in `next` and adds what it means to the segment where it begins.
    fn close(&mut self, next: &WalIndex) -> (SpanningRecord, Option<String>) {
        let (Some(open), Some(origin)) = (&self.open, self.waiting.first_mut()) else {
            return (SpanningRecord::None, None);
        };
        let end = fragment_end(next.start, next.head.length);
        if !open.crc_fits() {
            let problem = format!("the record at {} has a wrong CRC", open.record);
            return (SpanningRecord::Unfinished, Some(problem));
        }
        let understood = RecordHeader::read(&open.bytes)
            .is_some_and(|header| origin.add_record(open.record, end, &header, &open.bytes).is_ok());
        match understood {
            true => (SpanningRecord::Complete { end }, None),
            false => (SpanningRecord::TooLong { end }, None),
        }
    }
}

impl OpenRecord {
    fn begin(tail: &Fragment) -> OpenRecord {
        OpenRecord {
            record: tail.record,
            total_length: tail.total_length,
            length: tail.length,
            crc: tail.crc,
            bytes: tail.bytes.clone(),
        }
    }

    /// False if the piece does not continue this record.
    fn append(&mut self, head: &Fragment) -> bool {
        if self.length.checked_add(head.total_length) != Some(self.total_length) {
            return false;
        }
        // A gap in the kept bytes ends what can be decoded.
        if usize::try_from(self.length) == Ok(self.bytes.len()) {
            self.bytes.extend_from_slice(&head.bytes);
        }
        self.crc = combine_crc(self.crc, head.crc, head.length);
        self.length += head.length;
        true
    }

    /// Whether the CRC in the header is the one of the pieces: theirs, less the header's share, in the record's order.
    fn crc_fits(&self) -> bool {
        let Some((header, _)) = self.bytes.split_first_chunk::<RECORD_HEADER_SIZE>() else { return false };
        let body = self.total_length.saturating_sub(RECORD_HEADER_SIZE as u32);
        let body_crc = self.crc ^ combine_crc(crc32c::crc32c(header), 0, body);
        let stored = RecordHeader::read(header).map(|header| header.crc);
        record_crc(header, body_crc) == stored
    }
}

/// The CRC of bytes with CRC `first` followed by `length` bytes with CRC `second`.
pub(crate) fn combine_crc(first: u32, second: u32, length: u32) -> u32 {
    crc32c::crc32c_combine(first, second, usize::try_from(length).unwrap_or(usize::MAX))
}

fn break_between(last: &WalIndex, next: &WalIndex) -> Option<String> {
    if let RecordVerdict::Damaged { at, problem } = &last.verdict {
        return Some(format!("WAL is damaged at {at}: {problem}"));
    }
    if last.valid_until < last.end {
        return Some(format!("WAL ends at {}", last.valid_until));
    }
    if next.start != last.end {
        return Some(format!("the next segment begins at {}, not at {}", next.start, last.end));
    }
    None
}

/// The first record that begins in the next segment must name the last one before it.
fn wrong_link(last_record: Option<Lsn>, next: &WalIndex) -> Option<String> {
    let (expected, _) = (last_record?, next.first_record?);
    match next.previous_record {
        Some(found) if found == expected => None,
        Some(found) => Some(format!(
            "the next segment follows a record at {found}, but the last record here is at {expected}"
        )),
        // As after pg_resetwal: the first record of a new life names none.
        None => Some(format!("the next segment begins a new WAL, but the last record here is at {expected}")),
    }
}

/// Where a record ends whose last `length` bytes are a segment's first, as `XLogReadRecord` counts it: page headers
/// skipped, rounded up to 8.
fn fragment_end(start: Lsn, length: u32) -> Lsn {
    let page = WAL_PAGE_SIZE as u64;
    let (long, short) = (LONG_HEADER_SIZE as u64, SHORT_HEADER_SIZE as u64);
    let length = u64::from(length);
    let offset = match length.checked_sub(page - long) {
        None | Some(0) => long + length,
        Some(behind_first) => {
            let full_pages = (behind_first - 1) / (page - short);
            page * (1 + full_pages) + short + (behind_first - full_pages * (page - short))
        }
    };
    start.plus(offset.next_multiple_of(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_as_the_server_counts() {
        let start = Lsn::new(0x0100_0000);
        let end = |length| fragment_end(start, length).get() - start.get();
        assert_eq!(end(1), 48);
        assert_eq!(end(8), 48);
        assert_eq!(end(8152), 8192);
        assert_eq!(end(8153), 8192 + 32);
        assert_eq!(end(8152 + 8168), 16384);
        assert_eq!(end(8152 + 8168 + 9), 16384 + 24 + 16);
    }

    #[test]
    fn the_header_can_be_taken_out_of_a_crc() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 % 251) as u8).collect();
        let (header, body) = bytes.split_at(24);
        let whole = combine_crc(crc32c::crc32c(header), crc32c::crc32c(body), 976);
        assert_eq!(whole, crc32c::crc32c(&bytes));
        assert_eq!(whole ^ combine_crc(crc32c::crc32c(header), 0, 976), crc32c::crc32c(body));
    }
}
