//! WAL page headers.
//!
//! Bytes of a page go in, typed fields come out. Only little-endian servers are read: WAL is written in the server's own
//! byte order, and a big-endian segment is refused by name.

use super::{Lsn, SystemIdentifier, TimelineId, WalSegmentSize};

/// Bytes in a WAL page (`XLOG_BLCKSZ` as every packaged server has it).
pub const WAL_PAGE_SIZE: usize = 8192;

/// Bytes in the header of every page but a segment's first (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER_SIZE: usize = 24;

/// Bytes in the header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_SIZE: usize = 40;

/// `xlp_magic` of every major version that is known, and the version.
const MAGICS: [(u16, u32); 6] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

/// The magic of the newest version that is known: greater ones are accepted as a version yet to come.
const NEWEST_MAGIC: u16 = 0xD118;

/// Every flag that `xlp_info` can have (`XLP_ALL_FLAGS`, 13 to 18): the page begins with more of a record, its header is
/// long, backup blocks may be removed (set on most pages, means nothing here), it replaces the end of a record.
const ALL_FLAGS: u16 = 0x000F;

/// The header that every page begins with (`XLogPageHeaderData`, `src/include/access/xlog_internal.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_info`.
    pub info: u16,
    /// `xlp_tli`; 0 is not a timeline, so this may be anything.
    pub timeline: u32,
    /// `xlp_pageaddr`.
    pub page_address: Lsn,
    /// `xlp_rem_len`: bytes of a record begun earlier that were not yet written when this page began.
    pub remaining_length: u32,
}

impl PageHeader {
    /// Reads the fields without judging them; `None` if there are fewer than 24 bytes.
    pub fn read(page: &[u8]) -> Option<PageHeader> {
        let bytes: &[u8; SHORT_HEADER_SIZE] = page.first_chunk()?;
        Some(PageHeader {
            magic: u16::from_le_bytes([bytes[0], bytes[1]]),
            info: u16::from_le_bytes([bytes[2], bytes[3]]),
            timeline: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            page_address: Lsn::new(read_u64(page, 8)?),
            remaining_length: read_u32(page, 16)?,
        })
    }

    /// `XLP_FIRST_IS_CONTRECORD`: the page begins with more of a record that began earlier.
    pub fn continues_record(&self) -> bool {
        self.info & 0x0001 != 0
    }

    /// `XLP_LONG_HEADER`: the header is that of a segment's first page.
    pub fn is_long(&self) -> bool {
        self.info & 0x0002 != 0
    }

    /// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the rest of the record begun earlier was lost in a crash and the server
    /// writes on from here (`CreateOverwriteContrecordRecord`, `src/backend/access/transam/xlog.c`).
    ///
    /// After 18 the flag takes the place of `XLP_BKP_REMOVABLE`, which is gone.
    pub fn abandons_record(&self, major: Option<u32>) -> bool {
        let flag = if major.is_some() { 0x0008 } else { 0x0004 };
        self.info & flag != 0
    }

    /// False if `xlp_info` has bits that no version sets.
    pub fn has_known_flags(&self) -> bool {
        self.info & !ALL_FLAGS == 0
    }

    /// Bytes that the header takes up.
    pub fn size(&self) -> usize {
        if self.is_long() { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE }
    }
}

/// The first page's header of a segment (`XLogLongPageHeaderData`, `src/include/access/xlog_internal.h`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LongPageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_tli`.
    pub timeline: TimelineId,
    /// `xlp_pageaddr`.
    pub page_address: Lsn,
    /// `xlp_rem_len`: bytes at the page's beginning that continue a record.
    pub remaining_length: u32,
    /// `xlp_sysid`.
    pub system_identifier: SystemIdentifier,
    /// `xlp_seg_size`.
    pub segment_size: WalSegmentSize,
    /// `xlp_xlog_blcksz`.
    pub page_size: u32,
}

/// A first page that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParsePageError(pub String);

impl LongPageHeader {
    /// Parses the first page's header; needs its first 40 bytes.
    ///
    /// A magic newer than the newest known one is accepted: WAL must reach the archive even where walhold is older than
    /// the server. Whether the header belongs to a certain file is for the caller to check.
    pub fn parse(page: &[u8]) -> Result<LongPageHeader, ParsePageError> {
        let header = PageHeader::read(page).filter(|_| page.len() >= LONG_HEADER_SIZE).ok_or_else(|| {
            ParsePageError(format!("a WAL page header has {LONG_HEADER_SIZE} bytes, here are {}", page.len()))
        })?;
        check_magic(header.magic)?;
        if !header.has_known_flags() || !header.is_long() {
            return Err(ParsePageError(format!(
                "page flags {:04X} are not those of a segment's first page",
                header.info
            )));
        }
        let timeline = TimelineId::new(header.timeline)
            .ok_or_else(|| ParsePageError("the page header has timeline 0".to_owned()))?;
        // The length was checked above.
        let field = |at| read_u32(page, at).unwrap_or_default();
        let segment_size = WalSegmentSize::new(u64::from(field(32))).ok_or_else(|| {
            ParsePageError(format!("{} bytes is not a size that WAL segments have", field(32)))
        })?;
        let page_size = field(36);
        if usize::try_from(page_size) != Ok(WAL_PAGE_SIZE) {
            return Err(ParsePageError(format!(
                "WAL pages of {page_size} bytes are not supported, only {WAL_PAGE_SIZE}"
            )));
        }
        if !header.page_address.get().is_multiple_of(segment_size.bytes()) {
            return Err(ParsePageError(format!(
                "page address {} is not the beginning of a segment of {} bytes",
                header.page_address,
                segment_size.bytes()
            )));
        }
        Ok(LongPageHeader {
            magic: header.magic,
            timeline,
            page_address: header.page_address,
            remaining_length: header.remaining_length,
            system_identifier: SystemIdentifier::new(read_u64(page, 24).unwrap_or_default()),
            segment_size,
            page_size,
        })
    }

