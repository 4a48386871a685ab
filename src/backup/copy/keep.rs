//! Which parts of what was just read the base has already.

use crate::backup::changes::Changes;
use crate::backup::relation_file::is_zero;
use crate::backup::reuse::{MAX_PIECES, ReusePlan, part_of};
use crate::format::digest::ShortDigest;
use crate::format::manifest::{FileRange, RangeSource};
use crate::pg::Lsn;
use crate::pg::page_checksum::page_lsn;

/// The base's ranges of which `bytes`, which lie at `offset` of the file, are whole and the same. In order.
pub(super) fn same_digest(reuse: &ReusePlan<'_>, base: u32, offset: u64, bytes: &[u8]) -> Vec<FileRange> {
    let is_same = |range: &&FileRange| {
        let known = range.own_digest().filter(|_| reuse.may_keep(range));
        known
            .zip(bytes_of(range, offset, bytes))
            .is_some_and(|(known, bytes)| ShortDigest::of(bytes) == known)
    };
    ranges_at(reuse, base, offset, bytes.len()).iter().filter(is_same).cloned().collect()
}

/// The parts of the base's ranges whose pages were not written since the base began. In order.
pub(super) fn old_pages(reuse: &ReusePlan<'_>, base: u32, offset: u64, bytes: &[u8]) -> Vec<FileRange> {
    let Changes::PagesSince(since) = *reuse.changes else { return Vec::new() };
    let mut kept: Vec<FileRange> = Vec::new();
    for range in ranges_at(reuse, base, offset, bytes.len()) {
        if range.source == RangeSource::Zeros || !reuse.may_keep(range) {
            continue;
        }
        let end = range.offset + u64::from(range.length);
        let mut run = None;
        for (index, page) in bytes.chunks(reuse.block_size).enumerate() {
            let at = offset + (index * reuse.block_size) as u64;
            let page_end = at + page.len() as u64;
            let whole = range.offset <= at && page_end <= end && page.len() == reuse.block_size;
            match (&mut run, whole && is_old(page, since)) {
                (None, true) => run = Some(at..page_end),
                (Some(run), true) => run.end = page_end,
                (_, false) => kept.extend(run.take().and_then(|run| part_of(range, run))),
            }
        }
        kept.extend(run.and_then(|run| part_of(range, run)));
    }
    // What lies between is stored in as many pieces.
    if kept.len() * 2 > MAX_PIECES { Vec::new() } else { kept }
}

/// A page that was made new may be one that WAL does not tell of.
fn is_old(page: &[u8], since: Lsn) -> bool {
    page_lsn(page) < since && !is_zero(page)
}

/// The base's ranges that may overlap these bytes.
fn ranges_at<'a>(reuse: &ReusePlan<'a>, base: u32, offset: u64, length: usize) -> &'a [FileRange] {
    let ranges = reuse.ranges(base);
    let first = ranges.partition_point(|range| range.offset + u64::from(range.length) <= offset);
    let last = ranges.partition_point(|range| range.offset < offset + length as u64);
    ranges.get(first..last).unwrap_or_default()
}

/// A range's bytes, if all of them lie in `bytes`.
fn bytes_of<'a>(range: &FileRange, offset: u64, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(range.offset.checked_sub(offset)?).ok()?;
    bytes.get(start..start.checked_add(range.length as usize)?)
}
