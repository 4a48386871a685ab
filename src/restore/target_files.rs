//! The files being restored: created when first written, closed when complete, few of them open at a time.
//!
//! Any thread may write any part of any file. A file is created exclusively, at its full length, so that what is never
//! written reads as zeros without taking space.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::error::RestoreError;
use super::place::Owner;

/// A file to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetFile {
    /// Where.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes that will be written; the rest stays as it is, zero in a new file.
    pub written: u64,
    /// Whether it is there already.
    pub presence: Presence,
}

/// Whether a file must be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is made, and must not be there.
    New,
    /// It is there with its length, and only written to.
    There,
}

/// Locks are per shard, so that threads seldom wait for each other.
const SHARDS: usize = 16;
/// At most `SHARDS` times this many files are open: below the usual limit of 1024.
const OPEN_PER_SHARD: usize = 32;
/// Stretches of this size, at multiples of it, are handed to the disk as soon as they are written whole, while others are still being
/// fetched, so that the final sync finds little to do. Before that, every part would be a write of its own.
const STRETCH: u64 = 1 << 20;
/// Files below this are left to the final sync.
const WRITE_BACK: u64 = 256 << 10;
/// Stretches that wait to be handed to the disk; more are left to the final sync.
const WAITING: usize = 256;

/// A stretch that the disk may begin with.
struct Written {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

/// All files of a restore.
pub struct TargetFiles {
    files: Vec<TargetFile>,
    left: Vec<AtomicU64>,
    /// Bytes that were written to each stretch of each file that is not small.
    stretches: Vec<Box<[AtomicU32]>>,
    /// Bytes that were found to be there already.
    right: AtomicU64,
    owner: Option<Owner>,
    to_write_back: SyncSender<Written>,
    waiting: Mutex<Option<Receiver<Written>>>,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    open: HashMap<usize, (Arc<File>, u64)>,
    created: std::collections::HashSet<usize>,
    clock: u64,
}

impl TargetFiles {
    /// Files that will belong to `owner` (`None`: to whoever runs this).
    pub fn new(files: Vec<TargetFile>, owner: Option<Owner>) -> TargetFiles {
        let left = files.iter().map(|file| AtomicU64::new(file.written)).collect();
        let stretches = |file: &TargetFile| {
            let count = if file.size < WRITE_BACK { 0 } else { file.size.div_ceil(STRETCH) };
            (0..count).map(|_| AtomicU32::new(0)).collect()
        };
        let stretches = files.iter().map(stretches).collect();
        let (to_write_back, waiting) = std::sync::mpsc::sync_channel(WAITING);
        let shards = std::array::from_fn(|_| Mutex::default());
        TargetFiles {
            files,
            left,
            stretches,
            right: AtomicU64::new(0),
            owner,
            to_write_back,
            waiting: Mutex::new(Some(waiting)),
            shards,
        }
    }

    /// Hands writes to the disk until `done` says that there will be no more. Run it on a thread of its own: handing over waits for the
    /// disk's queue, and those who fetch must not.
    pub fn write_back_until(&self, done: &AtomicBool) {
        let receiver = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(receiver) = receiver else { return };
        while !done.load(Ordering::Relaxed) {
            if let Ok(Written { file, offset, length }) = receiver.recv_timeout(Duration::from_millis(5)) {
                start_write_back(&file, offset, length);
            }
        }
    }

    /// Writes a part of file `index` (an index into the list that this was made with).
    pub fn write(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let target = self.target(index)?;
        let file = self.open(index, target)?;
        let fail = |error: io::Error| RestoreError::local("write", &target.path, &error);
        if offset.saturating_add(bytes.len() as u64) > target.size {
            return Err(fail(io::Error::other("beyond its end")));
        }
        // Parts that an incremental backup kept have no digest of their own: only now can it be seen that they were right.
        if target.presence == Presence::There && holds(&file, offset, bytes) {
            self.right.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        } else {
            file.write_all_at(bytes, offset).map_err(fail)?;
            self.count(index, target, &file, offset..offset + bytes.len() as u64);
        }
        let left = self.left.get(index).map_or(0, |left| {
            left.fetch_sub(bytes.len() as u64, Ordering::Relaxed).saturating_sub(bytes.len() as u64)
        });
        if left == 0 {
            self.shard(index).open.remove(&index);
        }
        Ok(())
    }