    /// The major version that writes this magic; `None` for an unknown one.
    pub fn postgresql_major(&self) -> Option<u32> {
        MAGICS.iter().find(|(magic, _)| *magic == self.magic).map(|(_, major)| *major)
    }
}

fn check_magic(magic: u16) -> Result<(), ParsePageError> {
    // Servers count the low byte up; the high byte has been D1 since PostgreSQL 10.
    let accepted = |magic: u16| {
        MAGICS.iter().any(|(known, _)| *known == magic) || (NEWEST_MAGIC + 1..=0xD1FF).contains(&magic)
    };
    if accepted(magic) {
        return Ok(());
    }
    if accepted(magic.swap_bytes()) {
        return Err(ParsePageError(
            "written on a big-endian machine, whose WAL walhold cannot read".to_owned(),
        ));
    }
    Err(ParsePageError(format!("page magic {magic:04X} is not that of PostgreSQL 13 or newer")))
}

/// The little-endian number at `at`; `None` beyond the end.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian number at `at`; `None` beyond the end.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian number at `at`; `None` beyond the end.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page = vec![0; 64];
        page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        page[2] = 0x02;
        page[4] = 3;
        page[8..16].copy_from_slice(&0x0000_0005_0200_0000u64.to_le_bytes());
        page[16..20].copy_from_slice(&77u32.to_le_bytes());
        page[24..32].copy_from_slice(&7_371_000_111_222_333_444u64.to_le_bytes());
        page[32..36].copy_from_slice(&(16u32 << 20).to_le_bytes());
        page[36..40].copy_from_slice(&8192u32.to_le_bytes());
        page
    }

    fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut page = page();
        change(&mut page);
        LongPageHeader::parse(&page).unwrap_err().to_string()
    }

    #[test]
    fn reads_every_field() {
        let header = LongPageHeader::parse(&page()).unwrap();
        assert_eq!(header.postgresql_major(), Some(15));
        assert_eq!(header.timeline.get(), 3);
        assert_eq!(header.page_address.to_string(), "5/2000000");
        assert_eq!(header.remaining_length, 77);
        assert_eq!(header.system_identifier.get(), 7_371_000_111_222_333_444);
        assert_eq!((header.segment_size, header.page_size), (WalSegmentSize::DEFAULT, 8192));
    }

    #[test]
    fn a_newer_magic_is_a_version_to_come() {
        let mut page = page();
        page[0] = 0x19;
        let header = LongPageHeader::parse(&page).unwrap();
        assert_eq!((header.magic, header.postgresql_major()), (0xD119, None));
    }

    #[test]
    fn refuses_what_is_not_a_first_page() {
        assert_eq!(refusal(|p| p.truncate(39)), "a WAL page header has 40 bytes, here are 39");
        assert_eq!(refusal(|p| p.clear()), "a WAL page header has 40 bytes, here are 0");
        assert_eq!(refusal(|p| p[0] = 0x17), "page magic D117 is not that of PostgreSQL 13 or newer");
        assert_eq!(refusal(|p| p[1] = 0xD2), "page magic D210 is not that of PostgreSQL 13 or newer");
        assert_eq!(refusal(|p| p.fill(0)), "page magic 0000 is not that of PostgreSQL 13 or newer");
        assert_eq!(
            refusal(|p| p.swap(0, 1)),
            "written on a big-endian machine, whose WAL walhold cannot read"
        );
        assert_eq!(refusal(|p| p[2] = 0x01), "page flags 0001 are not those of a segment's first page");
        assert_eq!(refusal(|p| p[2] = 0x12), "page flags 0012 are not those of a segment's first page");
        assert_eq!(refusal(|p| p[4] = 0), "the page header has timeline 0");
        assert_eq!(refusal(|p| p[32] = 1), "16777217 bytes is not a size that WAL segments have");
        assert_eq!(refusal(|p| p[37] = 0x40), "WAL pages of 16384 bytes are not supported, only 8192");
        assert_eq!(
            refusal(|p| p[9] = 0x20),
            "page address 5/2002000 is not the beginning of a segment of 16777216 bytes"
        );
    }
}
