//! The work of a backup cut into pieces that jobs take from one queue.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::reuse::{Reuse, bytes_to_read};
use crate::format::manifest::Root;
use crate::local::pgdata_walk::FoundFile;

/// Bytes of a large file that one job reads in one go: small enough that the last piece is not a long tail, large enough
/// that a restore finds long runs in one pack.
pub const RUN_SIZE: u64 = 16 << 20;
/// The same of parts that have changed: there is less to share out, so it is shared out in smaller portions.
const PARTS_SIZE: u64 = 4 << 20;
/// Files below this are gathered, many in one chunk.
pub const SMALL_FILE: u64 = 512 << 10;
/// Bytes of small files that one job takes in one go.
const BATCH_SIZE: u64 = 8 << 20;
/// Files that one job takes in one go, because opening them costs too.
const BATCH_FILES: usize = 512;

/// A file to be read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where its path is anchored.
    pub root: Root,
    /// What was found.
    pub found: FoundFile,
}

impl SourceFile {
    /// Where it lies on this machine.
    pub fn place(&self, pgdata: &Path) -> PathBuf {
        let path = OsStr::from_bytes(&self.found.path);
        match self.root {
            Root::DataDirectory => pgdata.join(path),
            Root::External => Path::new("/").join(path),
        }
    }
}

/// What a job takes from the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WorkItem {
    /// A run of a large file.
    Run {
        /// Index into the files.
        file: u32,
        /// Where it begins.
        offset: u64,
        /// Bytes, as the file was when it was found.
        length: u64,
    },
    /// Parts of a large file that are known to have changed.
    Parts {
        /// Index into the files.
        file: u32,
        /// Positions in what [`Reuse::Known`] says is to be read.
        parts: Range<usize>,
    },
    /// Small files that lie beside each other.
    Batch(Vec<u32>),
}

/// Work items, handed out in order: the largest first, so that all jobs end at about the same time.
pub struct Queue {
    items: Vec<WorkItem>,
    next: AtomicUsize,
}