    /// Hands the stretches to the disk that are whole with these bytes.
    fn count(&self, index: usize, target: &TargetFile, file: &Arc<File>, written: Range<u64>) {
        let mut at = written.start;
        while at < written.end {
            let begin = at - at % STRETCH;
            let length = STRETCH.min(target.size - begin);
            let end = written.end.min(begin + length);
            let stretch = self.stretches.get(index).and_then(|all| all.get((begin / STRETCH) as usize));
            let Some(stretch) = stretch else { return };
            let had = stretch.fetch_add((end - at) as u32, Ordering::Relaxed);
            if u64::from(had) + (end - at) == length {
                // A full queue means that the disk is busy already.
                let _ =
                    self.to_write_back.try_send(Written { file: Arc::clone(file), offset: begin, length });
            }
            at = end;
        }
    }

    /// Creates the files that nothing was written to: empty ones, and those that are all zero.
    pub fn create_unwritten(&self) -> Result<(), RestoreError> {
        for (index, target) in self.files.iter().enumerate().filter(|(_, file)| file.written == 0) {
            self.open(index, target)?;
            self.shard(index).open.remove(&index);
        }
        Ok(())
    }

    /// Bytes that were not written, because they were there already.
    pub fn found_right(&self) -> u64 {
        self.right.load(Ordering::Relaxed)
    }

    /// The first file that did not get all its bytes.
    pub fn incomplete(&self) -> Option<&Path> {
        let short = self.left.iter().position(|left| left.load(Ordering::Relaxed) != 0)?;
        self.files.get(short).map(|file| file.path.as_path())
    }

