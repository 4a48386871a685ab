//! Names of WAL segments and of everything else that `archive_command` is handed.
//!
//! Names come from outside and are parsed once, strictly; whatever is not one of the four kinds of archive
//! file is refused. Follows `src/include/access/xlog_internal.h` (`XLogFileName`, `IsXLogFileName`,
//! `IsPartialXLogFileName`, `IsTLHistoryFileName`, `IsBackupHistoryFileName`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lsn::Lsn;
use super::timeline::TimelineId;

/// Bytes in a WAL segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`), fixed at initdb.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// What initdb makes unless told otherwise: 16 MiB.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// `None` unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Option<WalSegmentSize> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if valid { u32::try_from(bytes).ok().map(WalSegmentSize) } else { None }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Segments per 4 GiB "log" (`XLogSegmentsPerXLogId`).
    const fn segments_per_log(self) -> u64 {
        (1 << 32) / self.0 as u64
    }
}

impl Serialize for WalSegmentSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for WalSegmentSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = u64::deserialize(deserializer)?;
        WalSegmentSize::new(bytes)
            .ok_or_else(|| serde::de::Error::custom(format!("{bytes} is not a WAL segment size")))
    }
}

/// The ordinal of a segment (`XLogSegNo`): its start position divided by the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WalSegmentNumber(u64);

impl WalSegmentNumber {
    /// The segment with this ordinal.
    pub const fn new(number: u64) -> WalSegmentNumber {
        WalSegmentNumber(number)
    }

    /// The ordinal.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The segment that holds the byte at `lsn` (`XLByteToSeg`).
    pub const fn containing(lsn: Lsn, size: WalSegmentSize) -> WalSegmentNumber {
        WalSegmentNumber(lsn.get() / size.bytes())
    }

    /// The segment that holds the last byte *before* `lsn` (`XLByteToPrevSeg`): where WAL that ends at `lsn` ends.
    pub const fn ending_at(lsn: Lsn, size: WalSegmentSize) -> WalSegmentNumber {
        WalSegmentNumber(lsn.get().saturating_sub(1) / size.bytes())
    }

    /// The following segment.
    pub const fn next(self) -> WalSegmentNumber {
        WalSegmentNumber(self.0.saturating_add(1))
    }

    /// The position of the segment's first byte.
    pub const fn start_lsn(self, size: WalSegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }
}

/// A segment's 24-digit file name: timeline, log and segment within the log, 8 hexadecimal digits each.
///
/// The name alone does not say which bytes of the WAL it holds: that needs the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentName {
    /// The timeline that the segment was written on.
    pub timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl WalSegmentName {
    /// The name of segment `number` on `timeline` (`XLogFileName`).
    pub fn new(timeline: TimelineId, number: WalSegmentNumber, size: WalSegmentSize) -> WalSegmentName {
        let per_log = size.segments_per_log();
        WalSegmentName {
            timeline,
            log: (number.get() / per_log) as u32,
            segment: (number.get() % per_log) as u32,
        }
    }

    /// The segment's ordinal (`XLogFromFileName`); `None` if no segment of this size has this name.
    pub fn number(self, size: WalSegmentSize) -> Option<WalSegmentNumber> {
        let per_log = size.segments_per_log();
        let valid = u64::from(self.segment) < per_log;
        valid.then(|| WalSegmentNumber(u64::from(self.log) * per_log + u64::from(self.segment)))
    }

    /// The position of the segment's first byte; `None` if no segment of this size has this name.
    pub fn start_lsn(self, size: WalSegmentSize) -> Option<Lsn> {
        Some(self.number(size)?.start_lsn(size))
    }

    /// The same position's segment on another timeline.
    pub fn on_timeline(self, timeline: TimelineId) -> WalSegmentName {
        WalSegmentName { timeline, ..self }
    }

    /// The middle 8 digits: 4 GiB of WAL, a folder in the repository.
    pub const fn log(self) -> u32 {
        self.log
    }
}

impl fmt::Display for WalSegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl fmt::Debug for WalSegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WalSegmentName {
    type Err = ParseArchiveFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_segment(text).ok_or_else(|| ParseArchiveFileNameError(text.to_owned()))
    }
}

impl Serialize for WalSegmentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WalSegmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One of the four kinds of file that PostgreSQL archives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ArchiveFileName {
    /// `000000010000000A000000FE`: a complete segment.
    Segment(WalSegmentName),
    /// `000000010000000A000000FE.partial`: the last segment of a timeline that a promotion left.
    Partial(WalSegmentName),
    /// `00000002.history`: how a timeline came to be.
    TimelineHistory(TimelineId),
    /// `000000010000000A000000FE.00000028.backup`: a backup's start and stop.
    BackupHistory {
        /// The segment that holds the backup's start.
        segment: WalSegmentName,
        /// The start's byte offset in that segment.
        offset: u32,
    },
}

