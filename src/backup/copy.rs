//! Reading the cluster's files into packs.
//!
//! In: the files that the walk found. Out: their ranges, the packs, and the pages that did not fit their checksum. Each
//! job is one thread that does everything for its work item itself (read, check pages, digest, compress, seal, append to
//! its own pack), so that no byte changes threads. The job that finds all others done reads `global/pg_control`, last
//! of all.
//!
//! What must hold: bytes beyond the size that the walk saw are not read (replay writes them), files that vanish are
//! left out, and a file that was cut short while it was read has the size that was still there.

mod job;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use super::BackupError;
use super::pack_writer::{PackFactory, PackWriter};
use super::plan::{Queue, SourceFile};
use super::relation_file::{PageRules, SuspectPage};
use crate::format::manifest::{FileEntry, FileRange, PackEntry, RangeSource};
use crate::interrupt;
use crate::progress::Progress;
use job::Job;

/// What all jobs share.
pub struct CopyPlan<'a> {
    /// PGDATA.
    pub pgdata: &'a Path,
    /// What is read; the last one is `global/pg_control`, which is not in the queue.
    pub files: &'a [SourceFile],
    /// The work.
    pub queue: &'a Queue,
    /// How pages are checked; `None` where they carry no checksums.
    pub pages: Option<PageRules>,
    /// Makes packs.
    pub packs: &'a PackFactory<'a>,
    /// How many threads.
    pub jobs: usize,
    /// Counts plaintext bytes.
    pub progress: &'a Progress,
    /// Set when the work is to end early.
    pub stop: &'a AtomicBool,
    /// Jobs that are still reading.
    pub reading: &'a AtomicUsize,
}

impl CopyPlan<'_> {
    /// Fails if the work is to end early.
    pub(super) fn go_on(&self) -> Result<(), BackupError> {
        if self.stop.load(Ordering::Relaxed) || interrupt::requested().is_some() {
            return Err(BackupError::Interrupted);
        }
        Ok(())
    }
}

/// A stretch of a file, read and stored.
#[derive(Clone, Debug)]
pub(super) struct ReadRange {
    pub(super) file: u32,
    pub(super) range: FileRange,
}

/// What one job did.
#[derive(Default)]
pub(super) struct JobResult {
    /// Files that could be opened, some of them more than once.
    pub(super) opened: Vec<u32>,
    pub(super) ranges: Vec<ReadRange>,
    pub(super) packs: Vec<PackEntry>,
    pub(super) suspects: Vec<(u32, SuspectPage)>,
    /// Whether this job copied `pg_control`.
    pub(super) has_control: bool,
}

/// What was copied.
pub struct Copied {
    /// In the order of the plan's files, without those that vanished.
    pub files: Vec<FileEntry>,
    /// By number, without gaps.
    pub packs: Vec<PackEntry>,
    /// Pages that did not fit their checksum: index into the plan's files, page.
    pub suspects: Vec<(u32, SuspectPage)>,
}

/// Jobs at work. Dropped unfinished, it tells them to stop.
pub struct Copying<'scope, 'env> {
    plan: &'env CopyPlan<'env>,
    jobs: Vec<ScopedJoinHandle<'scope, Result<JobResult, BackupError>>>,
    /// One message per job when it has read all it will read, or failed.
    read: Receiver<Result<(), ()>>,
    waiting_for: usize,
}

impl<'scope, 'env> Copying<'scope, 'env> {
    /// Starts the jobs.
    pub fn start(scope: &'scope Scope<'scope, 'env>, plan: &'env CopyPlan<'env>) -> Self {
        let (sender, read) = channel();
        let count = plan.jobs.max(1);
        plan.reading.store(count, Ordering::Relaxed);
        let jobs = (0..count).map(|_| {
            let sender = sender.clone();
            scope.spawn(move || run_job(scope, plan, &sender))
        });
        Copying { plan, jobs: jobs.collect(), read, waiting_for: count }
    }

    /// Waits until every file was read, or a job failed ([`Copying::finish`] tells how). Meanwhile `every_second` is
    /// called; its error ends the wait.
    pub fn wait_read(
        &mut self,
        mut every_second: impl FnMut() -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        while self.waiting_for > 0 {
            match self.read.recv_timeout(Duration::from_secs(1)) {
                Ok(Ok(())) => self.waiting_for -= 1,
                Ok(Err(())) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => every_second()?,
            }
        }
        Ok(())
    }

    /// True if no job has failed so far.
    pub fn is_sound(&self) -> bool {
        !self.plan.stop.load(Ordering::Relaxed) && self.waiting_for == 0
    }

