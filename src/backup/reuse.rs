//! What of a base backup is used again, decided before anything is read.
//!
//! In: the cluster's files as the walk found them, the base's manifest, what may have changed. Out: per file what must be
//! read. What must hold: whatever is not read is described as the file is now (its size), with the base's bytes; files that
//! the base does not know, or that are not relations' main forks, are read whole.
//!
//! Keeping has a price: a chunk of which a single page is still used must be read and decompressed whole by every restore.
//! So chunks that are worn (little of them is used) are given up, the most worn first, until a restore reads at
//! most [`DECODE_LIMIT_PERCENT`] of what it would read of a full backup; and a window of a file that would consist of too many
//! pieces is rewritten.

mod wear;

use std::ops::Range;

use super::changes::Changes;
use super::plan::SourceFile;
use crate::format::envelope::CHUNK_SIZE;
use crate::format::manifest::{FileEntry, FileRange, Manifest, RangeSource};
use crate::local::relation_path::{RelationFile, relation_of};
use crate::pg::wal_record::ForkNumber;
use wear::ChunkUse;

/// A restore may decode so much, in percent of the cluster's size.
pub const DECODE_LIMIT_PERCENT: u64 = 130;
/// A window of [`WINDOW`] bytes that would be put together from more pieces is stored anew.
pub const MAX_PIECES: usize = 96;
/// Relation files up to this size are stored anew as soon as a page has changed: parts would cost more than they spare.
const SMALL_RELATION: u64 = 64 << 10;
/// Files are read in windows of this size, at multiples of it; no chunk reaches over a window's end.
pub const WINDOW: u64 = CHUNK_SIZE as u64;

/// What is done with a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// All of it is read and stored.
    Nothing,
    /// All of it is read; ranges of the base whose digest fits are kept.
    SameDigest {
        /// Index into the base's files.
        base: u32,
    },
    /// All of it is read; pages that were not written since the base's start are kept.
    OldPages {
        /// Index into the base's files.
        base: u32,
    },
    /// Only these bytes are read, in order and apart; all else is kept.
    Known {
        /// Index into the base's files.
        base: u32,
        /// What is read and stored.
        read: Vec<Range<u64>>,
    },
}

/// Facts about the cluster that decide what pages are.
#[derive(Clone, Copy, Debug)]
pub struct PageLayout {
    /// Bytes in a page.
    pub block_size: u32,
    /// Pages in a relation segment file.
    pub segment_blocks: u32,
}

/// What is used again, file by file.
pub struct ReusePlan<'a> {
    /// The base.
    pub base: &'a Manifest,
    /// One for each of the cluster's files.
    pub files: Vec<Reuse>,
    /// How the pages of files are judged that are read whole.
    pub changes: &'a Changes,
    /// Bytes in a page.
    pub block_size: usize,
    chunks: ChunkUse,
}

