//! One job: a thread's buffers, its packs, and what it has read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{CopyPlan, JobResult, ReadRange, keep};
use crate::backup::BackupError;
use crate::backup::control;
use crate::backup::pack_writer::PackWriter;
use crate::backup::plan::{SourceFile, WorkItem};
use crate::backup::relation_file::is_zero;
use crate::backup::resume::Finder;
use crate::backup::reuse::{Reuse, WINDOW};
use crate::format::digest::ShortDigest;
use crate::format::envelope::CHUNK_SIZE;
use crate::format::manifest::{FileRange, RangeSource};

/// Pieces from this size on get a chunk of their own; smaller ones are gathered.
const OWN_CHUNK: usize = CHUNK_SIZE / 2;

/// A piece of a file that waits in the shared chunk.
struct Gathered {
    file: u32,
    offset: u64,
    length: u32,
    within: u32,
    digest: ShortDigest,
}

/// One job.
pub(super) struct Job<'scope, 'env> {
    plan: &'env CopyPlan<'env>,
    packs: PackWriter<'scope, 'env>,
    buffer: Vec<u8>,
    /// Small pieces, one behind the other.
    shared: Vec<u8>,
    gathered: Vec<Gathered>,
    /// Finds what earlier attempts have stored.
    finder: Finder<'env>,
    result: JobResult,
}

impl<'scope, 'env> Job<'scope, 'env> {
    pub(super) fn new(plan: &'env CopyPlan<'env>, packs: PackWriter<'scope, 'env>) -> Self {
        Job {
            plan,
            packs,
            buffer: vec![0; CHUNK_SIZE],
            shared: Vec::with_capacity(CHUNK_SIZE),
            gathered: Vec::new(),
            finder: Finder::new(plan.resumed, plan.packs.repository, plan.keys),
            result: JobResult::default(),
        }
    }

    /// Copies one work item.
    pub(super) fn copy(&mut self, item: &WorkItem) -> Result<(), BackupError> {
        self.read_ahead();
        match item {
            WorkItem::Run { file, offset, length } => {
                self.copy_file(*file, std::slice::from_ref(&(*offset..*offset + *length)))
            }
            WorkItem::Parts { file, parts } => match self.plan.reuse_of(*file) {
                Some(Reuse::Known { read, .. }) => {
                    self.copy_file(*file, read.get(parts.clone()).unwrap_or_default())
                }
                _ => Err(BackupError::JobLost),
            },
            WorkItem::Batch(files) => {
                for index in files {
                    match self.plan.reuse_of(*index) {
                        Some(Reuse::Known { read, .. }) => self.copy_file(*index, read)?,
                        _ => self
                            .copy_file(*index, std::slice::from_ref(&(0..self.source(*index)?.found.size)))?,
                    }
                }
                Ok(())
            }
        }
    }

