//! One job: a thread's buffers, its packs, and what it has read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{CopyPlan, JobResult, ReadRange};
use crate::backup::BackupError;
use crate::backup::control;
use crate::backup::pack_writer::{PackWriter, StoredChunk};
use crate::backup::plan::{SourceFile, WorkItem};
use crate::backup::relation_file::is_zero;
use crate::format::digest::ShortDigest;
use crate::format::envelope::CHUNK_SIZE;
use crate::format::manifest::{Digested, FileRange, RangeSource};

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
            result: JobResult::default(),
        }
    }

    /// Copies one work item.
    pub(super) fn copy(&mut self, item: &WorkItem) -> Result<(), BackupError> {
        self.read_ahead();
        match item {
            WorkItem::Run { file, offset, length } => self.copy_file(*file, *offset, *length),
            WorkItem::Batch(files) => {
                for index in files.clone() {
                    let size = self.source(index)?.found.size;
                    self.copy_file(index, 0, size)?;
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
        let Some(WorkItem::Run { file, offset, length }) = self.plan.queue.upcoming(self.plan.jobs) else {
            return;
        };
        let Ok(source) = self.source(*file) else { return };
        if let Ok(file) = File::open(source.place(self.plan.pgdata)) {
            advise(&file, *offset, *length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }

    /// Copies `length` bytes from `offset` on, or what there is of them.
    fn copy_file(&mut self, index: u32, offset: u64, length: u64) -> Result<(), BackupError> {
        let source = self.source(index)?;
        let place = source.place(self.plan.pgdata);
        let unreadable = |error| BackupError::Read { path: place.clone(), error };
        let file = match File::open(&place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(error)),
        };
        self.result.opened.push(index);
        if length > CHUNK_SIZE as u64 {
            advise(&file, offset, length, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        }
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            self.plan.go_on()?;
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK_SIZE).min(CHUNK_SIZE);
            let read = self.fill(&file, at, wanted).map_err(unreadable)?;
            self.check_pages(source, index, &file, at, read);
            self.store(index, at, read)?;
            self.plan.progress.add(read as u64);
            at += read as u64;
            if read < wanted {
                // Truncated meanwhile. What was planned counts as done.
                self.plan.progress.add(end - at);
                break;
            }
        }
        Ok(())
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

    /// Stores the first `length` bytes of the buffer.
    fn store(&mut self, file: u32, offset: u64, length: usize) -> Result<(), BackupError> {
        let bytes = self.buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        let short_length = length as u32;
        if is_zero(bytes) {
            let range = FileRange { offset, length: short_length, source: RangeSource::Zeros };
            self.result.ranges.push(ReadRange { file, range });
            return Ok(());
        }
        let digest = ShortDigest::of(bytes);
        if length >= OWN_CHUNK {
            let chunk = self.packs.write_chunk(bytes)?;
            let range =
                FileRange { offset, length: short_length, source: source_of(chunk, 0, short_length, digest) };
            self.result.ranges.push(ReadRange { file, range });
            return Ok(());
        }
        if self.shared.len() + length > CHUNK_SIZE {
            self.flush()?;
        }
        let within = self.shared.len() as u32;
        self.shared.extend_from_slice(self.buffer.get(..length).unwrap_or_default());
        self.gathered.push(Gathered { file, offset, length: short_length, within, digest });
        Ok(())
    }

    /// Stores the shared chunk.
    pub(super) fn flush(&mut self) -> Result<(), BackupError> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let chunk = self.packs.write_chunk(&self.shared)?;
        self.shared.clear();
        for Gathered { file, offset, length, within, digest } in self.gathered.drain(..) {
            let range = FileRange { offset, length, source: source_of(chunk, within, length, digest) };
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
        self.store(index, 0, read.bytes.len())?;
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

fn source_of(chunk: StoredChunk, within: u32, length: u32, digest: ShortDigest) -> RangeSource {
    RangeSource::Chunk {
        pack: chunk.pack,
        number: chunk.location.number,
        offset: chunk.location.offset,
        stored_length: chunk.location.stored_length,
        plaintext_length: chunk.location.plaintext_length,
        within,
        digested: Digested { within, length, digest },
    }
}

fn advise(file: &File, offset: u64, length: u64, advice: PosixFadviseAdvice) {
    if let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) {
        let _ = posix_fadvise(file.as_fd(), offset, length, advice);
    }
}
