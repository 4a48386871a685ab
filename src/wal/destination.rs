//! The file that a fetch delivers: invisible until it is whole and checked, then there at once.
//!
//! In: a path and bytes. Out: the finished file under that path, replacing what was there. What must hold: whatever goes wrong, the path is as it was before, and
//! nothing lies beside it; nothing is delivered to a server after the process that asked for it. So the bytes go into a file without a name (`O_TMPFILE`), which the system removes with the process; only file systems
//! without such files get a named one, and what a killed process left of those is removed by the next fetch.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use super::delivery_turn::DeliveryTurn;
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::local::durable::{parent_of, sync_directory};
use crate::local::kill_point::kill_point;

/// Whether a delivered file must survive power loss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Synced with its directory: a person chose the destination.
    Synced,
    /// Left to PostgreSQL, which syncs a restored file before it relies on it and asks again after a crash
    /// (`src/backend/access/transam/xlogarchive.c`, `KeepFileRestoredFromArchive`).
    LeftToPostgres,
}

/// A file on its way to its destination. Dropped undelivered, it leaves nothing behind.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    file: File,
    staging: Staging,
}

#[derive(Debug)]
enum Staging {
    /// `O_TMPFILE`: has no name yet.
    Unnamed,
    /// Lies under this name, which still is to be removed; locked while its process lives.
    Named(PathBuf),
    /// Nothing is left to remove.
    Delivered,
    /// Belongs to another process, which delivers it.
    Lent,
}

impl Destination {
    /// Makes an invisible file in the directory that `path` lies in.
    pub fn create(path: &Path) -> Result<Destination, DestinationError> {
        let failed = |source| DestinationError::File { verb: "create", path: path.to_owned(), source };
        if path.file_name().is_none() || path.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let parent = parent_of(path);
        let mode = permission_bits(&parent).map_err(failed)?;
        if let Some(file) = create_unnamed(&parent, mode).map_err(failed)? {
            return Ok(Destination { path: path.to_owned(), file, staging: Staging::Unnamed });
        }
        remove_leftovers(path);
        let name = staging_path(path);
        let file = create_named(&name, mode).map_err(failed)?;
        Ok(Destination { path: path.to_owned(), file, staging: Staging::Named(name) })
    }

    /// The file of another process, which will deliver it to `path` itself or throw it away.
    pub fn lent(file: File, path: &Path) -> Destination {
        Destination { path: path.to_owned(), file, staging: Staging::Lent }
    }

    /// The file, for another process to fill.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DestinationError> {
        self.file.write_all(bytes).map_err(|source| self.failed("write", source))
    }

    /// Puts the file under its path, replacing what lies there.
    pub fn deliver(mut self, durability: Durability) -> Result<(), DestinationError> {
        if matches!(self.staging, Staging::Lent) {
            return Ok(());
        }
        if durability == Durability::Synced {
            self.file.sync_all().map_err(|source| self.failed("sync", source))?;
        }
        kill_point("fetch: before delivery");
        let turn = DeliveryTurn::take(&self.path)?;
        self.give_name().map_err(|source| self.failed("create", source))?;
        turn.end()?;
        kill_point("fetch: after delivery");
        if durability == Durability::Synced {
            sync_directory(&parent_of(&self.path)).map_err(|source| self.failed("sync", source))?;
        }
        Ok(())
    }

    fn give_name(&mut self) -> io::Result<()> {
        if matches!(self.staging, Staging::Unnamed) {
            // PostgreSQL removes RECOVERYXLOG before it asks, so this usually is the whole delivery.
            match self.link_as(&self.path) {
                Ok(()) => {
                    self.staging = Staging::Delivered;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            // A link can't replace: take a name beside it for the moment until the rename.
            remove_leftovers(&self.path);
            self.file.lock()?;
            let name = staging_path(&self.path);
            self.link_as(&name)?;
            self.staging = Staging::Named(name);
            kill_point("fetch: before rename");
        }
        if let Staging::Named(name) = &self.staging {
            std::fs::rename(name, &self.path)?;
            self.staging = Staging::Delivered;
        }
        Ok(())
    }

    fn link_as(&self, name: &Path) -> io::Result<()> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(AT_FDCWD, own.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW).map_err(io::Error::from)
    }

    fn failed(&self, verb: &'static str, source: io::Error) -> DestinationError {
        DestinationError::File { verb, path: self.path.clone(), source }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Staging::Named(name) = &self.staging {
            let _ = std::fs::remove_file(name);
        }
    }
}

/// `None` where the file system knows no such files, or `/proc`, which is needed to name them, is not there.
fn create_unnamed(parent: &Path, mode: u32) -> io::Result<Option<File>> {
    let opened =
        File::options().read(true).write(true).mode(mode).custom_flags(OFlag::O_TMPFILE.bits()).open(parent);
    match opened {
        Ok(file) => {
            Ok(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string()).exists().then_some(file))
        }
        // EISDIR: a kernel that does not know the flag; EOPNOTSUPP: a file system that does not.
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

fn create_named(name: &Path, mode: u32) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(mode).open(name)?;
    file.lock()?;
    Ok(file)
}