impl<'a> ReusePlan<'a> {
    /// Decides for every file.
    pub fn new(
        files: &[SourceFile],
        base: &'a Manifest,
        changes: &'a Changes,
        layout: PageLayout,
    ) -> ReusePlan<'a> {
        let block_size = layout.block_size as usize;
        let chunks = ChunkUse::new(base);
        let mut plan =
            ReusePlan { base, files: Vec::with_capacity(files.len()), changes, block_size, chunks };
        let recreated = RecreatedDatabases::find(files, base);
        for file in files {
            let reuse = plan.decide(file, layout, &recreated);
            plan.files.push(reuse);
        }
        plan.give_up_worn_chunks(files);
        plan
    }

    /// What would be done with a file if no chunk was worn.
    fn decide(&self, file: &SourceFile, layout: PageLayout, recreated: &RecreatedDatabases) -> Reuse {
        let Some((index, entry)) = find(self.base, file) else { return Reuse::Nothing };
        let relation = relation_of(&file.found.path).filter(|relation| relation.fork == ForkNumber::MAIN);
        let Some(relation) = relation else { return Reuse::SameDigest { base: index } };
        match self.changes {
            Changes::Unknown => Reuse::SameDigest { base: index },
            // Pages that CREATE DATABASE copied keep their LSNs.
            Changes::PagesSince(_) if recreated.contains(&file.found.path) => {
                Reuse::SameDigest { base: index }
            }
            Changes::PagesSince(_) => Reuse::OldPages { base: index },
            Changes::Blocks(blocks) => {
                let mut changed = Vec::new();
                let changes = blocks.of(relation.relation, ForkNumber::MAIN);
                let damaged = damaged_blocks(self.base, &file.found.path);
                let known = known_blocks(file.found.size, entry.size, relation, layout);
                if let Some(known) = known.clone() {
                    changed.extend(changes.runs_within(known));
                    changed.extend(damaged.into_iter().map(|block| block..block.saturating_add(1)));
                }
                let read = to_read(file.found.size, known, changed, layout);
                Reuse::Known { base: index, read }
            }
        }
    }

    /// The base's ranges of a file.
    pub fn ranges(&self, base: u32) -> &'a [FileRange] {
        self.base.files.get(base as usize).map_or(&[], |entry| &entry.ranges)
    }

    /// Whether a range of the base may be kept: zeros cost nothing, and worn chunks cost too much.
    pub fn may_keep(&self, range: &FileRange) -> bool {
        match range.source {
            RangeSource::Zeros => true,
            RangeSource::Chunk { pack, number, .. } => !self.chunks.is_worn(pack, number),
        }
    }

    /// What is kept of a file of which only known parts are read.
    pub fn kept(&self, base: u32, read: &[Range<u64>], size: u64) -> Vec<FileRange> {
        let mut kept = Vec::new();
        let mut at = 0;
        let mut ranges = self.ranges(base).iter().peekable();
        let ends = read.iter().map(|span| (span.start, span.end)).chain(std::iter::once((size, size)));
        for (end, next) in ends {
            while let Some(range) = ranges.peek() {
                let range_end = range.offset + u64::from(range.length);
                let part = range.offset.max(at)..range_end.min(end);
                if !part.is_empty() {
                    kept.extend(part_of(range, part));
                }
                // A range that goes on behind what is read next is looked at again.
                if range_end > next {
                    break;
                }
                ranges.next();
            }
            at = next;
        }
        kept
    }

    /// Counts what is used of each chunk, gives up the most worn, and reads what was kept of them.
    fn give_up_worn_chunks(&mut self, files: &[SourceFile]) {
        let mut stored_anew = 0;
        let mut total = 0;
        for (file, reuse) in files.iter().zip(&self.files) {
            total += file.found.size;
            match reuse {
                Reuse::Nothing => stored_anew += file.found.size,
                Reuse::SameDigest { base } | Reuse::OldPages { base } => {
                    self.ranges(*base).iter().for_each(|range| self.chunks.add(range));
                }
                Reuse::Known { base, read } => {
                    stored_anew += read.iter().map(|span| span.end - span.start).sum::<u64>();
                    self.kept(*base, read, file.found.size).iter().for_each(|range| self.chunks.add(range));
                }
            }
        }
        let limit = (total / 100).saturating_mul(DECODE_LIMIT_PERCENT);
        self.chunks.give_up(limit.saturating_sub(stored_anew));
        for index in 0..self.files.len() {
            let Some(Reuse::Known { base, read }) = self.files.get(index) else { continue };
            let size = files.get(index).map_or(0, |file| file.found.size);
            if let Some(more) = self.rewritten(*base, read, size)
                && let Some(Reuse::Known { read, .. }) = self.files.get_mut(index)
            {
                *read = more;
            }
        }
    }

    /// What is read of a file when worn chunks and windows of too many pieces are given up; `None` if that changes nothing.
    fn rewritten(&self, base: u32, read: &[Range<u64>], size: u64) -> Option<Vec<Range<u64>>> {
        let kept = self.kept(base, read, size);
        let mut more: Vec<Range<u64>> =
            kept.iter().filter(|range| !self.may_keep(range)).map(span_of).collect();
        let mut pieces = kept.iter().map(|range| range.offset).chain(read.iter().map(|span| span.start));
        let mut count = std::collections::BTreeMap::<u64, usize>::new();
        if kept.len() + read.len() > MAX_PIECES {
            pieces.by_ref().for_each(|at| *count.entry(at / WINDOW).or_default() += 1);
        }
        let crowded = count.into_iter().filter(|(_, pieces)| *pieces > MAX_PIECES);
        more.extend(crowded.map(|(window, _)| window * WINDOW..((window + 1) * WINDOW).min(size)));
        if more.is_empty() {
            return None;
        }
        more.extend_from_slice(read);
        Some(merged(more))
    }
}

