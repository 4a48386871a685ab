//! Makes a whole restored tree durable.
//!
//! One `syncfs` per file system instead of an fsync per file: on ext4 each fsync of a new file waits for a commit of the
//! journal, thousands of times, while `syncfs` writes everything and commits once. It is as safe where the kernel reports
//! write-back errors from it (Linux 5.8 and later, `Documentation/filesystems/vfs.rst`: errors since the descriptor was opened, so it is opened before the
//! first write) and on file systems of which that is known. Elsewhere every file and directory is synced by itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs;

use super::error::RestoreError;
use crate::fan_out;

/// File systems that restored directories lie on, opened before anything is written to them.
pub struct SyncedTrees {
    trees: Vec<Tree>,
}

struct Tree {
    directory: PathBuf,
    handle: File,
    method: Method,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    /// One call writes everything.
    FileSystem,
    /// The file system of an earlier tree.
    Covered,
    /// File by file.
    EachFile,
}

impl SyncedTrees {
    /// Opens the directories, all of which exist.
    pub fn open<'a>(directories: impl Iterator<Item = &'a Path>) -> Result<SyncedTrees, RestoreError> {
        let mut trees: Vec<Tree> = Vec::new();
        let mut devices: Vec<u64> = Vec::new();
        for directory in directories {
            let fail = |error: io::Error| RestoreError::local("open", directory, &error);
            let handle = File::open(directory).map_err(fail)?;
            let device = handle.metadata().map_err(fail)?.dev();
            let method = match reports_errors(&handle) {
                false => Method::EachFile,
                true if devices.contains(&device) => Method::Covered,
                true => Method::FileSystem,
            };
            devices.push(device);
            trees.push(Tree { directory: directory.to_owned(), handle, method });
        }
        Ok(SyncedTrees { trees })
    }

    /// Returns when everything in the trees is on the disk.
    pub fn sync(&self, jobs: usize) -> Result<(), RestoreError> {
        for tree in &self.trees {
            match tree.method {
                Method::Covered => {}
                Method::FileSystem => nix::unistd::syncfs(&tree.handle)
                    .map_err(|error| RestoreError::local("sync", &tree.directory, &error.into()))?,
                Method::EachFile => {
                    sync_each(&tree.directory, jobs)?;
                    // The directory's own name, which the file system's sync covers in the other cases.
                    let parent = crate::local::durable::parent_of(&tree.directory);
                    crate::local::durable::sync_directory(&parent)
                        .map_err(|error| RestoreError::local("sync", &parent, &error))?;
                }
            }
        }
        Ok(())
    }
}

/// True where an error of an earlier write-back is reported by `syncfs`.
fn reports_errors(handle: &File) -> bool {
    let known = [
        statfs::EXT4_SUPER_MAGIC,
        statfs::XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::F2FS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
    ];
    let known = statfs::fstatfs(handle).is_ok_and(|figures| known.contains(&figures.filesystem_type()));
    known && kernel_release().is_some_and(|release| release >= (5, 8))
}

fn kernel_release() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Syncs every file below a directory, then every directory.
fn sync_each(directory: &Path, jobs: usize) -> Result<(), RestoreError> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    let mut next = 0;
    while let Some(current) = directories.get(next).cloned() {
        next += 1;
        let fail = |error: io::Error| RestoreError::local("read", &current, &error);
        for entry in std::fs::read_dir(&current).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let kind = entry.file_type().map_err(fail)?;
            if kind.is_dir() && entry.file_name() != "lost+found" {
                directories.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.append(&mut directories);
    fan_out::try_map(&files, jobs, |path| {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|error| RestoreError::local("sync", path, &error))
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_synced_either_way() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), "c").unwrap();
        let trees = SyncedTrees::open([directory.path(), &directory.path().join("a")].into_iter()).unwrap();
        trees.sync(2).unwrap();
        sync_each(directory.path(), 2).unwrap();
        assert!(sync_each(&directory.path().join("none"), 2).is_err());
    }
}
