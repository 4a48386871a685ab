//! The index as bytes: sections of tag (u16), length (u32) and payload, little-endian; `docs/wal-index.md` has the table.
//!
//! Bytes come from a repository, so everything is checked, and nothing is allocated that the bytes do not pay for.

use super::xid_set::XidSet;
use super::{
    CheckpointKind, CheckpointRecord, FRAGMENT_LIMIT, Fragment, LIST_LIMIT, Outcome, RecordVerdict,
    RestorePoint, TransactionEnd, TransactionSpan, WalIndex,
};
use crate::pg::{Lsn, PgTimestamp, TimelineId};

const SPAN: u16 = 1;
const DAMAGE: u16 = 2;
const TRANSACTIONS: u16 = 3;
const COMMITTED: u16 = 4;
const ABORTED: u16 = 5;
const RESTORE_POINTS: u16 = 6;
const CHECKPOINTS: u16 = 7;
const WAL_LEVELS: u16 = 8;
const HEAD: u16 = 9;
const TAIL: u16 = 10;
const ABANDONED: u16 = 11;
const ABRIDGED: u16 = 12;

/// The longest text: what is wrong with a record, a restore point's name (63 bytes, replaced bytes count three).
const TEXT_LIMIT: usize = 1024;

/// Bytes that are not a WAL index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL index cannot be read: {problem} in section {section}")]
pub struct ParseWalIndexError {
    /// The section's tag; 0 outside sections.
    pub section: u16,
    /// What is wrong.
    pub problem: &'static str,
}

