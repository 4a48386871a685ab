//! Lay out: the directories of the new cluster, its tablespaces' directories and the links to them.
//!
//! In: a [`Place`] that was found empty. Out: the skeleton, and a [`Cleanup`] that takes everything back if the restore fails, so
//! that nothing half-written stays. The first thing written is a note that says that this is unfinished.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::delta::clear::leads_to;
use super::error::RestoreError;
use super::includes::Included;
use super::place::{DirectoryState, Owner, Place, UNFINISHED};
use super::plan::RestorePlan;
use crate::format::manifest::Manifest;

/// Removes what a failed restore made, when dropped without [`Cleanup::keep`]. Only directories that were absent or empty are
/// emptied; what was taken over and anything that cannot be removed stays, and cannot be started, because `global/pg_control` is not there.
pub struct Cleanup {
    made: Vec<(PathBuf, DirectoryState)>,
}

impl Cleanup {
    /// The restore is complete.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for (directory, state) in self.made.iter().rev() {
            match state {
                DirectoryState::Absent => {
                    let _ = std::fs::remove_dir_all(directory);
                }
                DirectoryState::Empty => empty(directory),
                DirectoryState::Existing => {}
            }
        }
    }
}

/// Removes what is in a directory but not the directory, nor a file system's own `lost+found`.
fn empty(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name() == "lost+found" {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let _ = if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
}

/// Makes the directories. `started` is written into the note that marks the directory as unfinished.
pub fn lay_out(place: &Place, manifest: &Manifest, started: &str) -> Result<Cleanup, RestoreError> {
    let mode =
        manifest.directories.iter().find(|entry| entry.path == b"global").map_or(0o700, |entry| entry.mode);
    let maker = Maker { owner: ownership(place) };
    let mut cleanup = Cleanup { made: Vec::new() };
    cleanup.made.push((place.pgdata.clone(), place.pgdata_state));
    maker.make_or_adopt(&place.pgdata, place.pgdata_state, mode)?;
    let note = place.pgdata.join(UNFINISHED);
    // In a directory that is taken over it stands since before pg_control went, and must do so at every moment.
    if place.pgdata_state != DirectoryState::Existing {
        std::fs::write(&note, started).map_err(|error| RestoreError::local("write", &note, &error))?;
    }
    maker.own(&note)?;
    for tablespace in &place.tablespaces {
        cleanup.made.push((tablespace.to.clone(), tablespace.state));
        maker.make_or_adopt(&tablespace.to, tablespace.state, mode)?;
    }
    let link_paths: Vec<(Vec<u8>, &Path)> = place
        .tablespaces
        .iter()
        .map(|tablespace| (format!("pg_tblspc/{}", tablespace.oid).into_bytes(), tablespace.to.as_path()))
        .collect();
    for entry in manifest.directories.iter().filter(|entry| !entry.path.is_empty()) {
        if !link_paths.iter().any(|(link, _)| *link == entry.path) {
            let directory = place.pgdata.join(OsStr::from_bytes(&entry.path));
            let state = match place.pgdata_state {
                DirectoryState::Existing if directory.is_dir() => DirectoryState::Existing,
                _ => DirectoryState::Absent,
            };
            maker.make_or_adopt(&directory, state, entry.mode)?;
        }
        if entry.path == b"pg_tblspc" {
            // Before anything below them.
            for (path, to) in &link_paths {
                let path = place.pgdata.join(OsStr::from_bytes(path));
                if !leads_to(&path, to) {
                    link(&path, to, &maker)?;
                }
            }
        }
    }
    Ok(cleanup)
}

/// Makes the directories that configuration from outside PGDATA goes into, or includes (`conf.d`).
pub fn make_adopted_directories(plan: &RestorePlan) -> Result<(), RestoreError> {
    let maker = Maker { owner: ownership(&plan.place) };
    let of_files = plan.adopted.iter().map(|adopted| (Included::File, &adopted.to));
    let of_stand_ins = plan.stand_ins.iter().map(|stand_in| (stand_in.kind, &stand_in.path));
    for (kind, path) in of_files.chain(of_stand_ins) {
        let own = usize::from(kind == Included::File);
        let directories: Vec<&Path> =
            path.ancestors().skip(own).filter(|path| !path.as_os_str().is_empty()).collect();
        for directory in directories.into_iter().rev() {
            let directory = plan.place.pgdata.join(directory);
            if !directory.is_dir() {
                maker.make(&directory, 0o700)?;
            }
        }
    }
    Ok(())
}

fn link(path: &Path, to: &Path, maker: &Maker) -> Result<(), RestoreError> {
    std::os::unix::fs::symlink(to, path).map_err(|error| RestoreError::local("create link", path, &error))?;
    maker.own(path)
}

/// Who files must be given to: nobody, unless root restores for somebody else.
pub fn ownership(place: &Place) -> Option<Owner> {
    let root = nix::unistd::geteuid().is_root();
    (root && place.owner.uid != 0).then_some(place.owner)
}

struct Maker {
    owner: Option<Owner>,
}

impl Maker {
    fn make_or_adopt(&self, directory: &Path, state: DirectoryState, mode: u32) -> Result<(), RestoreError> {
        match state {
            DirectoryState::Absent => self.make(directory, mode),
            DirectoryState::Empty | DirectoryState::Existing => {
                std::fs::set_permissions(directory, Permissions::from_mode(mode & 0o7777))
                    .map_err(|error| RestoreError::local("set the mode of", directory, &error))?;
                self.own(directory)
            }
        }
    }

    fn make(&self, directory: &Path, mode: u32) -> Result<(), RestoreError> {
        let fail = |error: std::io::Error| RestoreError::local("create", directory, &error);
        std::fs::DirBuilder::new().mode(0o700).create(directory).map_err(fail)?;
        if mode & 0o7777 != 0o700 {
            std::fs::set_permissions(directory, Permissions::from_mode(mode & 0o7777)).map_err(fail)?;
        }
        self.own(directory)
    }

    fn own(&self, path: &Path) -> Result<(), RestoreError> {
        let Some(owner) = self.owner else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| RestoreError::local("set the owner of", path, &error))
    }
}
