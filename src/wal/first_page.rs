//! What the first page of a segment proves: that the file is the segment that its name says.
//!
//! The same check runs before a segment is archived and before one is delivered.

use std::fs::File;
use std::io::{self, Read};

use crate::pg::wal_page::LongPageHeader;
use crate::pg::{Lsn, SystemIdentifier, TimelineId, WalSegmentName};

/// Bytes of a segment that [`check_first_page`] needs: `sizeof(XLogLongPageHeaderData)`.
pub const FIRST_PAGE_BYTES: usize = 40;

/// Why a file is not the segment that its name says. `Display` continues a sentence that names the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirstPageProblem {
    /// Not even a page header.
    #[error("it has {length} bytes, too few for a WAL segment")]
    TooShort {
        /// The file's length.
        length: u64,
    },
    /// The first page is something else.
    #[error("its first page is not that of a WAL segment: {0}")]
    NotAPage(String),
    /// The file was cut, or something was appended to it.
    #[error("it has {length} bytes, but its first page says that segments have {segment_size}")]
    Length {
        /// The file's length.
        length: u64,
        /// The header's.
        segment_size: u64,
    },
    /// Another cluster wrote it.
    #[error("it belongs to the cluster with system identifier {found}, not {expected}")]
    OtherCluster {
        /// The header's.
        found: SystemIdentifier,
        /// The cluster's.
        expected: SystemIdentifier,
    },
    /// No segment of this size has this name.
    #[error("no segment of {segment_size} bytes has this name")]
    NoSuchName {
        /// The header's.
        segment_size: u64,
    },
    /// A recycled or renamed file.
    #[error("its first page is that of WAL position {found}, the name stands for {expected}")]
    OtherPosition {
        /// The header's.
        found: Lsn,
        /// The name's.
        expected: Lsn,
    },
    /// A later timeline can't have written an earlier one's segment.
    #[error("its first page was written on timeline {}, which is later than the name's {}", found.get(), named.get())]
    LaterTimeline {
        /// The header's.
        found: TimelineId,
        /// The name's.
        named: TimelineId,
    },
}

/// A file's beginning, as much as [`check_first_page`] looks at; fewer bytes if it is shorter. Reads on from where the file stands.
pub fn read_first_page(file: &File) -> io::Result<Vec<u8>> {
    let mut page = Vec::with_capacity(FIRST_PAGE_BYTES);
    file.take(FIRST_PAGE_BYTES as u64).read_to_end(&mut page)?;
    Ok(page)
}

/// Checks the first [`FIRST_PAGE_BYTES`] of a file of `length` bytes against its name and, if known, its cluster.
pub fn check_first_page(
    name: WalSegmentName,
    page: &[u8],
    length: u64,
    cluster: Option<SystemIdentifier>,
) -> Result<LongPageHeader, FirstPageProblem> {
    if page.len() < FIRST_PAGE_BYTES {
        return Err(FirstPageProblem::TooShort { length });
    }
    let header =
        LongPageHeader::parse(page).map_err(|problem| FirstPageProblem::NotAPage(problem.to_string()))?;
    let segment_size = header.segment_size.bytes();
    if length != segment_size {
        return Err(FirstPageProblem::Length { length, segment_size });
    }
    if let Some(expected) = cluster.filter(|cluster| *cluster != header.system_identifier) {
        return Err(FirstPageProblem::OtherCluster { found: header.system_identifier, expected });
    }
    let expected =
        name.start_lsn(header.segment_size).ok_or(FirstPageProblem::NoSuchName { segment_size })?;
    if header.page_address != expected {
        return Err(FirstPageProblem::OtherPosition { found: header.page_address, expected });
    }
    // A timeline begins with a copy of its parent's segment, pages of the parent included: earlier is right.
    if header.timeline > name.timeline {
        return Err(FirstPageProblem::LaterTimeline { found: header.timeline, named: name.timeline });
    }
    Ok(header)
}
