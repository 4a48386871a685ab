//! What a delta restore finds, looked at by the plan: nothing here writes.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::format::manifest::Manifest;
use crate::format::{ClusterName, keys};
use crate::pg::control::ControlFile;
use crate::pg::{ArchiveFileName, SystemIdentifier};
use crate::repository::Repository;
use crate::restore::RestoreError;
use crate::restore::place::UNFINISHED;
use crate::wal::first_page::{FIRST_PAGE_BYTES, check_first_page};

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
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RestoreError::refused(
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
    let directory = pgdata.join("pg_wal");
    let system = manifest.summary.system_identifier;
    let mut stored_by_timeline = std::collections::BTreeMap::new();
    let mut unarchived_wal = Vec::new();
    for entry in std::fs::read_dir(&directory).into_iter().flatten() {
        let entry = entry.map_err(|error| RestoreError::local("read", &directory, &error))?;
        let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<ArchiveFileName>().ok())
        else {
            continue;
        };
        let timeline = match name {
            ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment) => segment.timeline,
            ArchiveFileName::TimelineHistory(timeline) => timeline,
            // It says what the manifest says better.
            ArchiveFileName::BackupHistory { .. } => continue,
        };
        if !holds_what_it_says(&entry.path(), name) {
            continue;
        }
        let key = keys::wal(cluster, system, name);
        let is_stored = match name {
            ArchiveFileName::Segment(_) => {
                let stored: &mut HashSet<String> = match stored_by_timeline.entry(timeline) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        let listed = repository.list(&keys::timeline_folder(cluster, system, timeline))?;
                        entry.insert(listed.iter().map(|object| object.key.as_str().to_owned()).collect())
                    }
                };
                stored.contains(key.as_str())
            }
            _ => repository.find(&key, crate::wal::push::naming_of(name))?.is_some(),
        };
        if !is_stored {
            unarchived_wal.push(name.to_string());
        }
    }
    unarchived_wal.sort();
    Ok(Existing { unarchived_wal, wal_kept_in: kept_directory(pgdata) })
}

/// Segments that the server made ready for later hold old WAL under a new name: nothing is lost with them.
fn holds_what_it_says(path: &Path, name: ArchiveFileName) -> bool {
    let (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) = name else { return true };
    let mut page = Vec::with_capacity(FIRST_PAGE_BYTES);
    let Ok(file) = File::open(path) else { return true };
    let Ok(length) = file.metadata().map(|found| found.len()) else { return true };
    if file.take(FIRST_PAGE_BYTES as u64).read_to_end(&mut page).is_err() {
        return true;
    }
    check_first_page(segment, &page, length, None).is_ok()
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