impl Queue {
    /// The next item, if any is left.
    pub fn take(&self) -> Option<&WorkItem> {
        self.items.get(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The item that somebody will take when `ahead` others were taken.
    pub fn upcoming(&self, ahead: usize) -> Option<&WorkItem> {
        self.items.get(self.next.load(Ordering::Relaxed).saturating_add(ahead))
    }
}

/// Cuts the files into items. `reuse` says of each what a base spares; empty if there is no base.
pub fn plan(files: &[SourceFile], reuse: &[Reuse]) -> Queue {
    let mut large: Vec<(WorkItem, u64)> = Vec::new();
    let mut batches: Vec<(WorkItem, u64)> = Vec::new();
    let mut batch = (Vec::new(), 0);
    for (index, file) in (0u32..).zip(files) {
        let reuse = reuse.get(index as usize);
        let size = bytes_to_read(file, reuse);
        match reuse {
            Some(Reuse::Known { read, .. }) if read.is_empty() => continue,
            Some(Reuse::Known { read, .. }) if file.found.size >= SMALL_FILE => {
                large.extend(parts(index, read));
                continue;
            }
            _ if size >= SMALL_FILE => {
                large.extend(runs(index, 0..size, RUN_SIZE));
                // Files of one batch lie beside each other.
                batches.extend(take_batch(&mut batch));
                continue;
            }
            _ => {}
        }
        if batch.1 + size > BATCH_SIZE || batch.0.len() >= BATCH_FILES {
            batches.extend(take_batch(&mut batch));
        }
        batch.0.push(index);
        batch.1 += size;
    }
    batches.extend(take_batch(&mut batch));
    // Stable: runs of one file stay in order, which the disk likes.
    large.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    batches.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    let items = large.into_iter().chain(batches).map(|(item, _)| item).collect();
    Queue { items, next: AtomicUsize::new(0) }
}

fn take_batch(batch: &mut (Vec<u32>, u64)) -> Option<(WorkItem, u64)> {
    let (files, size) = std::mem::take(batch);
    (!files.is_empty()).then_some((WorkItem::Batch(files), size))
}

/// Cuts a span at multiples of `most` bytes.
fn runs(file: u32, span: Range<u64>, most: u64) -> impl Iterator<Item = (WorkItem, u64)> {
    let cuts = (span.start / most + 1..span.end.div_ceil(most)).map(move |cut| cut * most);
    let ends = cuts.clone().chain(std::iter::once(span.end));
    std::iter::once(span.start)
        .chain(cuts)
        .zip(ends)
        .map(move |(offset, end)| (WorkItem::Run { file, offset, length: end - offset }, end - offset))
}

/// Groups the parts of one file that lie beside each other; large parts are cut.
fn parts(file: u32, read: &[Range<u64>]) -> Vec<(WorkItem, u64)> {
    let mut items: Vec<(WorkItem, u64)> = Vec::new();
    for (position, span) in read.iter().enumerate() {
        let length = span.end - span.start;
        if length > PARTS_SIZE {
            items.extend(runs(file, span.clone(), PARTS_SIZE));
            continue;
        }
        match items.last_mut() {
            Some((WorkItem::Parts { parts, .. }, bytes))
                if *bytes + length <= PARTS_SIZE && parts.len() < BATCH_FILES =>
            {
                parts.end = position + 1;
                *bytes += length;
            }
            _ => items.push((WorkItem::Parts { file, parts: position..position + 1 }, length)),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[u64]) -> Vec<SourceFile> {
        let file = |size: &u64| SourceFile {
            root: Root::DataDirectory,
            found: FoundFile { path: Vec::new(), mode: 0, size: *size, modified: 0, relation_segment: None },
        };
        sizes.iter().map(file).collect()
    }

    fn items(sizes: &[u64]) -> Vec<WorkItem> {
        let queue = plan(&files(sizes), &[]);
        std::iter::from_fn(|| queue.take().cloned()).collect()
    }

    #[test]
    fn large_files_are_cut_and_come_first() {
        let run = |file, offset, length| WorkItem::Run { file, offset, length };
        assert_eq!(
            items(&[10, RUN_SIZE * 2 + 5, 20, 0, SMALL_FILE, 30]),
            [
                run(1, 0, RUN_SIZE),
                run(1, RUN_SIZE, RUN_SIZE),
                run(4, 0, SMALL_FILE),
                run(1, 2 * RUN_SIZE, 5),
                WorkItem::Batch(vec![5]),
                WorkItem::Batch(vec![2, 3]),
                WorkItem::Batch(vec![0]),
            ]
        );
    }

    #[test]
    fn batches_are_bounded_and_hold_every_file_once() {
        for sizes in [vec![0; 2000], vec![300_000; 100], vec![]] {
            let mut seen = vec![0; sizes.len()];
            for item in items(&sizes) {
                let WorkItem::Batch(files) = item else { panic!("{item:?}") };
                assert!(files.len() <= BATCH_FILES);
                assert!(files.iter().map(|index| sizes[*index as usize]).sum::<u64>() <= BATCH_SIZE);
                files.iter().for_each(|index| seen[*index as usize] += 1);
            }
            assert!(seen.iter().all(|count| *count == 1));
        }
    }

    #[test]
    fn only_what_changed_is_work() {
        let known = |read: Vec<Range<u64>>| Reuse::Known { base: 0, read };
        let page = |number: u64| number * 8192..(number + 1) * 8192;
        let large = RUN_SIZE * 3;
        let reuse = [
            known(vec![]),
            known(vec![page(1), page(5), RUN_SIZE - 8192..RUN_SIZE + PARTS_SIZE * 2]),
            known(Vec::from_iter(std::iter::once(0..10))),
            Reuse::SameDigest { base: 0 },
            Reuse::Nothing,
        ];
        let queue = plan(&files(&[large, large, 10, 20, 30]), &reuse);
        let items: Vec<WorkItem> = std::iter::from_fn(|| queue.take().cloned()).collect();
        assert_eq!(
            items,
            [
                WorkItem::Run { file: 1, offset: RUN_SIZE, length: PARTS_SIZE },
                WorkItem::Run { file: 1, offset: RUN_SIZE + PARTS_SIZE, length: PARTS_SIZE },
                WorkItem::Parts { file: 1, parts: 0..2 },
                WorkItem::Run { file: 1, offset: RUN_SIZE - 8192, length: 8192 },
                WorkItem::Batch(vec![2, 3, 4]),
            ]
        );
    }
}