impl ArchiveFileName {
    /// The timeline in the name.
    pub fn timeline(self) -> TimelineId {
        match self {
            ArchiveFileName::TimelineHistory(timeline) => timeline,
            ArchiveFileName::Segment(segment)
            | ArchiveFileName::Partial(segment)
            | ArchiveFileName::BackupHistory { segment, .. } => segment.timeline,
        }
    }
}

impl fmt::Display for ArchiveFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveFileName::Segment(segment) => write!(f, "{segment}"),
            ArchiveFileName::Partial(segment) => write!(f, "{segment}.partial"),
            ArchiveFileName::TimelineHistory(timeline) => write!(f, "{timeline}.history"),
            ArchiveFileName::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

/// Text that is not the name of an archive file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a WAL segment (24 hexadecimal digits), nor one with .partial, .<offset>.backup, or <timeline>.history"
)]
pub struct ParseArchiveFileNameError(pub String);

impl FromStr for ArchiveFileName {
    type Err = ParseArchiveFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_archive_file(text).ok_or_else(|| ParseArchiveFileNameError(text.to_owned()))
    }
}

fn parse_archive_file(text: &str) -> Option<ArchiveFileName> {
    let Some((stem, rest)) = text.split_once('.') else {
        return parse_segment(text).map(ArchiveFileName::Segment);
    };
    match rest {
        "partial" => parse_segment(stem).map(ArchiveFileName::Partial),
        "history" => stem.parse().ok().map(ArchiveFileName::TimelineHistory),
        _ => {
            let segment = parse_segment(stem)?;
            let offset = parse_upper_hex_8(rest.strip_suffix(".backup")?)?;
            Some(ArchiveFileName::BackupHistory { segment, offset })
        }
    }
}

fn parse_segment(text: &str) -> Option<WalSegmentName> {
    if text.len() != 24 || !text.is_ascii() {
        return None;
    }
    let timeline = text.get(..8)?.parse().ok()?;
    let log = parse_upper_hex_8(text.get(8..16)?)?;
    let segment = parse_upper_hex_8(text.get(16..)?)?;
    Some(WalSegmentName { timeline, log, segment })
}

/// Exactly 8 upper-case hexadecimal digits: PostgreSQL writes no others, and a second spelling would be a
/// second object.
pub(super) fn parse_upper_hex_8(text: &str) -> Option<u32> {
    let valid = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if valid { u32::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ArchiveFileName {
        text.parse().unwrap()
    }

    #[test]
    fn parses_the_four_kinds() {
        for text in [
            "000000010000000A000000FE",
            "000000010000000A000000FE.partial",
            "00000002.history",
            "000000010000000A000000FE.00000028.backup",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
        assert!(matches!(name("00000002.history"), ArchiveFileName::TimelineHistory(t) if t.get() == 2));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "000000010000000A000000F",
            "000000010000000A000000FEE",
            "000000010000000a000000fe",
            "000000000000000A000000FE",
            "000000010000000A000000FE.Partial",
            "000000010000000A000000FE.partial.gz",
            "000000010000000A000000FE.28.backup",
            "000000010000000A000000FE.00000028.backup.old",
            "00000000.history",
            "2.history",
            "../00000002.history",
            "RECOVERYXLOG",
            "backup_label",
            "00000001000000\u{e9}000000FE00",
        ] {
            assert!(text.parse::<ArchiveFileName>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn names_and_numbers_agree_for_every_size() {
        for exponent in 20..=30 {
            let size = WalSegmentSize::new(1 << exponent).unwrap();
            for number in [0, 1, 255, 256, 4095, 4096, 1 << 33] {
                let number = WalSegmentNumber::new(number);
                let segment = WalSegmentName::new(TimelineId::FIRST, number, size);
                assert_eq!(segment.number(size), Some(number));
                assert_eq!(segment.to_string().parse(), Ok(segment));
            }
        }
    }

    #[test]
    fn a_name_of_another_size_has_no_number() {
        let of_1_mib: WalSegmentName = "0000000100000000000000FF".parse().unwrap();
        assert!(of_1_mib.number(WalSegmentSize::new(64 << 20).unwrap()).is_none());
    }

    #[test]
    fn a_stop_on_a_boundary_needs_the_previous_segment() {
        let size = WalSegmentSize::DEFAULT;
        let boundary = Lsn::new(3 * size.bytes());
        assert_eq!(WalSegmentNumber::containing(boundary, size).get(), 3);
        assert_eq!(WalSegmentNumber::ending_at(boundary, size).get(), 2);
    }

    #[test]
    fn sizes_are_powers_of_two_from_1_mib_to_1_gib() {
        assert!(WalSegmentSize::new(1 << 20).is_some() && WalSegmentSize::new(1 << 30).is_some());
        for bytes in [0, 1 << 19, 1 << 31, 3 << 20, u64::MAX] {
            assert!(WalSegmentSize::new(bytes).is_none());
        }
    }
}