impl WalIndex {
    /// The index as bytes; sections that would be empty are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer { bytes: Vec::with_capacity(256) };
        out.section(SPAN, |out| {
            out.varint(u64::from(self.postgresql_major));
            for lsn in [self.start, self.end, self.valid_until] {
                out.lsn(lsn);
            }
            for lsn in [self.first_record, self.previous_record, self.last_record] {
                out.lsn(lsn.unwrap_or(Lsn::INVALID));
            }
            out.varint(self.record_count);
        });
        if let RecordVerdict::Damaged { at, problem } = &self.verdict {
            out.section(DAMAGE, |out| {
                out.lsn(*at);
                out.text(problem);
            });
        }
        if let Some(span) = &self.transactions {
            out.section(TRANSACTIONS, |out| out.transactions(span));
        }
        for (tag, set) in [(COMMITTED, &self.committed), (ABORTED, &self.aborted)] {
            out.list(tag, set.runs(), |out, (start, end)| {
                out.varint(u64::from(*start));
                out.varint(u64::from(end - start));
            });
        }
        out.list(RESTORE_POINTS, &self.restore_points, |out, point| {
            out.lsn(point.lsn);
            out.lsn(point.end);
            out.time(point.time);
            out.text(&point.name);
        });
        out.list(CHECKPOINTS, &self.checkpoints, Writer::checkpoint);
        out.list(WAL_LEVELS, &self.wal_levels, |out, (lsn, level)| {
            out.lsn(*lsn);
            out.varint(u64::from(*level));
        });
        for (tag, fragment) in [(HEAD, &self.head), (TAIL, &self.tail)] {
            if fragment.exists() {
                out.section(tag, |out| out.fragment(fragment));
            }
        }
        if let Some(record) = self.abandoned {
            out.section(ABANDONED, |out| out.lsn(record));
        }
        if self.abridged {
            out.section(ABRIDGED, |_| {});
        }
        out.bytes
    }

    /// Reads the bytes of [`WalIndex::encode`], of this version or of one that knows more sections.
    pub fn decode(bytes: &[u8]) -> Result<WalIndex, ParseWalIndexError> {
        let mut sections = Reader { rest: bytes, section: 0 };
        let mut index = WalIndex::default();
        let mut seen = 0u32;
        while !sections.rest.is_empty() {
            let tag = u16::from_le_bytes(sections.array()?);
            let length = u32::from_le_bytes(sections.array()?);
            let payload = sections.take(u64::from(length))?;
            let known = 1u32.checked_shl(u32::from(tag)).filter(|_| (SPAN..=ABRIDGED).contains(&tag));
            let Some(bit) = known else { continue };
            let mut section = Reader { rest: payload, section: tag };
            if seen & bit != 0 {
                return Err(section.error("a second one"));
            }
            seen |= bit;
            section.read_into(&mut index)?;
            if !section.rest.is_empty() {
                return Err(section.error("bytes left over"));
            }
        }
        if seen & (1 << SPAN) == 0 {
            return Err(sections.error("no section 1"));
        }
        Ok(index)
    }
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn section(&mut self, tag: u16, write: impl FnOnce(&mut Writer)) {
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self);
        // Lists, texts and fragments are limited: a section stays far below 4 GiB.
        let length = (self.bytes.len() - length_at - 4) as u32;
        if let Some(field) = self.bytes.get_mut(length_at..length_at + 4) {
            field.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn list<T>(&mut self, tag: u16, items: &[T], write: impl Fn(&mut Writer, &T)) {
        if !items.is_empty() {
            self.section(tag, |out| {
                out.varint(items.len() as u64);
                items.iter().for_each(|item| write(out, item));
            });
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn lsn(&mut self, lsn: Lsn) {
        self.varint(lsn.get());
    }

    fn time(&mut self, time: PgTimestamp) {
        let value = time.get();
        self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    fn text(&mut self, text: &str) {
        let text = text.get(..text.floor_char_boundary(TEXT_LIMIT)).unwrap_or_default();
        self.varint(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn transactions(&mut self, span: &TransactionSpan) {
        self.varint(span.count);
        self.time(span.least_time);
        self.time(span.greatest_time);
        self.transaction_end(&span.first);
        self.transaction_end(&span.last);
        self.varint(u64::from(span.last_commit.is_some()));
        if let Some(last_commit) = &span.last_commit {
            self.transaction_end(last_commit);
        }
    }

    fn transaction_end(&mut self, end: &TransactionEnd) {
        self.lsn(end.lsn);
        self.lsn(end.end);
        self.varint(u64::from(end.xid));
        self.time(end.time);
        self.varint(match end.outcome {
            Outcome::Committed => 0,
            Outcome::Aborted => 1,
        });
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointRecord) {
        self.lsn(checkpoint.lsn);
        self.lsn(checkpoint.redo);
        self.varint(match checkpoint.kind {
            CheckpointKind::Online => 0,
            CheckpointKind::Shutdown => 1,
            CheckpointKind::EndOfRecovery => 2,
        });
        self.varint(u64::from(checkpoint.timeline.get()));
        self.varint(u64::from(checkpoint.previous_timeline.get()));
        self.time(checkpoint.time);
    }

    fn fragment(&mut self, fragment: &Fragment) {
        self.lsn(fragment.record);
        self.varint(u64::from(fragment.total_length));
        self.varint(u64::from(fragment.length));
        self.bytes.extend_from_slice(&fragment.crc.to_le_bytes());
        self.varint(fragment.bytes.len() as u64);
        self.bytes.extend_from_slice(&fragment.bytes);
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    section: u16,
}

impl<'a> Reader<'a> {
    fn error(&self, problem: &'static str) -> ParseWalIndexError {
        ParseWalIndexError { section: self.section, problem }
    }

    fn read_into(&mut self, index: &mut WalIndex) -> Result<(), ParseWalIndexError> {
        match self.section {
            SPAN => {
                index.postgresql_major = self.u32()?;
                index.start = self.lsn()?;
                index.end = self.lsn()?;
                index.valid_until = self.lsn()?;
                index.first_record = self.optional_lsn()?;
                index.previous_record = self.optional_lsn()?;
                index.last_record = self.optional_lsn()?;
                index.record_count = self.varint()?;
            }
            DAMAGE => index.verdict = RecordVerdict::Damaged { at: self.lsn()?, problem: self.text()? },
            TRANSACTIONS => index.transactions = Some(self.transactions()?),
            COMMITTED => index.committed = self.xids()?,
            ABORTED => index.aborted = self.xids()?,
            RESTORE_POINTS => {
                index.restore_points = self.list(4, LIST_LIMIT, |reader| {
                    let (lsn, end, time) = (reader.lsn()?, reader.lsn()?, reader.time()?);
                    Ok(RestorePoint { lsn, end, time, name: reader.text()? })
                })?;
            }
            CHECKPOINTS => index.checkpoints = self.list(6, LIST_LIMIT, Reader::checkpoint)?,
            WAL_LEVELS => {
                index.wal_levels = self
                    .list(2, LIST_LIMIT, |reader| Ok((reader.lsn()?, reader.u32()?)))?
                    .into_iter()
                    .map(|(lsn, level)| Ok((lsn, u8::try_from(level).map_err(|_| self.error("wal_level"))?)))
                    .collect::<Result<_, _>>()?;
            }
            HEAD => index.head = self.fragment()?,
            TAIL => index.tail = self.fragment()?,
            ABANDONED => index.abandoned = Some(self.lsn()?),
            ABRIDGED => index.abridged = true,
            _ => {}
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], ParseWalIndexError> {
        let split = usize::try_from(bytes).ok().and_then(|bytes| self.rest.split_at_checked(bytes));
        let (taken, rest) = split.ok_or_else(|| self.error("fewer bytes than announced"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseWalIndexError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.error("too few bytes"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn varint(&mut self) -> Result<u64, ParseWalIndexError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7F);
            // The tenth byte has room for one bit only.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number above 64 bits"))
    }

    fn u32(&mut self) -> Result<u32, ParseWalIndexError> {
        u32::try_from(self.varint()?).map_err(|_| self.error("a number above 32 bits"))
    }

    fn lsn(&mut self) -> Result<Lsn, ParseWalIndexError> {
        self.varint().map(Lsn::new)
    }

    fn optional_lsn(&mut self) -> Result<Option<Lsn>, ParseWalIndexError> {
        self.lsn().map(|lsn| Some(lsn).filter(|lsn| lsn.is_valid()))
    }

    fn time(&mut self) -> Result<PgTimestamp, ParseWalIndexError> {
        let value = self.varint()?;
        Ok(PgTimestamp::new((value >> 1).cast_signed() ^ -(value & 1).cast_signed()))
    }

    fn text(&mut self) -> Result<String, ParseWalIndexError> {
        let length = self.varint()?;
        if length > TEXT_LIMIT as u64 {
            return Err(self.error("a text too long"));
        }
        let text =
            std::str::from_utf8(self.take(length)?).map_err(|_| self.error("a text that is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// A counted list whose items take at least `item_bytes`: the count is checked against what is there before anything
    /// is allocated for it.
    fn list<T>(
        &mut self,
        item_bytes: usize,
        limit: usize,
        read: impl Fn(&mut Reader<'a>) -> Result<T, ParseWalIndexError>,
    ) -> Result<Vec<T>, ParseWalIndexError> {
        let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if count > limit || count > self.rest.len() / item_bytes {
            return Err(self.error("too many items"));
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn xids(&mut self) -> Result<XidSet, ParseWalIndexError> {
        let runs = self.list(2, super::xid_set::RUN_LIMIT, |reader| {
            let (start, more) = (reader.u32()?, reader.u32()?);
            let end = start.checked_add(more).ok_or_else(|| reader.error("an id above 32 bits"))?;
            Ok((start, end))
        })?;
        XidSet::from_runs(runs).ok_or_else(|| self.error("ids out of order"))
    }

    fn transactions(&mut self) -> Result<TransactionSpan, ParseWalIndexError> {
        Ok(TransactionSpan {
            count: self.varint()?,
            least_time: self.time()?,
            greatest_time: self.time()?,
            first: self.transaction_end()?,
            last: self.transaction_end()?,
            last_commit: match self.varint()? {
                0 => None,
                1 => Some(self.transaction_end()?),
                _ => return Err(self.error("neither yes nor no")),
            },
        })
    }

    fn transaction_end(&mut self) -> Result<TransactionEnd, ParseWalIndexError> {
        Ok(TransactionEnd {
            lsn: self.lsn()?,
            end: self.lsn()?,
            xid: self.u32()?,
            time: self.time()?,
            outcome: match self.varint()? {
                0 => Outcome::Committed,
                1 => Outcome::Aborted,
                _ => return Err(self.error("an unknown outcome")),
            },
        })
    }

    fn checkpoint(&mut self) -> Result<CheckpointRecord, ParseWalIndexError> {
        Ok(CheckpointRecord {
            lsn: self.lsn()?,
            redo: self.lsn()?,
            kind: match self.varint()? {
                0 => CheckpointKind::Online,
                1 => CheckpointKind::Shutdown,
                2 => CheckpointKind::EndOfRecovery,
                _ => return Err(self.error("an unknown kind of checkpoint")),
            },
            timeline: self.timeline()?,
            previous_timeline: self.timeline()?,
            time: self.time()?,
        })
    }

    fn timeline(&mut self) -> Result<TimelineId, ParseWalIndexError> {
        TimelineId::new(self.u32()?).ok_or_else(|| self.error("timeline 0"))
    }

    fn fragment(&mut self) -> Result<Fragment, ParseWalIndexError> {
        let (record, total_length, length) = (self.lsn()?, self.u32()?, self.u32()?);
        let crc = u32::from_le_bytes(self.array()?);
        let kept = self.varint()?;
        if total_length == 0
            || length > total_length
            || kept > u64::from(length)
            || kept > FRAGMENT_LIMIT as u64
        {
            return Err(self.error("impossible lengths"));
        }
        Ok(Fragment { record, total_length, length, crc, bytes: self.take(kept)?.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of everything.
    fn full() -> WalIndex {
        let end = |lsn, xid, outcome| TransactionEnd {
            lsn: Lsn::new(lsn),
            end: Lsn::new(lsn + 40),
            xid,
            time: PgTimestamp::new(-3),
            outcome,
        };
        let last = end(0x500, 701, Outcome::Aborted);
        let first = end(0x400, 700, Outcome::Committed);
        WalIndex {
            postgresql_major: 15,
            start: Lsn::new(0x10_0000),
            end: Lsn::new(0x20_0000),
            first_record: Some(Lsn::new(0x10_0028)),
            previous_record: Some(Lsn::new(0xF_FF00)),
            last_record: Some(Lsn::new(0x1F_FF00)),
            valid_until: Lsn::new(0x20_0000),
            verdict: RecordVerdict::Damaged { at: Lsn::new(0x300), problem: "torn".to_owned() },
            record_count: 300,
            transactions: Some(TransactionSpan {
                count: 2,
                least_time: PgTimestamp::new(i64::MIN),
                greatest_time: PgTimestamp::new(i64::MAX),
                first,
                last,
                last_commit: Some(first),
            }),
            committed: XidSet::from_ids(vec![700, 702, 703, u32::MAX]),
            aborted: XidSet::from_ids(vec![0, 701]),
            restore_points: vec![RestorePoint {
                lsn: Lsn::new(1),
                end: Lsn::new(105),
                time: PgTimestamp::new(9),
                name: "Grüße".to_owned(),
            }],
            checkpoints: vec![CheckpointRecord {
                lsn: Lsn::new(0x600),
                redo: Lsn::new(0x5C0),
                kind: CheckpointKind::EndOfRecovery,
                timeline: TimelineId::new(3).unwrap(),
                previous_timeline: TimelineId::new(2).unwrap(),
                time: PgTimestamp::new(1_000_000),
            }],
            wal_levels: vec![(Lsn::new(0x700), 2)],
            abandoned: Some(Lsn::new(0xF_F000)),
            abridged: true,
            head: Fragment {
                record: Lsn::INVALID,
                total_length: 9,
                length: 9,
                crc: 0x0403_0201,
                bytes: vec![7; 9],
            },
            tail: Fragment {
                record: Lsn::new(0x1F_FF00),
                total_length: 5000,
                length: 256,
                crc: 1,
                bytes: vec![5; 24],
            },
        }
    }

    /// The bytes of version 1, for good: later versions must read them.
    const FULL: &str = "\
        0100 17000000 0f8080408080800180808001a8804080fe3f80fe7fac02 \
        0200 07000000 800604746f726e \
        0300 2e000000 02ffffffffffffffffff01feffffffffffffffff018008a808bc050500800aa80abd050501018008a808bc050500 \
        0400 0d000000 03bc0500be0501ffffffff0f00 \
        0500 06000000 020000bd0500 \
        0600 0c000000 01016912074772c3bcc39f65 \
        0700 0b000000 01800cc00b02030280897a \
        0800 04000000 01800e02 \
        0900 11000000 0009090102030409070707070707070707 \
        0a00 24000000 80fe7f882780020100000018050505050505050505050505050505050505050505050505 \
        0b00 03000000 80e03f \
        0c00 00000000";

    #[test]
    fn goes_both_ways() {
        let index = full();
        assert_eq!(WalIndex::decode(&index.encode()), Ok(index));
        let empty = WalIndex::default();
        assert_eq!(empty.encode().len(), 6 + 8);
        assert_eq!(WalIndex::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn the_bytes_are_these() {
        let hex: String = full().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FULL.split_whitespace().collect::<String>());
    }

    #[test]
    fn every_truncation_is_refused_or_lacks_sections() {
        let bytes = full().encode();
        for length in 0..bytes.len() {
            if let Ok(index) = WalIndex::decode(&bytes[..length]) {
                assert_ne!(index, full(), "{length}");
            }
        }
    }

    #[test]
    fn unknown_sections_are_passed_over() {
        let mut bytes = vec![0x34, 0x12, 3, 0, 0, 0, 1, 2, 3];
        bytes.extend(full().encode());
        bytes.extend([13, 0, 0, 0, 0, 0]);
        assert_eq!(WalIndex::decode(&bytes), Ok(full()));
    }

    #[test]
    fn refuses_what_no_writer_writes() {
        let refused = |section: &[u8]| {
            let bytes = [WalIndex::default().encode().as_slice(), section].concat();
            WalIndex::decode(&bytes).unwrap_err().to_string()
        };
        let message = |problem: &str| format!("WAL index cannot be read: {problem}");
        assert_eq!(WalIndex::decode(&[]).unwrap_err().to_string(), message("no section 1 in section 0"));
        assert_eq!(refused(&[1]), message("too few bytes in section 0"));
        assert_eq!(refused(&[12, 0, 1, 0, 0, 0]), message("fewer bytes than announced in section 0"));
        assert_eq!(refused(&[12, 0, 1, 0, 0, 0, 0]), message("bytes left over in section 12"));
        assert_eq!(refused(&[12, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0]), message("a second one in section 12"));
        // A list that claims far more items than there are bytes.
        assert_eq!(
            refused(&[4, 0, 5, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
            message("too many items in section 4")
        );
        assert_eq!(refused(&[4, 0, 5, 0, 0, 0, 2, 5, 0, 5, 0]), message("ids out of order in section 4"));
        assert_eq!(
            refused(&[11, 0, 10, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
            message("a number above 64 bits in section 11")
        );
        assert_eq!(
            refused(&[10, 0, 9, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1, 7]),
            message("impossible lengths in section 10")
        );
        assert_eq!(
            refused(&[2, 0, 3, 0, 0, 0, 1, 1, 0xFF]),
            message("a text that is not UTF-8 in section 2")
        );
    }
}
