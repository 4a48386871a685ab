//! WAL page headers.

use super::{Lsn, SystemIdentifier, TimelineId, WalSegmentSize};

/// Bytes in a WAL page (`XLOG_BLCKSZ` as every packaged server has it).
pub const WAL_PAGE_SIZE: usize = 8192;

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
    pub fn parse(_page: &[u8]) -> Result<LongPageHeader, ParsePageError> {
        todo!()
    }

    /// The major version that writes this magic; `None` for an unknown one.
    pub fn postgresql_major(&self) -> Option<u32> {
        todo!()
    }
}
