//! Fetch: the backup's bytes from the packs to their places, in parallel.
//!
//! In: the manifest's ranges. Those that are neighbours in a pack are read together, and each worker reads,
//! opens, checks and writes on its own thread; every range has its digest compared. Out: files with all their bytes, or
//! the first error. Nothing here is durable yet: see [`super::finish`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::delta::Kept;
use super::error::RestoreError;
use super::packs::{FoundPack, damaged_range, pack_at, part_of, slice_of};
use super::target_files::TargetFiles;
use crate::codec::KeyRing;
use crate::codec::decode::ChunkOpener;
use crate::exit_status::Cause;
use crate::format::manifest::{Digested, Manifest, RangeSource};
use crate::local::kill_point::kill_point;
use crate::progress::Progress;
use crate::repository::Repository;

/// Neighbouring chunks are read together up to this many bytes: large enough to hide a store's latency, small enough for
/// four readers per job within 16 MiB.
const READ_SIZE: u64 = 2 << 20;
/// Unused bytes between two chunks up to this many are read and thrown away, which is cheaper than another request.
const READ_THROUGH: u64 = 64 << 10;
/// Readers per job where each read waits for a network.
const READERS_PER_JOB: usize = 4;

/// A range to be restored.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Index into the manifest's files.
    file: u32,
    /// Index into the file's ranges.
    range: u32,
    /// Index into the files that are written.
    target: u32,
}

/// One read of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    pack: u32,
    offset: u64,
    length: u64,
    pieces: Range<usize>,
}

/// A range's source, flattened.
#[derive(Clone, Copy, Debug)]
struct Source {
    pack: u32,
    number: u32,
    offset: u64,
    stored_length: u32,
    plaintext_length: u32,
    within: u32,
    digested: Digested,
}

/// Everything that workers share.
pub struct Fetch<'a> {
    /// The backup.
    pub manifest: &'a Manifest,
    /// What need not be fetched.
    pub kept: &'a Kept,
    /// Its packs, found.
    pub packs: &'a [FoundPack],
    /// Where they are.
    pub repository: &'a Repository,
    /// What opens them.
    pub keys: &'a KeyRing,
    /// Cores to use.
    pub jobs: usize,
    /// Told of every byte written.
    pub progress: &'a Progress,
}

impl Fetch<'_> {
    /// Writes the files whose manifest indexes are given; the n-th is the n-th of `targets`.
    pub fn run(&self, selected: &[usize], targets: &TargetFiles) -> Result<(), RestoreError> {
        let pieces = self.pieces(selected);
        let reads = self.reads(&pieces);
        let readers = if self.repository.is_directory() { self.jobs } else { self.jobs * READERS_PER_JOB };
        let readers = readers.clamp(1, reads.len().max(1));
        let shared = Shared {
            shares: Shares::of(reads.len(), readers),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| targets.write_back_until(&done));
            std::thread::scope(|scope| {
                for reader in 0..readers {
                    let (pieces, reads, shared) = (&pieces, &reads, &shared);
                    scope.spawn(move || self.work(reader, pieces, reads, targets, shared));
                }
            });
            done.store(true, Ordering::Relaxed);
        });
        match shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => return Err(error),
            None => targets.create_unwritten()?,
        }
        match targets.incomplete() {
            None => Ok(()),
            Some(path) => Err(RestoreError::Damaged {
                object: format!("file {} of the backup", path.display()),
                problem: "its ranges do not cover it".to_owned(),
            }),
        }
    }

    /// One thread's share: reads until there are no more, or somebody failed.
    fn work(&self, reader: usize, pieces: &[Piece], reads: &[Read], targets: &TargetFiles, shared: &Shared) {
        let mut worker =
            Worker { fetch: self, pieces, targets, opener: None, chunk: Vec::new(), checked: None };
        while !shared.stopped.load(Ordering::Relaxed) {
            let Some(read) = shared.shares.take(reader).and_then(|index| reads.get(index)) else { break };
            if let Err(error) = not_interrupted().and_then(|()| worker.restore(read)) {
                shared.stopped.store(true, Ordering::Relaxed);
                shared.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn source(&self, piece: &Piece) -> Option<Source> {
        let range = self.manifest.files.get(piece.file as usize)?.ranges.get(piece.range as usize)?;
        match range.source {
            RangeSource::Zeros => None,
            RangeSource::Chunk {
                pack,
                number,
                offset,
                stored_length,
                plaintext_length,
                within,
                digested,
            } => Some(Source { pack, number, offset, stored_length, plaintext_length, within, digested }),
        }
    }

    /// The ranges of the selected files, in the order in which they lie in the packs.
    fn pieces(&self, selected: &[usize]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (target, file) in selected.iter().enumerate() {
            let ranges = self.manifest.files.get(*file).map_or(0, |file| file.ranges.len());
            let piece = |range| Piece { file: *file as u32, range: range as u32, target: target as u32 };
            let missing = (0..ranges).filter(|range| !self.kept.has_range(target, *range));
            pieces.extend(missing.map(piece).filter(|piece| self.source(piece).is_some()));
        }
        pieces.sort_unstable_by_key(|piece| {
            let source = self.source(piece);
            (source.map(|source| (source.pack, source.offset, source.within)), piece.file)
        });
        pieces
    }

    /// Groups neighbouring pieces into reads, in the order of the places that they fill: so what several backups have of one stretch of a file is
    /// written at about the same time, and the disk can have it whole long before the end.
    fn reads(&self, pieces: &[Piece]) -> Vec<Read> {
        let mut reads: Vec<Read> = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let Some(source) = self.source(piece) else { continue };
            let end = source.offset.saturating_add(u64::from(source.stored_length));
            if let Some(read) = reads.last_mut() {
                let read_end = read.offset.saturating_add(read.length);
                let fits = source.offset <= read_end.saturating_add(READ_THROUGH)
                    && (end.saturating_sub(read.offset) <= READ_SIZE || end <= read_end);
                if read.pack == source.pack && fits {
                    read.length = read.length.max(end - read.offset);
                    read.pieces.end = at + 1;
                    continue;
                }
            }
            reads.push(Read {
                pack: source.pack,
                offset: source.offset,
                length: u64::from(source.stored_length),
                pieces: at..at + 1,
            });
        }
        let place = |piece: &Piece| {
            let file = self.manifest.files.get(piece.file as usize);
            let range = file.and_then(|file| file.ranges.get(piece.range as usize));
            (piece.target, range.map_or(0, |range| range.offset))
        };
        reads.sort_by_cached_key(|read| {
            pieces.get(read.pieces.clone()).unwrap_or_default().iter().map(place).min()
        });
        reads
    }
}

/// What the threads of one fetch have in common.
struct Shared {
    shares: Shares,
    stopped: AtomicBool,
    failure: Mutex<Option<RestoreError>>,
}

/// Who takes which read: each thread a stretch of its own, and of the others' when that is done. Neighbouring reads fill one file, and threads
/// that write to the same file wait for each other.
struct Shares(Vec<Share>);

struct Share {
    /// The next read that nobody has taken.
    next: AtomicUsize,
    end: usize,
}

impl Shares {
    fn of(reads: usize, threads: usize) -> Shares {
        let begin = |thread: usize| reads * thread / threads.max(1);
        let share = |thread| Share { next: AtomicUsize::new(begin(thread)), end: begin(thread + 1) };
        Shares((0..threads).map(share).collect())
    }

    fn take(&self, thread: usize) -> Option<usize> {
        let (before, own) = self.0.split_at_checked(thread)?;
        own.iter().chain(before).find_map(|share| {
            Some(share.next.fetch_add(1, Ordering::Relaxed)).filter(|next| *next < share.end)
        })
    }
}

/// One thread's state.
struct Worker<'a> {
    fetch: &'a Fetch<'a>,
    pieces: &'a [Piece],
    targets: &'a TargetFiles,
    /// The pack that the last read was from, and its opener.
    opener: Option<(u32, ChunkOpener)>,
    chunk: Vec<u8>,
    /// The part of the chunk whose digest was compared last: many ranges may share one.
    checked: Option<Digested>,
}