    fn target(&self, index: usize) -> Result<&TargetFile, RestoreError> {
        self.files.get(index).ok_or_else(|| RestoreError::Damaged {
            object: "the manifest".to_owned(),
            problem: format!("it names file {index}, which is not in it"),
        })
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        // A thread that panicked leaves a map that is still a map.
        self.shards[index % SHARDS].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn open(&self, index: usize, target: &TargetFile) -> Result<Arc<File>, RestoreError> {
        let mut shard = self.shard(index);
        shard.clock += 1;
        let now = shard.clock;
        if let Some((file, used)) = shard.open.get_mut(&index) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = if target.presence == Presence::There || shard.created.contains(&index) {
            File::options().read(true).write(true).open(&target.path)
        } else {
            create(target, self.owner)
        };
        let file = Arc::new(file.map_err(|error| RestoreError::local("create", &target.path, &error))?);
        shard.created.insert(index);
        if shard.open.len() >= OPEN_PER_SHARD {
            let oldest = shard.open.iter().min_by_key(|(_, (_, used))| *used).map(|(index, _)| *index);
            oldest.and_then(|oldest| shard.open.remove(&oldest));
        }
        shard.open.insert(index, (Arc::clone(&file), now));
        Ok(file)
    }
}

/// Whether the file has these bytes at this place. If that can't be read, they are written.
fn holds(file: &File, offset: u64, bytes: &[u8]) -> bool {
    let mut there = vec![0; bytes.len()];
    file.read_exact_at(&mut there, offset).is_ok() && there == bytes
}

fn create(target: &TargetFile, owner: Option<Owner>) -> io::Result<File> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(&target.path)?;
    if target.mode & 0o7777 != 0o600 {
        file.set_permissions(std::fs::Permissions::from_mode(target.mode & 0o7777))?;
    }
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    if target.size != target.written || target.size > WRITE_BACK {
        file.set_len(target.size)?;
    }
    Ok(file)
}

/// Starts writing to the disk without waiting. `POSIX_FADV_DONTNEED` does that on Linux (`mm/fadvise.c`); pages under way are not
/// dropped. Advice only: nothing depends on it.
fn start_write_back(file: &File, offset: u64, length: u64) {
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    if let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) {
        let _ = nix::fcntl::posix_fadvise(file, offset, length, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: PathBuf, size: u64, written: u64) -> TargetFile {
        TargetFile { path, mode: 0o640, size, written, presence: Presence::New }
    }

    #[test]
    fn many_files_are_written_piece_by_piece_with_few_open() {
        let directory = tempfile::tempdir().unwrap();
        let count = SHARDS * OPEN_PER_SHARD * 2;
        let path = |index: usize| directory.path().join(index.to_string());
        let files = TargetFiles::new((0..count).map(|index| target(path(index), 12, 8)).collect(), None);
        for offset in [8, 0] {
            for index in 0..count {
                files.write(index, offset, b"abcd").unwrap();
            }
            let open: usize = (0..SHARDS).map(|index| files.shard(index).open.len()).sum();
            assert!(open <= SHARDS * OPEN_PER_SHARD);
        }
        assert_eq!(files.incomplete(), None);
        for index in 0..count {
            assert_eq!(std::fs::read(path(index)).unwrap(), b"abcd\0\0\0\0abcd");
            let mode = std::fs::metadata(path(index)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o640);
        }
        assert_eq!((0..SHARDS).map(|index| files.shard(index).open.len()).sum::<usize>(), 0);
    }

    #[test]
    fn stretches_go_to_the_disk_once_when_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let size = 2 * STRETCH + 100;
        let files = TargetFiles::new(vec![target(directory.path().join("a"), size, size)], None);
        let page = [7; 8192];
        let handed = |files: &TargetFiles| -> Vec<(u64, u64)> {
            let waiting = files.waiting.lock().unwrap();
            waiting
                .iter()
                .flat_map(|waiting| waiting.try_iter())
                .map(|part| (part.offset, part.length))
                .collect()
        };
        // All but one page of the first, and then the end of it together with the whole second one.
        for page_number in (0..STRETCH / 8192 - 1).rev() {
            files.write(0, page_number * 8192, &page).unwrap();
        }
        assert_eq!(handed(&files).len(), 0);
        files.write(0, STRETCH - 8192, &vec![7; 8192 + STRETCH as usize]).unwrap();
        assert_eq!(handed(&files), [(0, STRETCH), (STRETCH, STRETCH)]);
        files.write(0, 2 * STRETCH, &page[..100]).unwrap();
        assert_eq!(handed(&files), [(2 * STRETCH, 100)]);
        assert_eq!(files.incomplete(), None);

        // Neither is what was there already, nor a small file: the final sync finds those clean, or has them at once.
        let there =
            TargetFile { presence: Presence::There, ..target(directory.path().join("a"), size, STRETCH) };
        let small = target(directory.path().join("b"), WRITE_BACK - 1, WRITE_BACK - 1);
        let files = TargetFiles::new(vec![there, small], None);
        files.write(0, 0, &vec![7; STRETCH as usize]).unwrap();
        files.write(1, 0, &vec![7; WRITE_BACK as usize - 1]).unwrap();
        assert_eq!((handed(&files).len(), files.found_right(), files.incomplete()), (0, STRETCH, None));
    }

    #[test]
    fn what_is_missing_is_known_and_zeros_take_no_space() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        let files =
            TargetFiles::new(vec![target(first.clone(), 4, 4), target(second.clone(), 1 << 20, 0)], None);
        files.create_unwritten().unwrap();
        assert_eq!(files.incomplete(), Some(first.as_path()));
        let metadata = std::fs::metadata(&second).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (1 << 20, 0));
        assert!(files.write(0, 2, b"abcd").unwrap_err().to_string().contains("beyond its end"));
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "old").unwrap();
        let files = TargetFiles::new(vec![target(path.clone(), 3, 3)], None);
        assert!(files.write(0, 0, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
