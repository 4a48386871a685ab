//! Reads a WAL segment once, while it is uploaded: checks every page and record, and writes the [`WalIndex`].
//!
//! The file's bytes go in, in chunks of any size; the index comes out. Nothing in the bytes can make this panic or use
//! more than about a megabyte: a segment that cannot be understood gets a verdict that says so, and is archived all the
//! same. Follows `src/backend/access/transam/xlogreader.c`.

use crate::format::wal_index::{
    BlockChanges, FRAGMENT_LIMIT, FileEvents, Fragment, RecordMeaning, RecordVerdict, TransactionEnd,
    WalIndex,
};
use crate::pg::record_crc::{record_crc, whole_record_crc};
use crate::pg::wal_event::is_of_interest;
use crate::pg::wal_page::{LongPageHeader, PageHeader, WAL_PAGE_SIZE, read_u32};
use crate::pg::wal_record::{
    BLOCK_HEADERS_LIMIT, RECORD_HEADER_SIZE, RECORD_LENGTH_LIMIT, RMGR_XLOG, RecordHeader,
};
use crate::pg::wal_storage::changes_storage;
use crate::pg::{Lsn, WalSegmentName};

/// The most bytes of a record that are gathered to understand it. Commits that drop thousands of tables are this long.
const GATHER_LIMIT: usize = 1 << 20;

/// How a segment came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Completeness {
    /// The server filled it, or switched away from it: WAL that ends inside is damage.
    Complete,
    /// The last one of a timeline (`.partial`): WAL ends inside, and what follows is zeros or left over from the file's
    /// earlier life.
    Partial,
}

/// Checks and indexes one segment.
#[derive(Debug)]
pub struct SegmentScanner {
    magic: u16,
    major: Option<u32>,
    /// The timeline in the segment's name: no page has a later one.
    newest_timeline: u32,
    completeness: Completeness,
    /// Address of the page that comes next.
    next_page: Lsn,
    /// Timeline of the page before; timelines never go back.
    page_timeline: u32,
    state: State,
    open: OpenRecord,
    /// Where the last complete record begins.
    previous: Option<Lsn>,
    /// The head that just ended may have been a switch record: then zeros follow.
    head_may_be_switch: bool,
    /// The beginning of a page whose end is in the next chunk.
    partial_page: Vec<u8>,
    index: WalIndex,
    ends: Option<Vec<TransactionEnd>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A record begins where the last one ended.
    BetweenRecords,
    /// `open` goes on.
    InRecord,
    /// The record that began in an earlier segment goes on; `open` gathers its bytes.
    InHead,
    /// A switch record was read; the rest of the segment means nothing.
    Switched,
    /// WAL ended, or something is wrong.
    Stopped,
}

/// A record in pieces: what is known of it so far.
#[derive(Debug, Default)]
struct OpenRecord {
    lsn: Lsn,
    total_length: u32,
    length: u32,
    /// CRC-32C of everything behind the record's header, or of everything if it is a head.
    crc: u32,
    /// The first bytes: all up to a limit if the record is of interest, else those that tell its blocks.
    bytes: Vec<u8>,
    keep: usize,
}

/// Why reading ends before the segment does.
enum Stop {
    /// Nothing was written here.
    Unwritten(Lsn),
    Damaged(Lsn, String),
}

impl SegmentScanner {
    /// Scans the complete segment `name`, whose first page has this header.
    pub fn new(name: WalSegmentName, header: &LongPageHeader) -> SegmentScanner {
        let start = name.start_lsn(header.segment_size).unwrap_or(header.page_address);
        SegmentScanner {
            magic: header.magic,
            major: header.postgresql_major(),
            newest_timeline: name.timeline.get(),
            completeness: Completeness::Complete,
            next_page: start,
            page_timeline: 0,
            state: State::BetweenRecords,
            open: OpenRecord::default(),
            previous: None,
            head_may_be_switch: false,
            partial_page: Vec::new(),
            index: WalIndex {
                postgresql_major: header.postgresql_major().unwrap_or(0),
                start,
                end: start.plus(header.segment_size.bytes()),
                valid_until: start,
                // Layouts of a version that is not known cannot be trusted with what must not be missed.
                blocks: header.postgresql_major().map(|_| BlockChanges::default()),
                files: Some(FileEvents::default()),
                databases_made: header.postgresql_major().map(|_| Vec::new()),
                ..WalIndex::default()
            },
            ends: None,
        }
    }

    /// Scans a `.partial` segment: WAL may end anywhere in it, and bytes that are no WAL are no damage there.
    pub fn of_partial(name: WalSegmentName, header: &LongPageHeader) -> SegmentScanner {
        SegmentScanner { completeness: Completeness::Partial, ..SegmentScanner::new(name, header) }
    }