impl Worker<'_> {
    fn restore(&mut self, read: &Read) -> Result<(), RestoreError> {
        let pack = pack_at(self.fetch.packs, read.pack)?;
        let length = usize::try_from(read.length).unwrap_or(usize::MAX);
        let stored = self.fetch.repository.read_range(&pack.object, read.offset, length)?;
        if self.opener.as_ref().is_none_or(|(index, _)| *index != read.pack) {
            self.opener = Some((read.pack, ChunkOpener::new(&pack.facts, self.fetch.keys)?));
        }
        let mut opened = None;
        for piece in self.pieces.get(read.pieces.clone()).unwrap_or_default() {
            let Some(source) = self.fetch.source(piece) else { continue };
            if opened != Some(source.offset) {
                let start = usize::try_from(source.offset.saturating_sub(read.offset)).unwrap_or(usize::MAX);
                let end = start.saturating_add(source.stored_length as usize);
                let bytes = stored.get(start..end).ok_or_else(|| short_read(pack))?;
                if let Some((_, opener)) = &mut self.opener {
                    opener.open(source.number, bytes, source.plaintext_length, &mut self.chunk)?;
                }
                opened = Some(source.offset);
                self.checked = None;
            }
            self.write(piece, &source)?;
        }
        Ok(())
    }

    fn write(&mut self, piece: &Piece, source: &Source) -> Result<(), RestoreError> {
        let entry = self.fetch.manifest.files.get(piece.file as usize);
        let range = entry.and_then(|file| file.ranges.get(piece.range as usize));
        let (Some(file), Some(range)) = (entry, range) else { return Ok(()) };
        let part = match self.checked == Some(source.digested) {
            true => slice_of(&self.chunk, source.within, range.length),
            false => part_of(&self.chunk, source.within, range.length, &source.digested),
        };
        let part = part.ok_or_else(|| damaged_range(file, range.offset))?;
        self.checked = Some(source.digested);
        self.targets.write(piece.target as usize, range.offset, part)?;
        kill_point("restore: mid-fetch");
        self.fetch.progress.add(part.len() as u64);
        Ok(())
    }
}

/// An error as soon as a signal asked us to end.
pub(super) fn not_interrupted() -> Result<(), RestoreError> {
    match crate::interrupt::requested() {
        None => Ok(()),
        Some(signal) => Err(RestoreError::Other {
            cause: Cause::Interrupted,
            message: format!(
                "the restore was interrupted by {signal}; what it had made is removed, and a directory that it took over (--delta) cannot be started until a restore --delta has ended"
            ),
            hint: None,
        }),
    }
}

fn short_read(pack: &FoundPack) -> RestoreError {
    RestoreError::Damaged {
        object: pack.object.path.clone(),
        problem: "fewer bytes were read than asked for".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_is_taken_once_whoever_is_slow() {
        for (reads, threads) in [(0, 1), (1, 3), (7, 2), (100, 8)] {
            let shares = Shares::of(reads, threads);
            assert_eq!(shares.take(threads - 1), (reads > 0).then_some(reads * (threads - 1) / threads));
            let mut taken: Vec<usize> = std::iter::from_fn(|| shares.take(0)).collect();
            taken.extend((reads > 0).then_some(reads * (threads - 1) / threads));
            taken.sort_unstable();
            assert_eq!(taken, Vec::from_iter(0..reads), "{threads} threads");
        }
    }
}
