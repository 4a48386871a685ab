//! The index as bytes: sections of tag (u16), length (u32) and payload, little-endian; `docs/wal-index.md` has the table.
//!
//! Bytes come from a repository, so everything is checked, and nothing is allocated that the bytes do not pay for.

use super::xid_set::XidSet;
use super::{
    CheckpointKind, CheckpointRecord, FRAGMENT_LIMIT, Fragment, LIST_LIMIT, Outcome, RecordVerdict,
    RestorePoint, TransactionEnd, TransactionSpan, WalIndex,
};
use crate::format::varint::{self, NotANumber};
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
const BLOCKS: u16 = 13;
const FILE_EVENTS: u16 = 14;
const DATABASES_MADE: u16 = 15;

mod changes;

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
        if let Some(blocks) = &self.blocks {
            let before = out.bytes.len();
            out.section(BLOCKS, |out| out.blocks(blocks));
            // Without the section, an index says nothing about blocks: readers then look elsewhere.
            if out.bytes.len() - before > changes::BLOCKS_LIMIT {
                out.bytes.truncate(before);
            }
        }
        if let Some(events) = &self.files {
            out.section(FILE_EVENTS, |out| out.file_events(events));
        }
        if let Some(made) = &self.databases_made {
            out.section(DATABASES_MADE, |out| out.databases_made(made));
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
            let known = 1u32.checked_shl(u32::from(tag)).filter(|_| (SPAN..=DATABASES_MADE).contains(&tag));
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

    fn varint(&mut self, value: u64) {
        varint::put(&mut self.bytes, value);
    }

    fn optional<T>(&mut self, item: Option<T>, write: impl FnOnce(&mut Writer, T)) {
        self.varint(u64::from(item.is_some()));
        if let Some(item) = item {
            write(self, item);
        }
    }

    fn lsn(&mut self, lsn: Lsn) {
        self.varint(lsn.get());
    }

    fn time(&mut self, time: PgTimestamp) {
        self.varint(varint::fold(time.get()));
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
        self.optional(span.last_commit.as_ref(), Writer::transaction_end);
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
            BLOCKS => index.blocks = Some(self.blocks()?),
            FILE_EVENTS => index.files = Some(self.file_events()?),
            DATABASES_MADE => index.databases_made = Some(self.databases_made()?),
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
        varint::take::<{ varint::LONGEST }>(&mut self.rest).map_err(|problem| {
            self.error(match problem {
                NotANumber::CutOff => "too few bytes",
                NotANumber::TooLong => "a number above 64 bits",
            })
        })
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
        self.varint().map(|value| PgTimestamp::new(varint::unfold(value)))
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
        let count = self.count(item_bytes, limit)?;
        (0..count).map(|_| read(self)).collect()
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, ParseWalIndexError>,
    ) -> Result<Option<T>, ParseWalIndexError> {
        match self.varint()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.error("neither yes nor no")),
        }
    }

    /// How many items of at least `item_bytes` follow.
    fn count(&mut self, item_bytes: usize, limit: usize) -> Result<usize, ParseWalIndexError> {
        let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if count > limit || count > self.rest.len() / item_bytes {
            return Err(self.error("too many items"));
        }
        Ok(count)
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
            last_commit: self.optional(Reader::transaction_end)?,
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
mod tests;
