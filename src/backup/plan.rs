//! The work of a backup cut into pieces that jobs take from one queue.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::format::manifest::Root;
use crate::local::pgdata_walk::FoundFile;

/// Bytes of a large file that one job reads in one go: small enough that the last piece is not a long tail, large enough
/// that a restore finds long runs in one pack.
pub const RUN_SIZE: u64 = 16 << 20;
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
        /// Where it begins: a multiple of [`RUN_SIZE`].
        offset: u64,
        /// Bytes, as the file was when it was found.
        length: u64,
    },
    /// Small files that lie beside each other.
    Batch(Range<u32>),
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

/// Cuts the files into items.
pub fn plan(files: &[SourceFile]) -> Queue {
    let mut runs = Vec::new();
    let mut batches = Vec::new();
    let mut batch: Option<(Range<u32>, u64)> = None;
    for (index, file) in (0u32..).zip(files) {
        let size = file.found.size;
        if size >= SMALL_FILE {
            batches.extend(batch.take());
            let offsets = (0..size.div_ceil(RUN_SIZE)).map(|run| run * RUN_SIZE);
            runs.extend(offsets.map(|offset| (index, offset, RUN_SIZE.min(size - offset))));
            continue;
        }
        match &mut batch {
            Some((range, bytes)) if *bytes + size <= BATCH_SIZE && range.len() < BATCH_FILES => {
                range.end = index + 1;
                *bytes += size;
            }
            full => {
                batches.extend(full.replace((index..index + 1, size)));
            }
        }
    }
    batches.extend(batch);
    // Stable: runs of one file stay in order, which the disk likes.
    runs.sort_by_key(|(_, _, length)| std::cmp::Reverse(*length));
    batches.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let runs = runs.into_iter().map(|(file, offset, length)| WorkItem::Run { file, offset, length });
    let items = runs.chain(batches.into_iter().map(|(range, _)| WorkItem::Batch(range))).collect();
    Queue { items, next: AtomicUsize::new(0) }
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
        let queue = plan(&files(sizes));
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
                WorkItem::Batch(5..6),
                WorkItem::Batch(2..4),
                WorkItem::Batch(0..1),
            ]
        );
    }

    #[test]
    fn batches_are_bounded_and_hold_every_file_once() {
        for sizes in [vec![0; 2000], vec![300_000; 100], vec![]] {
            let mut seen = vec![0; sizes.len()];
            for item in items(&sizes) {
                let WorkItem::Batch(range) = item else { panic!("{item:?}") };
                assert!(range.len() <= BATCH_FILES);
                assert!(sizes[range.start as usize..range.end as usize].iter().sum::<u64>() <= BATCH_SIZE);
                range.for_each(|index| seen[index as usize] += 1);
            }
            assert!(seen.iter().all(|count| *count == 1));
        }
    }
}
