//! Which WAL of an existing data directory lies nowhere else, looked at by the plan: nothing here writes.
//!
//! In: the old pg_wal and the repository's listing. Out: the files that must be put aside. What must hold: a file counts as archived only
//! if a stored object of its own name says that it has exactly this content; a `.partial` is not the segment, a name is no proof, and a
//! server that still wants to archive a file is believed.

use std::collections::HashMap;
use std::fs::{DirEntry, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::codec::KeyRing;
use crate::codec::decode::{Expected, read_tail};
use crate::fan_out;
use crate::format::envelope::ObjectFacts;
use crate::format::manifest::{BackupSummary, Manifest};
use crate::format::{ClusterName, Digest, ObjectKey, keys};
use crate::pg::ArchiveFileName;
use crate::repository::{Repository, RepositoryObject, StoredObject};
use crate::restore::RestoreError;
use crate::wal::first_page::{check_first_page, read_first_page};

/// Files that are compared at once: mostly waiting for the store.
const COMPARED_AT_ONCE: usize = 8;
/// What is read of a file at once.
const READ_SIZE: usize = 1 << 20;

/// A data directory that is taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Existing {
    /// Files of its pg_wal that are not in the repository.
    pub unarchived_wal: Vec<String>,
    /// Where they are put.
    pub wal_kept_in: PathBuf,
}

/// Looks through the old pg_wal for what the repository does not have.
pub fn find_unarchived(
    pgdata: &Path,
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
    manifest: &Manifest,
) -> Result<Existing, RestoreError> {
    let summary = &manifest.summary;
    let mut stored: HashMap<ObjectKey, Vec<StoredObject>> = HashMap::new();
    for object in repository.list(&keys::wal_folder(cluster, summary.system_identifier))? {
        stored.entry(object.key.clone()).or_default().push(object);
    }
    let wal = pgdata.join("pg_wal");
    let mut files = wal_files(&wal)?;
    // A backup's history says what the manifest says better.
    files.retain(|(path, name)| {
        !matches!(name, ArchiveFileName::BackupHistory { .. }) && holds_what_it_says(path, *name)
    });
    let is_archived = |(path, name): &(PathBuf, ArchiveFileName)| {
        let is_ready = wal.join(format!("archive_status/{name}.ready")).exists();
        let key = keys::wal(cluster, summary.system_identifier, *name);
        let objects = stored.get(&key).map(Vec::as_slice).unwrap_or_default();
        !is_ready && !objects.is_empty() && is_stored(path, *name, summary, repository, keys, objects)
    };
    let archived = fan_out::map(&files, COMPARED_AT_ONCE, is_archived);
    let missing = files.iter().zip(archived).filter(|(_, archived)| !archived);
    let mut unarchived_wal: Vec<String> = missing.map(|((_, name), _)| name.to_string()).collect();
    unarchived_wal.sort();
    Ok(Existing { unarchived_wal, wal_kept_in: kept_directory(pgdata) })
}

/// Whether one of the objects of this name has the file's content. What cannot be read proves nothing.
fn is_stored(
    path: &Path,
    name: ArchiveFileName,
    summary: &BackupSummary,
    repository: &Repository,
    keys: &KeyRing,
    objects: &[StoredObject],
) -> bool {
    let facts = ObjectFacts::of_archive_file(name, summary.system_identifier, Some(summary.wal_segment_size));
    let Ok((length, digest)) = digest_of(path) else { return false };
    objects.iter().any(|object| {
        let source = RepositoryObject { repository, object };
        let tail = read_tail(&source, &Expected { facts: &facts, key: &object.key }, keys);
        tail.is_ok_and(|tail| tail.is_of(digest, length))
    })
}

fn digest_of(path: &Path) -> io::Result<(u64, Digest)> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut length = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((length, Digest(*hasher.finalize().as_bytes())));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        length += count as u64;
    }
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