    /// Waits until all packs are durable.
    pub fn finish(mut self) -> Result<Copied, BackupError> {
        let jobs = std::mem::take(&mut self.jobs);
        let ended: Vec<Result<JobResult, BackupError>> =
            jobs.into_iter().map(|job| job.join().unwrap_or(Err(BackupError::JobLost))).collect();
        let mut results = Vec::with_capacity(ended.len());
        let mut failure: Option<BackupError> = None;
        for result in ended {
            match result {
                Ok(result) => results.push(result),
                // "Interrupted" is how the others end when one has failed: it is told only if nothing else is.
                Err(error) if failure.is_none() || matches!(failure, Some(BackupError::Interrupted)) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        match failure {
            Some(error) => Err(error),
            None => assemble(self.plan.files, results),
        }
    }
}

impl Drop for Copying<'_, '_> {
    fn drop(&mut self) {
        if !self.jobs.is_empty() {
            self.plan.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn run_job<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    plan: &'env CopyPlan<'env>,
    read: &Sender<Result<(), ()>>,
) -> Result<JobResult, BackupError> {
    let result = copy_in_job(scope, plan, read);
    if result.is_err() {
        plan.stop.store(true, Ordering::Relaxed);
        // Nobody listens any more if the main thread has failed too.
        let _ = read.send(Err(()));
    }
    result
}

fn copy_in_job<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    plan: &'env CopyPlan<'env>,
    read: &Sender<Result<(), ()>>,
) -> Result<JobResult, BackupError> {
    let mut job = Job::new(plan, PackWriter::new(plan.packs, scope));
    while let Some(item) = plan.queue.take() {
        plan.go_on()?;
        job.copy(item)?;
    }
    if plan.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
        plan.go_on()?;
        job.copy_control_file()?;
    }
    job.flush()?;
    let _ = read.send(Ok(()));
    job.finish()
}

/// Puts the jobs' pieces together.
fn assemble(files: &[SourceFile], results: Vec<JobResult>) -> Result<Copied, BackupError> {
    let mut opened = vec![false; files.len()];
    let mut ranges: Vec<Vec<FileRange>> = vec![Vec::new(); files.len()];
    let mut copied_packs = Vec::new();
    let mut suspects = Vec::new();
    let mut has_control = false;
    for result in results {
        for file in result.opened {
            if let Some(opened) = opened.get_mut(file as usize) {
                *opened = true;
            }
        }
        for ReadRange { file, range } in result.ranges {
            if let Some(ranges) = ranges.get_mut(file as usize) {
                ranges.push(range);
            }
        }
        copied_packs.extend(result.packs);
        suspects.extend(result.suspects);
        has_control |= result.has_control;
    }
    let mut entries = Vec::with_capacity(files.len());
    for ((file, ranges), opened) in files.iter().zip(ranges).zip(opened) {
        if !opened {
            continue;
        }
        let (size, ranges) = without_holes(ranges).ok_or(BackupError::JobLost)?;
        entries.push(FileEntry {
            root: file.root,
            path: file.found.path.clone(),
            mode: file.found.mode,
            size,
            modified: file.found.modified,
            ranges,
        });
    }
    entries.sort_by(|a, b| (a.root, &a.path).cmp(&(b.root, &b.path)));
    copied_packs.sort_by_key(|pack| pack.number);
    suspects.sort_by_key(|(file, page)| (*file, page.block));
    if !has_control {
        return Err(BackupError::JobLost);
    }
    Ok(Copied { files: entries, packs: copied_packs, suspects })
}

/// Ranges in order, and the file's size. A file that was truncated and extended again while several jobs read it may
/// have a hole between what they saw: its pages are written by replay, until then they are zero. `None` if ranges overlap,
/// which only a mistake in the plan can make.
fn without_holes(mut ranges: Vec<FileRange>) -> Option<(u64, Vec<FileRange>)> {
    ranges.sort_by_key(|range| range.offset);
    let mut whole: Vec<FileRange> = Vec::with_capacity(ranges.len());
    let mut end = 0;
    for range in ranges {
        while end < range.offset {
            let length = u32::try_from(range.offset - end).unwrap_or(1 << 30);
            append(&mut whole, FileRange { offset: end, length, source: RangeSource::Zeros });
            end += u64::from(length);
        }
        if range.offset < end {
            return None;
        }
        end += u64::from(range.length);
        append(&mut whole, range);
    }
    Some((end, whole))
}

/// Neighbouring zeros become one range as long as its length has room.
fn append(whole: &mut Vec<FileRange>, range: FileRange) {
    if let Some(last) = whole.last_mut()
        && (last.source, range.source) == (RangeSource::Zeros, RangeSource::Zeros)
        && let Some(length) = last.length.checked_add(range.length)
    {
        last.length = length;
        return;
    }
    whole.push(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_become_zeros() {
        let zeros = |offset, length| FileRange { offset, length, source: RangeSource::Zeros };
        assert_eq!(without_holes(Vec::new()), Some((0, Vec::new())));
        assert_eq!(without_holes(vec![zeros(100, 20), zeros(0, 10)]), Some((120, vec![zeros(0, 120)])));
        assert_eq!(without_holes(vec![zeros(9, 20), zeros(0, 10)]), None);
        let (size, ranges) = without_holes(vec![zeros(5 << 30, 1)]).unwrap();
        assert_eq!(size, (5 << 30) + 1);
        assert_eq!(ranges.iter().map(|range| u64::from(range.length)).sum::<u64>(), size);
    }
}
