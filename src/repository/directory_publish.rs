//! How an object gets into a directory: whole and on disk before it has a name.
//!
//! A file without a name (`O_TMPFILE`) is written, synced, linked under its name (which fails if the name is taken),
//! then its folder is synced. Until the link there is nothing to see and nothing to clean up, also after kill -9.
//! Where a file system has no such files, a hidden file `.<name>.walhold-<pid>-<random>` takes its place, and where it
//! has no hard links either, a rename that does not replace.
//!
//! What must hold: the name is given after the content is on disk, or a power loss would leave a name with no content,
//! and every later attempt would find a conflict. A name that is taken is synced too: whoever gave it may have died
//! before it was on disk. Folders are synced by whoever creates them, at once; where two processes race for that, the
//! loser may finish first, and its sync of the folder below carries the older names above with it, because Linux's file
//! systems write their metadata in order. (Syncing every folder above each time was measured: 4 ms apiece.)

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, PosixFadviseAdvice, RenameFlags};

use super::directory::{DirectoryStore, StagingRule, classify, raw_object};
use super::naming::RawObject;
use super::retry::{Failed, retried};
use super::{Patience, RepositoryError};
use crate::error::system_words;
use crate::local::durable::sync_directory;
use crate::local::kill_point::kill_point;

/// Mode of new files, before the umask.
const FILE_MODE: u32 = 0o640;
/// The disk is told to begin after so many bytes, so that the sync at the end finds little left to do.
const WRITEBACK_STEP: u64 = 2 << 20;
/// Where a process finds its own open files.
const OPEN_FILES: &str = "/proc/self/fd";

/// What a backend did with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawPublished {
    Created,
    Exists(RawObject),
}

/// An object on its way into a directory.
#[derive(Debug)]
pub(super) struct DirectoryPublication {
    store: DirectoryStore,
    key: String,
    patience: Patience,
    began: Instant,
    staged: Staged,
    written: u64,
    pushed: u64,
}

/// The file that is written.
#[derive(Debug)]
struct Staged {
    file: File,
    name: Option<HiddenName>,
}

/// The name of a staged file; goes away with it.
#[derive(Debug)]
struct HiddenName(PathBuf);

impl Drop for HiddenName {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

impl DirectoryStore {
    /// Begins an object whose path will be `key`, perhaps with a suffix.
    pub(super) fn begin(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<DirectoryPublication, RepositoryError> {
        let place = self.place("publish", key)?;
        let staged = retried("publish", key, patience, |_| self.stage(&place, key))?;
        Ok(DirectoryPublication {
            store: self.clone(),
            key: key.to_owned(),
            patience,
            began: Instant::now(),
            staged,
            written: 0,
            pushed: 0,
        })
    }

    /// Publishes a small object whole.
    pub(super) fn put(
        &self,
        path: &str,
        bytes: &[u8],
        patience: Patience,
    ) -> Result<RawPublished, RepositoryError> {
        let mut publication = self.begin(path, patience)?;
        publication.write(bytes)?;
        publication.finish(path)
    }

    fn stage(&self, place: &Path, key: &str) -> Result<Staged, Failed> {
        let folder = parent(place);
        let opened = match open_staged(folder, place, self.shared.staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_folders(folder, key)?;
                open_staged(folder, place, self.shared.staging)
            }
            opened => opened,
        };
        opened.map_err(|error| match error.kind() {
            // Somebody removes folders while we create them.
            io::ErrorKind::NotFound => Failed::again("its folder vanished"),
            _ => classify("publish", key, &error),
        })
    }
}

fn open_staged(folder: &Path, place: &Path, rule: StagingRule) -> io::Result<Staged> {
    if rule == StagingRule::Auto && Path::new(OPEN_FILES).is_dir() {
        let unnamed = File::options()
            .write(true)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .mode(FILE_MODE)
            .open(folder)
            .map(|file| Staged { file, name: None });
        match unnamed.as_ref().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default())) {
            Err(Errno::EISDIR | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {}
            _ => return unnamed,
        }
    }
    let random = getrandom::u32().map_err(io::Error::other)?;
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let hidden = folder.join(format!(".{name}.walhold-{}-{random:08x}", std::process::id()));
    let file = File::options().write(true).create_new(true).mode(FILE_MODE).open(&hidden)?;
    Ok(Staged { file, name: Some(HiddenName(hidden)) })
}

