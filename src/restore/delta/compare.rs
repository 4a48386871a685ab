//! Which ranges of an existing directory's files are right already.
//!
//! In: the files that the backup has, some of them there. Out: for each, whether it is there and which of its ranges need not be fetched; it has its length, its
//! zeros, its mode and its owner then. A range counts as right only if the digest of exactly its bytes is known and fits.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::format::digest::ShortDigest;
use crate::format::manifest::{FileEntry, Manifest, RangeSource};
use crate::progress::Progress;
use crate::restore::RestoreError;
use crate::restore::place::Owner;

/// Of each selected file that is there: which of its ranges stay.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    files: Vec<Option<Vec<bool>>>,
}

impl Kept {
    /// Whether the n-th selected file is there already.
    pub fn has_file(&self, selected: usize) -> bool {
        matches!(self.files.get(selected), Some(Some(_)))
    }

    /// Whether a range of the n-th selected file is right already.
    pub fn has_range(&self, selected: usize, range: usize) -> bool {
        let file = self.files.get(selected).and_then(Option::as_ref);
        file.and_then(|ranges| ranges.get(range)).copied().unwrap_or(false)
    }
}

/// Compares every selected file that is there.
pub fn keep_what_is_right(
    manifest: &Manifest,
    selected: &[(usize, PathBuf)],
    owner: Option<Owner>,
    jobs: usize,
) -> Result<Kept, RestoreError> {
    let total: u64 =
        selected.iter().filter_map(|(file, _)| manifest.files.get(*file)).map(|file| file.size).sum();
    let progress = Progress::new("compare", total);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; selected.len()]);
    let failure: Mutex<Option<RestoreError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some((at, (file, path))) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    selected.get(at).map(|found| (at, found))
                } {
                    let Some(entry) = manifest.files.get(*file) else { continue };
                    match compare_file(entry, path, owner, &mut buffer) {
                        Ok(kept) => {
                            if let Some(slot) =
                                results.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at)
                            {
                                *slot = kept;
                            }
                        }
                        Err(error) => {
                            let error = RestoreError::local("compare", path, &error);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            next.store(selected.len(), Ordering::Relaxed);
                        }
                    }
                    progress.add(entry.size);
                    if crate::interrupt::requested().is_some() {
                        next.store(selected.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    progress.finish();
    crate::restore::fetch::not_interrupted()?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Kept { files: results.into_inner().unwrap_or_else(PoisonError::into_inner) }),
    }
}

/// `None` if the file is not there.
fn compare_file(
    entry: &FileEntry,
    path: &Path,
    owner: Option<Owner>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Vec<bool>>> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    let mut kept = Vec::with_capacity(entry.ranges.len());
    for range in &entry.ranges {
        let end = range.offset.saturating_add(u64::from(range.length));
        let is_zeros = range.source == RangeSource::Zeros;
        let Some(digest) = range.own_digest().map(Some).or(is_zeros.then_some(None)) else {
            kept.push(false);
            continue;
        };
        if end > found.len() && !is_zeros {
            kept.push(false);
            continue;
        }
        let there = end.min(found.len()).saturating_sub(range.offset) as usize;
        buffer.resize(there, 0);
        file.read_exact_at(buffer, range.offset)?;
        match digest {
            Some(digest) => kept.push(ShortDigest::of(buffer) == digest),
            None => {
                if buffer.iter().any(|byte| *byte != 0) {
                    buffer.fill(0);
                    file.write_all_at(buffer, range.offset)?;
                }
                kept.push(true);
            }
        }
    }
    if found.len() != entry.size {
        file.set_len(entry.size)?;
    }
    if found.permissions().mode() & 0o7777 != entry.mode & 0o7777 {
        file.set_permissions(Permissions::from_mode(entry.mode & 0o7777))?;
    }
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::{Digested, FileRange, Root};

    fn chunk(offset: u64, bytes: &[u8]) -> FileRange {
        let length = bytes.len() as u32;
        let digested = Digested { within: 0, length, digest: ShortDigest::of(bytes) };
        let source = RangeSource::Chunk {
            pack: 0,
            number: 0,
            offset: 0,
            stored_length: length,
            plaintext_length: length,
            within: 0,
            digested,
        };
        FileRange { offset, length, source }
    }

    #[test]
    fn what_is_right_stays_and_lengths_and_zeros_are_put_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1259");
        let ranges = vec![
            chunk(0, b"same"),
            chunk(4, b"new!"),
            FileRange { offset: 8, length: 4, source: RangeSource::Zeros },
            chunk(12, b"more"),
        ];
        let entry = FileEntry {
            root: Root::DataDirectory,
            path: b"base/1/1259".to_vec(),
            mode: 0o600,
            size: 16,
            modified: 0,
            ranges,
        };
        let mut buffer = Vec::new();
        assert_eq!(compare_file(&entry, &path, None, &mut buffer).unwrap(), None);
        for (there, left) in [
            (&b"sameold.dirtmoreand more"[..], &b"sameold.\0\0\0\0more"[..]),
            (b"sameold.", b"sameold.\0\0\0\0\0\0\0\0"),
            (b"same", b"same\0\0\0\0\0\0\0\0\0\0\0\0"),
        ] {
            std::fs::write(&path, there).unwrap();
            let kept = compare_file(&entry, &path, None, &mut buffer).unwrap().unwrap();
            assert_eq!(kept, [true, false, true, there.len() > 12], "{there:?}");
            assert_eq!(std::fs::read(&path).unwrap(), left);
        }
    }
}