    /// Keeps every end of a transaction for [`SegmentScanner::take_transaction_ends`].
    pub fn with_transaction_ends(self) -> SegmentScanner {
        SegmentScanner { ends: Some(Vec::new()), ..self }
    }

    /// The ends of transactions found since the last call, in LSN order; those of records that end here but begin in an
    /// earlier segment are not among them.
    pub fn take_transaction_ends(&mut self) -> Vec<TransactionEnd> {
        self.ends.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the segment's next bytes. Whole pages are read in place, so chunks should be multiples of 8 KiB.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if !self.partial_page.is_empty() {
            let missing = WAL_PAGE_SIZE - self.partial_page.len();
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.partial_page.extend_from_slice(taken);
            bytes = rest;
            if self.partial_page.len() == WAL_PAGE_SIZE {
                let page = std::mem::take(&mut self.partial_page);
                self.read_page(&page);
            }
        }
        let mut pages = bytes.chunks_exact(WAL_PAGE_SIZE);
        pages.by_ref().for_each(|page| self.read_page(page));
        self.partial_page.extend_from_slice(pages.remainder());
    }

    /// The index of what was fed.
    pub fn finish(mut self) -> WalIndex {
        let complete = self.partial_page.is_empty() && self.next_page >= self.index.end;
        match self.state {
            State::Stopped => {}
            _ if !complete => self.stop(Stop::Damaged(self.next_page, "the segment ends here".to_owned())),
            State::BetweenRecords | State::Switched => self.index.valid_until = self.index.end,
            State::InHead => {
                self.index.valid_until = self.index.end;
                self.index.head = self.open.to_head();
            }
            State::InRecord => {
                self.index.valid_until = self.index.end;
                let header = RecordHeader::read(&self.open.bytes);
                self.note_beginning(self.open.lsn, header.map(|header| header.previous));
                self.index.tail = self.open.to_tail();
            }
        }
        self.index
    }

    fn read_page(&mut self, page: &[u8]) {
        if !matches!(self.state, State::Switched | State::Stopped) {
            let result = if self.next_page < self.index.end {
                self.walk_page(page)
            } else {
                Err(Stop::Damaged(self.index.end, "more bytes than a segment has".to_owned()))
            };
            if let Err(stop) = result {
                self.stop(stop);
            }
        }
        self.next_page = self.next_page.plus(WAL_PAGE_SIZE as u64);
    }

    fn walk_page(&mut self, page: &[u8]) -> Result<(), Stop> {
        let header = self.check_page_header(page)?;
        let mut at = self.continue_record(page, &header)?;
        while at < page.len() {
            if self.state != State::BetweenRecords {
                break;
            }
            at = self.read_record(page, at)?;
        }
        Ok(())
    }

    /// `XLogReaderValidatePageHeader`.
    fn check_page_header(&mut self, page: &[u8]) -> Result<PageHeader, Stop> {
        let address = self.next_page;
        let damaged = |problem| Err(Stop::Damaged(address, problem));
        let Some(header) = PageHeader::read(page) else { return damaged("no page header".to_owned()) };
        if header.magic == 0 && page.iter().all(|byte| *byte == 0) {
            return Err(Stop::Unwritten(address));
        }
        if header.magic != self.magic || !header.has_known_flags() {
            return damaged(format!("page has magic {:04X} and flags {:04X}", header.magic, header.info));
        }
        // Files are reused under later names: what was not overwritten has the address of an earlier time.
        if header.page_address < address {
            return Err(Stop::Unwritten(address));
        }
        if header.page_address != address {
            return damaged(format!("page has the address {}", header.page_address));
        }
        if address == self.index.start && !header.is_long() {
            return damaged("the first page has no long header".to_owned());
        }
        if header.timeline < self.page_timeline || header.timeline > self.newest_timeline {
            return damaged(format!("page has timeline {}", header.timeline));
        }
        self.page_timeline = header.timeline;
        Ok(header)
    }

    /// Reads what the page has of a record begun earlier. Returns where the next record begins, the page's end if the
    /// record goes on.
    fn continue_record(&mut self, page: &[u8], header: &PageHeader) -> Result<usize, Stop> {
        let size = header.size();
        if self.next_page == self.index.start && header.continues_record() {
            self.state = State::InHead;
            self.open.begin_head(header.remaining_length);
        }
        let address = self.next_page;
        match self.state {
            State::InRecord | State::InHead if header.abandons_record(self.major) => {
                // The record that comes instead of its end names it; nothing was counted for it yet.
                self.state = State::BetweenRecords;
                Ok(size)
            }
            State::InRecord | State::InHead => {
                let missing = self.open.total_length - self.open.length;
                if !header.continues_record() || header.remaining_length != missing || missing == 0 {
                    let begin = if self.state == State::InHead { address } else { self.open.lsn };
                    let problem = format!(
                        "the page at {address} does not go on with the record's last {missing} bytes"
                    );
                    return Err(Stop::Damaged(begin, problem));
                }
                self.read_continuation(page, size)
            }
            _ if header.continues_record() => {
                Err(Stop::Damaged(address, "page continues a record, but none goes on".to_owned()))
            }
            _ => Ok(size),
        }
    }

    fn read_continuation(&mut self, page: &[u8], at: usize) -> Result<usize, Stop> {
        let missing = usize::try_from(self.open.total_length - self.open.length).unwrap_or(usize::MAX);
        let rest = page.get(at..).unwrap_or_default();
        let piece = rest.get(..missing).unwrap_or(rest);
        let next = at + piece.len().next_multiple_of(8);
        if self.state == State::InHead {
            self.open.append_to_head(piece);
            if self.open.length == self.open.total_length {
                self.end_head();
            }
            return Ok(next);
        }
        let header_known = self.open.bytes.len() >= RECORD_HEADER_SIZE;
        self.open.append(piece);
        if !header_known && let Some(header) = RecordHeader::read(&self.open.bytes) {
            self.check_record_header(self.open.lsn, &header)?;
        }
        if self.open.length == self.open.total_length {
            let open = std::mem::take(&mut self.open);
            self.state = State::BetweenRecords;
            let end = self.next_page.plus(next as u64);
            self.finish_continued(&open, end)?;
            self.open = open;
        }
        Ok(next)
    }

    /// A record begins at `at`. Returns where the next one begins, the page's end if this one goes on.
    fn read_record(&mut self, page: &[u8], at: usize) -> Result<usize, Stop> {
        let lsn = self.next_page.plus(at as u64);
        let rest = page.get(at..).unwrap_or_default();
        let total_length = read_u32(rest, 0).unwrap_or_default();
        let length = usize::try_from(total_length).unwrap_or(usize::MAX);
        if length < RECORD_HEADER_SIZE || total_length > RECORD_LENGTH_LIMIT {
            return Err(self.no_record(lsn, rest, total_length));
        }
        self.head_may_be_switch = false;
        let header = RecordHeader::read(rest);
        if let Some(header) = &header {
            self.check_record_header(lsn, header)?;
        }
        let (Some(header), Some(record)) = (header, rest.get(..length)) else {
            self.open.begin(lsn, total_length, rest);
            self.state = State::InRecord;
            return Ok(page.len());
        };
        let next = at + length.next_multiple_of(8);
        self.finish_record(lsn, self.next_page.plus(next as u64), &header, record, whole_record_crc(record))?;
        Ok(next)
    }

    fn no_record(&mut self, lsn: Lsn, rest: &[u8], total_length: u32) -> Stop {
        if rest.iter().any(|byte| *byte != 0) {
            return Stop::Damaged(lsn, format!("a record of {total_length} bytes is impossible"));
        }
        Stop::Unwritten(lsn)
    }

    /// `ValidXLogRecordHeader`.
    fn check_record_header(&self, lsn: Lsn, header: &RecordHeader) -> Result<(), Stop> {
        let linked = match self.previous {
            Some(previous) => header.previous == previous,
            None => header.previous < lsn,
        };
        if !linked {
            return Err(Stop::Damaged(
                lsn,
                format!("record has the wrong previous record {}", header.previous),
            ));
        }
        if !header.has_known_rmgr(self.major) {
            return Err(Stop::Damaged(
                lsn,
                format!("record has the unknown resource manager {}", header.rmgr),
            ));
        }
        Ok(())
    }

    /// A record that came in pieces is complete.
    fn finish_continued(&mut self, open: &OpenRecord, end: Lsn) -> Result<(), Stop> {
        let Some(header) = RecordHeader::read(&open.bytes) else {
            return Err(Stop::Damaged(open.lsn, "record is shorter than its header".to_owned()));
        };
        self.finish_record(open.lsn, end, &header, &open.bytes, record_crc(&open.bytes, open.crc))
    }

    /// The record is complete and has this CRC: `bytes` are its first ones, at least the header.
    #[inline]
    fn finish_record(
        &mut self,
        lsn: Lsn,
        end: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
        crc: Option<u32>,
    ) -> Result<(), Stop> {
        if crc != Some(header.crc) {
            return Err(Stop::Damaged(lsn, "record has a wrong CRC".to_owned()));
        }
        self.note_beginning(lsn, Some(header.previous));
        self.index.record_count += 1;
        self.previous = Some(lsn);
        match self.index.add_record(lsn, end, header, bytes) {
            Ok(RecordMeaning::Switch) => self.state = State::Switched,
            Ok(RecordMeaning::TransactionEnd(ended)) => {
                self.ends.iter_mut().for_each(|ends| ends.push(ended))
            }
            // What is not understood is marked in the index.
            Ok(RecordMeaning::Nothing) | Err(_) => {}
        }
        Ok(())
    }

    fn note_beginning(&mut self, lsn: Lsn, previous: Option<Lsn>) {
        if self.index.first_record.is_none() {
            self.index.first_record = Some(lsn);
            // The first record that a cluster ever wrote has none.
            self.index.previous_record = previous.filter(|previous| previous.is_valid());
        }
        self.index.last_record = Some(lsn);
    }

    /// The record of an earlier segment ends here.
    fn end_head(&mut self) {
        self.index.head = self.open.to_head();
        self.index.record_count += 1;
        self.state = State::BetweenRecords;
        // A switch record is a header and nothing else, of which the last 8 or 16 bytes can lie here: flags, resource
        // manager, padding and CRC are the last 8.
        self.head_may_be_switch = match self.open.bytes.as_slice() {
            [info, RMGR_XLOG, _, _, _, _, _, _]
            | [_, _, _, _, _, _, _, _, info, RMGR_XLOG, _, _, _, _, _, _] => info & 0xF0 == 0x40,
            _ => false,
        };
    }

    fn stop(&mut self, stop: Stop) {
        let state = std::mem::replace(&mut self.state, State::Stopped);
        let (at, problem) = match stop {
            Stop::Unwritten(_) if self.head_may_be_switch => {
                self.state = State::Switched;
                return;
            }
            Stop::Unwritten(at) => (at, "nothing was written from here on".to_owned()),
            Stop::Damaged(at, problem) => (at, problem),
        };
        // A record that was not finished is no record: valid WAL ends where it begins.
        self.index.valid_until = match state {
            State::InHead => self.index.start,
            State::InRecord => self.open.lsn,
            _ => at.min(self.index.end),
        };
        if self.completeness == Completeness::Complete {
            self.index.verdict = RecordVerdict::Damaged { at, problem };
            self.index.blocks = None;
            self.index.databases_made = None;
        }
    }
}

