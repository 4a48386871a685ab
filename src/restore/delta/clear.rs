//! Takes from an existing data directory what must not stay: first pg_control, then WAL that only lies there is put aside, then
//! everything that the backup does not have.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Existing;
use crate::format::manifest::Root;
use crate::local::durable::{parent_of, replace_file, sync_directory};
use crate::local::kill_point::kill_point;
use crate::restore::RestoreError;
use crate::restore::layout::ownership;
use crate::restore::place::{DirectoryState, UNFINISHED};
use crate::restore::plan::RestorePlan;

/// Leaves only directories and files that the backup has too. `selected` are the files that will be written, `note` marks the directory as
/// unfinished.
pub fn clear(
    plan: &RestorePlan,
    existing: &Existing,
    selected: &[(usize, PathBuf)],
    note: &str,
) -> Result<(), RestoreError> {
    let pgdata = &plan.place.pgdata;
    write_note(pgdata, note)?;
    kill_point("delta: marked");
    remove_control(pgdata)?;
    kill_point("delta: pg_control removed");
    keep_wal(plan, existing)?;
    kill_point("delta: WAL kept");
    let wanted = Wanted::of(plan, selected);
    wanted.prune(pgdata, b"")?;
    for tablespace in plan.place.tablespaces.iter().filter(|found| found.state == DirectoryState::Existing) {
        let below = format!("pg_tblspc/{}", tablespace.oid);
        for entry in list(&tablespace.to)? {
            // Another major version's files may lie beside ours.
            let path = [below.as_bytes(), b"/", entry.file_name().as_bytes()].concat();
            if wanted.directories.contains(&path) {
                wanted.prune(&entry.path(), &path)?;
            }
        }
    }
    kill_point("delta: cleared");
    Ok(())
}

/// Whole at every moment: it says whose the directory is once pg_control is gone, also to the restore after one that was killed.
fn write_note(pgdata: &Path, note: &str) -> Result<(), RestoreError> {
    let path = pgdata.join(UNFINISHED);
    replace_file(&path, note.as_bytes(), 0o600).map_err(|error| RestoreError::local("write", &path, &error))
}

fn remove_control(pgdata: &Path) -> Result<(), RestoreError> {
    let path = pgdata.join("global/pg_control");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RestoreError::local("remove", &path, &error));
        }
        _ => {}
    }
    let directory = parent_of(&path);
    match sync_directory(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RestoreError::local("sync", &directory, &error))
        }
        _ => Ok(()),
    }
}

/// Moves WAL that the repository does not have out of the way, durably.
fn keep_wal(plan: &RestorePlan, existing: &Existing) -> Result<(), RestoreError> {
    let Some(last) = existing.unarchived_wal.last() else { return Ok(()) };
    let kept = &existing.wal_kept_in;
    let made = fs::DirBuilder::new().mode(0o700).create(kept);
    made.map_err(|error| RestoreError::local("create", kept, &error))?;
    if let Some(owner) = ownership(&plan.place) {
        std::os::unix::fs::lchown(kept, Some(owner.uid), Some(owner.gid))
            .map_err(|error| RestoreError::local("set the owner of", kept, &error))?;
    }
    let wal = plan.place.pgdata.join("pg_wal");
    for name in &existing.unarchived_wal {
        let (from, to) = (wal.join(name), kept.join(name));
        let moved = match fs::rename(&from, &to) {
            // pg_wal may be on a disk of its own.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_synced(&from, &to),
            other => other,
        };
        moved.map_err(|error| RestoreError::local("put aside", &from, &error))?;
    }
    for directory in [kept.as_path(), &parent_of(kept)] {
        sync_directory(directory).map_err(|error| RestoreError::local("sync", directory, &error))?;
    }
    tracing::info!(
        "{} WAL files up to {last} that are not in the repository were put into {}",
        existing.unarchived_wal.len(),
        kept.display()
    );
    Ok(())
}

fn copy_synced(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

/// What may stay, as paths relative to PGDATA.
struct Wanted {
    directories: HashSet<Vec<u8>>,
    files: HashSet<Vec<u8>>,
    links: Vec<(Vec<u8>, PathBuf)>,
}

impl Wanted {
    fn of(plan: &RestorePlan, selected: &[(usize, PathBuf)]) -> Wanted {
        let pgdata = &plan.place.pgdata;
        let relative =
            |path: &Path| path.strip_prefix(pgdata).map(|path| path.as_os_str().as_bytes().to_vec()).ok();
        let mut files: HashSet<Vec<u8>> = selected.iter().filter_map(|(_, path)| relative(path)).collect();
        files.insert(UNFINISHED.as_bytes().to_vec());
        let mut directories: HashSet<Vec<u8>> =
            plan.manifest.directories.iter().map(|entry| entry.path.clone()).collect();
        // Configuration from elsewhere may have directories of its own.
        for file in plan.manifest.files.iter().zip(0..).filter(|(file, _)| file.root == Root::External) {
            if let Some((_, path)) = selected.iter().find(|(index, _)| *index == file.1) {
                directories.extend(path.ancestors().skip(1).filter_map(relative));
            }
        }
        let link = |oid: u32| format!("pg_tblspc/{oid}").into_bytes();
        let links =
            plan.place.tablespaces.iter().map(|placed| (link(placed.oid), placed.to.clone())).collect();
        Wanted { directories, files, links }
    }

    /// Removes what is in `directory` (`relative` to PGDATA) and is not wanted. Links are never followed.
    fn prune(&self, directory: &Path, relative: &[u8]) -> Result<(), RestoreError> {
        for entry in list(directory)? {
            let (name, path) = (entry.file_name(), entry.path());
            let below = match relative {
                b"" => name.as_bytes().to_vec(),
                relative => [relative, b"/", name.as_bytes()].concat(),
            };
            let kind = entry.file_type().map_err(|error| RestoreError::local("look at", &path, &error))?;
            if kind.is_symlink() && below == b"pg_wal" {
                // WAL may be on a disk of its own: the place stays, its contents do not.
                self.prune(&path, &below)?;
            } else if kind.is_symlink() {
                if !self.links.iter().any(|(link, to)| *link == below && leads_to(&path, to)) {
                    fs::remove_file(&path).map_err(|error| RestoreError::local("remove", &path, &error))?;
                }
            } else if kind.is_dir() {
                let is_foreign = relative.is_empty() && name == "lost+found";
                if self.directories.contains(&below) {
                    self.prune(&path, &below)?;
                } else if !is_foreign {
                    fs::remove_dir_all(&path)
                        .map_err(|error| RestoreError::local("remove", &path, &error))?;
                }
            } else if !kind.is_file() || !self.files.contains(&below) {
                fs::remove_file(&path).map_err(|error| RestoreError::local("remove", &path, &error))?;
            }
        }
        Ok(())
    }
}

/// Whether a link leads to a directory, however either is spelt.
pub fn leads_to(link: &Path, directory: &Path) -> bool {
    matches!((link.canonicalize(), directory.canonicalize()), (Ok(link), Ok(directory)) if link == directory)
}

fn list(directory: &Path) -> Result<Vec<fs::DirEntry>, RestoreError> {
    let read = || fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>();
    read().map_err(|error| RestoreError::local("read", directory, &error))
}
