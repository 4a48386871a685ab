//! Reading the cluster's files into packs.
//!
//! In: the files that the walk found. Out: their ranges, the packs, and the pages that did not fit their checksum. Each
//! job is one thread that does everything for its work item itself (read, check pages, digest, compress, seal, append to
//! its own pack), so that no byte changes threads. The job that finds all others done reads `global/pg_control`, last
//! of all.
//!
//! What must hold: bytes beyond the size that the walk saw are not read (replay writes them), files that vanish are
//! left out, and a file that was cut short while it was read has the size that was still there.

mod assemble;
mod job;
mod keep;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use super::BackupError;
use super::pack_writer::{PackFactory, PackWriter};
use super::plan::{Queue, SourceFile};
use super::relation_file::{PageRules, SuspectPage};
use super::resume::StoredParts;
use super::reuse::{Reuse, ReusePlan};
use crate::codec::KeyRing;
use crate::format::manifest::{FileEntry, FileRange, PackEntry};
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
    /// What a base spares, if there is one.
    pub reuse: Option<&'a ReusePlan<'a>>,
    /// What attempts that ended early stored; empty if there is none.
    pub resumed: &'a StoredParts,
    /// What opens the packs of those.
    pub keys: &'a KeyRing,
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
    /// What the base spares of a file.
    fn reuse_of(&self, file: u32) -> Option<&Reuse> {
        self.reuse?.files.get(file as usize)
    }

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
    /// What was stored; the pack is its number.
    pub(super) ranges: Vec<ReadRange>,
    /// What is kept; the pack is its index in the base.
    pub(super) kept: Vec<ReadRange>,
    /// What an attempt that ended early has stored; the pack is its index in [`CopyPlan::resumed`].
    pub(super) resumed: Vec<ReadRange>,
    pub(super) packs: Vec<PackEntry>,
    pub(super) suspects: Vec<(u32, SuspectPage)>,
    /// Whether this job copied `pg_control`.
    pub(super) has_control: bool,
}

/// What was copied.
pub struct Copied {
    /// In the order of the plan's files, without those that vanished.
    pub files: Vec<FileEntry>,
    /// This backup's own, by number and without gaps, then those of the base and of earlier attempts that ranges point into.
    pub packs: Vec<PackEntry>,
    /// How many of them are this backup's own.
    pub own_packs: usize,
    /// Stored bytes of all chunks that ranges point to.
    pub chunk_bytes: u64,
    /// Stored bytes of those that lie in packs of attempts that ended early.
    pub resumed_bytes: u64,
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
            None => assemble::assemble(self.plan, results),
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