impl OpenRecord {
    fn begin(&mut self, lsn: Lsn, total_length: u32, piece: &[u8]) {
        self.bytes.clear();
        self.lsn = lsn;
        self.total_length = total_length;
        self.length = 0;
        self.crc = 0;
        self.keep = GATHER_LIMIT;
        self.append(piece);
    }

    /// `piece` is never longer than what is missing.
    fn append(&mut self, piece: &[u8]) {
        let header_missing = RECORD_HEADER_SIZE.saturating_sub(self.bytes.len());
        let (header, body) = piece.split_at(header_missing.min(piece.len()));
        self.bytes.extend_from_slice(header);
        if header_missing > 0
            && let Some(header) = RecordHeader::read(&self.bytes)
            && !is_of_interest(&header)
            && !changes_storage(&header)
        {
            self.keep = BLOCK_HEADERS_LIMIT;
        }
        self.crc = crc32c::crc32c_append(self.crc, body);
        self.gather(body);
        self.length += piece.len() as u32;
    }

    fn begin_head(&mut self, missing: u32) {
        *self = OpenRecord { total_length: missing, keep: FRAGMENT_LIMIT, ..OpenRecord::default() };
    }

    fn append_to_head(&mut self, piece: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, piece);
        self.gather(piece);
        self.length += piece.len() as u32;
    }

    fn gather(&mut self, piece: &[u8]) {
        let room = self.keep.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
    }

    fn to_head(&self) -> Fragment {
        Fragment {
            record: Lsn::INVALID,
            total_length: self.total_length,
            length: self.length,
            crc: self.crc,
            bytes: self.bytes.clone(),
        }
    }

    fn to_tail(&self) -> Fragment {
        let header = self.bytes.get(..RECORD_HEADER_SIZE).unwrap_or(&self.bytes);
        let body_length = usize::try_from(self.length).unwrap_or_default().saturating_sub(header.len());
        let kept = self.bytes.get(..FRAGMENT_LIMIT).unwrap_or(&self.bytes);
        Fragment {
            record: self.lsn,
            total_length: self.total_length,
            length: self.length,
            crc: crc32c::crc32c_combine(crc32c::crc32c(header), self.crc, body_length),
            bytes: kept.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests;