impl DirectoryPublication {
    /// Takes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.staged.file.write_all(bytes).map_err(|error| self.give_up(&error))?;
        self.written += bytes.len() as u64;
        if self.written - self.pushed >= WRITEBACK_STEP {
            self.begin_writeback();
        }
        Ok(())
    }

    /// Makes the object durable and visible under `path`, unless something lies there.
    pub(super) fn finish(mut self, path: &str) -> Result<RawPublished, RepositoryError> {
        let place = self.store.place("publish", path)?;
        if let Some((uid, gid)) = self.store.heir() {
            // Refused (a file server that knows no root): the object is as readable as it would have been.
            let _ = std::os::unix::fs::fchown(&self.staged.file, Some(uid), Some(gid));
        }
        // The size is part of what fdatasync makes durable.
        self.staged.file.sync_data().map_err(|error| self.give_up(&error))?;
        kill_point("publish: before link");
        let published = retried("publish", path, self.patience, |_| self.link(&place, path))?;
        kill_point("publish: after link");
        // A failed sync is not repeated: the system forgets the error, and a second one would wrongly succeed.
        if let RawPublished::Exists(_) = published {
            File::open(&place).and_then(|file| file.sync_all()).map_err(|error| self.give_up(&error))?;
        }
        sync_directory(parent(&place)).map_err(|error| self.give_up(&error))?;
        kill_point("publish: after sync");
        Ok(published)
    }

    fn link(&mut self, place: &Path, path: &str) -> Result<RawPublished, Failed> {
        let linked = match &self.staged.name {
            None => {
                let open_file = format!("{OPEN_FILES}/{}", self.staged.file.as_raw_fd());
                nix::unistd::linkat(AT_FDCWD, open_file.as_str(), AT_FDCWD, place, AtFlags::AT_SYMLINK_FOLLOW)
            }
            Some(HiddenName(hidden)) => link_or_rename(hidden, place),
        };
        match linked {
            Ok(()) => Ok(RawPublished::Created),
            Err(Errno::EEXIST) => match fs::metadata(place) {
                Ok(metadata) if metadata.is_file() => Ok(RawPublished::Exists(raw_object(path, &metadata))),
                Ok(_) => Err(classify("publish", path, &Errno::EISDIR.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(Failed::again("what lay there was deleted meanwhile"))
                }
                Err(error) => Err(classify("publish", path, &error)),
            },
            Err(Errno::ENOENT) => {
                self.store.create_folders(parent(place), path)?;
                Err(Failed::again("its folder vanished"))
            }
            Err(errno) => Err(classify("publish", path, &errno.into())),
        }
    }

    /// Tells the disk to begin. `POSIX_FADV_DONTNEED` starts writing dirty pages on Linux without waiting for them
    /// (mm/fadvise.c); dropping those that are clean already is welcome too, nobody here reads them again.
    fn begin_writeback(&mut self) {
        let (Ok(from), Ok(length)) = (i64::try_from(self.pushed), i64::try_from(self.written - self.pushed))
        else {
            return;
        };
        // Only advice: the sync at the end is what counts.
        let _ = nix::fcntl::posix_fadvise(
            &self.staged.file,
            from,
            length,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        );
        self.pushed = self.written;
    }

    /// The error for a failed write or sync, which ends the publication: the bytes may be lost, so it can only be
    /// begun again by whoever has them.
    fn give_up(&self, error: &io::Error) -> RepositoryError {
        match classify("publish", &self.key, error) {
            Failed::Final(error) => error,
            Failed::Again { .. } => RepositoryError::Unreachable {
                verb: "publish",
                key: self.key.clone(),
                problem: system_words(error),
                attempts: 1,
                elapsed: self.began.elapsed(),
            },
        }
    }
}

fn link_or_rename(hidden: &Path, place: &Path) -> Result<(), Errno> {
    match nix::unistd::linkat(AT_FDCWD, hidden, AT_FDCWD, place, AtFlags::empty()) {
        // FAT, exFAT and some FUSE file systems have no hard links.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
            nix::fcntl::renameat2(AT_FDCWD, hidden, AT_FDCWD, place, RenameFlags::RENAME_NOREPLACE)
        }
        linked => linked,
    }
}

fn parent(place: &Path) -> &Path {
    place.parent().unwrap_or(place)
}