    fn source(&self, index: u32) -> Result<&'env SourceFile, BackupError> {
        self.plan.files.get(index as usize).ok_or(BackupError::JobLost)
    }

    /// Asks the system for what will be read when the work that others do now is done, so that a cold cache costs
    /// less. Only advice: failures show when the file is read.
    fn read_ahead(&self) {
        let (file, spans) = match self.plan.queue.upcoming(self.plan.jobs) {
            Some(WorkItem::Run { file, offset, length }) => {
                (*file, Vec::from_iter(std::iter::once(*offset..*offset + *length)))
            }
            Some(WorkItem::Parts { file, parts }) => match self.plan.reuse_of(*file) {
                Some(Reuse::Known { read, .. }) => {
                    (*file, read.get(parts.clone()).unwrap_or_default().to_vec())
                }
                _ => return,
            },
            Some(WorkItem::Batch(_)) | None => return,
        };
        let Ok(source) = self.source(file) else { return };
        if let Ok(file) = File::open(source.place(self.plan.pgdata)) {
            for span in spans {
                advise(&file, span.start, span.end - span.start, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            }
        }
    }

    /// Copies these bytes of a file, or what there is of them.
    fn copy_file(&mut self, index: u32, spans: &[Range<u64>]) -> Result<(), BackupError> {
        let source = self.source(index)?;
        let place = source.place(self.plan.pgdata);
        let unreadable = |error| BackupError::Read { path: place.clone(), error };
        let file = match File::open(&place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(error)),
        };
        self.result.opened.push(index);
        for span in spans {
            if span.end - span.start > WINDOW {
                advise(&file, span.start, span.end - span.start, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
            }
            let mut at = span.start;
            while at < span.end {
                self.plan.go_on()?;
                // Windows lie at multiples of their size, so that chunks of all backups of a file begin and end alike.
                let window_end = (at / WINDOW + 1) * WINDOW;
                let wanted = (span.end.min(window_end) - at) as usize;
                let read = self.fill(&file, at, wanted).map_err(unreadable)?;
                self.check_pages(source, index, &file, at, read);
                self.keep_or_store(index, at, read)?;
                self.plan.progress.add(read as u64);
                at += read as u64;
                if read < wanted {
                    // Truncated meanwhile. What was planned counts as done.
                    self.plan.progress.add(span.end - at);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Stores the first `length` bytes of the buffer, but for what the base has of them.
    fn keep_or_store(&mut self, file: u32, offset: u64, length: usize) -> Result<(), BackupError> {
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let kept = match (self.plan.reuse, self.plan.reuse_of(file)) {
            (Some(reuse), Some(Reuse::SameDigest { base })) => keep::same_digest(reuse, *base, offset, bytes),
            (Some(reuse), Some(Reuse::OldPages { base })) => keep::old_pages(reuse, *base, offset, bytes),
            _ => Vec::new(),
        };
        let mut at = 0;
        for range in kept {
            let start = (range.offset - offset) as usize;
            self.store(file, offset + at as u64, at..start)?;
            at = start + range.length as usize;
            self.result.kept.push(ReadRange { file, range });
        }
        self.store(file, offset + at as u64, at..length)
    }

    /// Reads up to `wanted` bytes at `offset` into the buffer; fewer only at the file's end.
    fn fill(&mut self, file: &File, offset: u64, wanted: usize) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = self.buffer.get_mut(filled..wanted).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn check_pages(&mut self, source: &SourceFile, index: u32, file: &File, offset: u64, read: usize) {
        if let (Some(rules), Some(segment)) = (self.plan.pages, source.found.relation_segment)
            && let Some(bytes) = self.buffer.get_mut(..read)
        {
            let suspects = rules.check(file, segment, offset, bytes);
            self.result.suspects.extend(suspects.into_iter().map(|page| (index, page)));
        }
    }

    /// Stores a part of the buffer, which lies at `offset` of the file.
    fn store(&mut self, file: u32, offset: u64, part: Range<usize>) -> Result<(), BackupError> {
        let bytes = self.buffer.get(part.clone()).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u32;
        if is_zero(bytes) {
            let range = FileRange { offset, length, source: RangeSource::Zeros };
            self.result.ranges.push(ReadRange { file, range });
            return Ok(());
        }
        let digest = ShortDigest::of(bytes);
        if let Some(source) = self.finder.find(bytes, digest) {
            self.result.resumed.push(ReadRange { file, range: FileRange { offset, length, source } });
            return Ok(());
        }
        if bytes.len() >= OWN_CHUNK {
            let chunk = self.packs.write_chunk(bytes, &[(length, digest)])?;
            let range = FileRange { offset, length, source: chunk.source(0, length, digest) };
            self.result.ranges.push(ReadRange { file, range });
            return Ok(());
        }
        if self.shared.len() + bytes.len() > CHUNK_SIZE {
            self.flush()?;
        }
        let within = self.shared.len() as u32;
        self.shared.extend_from_slice(self.buffer.get(part).unwrap_or_default());
        self.gathered.push(Gathered { file, offset, length, within, digest });
        Ok(())
    }

    /// Stores the shared chunk.
    pub(super) fn flush(&mut self) -> Result<(), BackupError> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let parts: Vec<(u32, ShortDigest)> =
            self.gathered.iter().map(|piece| (piece.length, piece.digest)).collect();
        let chunk = self.packs.write_chunk(&self.shared, &parts)?;
        self.shared.clear();
        for Gathered { file, offset, length, within, digest } in self.gathered.drain(..) {
            let range = FileRange { offset, length, source: chunk.source(within, length, digest) };
            self.result.ranges.push(ReadRange { file, range });
        }
        Ok(())
    }

    /// Copies the last of the plan's files, `global/pg_control`, which must be whole.
    pub(super) fn copy_control_file(&mut self) -> Result<(), BackupError> {
        let read = control::read(self.plan.pgdata)?;
        let index = self.plan.files.len().saturating_sub(1) as u32;
        let Some(target) = self.buffer.get_mut(..read.bytes.len()) else {
            return Err(control::unreadable("it is too large"));
        };
        target.copy_from_slice(&read.bytes);
        self.result.opened.push(index);
        self.store(index, 0, 0..read.bytes.len())?;
        self.plan.progress.add(read.bytes.len() as u64);
        self.result.has_control = true;
        Ok(())
    }

    /// Ends the job; its packs are durable when this returns `Ok`.
    pub(super) fn finish(mut self) -> Result<JobResult, BackupError> {
        self.result.packs = self.packs.finish()?;
        Ok(self.result)
    }
}

fn advise(file: &File, offset: u64, length: u64, advice: PosixFadviseAdvice) {
    if let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) {
        let _ = posix_fadvise(file.as_fd(), offset, length, advice);
    }
}