/// As PostgreSQL's own files: readable by the group only where the directory is
/// (`src/common/file_perm.c`, `SetDataDirectoryCreatePerm`).
fn permission_bits(parent: &Path) -> io::Result<u32> {
    let group_may_read = parent.metadata()?.mode() & 0o050 == 0o050;
    Ok(if group_may_read { 0o640 } else { 0o600 })
}

const STAGING_MARK: &str = ".walhold-";

fn staging_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{STAGING_MARK}{}", std::process::id()));
    parent_of(path).join(name)
}

/// Removes what killed fetches to this path left: named files that no living process holds locked.
fn remove_leftovers(path: &Path) {
    let mut prefix: OsString = path.file_name().unwrap_or_default().to_owned();
    prefix.push(STAGING_MARK);
    let Ok(entries) = std::fs::read_dir(parent_of(path)) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let abandoned = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned && std::fs::remove_file(entry.path()).is_ok() {
            tracing::info!("removed {}, left by a wal-fetch that was killed", entry.path().display());
        }
    }
}

/// Why a file could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The system refused.
    #[error("{verb} {}: {}", path.display(), system_words(source))]
    File {
        /// What was tried.
        verb: &'static str,
        /// The destination.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Nobody is there to take it.
    #[error("deliver {}: the PostgreSQL process that asked for it has ended", path.display())]
    CallerGone {
        /// The destination.
        path: PathBuf,
    },
    /// Another call has the turn, and does not go on.
    #[error("deliver {}: another wal-fetch is about to, and does not go on", path.display())]
    Busy {
        /// The destination.
        path: PathBuf,
    },
}

impl DestinationError {
    fn path(&self) -> &Path {
        match self {
            DestinationError::File { path, .. }
            | DestinationError::CallerGone { path }
            | DestinationError::Busy { path } => path,
        }
    }
}

impl Explain for DestinationError {
    fn exit_cause(&self) -> Cause {
        match self {
            DestinationError::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Cause::FileMissing,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::LocalFull,
                _ => Cause::FileUnusable,
            },
            DestinationError::CallerGone { .. } => Cause::Interrupted,
            DestinationError::Busy { .. } => Cause::FileUnusable,
        }
    }

    fn hint(&self) -> Option<String> {
        if let DestinationError::Busy { .. } = self {
            return Some("an earlier server's wal-fetch was stopped: let it go on, or end it".to_owned());
        }
        Some(match self.exit_cause() {
            Cause::FileMissing => {
                "restore_command is: walhold wal-fetch %f %p; create the destination's directory first"
                    .to_owned()
            }
            Cause::LocalFull => {
                format!("make space where {} lies; nothing was left there", self.path().display())
            }
            Cause::Interrupted => {
                "nothing is lost: a server that was started since asks by itself".to_owned()
            }
            _ => "the destination's directory must be writable by the user that runs walhold".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn delivers_and_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        for content in ["first", "second"] {
            let mut destination = Destination::create(&path).unwrap();
            destination.write(content.as_bytes()).unwrap();
            destination.deliver(Durability::Synced).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(directory.path()), ["RECOVERYXLOG"]);
        }
    }

    #[test]
    fn leaves_nothing_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        let mut destination = Destination::create(&path).unwrap();
        destination.write(b"half").unwrap();
        drop(destination);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_named_file_is_delivered_or_removed_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        let named = || {
            let name = staging_path(&path);
            let file = create_named(&name, 0o600).unwrap();
            Destination { path: path.clone(), file, staging: Staging::Named(name) }
        };
        drop(named());
        assert!(names(directory.path()).is_empty());
        named().deliver(Durability::LeftToPostgres).unwrap();
        assert_eq!(names(directory.path()), ["RECOVERYXLOG"]);
    }

    #[test]
    fn removes_what_the_dead_left_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        std::fs::write(directory.path().join("RECOVERYXLOG.walhold-1"), "dead").unwrap();
        std::fs::write(directory.path().join("RECOVERYHISTORY.walhold-1"), "of another").unwrap();
        let living = create_named(&directory.path().join("RECOVERYXLOG.walhold-2"), 0o600).unwrap();
        remove_leftovers(&path);
        assert_eq!(names(directory.path()), ["RECOVERYHISTORY.walhold-1", "RECOVERYXLOG.walhold-2"]);
        drop(living);
    }

    #[test]
    fn refuses_a_directory_and_a_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        let error = Destination::create(directory.path()).unwrap_err();
        assert_eq!(error.exit_cause(), Cause::FileUnusable);
        let error = Destination::create(&directory.path().join("missing/RECOVERYXLOG")).unwrap_err();
        assert_eq!(error.exit_cause(), Cause::FileMissing);
    }
}
