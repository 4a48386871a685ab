//! What a delta restore finds, looked at by the plan: nothing here writes.

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::format::manifest::Manifest;
use crate::format::{ClusterName, keys};
use crate::pg::control::ControlFile;
use crate::pg::{ArchiveFileName, SystemIdentifier};
use crate::repository::Repository;
use crate::restore::RestoreError;
use crate::restore::place::UNFINISHED;
use crate::wal::first_page::{check_first_page, read_first_page};

/// What a restore may find in its directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// A data directory of the cluster that is restored (`--delta`).
    SameCluster,
    /// Any data directory (`--delta --other-cluster`).
    AnyCluster,
}

/// A data directory that is taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Existing {
    /// Files of its pg_wal that are not in the repository.
    pub unarchived_wal: Vec<String>,
    /// Where they are put.
    pub wal_kept_in: PathBuf,
}

/// Fails unless `pgdata`, which is not empty, may be taken over.
pub fn check_identity(pgdata: &Path, ours: SystemIdentifier, over: Over) -> Result<(), RestoreError> {
    let found = match std::fs::read_to_string(pgdata.join(UNFINISHED)) {
        Ok(note) => noted_system(&note),
        Err(_) => control_system(pgdata)?,
    };
    match found {
        _ if over == Over::AnyCluster => Ok(()),
        Some(system) if system == ours => Ok(()),
        Some(system) => Err(RestoreError::refused(
            format!(
                "{} belongs to another cluster (system {system}, the backup is of {ours})",
                pgdata.display()
            ),
            "name the right directory; --other-cluster overwrites this one all the same",
        )),
        None => Err(RestoreError::refused(
            format!(
                "whose data directory {} is cannot be told: its global/pg_control is damaged",
                pgdata.display()
            ),
            "if it is the right one: --other-cluster overwrites it all the same",
        )),
    }
}

/// The system that an unfinished restore's note names.
fn noted_system(note: &str) -> Option<SystemIdentifier> {
    note.split_once(" of system ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn control_system(pgdata: &Path) -> Result<Option<SystemIdentifier>, RestoreError> {
    let path = pgdata.join("global/pg_control");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(ControlFile::parse(&bytes).ok().map(|control| control.system_identifier)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RestoreError::refused(
            format!(
                "--pgdata {} is not empty and not a data directory: it has no global/pg_control",
                pgdata.display()
            ),
            "--delta takes a data directory over; for anything else name an empty directory",
        )),
        Err(error) => Err(RestoreError::local("read", &path, &error)),
    }
}

/// Looks through the old pg_wal for what the repository does not have.
pub fn find_unarchived(
    pgdata: &Path,
    repository: &Repository,
    cluster: &ClusterName,
    manifest: &Manifest,
) -> Result<Existing, RestoreError> {
    let system = manifest.summary.system_identifier;
    let listed = repository.list(&keys::wal_folder(cluster, system))?;
    let stored: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    let mut unarchived_wal = Vec::new();
    for (path, name) in wal_files(&pgdata.join("pg_wal"))? {
        // A backup's history says what the manifest says better.
        let matters = !matches!(name, ArchiveFileName::BackupHistory { .. });
        let is_stored = || stored.contains(keys::wal(cluster, system, name).as_str());
        if matters && holds_what_it_says(&path, name) && !is_stored() {
            unarchived_wal.push(name.to_string());
        }
    }
    unarchived_wal.sort();
    Ok(Existing { unarchived_wal, wal_kept_in: kept_directory(pgdata) })
}

/// The files of a directory whose names are those of WAL; none if there is no such directory.
fn wal_files(directory: &Path) -> Result<Vec<(PathBuf, ArchiveFileName)>, RestoreError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.map_err(|error| RestoreError::local("read", directory, &error))?;
    let named = |entry: &DirEntry| Some((entry.path(), entry.file_name().to_str()?.parse().ok()?));
    Ok(entries.iter().filter_map(named).collect())
}

/// Segments that the server made ready for later hold old WAL under a new name: nothing is lost with them.
fn holds_what_it_says(path: &Path, name: ArchiveFileName) -> bool {
    let (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) = name else { return true };
    let look = || {
        let file = File::open(path)?;
        io::Result::Ok((file.metadata()?.len(), read_first_page(&file)?))
    };
    // What can't be read may be anything.
    look().map_or(true, |(length, page)| check_first_page(segment, &page, length, None).is_ok())
}

/// A directory beside PGDATA that is not there yet.
fn kept_directory(pgdata: &Path) -> PathBuf {
    let mut name = pgdata.as_os_str().to_owned();
    name.push(format!(".wal-kept-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_its_system() {
        let note = "backup 20261120T224613Z-00000001-0000000A000000FE of system 7371234567890123456, begun at 2026\n";
        assert_eq!(noted_system(note), Some("7371234567890123456".parse().unwrap()));
        assert_eq!(noted_system("backup x, begun today"), None);
    }
}