/// Bytes that a file's reading takes.
pub fn bytes_to_read(file: &SourceFile, reuse: Option<&Reuse>) -> u64 {
    match reuse {
        Some(Reuse::Known { read, .. }) => read.iter().map(|span| span.end - span.start).sum(),
        _ => file.found.size,
    }
}

fn span_of(range: &FileRange) -> Range<u64> {
    range.offset..range.offset + u64::from(range.length)
}

/// In order and apart.
fn merged(mut spans: Vec<Range<u64>>) -> Vec<Range<u64>> {
    spans.sort_by_key(|span| span.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

/// The part of a range that covers these bytes of its file. Its digest stays the whole one's.
pub fn part_of(range: &FileRange, bytes: Range<u64>) -> Option<FileRange> {
    let length = u32::try_from(bytes.end.checked_sub(bytes.start)?).ok()?;
    let skipped = u32::try_from(bytes.start.checked_sub(range.offset)?).ok()?;
    if length == 0 || skipped.checked_add(length)? > range.length {
        return None;
    }
    let mut part = FileRange { offset: bytes.start, length, source: range.source };
    if let RangeSource::Chunk { within, .. } = &mut part.source {
        *within += skipped;
    }
    Some(part)
}

fn find<'a>(base: &'a Manifest, file: &SourceFile) -> Option<(u32, &'a FileEntry)> {
    let wanted = (file.root, file.found.path.as_slice());
    let index = base.files.binary_search_by(|entry| (entry.root, entry.path.as_slice()).cmp(&wanted)).ok()?;
    Some((u32::try_from(index).ok()?, base.files.get(index)?))
}

/// Blocks that were damaged when the base read them, counted from the relation's beginning: they are read again, so that
/// this backup tells of them too, or has them sound.
fn damaged_blocks(base: &Manifest, path: &[u8]) -> Vec<u32> {
    let damaged = base.server.damaged_blocks.iter();
    damaged.filter(|(file, _)| file.as_bytes() == path).map(|(_, block)| *block).collect()
}

/// The blocks, counted from the relation's beginning, that a segment file has whole now and had whole in the base. `None` if
/// there can be no such blocks.
fn known_blocks(size: u64, base_size: u64, relation: RelationFile, layout: PageLayout) -> Option<Range<u32>> {
    let first = u64::from(relation.segment) * u64::from(layout.segment_blocks);
    let blocks = size.min(base_size) / u64::from(layout.block_size);
    Some(u32::try_from(first).ok()?..u32::try_from(first + blocks).ok()?)
}

/// The bytes of a relation's segment file that must be read: of the known blocks those that have changed, and all else.
fn to_read(
    size: u64,
    known: Option<Range<u32>>,
    changed: Vec<Range<u32>>,
    layout: PageLayout,
) -> Vec<Range<u64>> {
    let known = known.unwrap_or_default();
    let place = |block: u32| {
        u64::from(block.clamp(known.start, known.end) - known.start) * u64::from(layout.block_size)
    };
    let mut spans: Vec<Range<u64>> =
        changed.iter().map(|run| place(run.start)..place(run.end)).filter(|span| !span.is_empty()).collect();
    if place(known.end) < size {
        spans.push(place(known.end)..size);
    }
    if !spans.is_empty() && size <= SMALL_RELATION {
        return Vec::from_iter(std::iter::once(0..size));
    }
    merged(spans)
}

/// Databases whose directory is not the one that the base saw.
struct RecreatedDatabases {
    /// Their directories, with a `/` at the end, sorted.
    directories: Vec<Vec<u8>>,
}

impl RecreatedDatabases {
    /// `PG_VERSION` is written when a database's directory is made, and never again.
    fn find(files: &[SourceFile], base: &Manifest) -> RecreatedDatabases {
        let mut directories = Vec::new();
        for file in files {
            if let Some(directory) = file.found.path.strip_suffix(b"PG_VERSION")
                && !directory.is_empty()
                && find(base, file).is_none_or(|(_, entry)| entry.modified != file.found.modified)
            {
                directories.push(directory.to_vec());
            }
        }
        directories.sort();
        RecreatedDatabases { directories }
    }

    fn contains(&self, path: &[u8]) -> bool {
        let end = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let directory = path.get(..end).unwrap_or_default();
        self.directories.binary_search_by(|known| known.as_slice().cmp(directory)).is_ok()
    }
}

#[cfg(test)]
mod tests;
