//! A repository in a directory (`file://`): blocking calls on plain files, no runtime.
//!
//! In: paths relative to the root. Out: bytes, sizes, times. What must hold: an object is visible only when it is whole
//! and on disk ([`super::directory_publish`]); a root that is not there, or is not a repository, is
//! [`RepositoryError::NoMarker`] and never "no such object", because that is what an unmounted disk looks like.
//!
//! Which failures pass by themselves is decided in [`classify`]. A file system that hangs (NFS, hard mounts) cannot be
//! interrupted from here: the deadline is looked at between calls.
//!
//! Files are created with mode 0640 and directories with 0750, less the process's umask, which is 0077 in a
//! PostgreSQL server, or 0027 where its data directory allows group access.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::naming::{RawObject, is_hidden, split_suffix};
use super::retry::{Failed, retried};
use super::{Patience, RepositoryError};
use crate::error::system_words;
use crate::format::keys;
use crate::local::durable::{parent_of, sync_directory};

/// Mode of new directories, before the umask.
const DIRECTORY_MODE: u32 = 0o750;
/// Folders below folders; more is a loop of symbolic links.
const DEEPEST: usize = 32;
/// A directory that file systems make in their root.
const LOST_AND_FOUND: &str = "lost+found";

/// An open directory. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct DirectoryStore {
    pub(super) shared: Arc<DirectoryShared>,
}

/// What all clones share.
#[derive(Debug)]
pub(super) struct DirectoryShared {
    pub(super) root: PathBuf,
    pub(super) url: String,
    pub(super) staging: StagingRule,
    pub(super) marker: MarkerRule,
}

/// Where an object lies while it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum StagingRule {
    /// In a file without a name, where the file system can do that.
    #[default]
    Auto,
    /// In a hidden file beside the object.
    Named,
}

/// Whether the marker must be there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MarkerRule {
    /// A directory without marker is not the repository.
    Required,
    /// `init` is about to write it.
    NotYet,
}

impl DirectoryStore {
    pub(super) fn new(root: PathBuf, url: &str, staging: StagingRule, marker: MarkerRule) -> DirectoryStore {
        DirectoryStore { shared: Arc::new(DirectoryShared { root, url: url.to_owned(), staging, marker }) }
    }

    /// The object under `path`; `None` if the directory has none.
    pub(super) fn find(&self, path: &str, patience: Patience) -> Result<Option<RawObject>, RepositoryError> {
        let place = self.place("find", path)?;
        let found = retried("find", path, patience, |_| match fs::metadata(&place) {
            Ok(metadata) if metadata.is_file() => Ok(Some(raw_object(path, &metadata))),
            Ok(_) => Err(not_a_file("find", path).into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(classify("find", path, &error)),
        })?;
        self.absence_needs_a_repository(found.is_none())?;
        Ok(found)
    }

    /// The object under `path` and its first `length` bytes, or all of it if it is shorter.
    pub(super) fn find_and_read(
        &self,
        path: &str,
        length: usize,
        patience: Patience,
    ) -> Result<Option<(RawObject, Vec<u8>)>, RepositoryError> {
        let place = self.place("read", path)?;
        let found = retried("read", path, patience, |_| {
            let failed = |error| classify("read", path, &error);
            let file = match File::open(&place) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let metadata = file.metadata().map_err(failed)?;
            if !metadata.is_file() {
                return Err(not_a_file("read", path).into());
            }
            let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(length);
            let bytes = read_exactly(&file, 0, length, Vec::new(), path)?;
            Ok(Some((raw_object(path, &metadata), bytes)))
        })?;
        self.absence_needs_a_repository(found.is_none())?;
        Ok(found)
    }

    /// Exactly `length` bytes from `offset`, in the memory of `spare`.
    pub(super) fn read_range(
        &self,
        path: &str,
        offset: u64,
        length: usize,
        mut spare: Vec<u8>,
        patience: Patience,
    ) -> Result<Vec<u8>, RepositoryError> {
        let place = self.place("read", path)?;
        let read = retried("read", path, patience, |_| {
            let file = File::open(&place).map_err(|error| classify("read", path, &error))?;
            read_exactly(&file, offset, length, std::mem::take(&mut spare), path)
        });
        if let Err(RepositoryError::Missing { .. }) = read {
            self.absence_needs_a_repository(true)?;
        }
        read
    }

    /// Objects named `key`, `.`, 32 hexadecimal digits.
    pub(super) fn find_suffixed(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        let (folder, _) = key.rsplit_once('/').unwrap_or(("", key));
        let place = self.place("find", folder)?;
        let mut found = retried("find", key, patience, |_| {
            let mut found = Vec::new();
            for entry in entries(&place, key)? {
                let path = below(folder, &entry.name);
                let is_candidate = split_suffix(&path).is_some_and(|(stem, _)| stem == key);
                if let (true, Some(Entry::Object(size_and_time))) = (is_candidate, entry.look(key)?) {
                    found.push(size_and_time.at(path));
                }
            }
            Ok(found)
        })?;
        self.absence_needs_a_repository(found.is_empty())?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Everything below `folder`, in path order.
    pub(super) fn list(&self, folder: &str, patience: Patience) -> Result<Vec<RawObject>, RepositoryError> {
        let place = self.place("list", folder)?;
        let mut found = retried("list", folder, patience, |_| {
            let mut found = Vec::new();
            walk(&place, folder, DEEPEST, &mut |object| {
                found.push(object);
                Walk::On
            })?;
            Ok(found)
        })?;
        self.absence_needs_a_repository(found.is_empty())?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The folders directly below `folder` that hold an object, however deep; in order. Empty ones, which deleting
    /// leaves, do not exist on other stores, and are not told here either.
    pub(super) fn list_folders(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<Vec<String>, RepositoryError> {
        let place = self.place("list", folder)?;
        let mut names = retried("list", folder, patience, |_| {
            let mut names = Vec::new();
            for entry in entries(&place, folder)? {
                if let Some(Entry::Folder) = entry.look(folder)? {
                    let mut holds_object = false;
                    walk(&entry.place, "", DEEPEST, &mut |_| {
                        holds_object = true;
                        Walk::Enough
                    })?;
                    if holds_object {
                        names.push(entry.name);
                    }
                }
            }
            Ok(names)
        })?;
        self.absence_needs_a_repository(names.is_empty())?;
        names.sort();
        Ok(names)
    }

    /// Files below a folder under the names that staging uses: ours, and `<name>#<number>`, object_store's.
    pub(super) fn leftovers(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        let place = self.place("list", folder)?;
        retried("list", folder, patience, |_| {
            let mut found = Vec::new();
            walk_staged(&place, folder, DEEPEST, &mut found)?;
            Ok(found)
        })
    }

    /// Removes one object; success if it is gone already. Folders stay.
    pub(super) fn delete(&self, path: &str, patience: Patience) -> Result<(), RepositoryError> {
        let place = self.place("delete", path)?;
        let deleted = retried("delete", path, patience, |_| match fs::remove_file(&place) {
            Ok(()) => Ok(Deleted::Now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Deleted::Before),
            Err(error) => Err(classify("delete", path, &error)),
        })?;
        self.absence_needs_a_repository(deleted == Deleted::Before)
    }

    /// The error for a folder whose names could not be made durable.
    pub(super) fn sync_failed(&self, folder: &Path, error: &io::Error) -> RepositoryError {
        let path = folder.strip_prefix(&self.shared.root).unwrap_or(folder).display().to_string();
        RepositoryError::Unreachable {
            verb: "delete in",
            key: path,
            problem: crate::error::system_words(error),
            attempts: 1,
            elapsed: std::time::Duration::ZERO,
        }
    }

    /// Removes a folder if it is empty. One that stays does no harm.
    pub(super) fn remove_empty_folder(&self, folder: &str) {
        if let (false, Ok(place)) = (folder.is_empty(), self.place("delete", folder)) {
            let _ = fs::remove_dir(place);
        }
    }

    /// The file that `path` stands for. Nothing that a listing or a damaged record says leads out of the root.
    pub(super) fn place(&self, verb: &'static str, path: &str) -> Result<PathBuf, RepositoryError> {
        let is_inside = path.is_empty()
            || path.split('/').all(|segment| !matches!(segment, "" | "." | "..") && !segment.contains('\0'));
        if is_inside {
            Ok(self.shared.root.join(path))
        } else {
            let problem = "this cannot be the path of an object".to_owned();
            Err(RepositoryError::Damaged { verb, key: path.to_owned(), problem })
        }
    }

    /// Fails if something is absent because the repository is.
    fn absence_needs_a_repository(&self, is_absent: bool) -> Result<(), RepositoryError> {
        if is_absent { self.check_root() } else { Ok(()) }
    }

    /// Fails unless the root is there and is a repository.
    pub(super) fn check_root(&self) -> Result<(), RepositoryError> {
        let marker = keys::marker();
        let proof = match self.shared.marker {
            MarkerRule::Required => self.shared.root.join(marker.as_str()),
            MarkerRule::NotYet => self.shared.root.clone(),
        };
        match fs::metadata(proof) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                Errno::EACCES | Errno::EPERM => Err(denied("read", marker.as_str(), &error)),
                _ => Err(RepositoryError::NoMarker { url: self.shared.url.clone() }),
            },
        }
    }

    /// Creates the folders of an object that are missing, but never the root of a repository: the disk under it is
    /// not mounted then.
    pub(super) fn create_folders(&self, folder: &Path, path: &str) -> Result<(), Failed> {
        match self.shared.marker {
            MarkerRule::Required => self.check_root()?,
            MarkerRule::NotYet => {}
        }
        let missing = folder.ancestors().take_while(|folder| !folder.exists()).collect::<Vec<_>>();
        for folder in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(folder) {
                Ok(()) => {
                    if let Some((uid, gid)) = self.heir() {
                        let _ = std::os::unix::fs::lchown(folder, Some(uid), Some(gid));
                    }
                    self.sync_parent(folder)
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|error| classify("publish", path, &error))?;
        }
        Ok(())
    }

    /// Whom new objects are given to, if not to who makes them: where root works in somebody's repository (a restore, a mark), its owner
    /// must be able to read and delete them, or its next listing fails.
    pub(super) fn heir(&self) -> Option<(u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let owner = fs::metadata(&self.shared.root).ok()?;
        (owner.uid() != 0).then(|| (owner.uid(), owner.gid()))
    }

    /// Makes the name of a new folder durable.
    fn sync_parent(&self, folder: &Path) -> io::Result<()> {
        let parent = parent_of(folder);
        match sync_directory(&parent) {
            // Above a new root there may be folders that only let pass.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && !parent.starts_with(&self.shared.root) =>
            {
                Ok(())
            }
            synced => synced,
        }
    }
}

/// Whether a deleted object was there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deleted {
    Now,
    Before,
}

/// Whether a failure may pass. Everything that is not known to stay is worth asking again: `EIO`, `ESTALE`,
/// `ETIMEDOUT`, `EINTR`, `EAGAIN`, `EMFILE`, `ENFILE`, `ENOMEM`, `EBUSY`, `EHOSTDOWN`… come and go.
pub(super) fn classify(verb: &'static str, path: &str, error: &io::Error) -> Failed {
    let key = || path.to_owned();
    let damaged = |problem: &str| RepositoryError::Damaged { verb, key: key(), problem: problem.to_owned() };
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::EACCES | Errno::EPERM | Errno::EROFS => denied(verb, path, error).into(),
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => {
            RepositoryError::Full { verb, key: key(), problem: system_words(error) }.into()
        }
        Errno::ENOENT => RepositoryError::Missing { verb, key: key() }.into(),
        Errno::ENOTDIR => damaged("a file lies where a folder should be").into(),
        Errno::EISDIR => not_a_file(verb, path).into(),
        Errno::ELOOP | Errno::ENAMETOOLONG | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS => {
            damaged(&system_words(error)).into()
        }
        _ => Failed::again(system_words(error)),
    }
}

fn denied(verb: &'static str, path: &str, error: &io::Error) -> RepositoryError {
    RepositoryError::Denied { verb, key: path.to_owned(), problem: system_words(error) }
}

fn not_a_file(verb: &'static str, path: &str) -> RepositoryError {
    let problem = "it is a directory, not an object".to_owned();
    RepositoryError::Damaged { verb, key: path.to_owned(), problem }
}

fn read_exactly(
    file: &File,
    offset: u64,
    length: usize,
    spare: Vec<u8>,
    path: &str,
) -> Result<Vec<u8>, Failed> {
    let mut bytes = spare;
    if bytes.capacity() < length {
        // The system's zeros cost less than our own.
        bytes = vec![0; length];
    }
    bytes.resize(length, 0);
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let size = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
            let problem = format!(
                "it has {size} bytes, but {length} from {offset} were asked for: it was truncated or replaced"
            );
            Err(RepositoryError::Damaged { verb: "read", key: path.to_owned(), problem }.into())
        }
        Err(error) => Err(classify("read", path, &error)),
    }
}

pub(super) fn raw_object(path: &str, metadata: &fs::Metadata) -> RawObject {
    SizeAndTime::of(metadata).at(path.to_owned())
}

struct SizeAndTime {
    size: u64,
    modified: jiff::Timestamp,
}

impl SizeAndTime {
    fn of(metadata: &fs::Metadata) -> SizeAndTime {
        let nanoseconds = i32::try_from(metadata.mtime_nsec()).unwrap_or_default();
        let modified = jiff::Timestamp::new(metadata.mtime(), nanoseconds).unwrap_or_default();
        SizeAndTime { size: metadata.len(), modified }
    }

    fn at(self, path: String) -> RawObject {
        RawObject { path, size: self.size, modified: self.modified }
    }
}

/// A visible name in a folder.
struct NamedEntry {
    name: String,
    place: PathBuf,
}

enum Entry {
    Object(SizeAndTime),
    Folder,
}

impl NamedEntry {
    /// What it is, links followed; `None` if it is neither, or was deleted meanwhile.
    fn look(&self, path: &str) -> Result<Option<Entry>, Failed> {
        match fs::metadata(&self.place) {
            Ok(metadata) if metadata.is_dir() => Ok(Some(Entry::Folder)),
            Ok(metadata) if metadata.is_file() => Ok(Some(Entry::Object(SizeAndTime::of(&metadata)))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(classify("list", path, &error)),
        }
    }
}

/// The visible names in a folder; none if it is not there. Names that are not UTF-8 are not ours, and a file system's
/// `lost+found` opens to root alone.
fn entries(place: &Path, path: &str) -> Result<Vec<NamedEntry>, Failed> {
    let read = match fs::read_dir(place) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(classify("list", path, &error)),
    };
    let mut found = Vec::new();
    for entry in read {
        let entry = entry.map_err(|error| classify("list", path, &error))?;
        let visible = entry
            .file_name()
            .to_str()
            .filter(|name| !is_hidden(name) && *name != LOST_AND_FOUND)
            .map(str::to_owned);
        if let Some(name) = visible {
            found.push(NamedEntry { name, place: entry.path() });
        }
    }
    Ok(found)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    On,
    Enough,
}

fn walk(
    place: &Path,
    folder: &str,
    depth: usize,
    visit: &mut dyn FnMut(RawObject) -> Walk,
) -> Result<Walk, Failed> {
    for entry in entries(place, folder)? {
        let path = below(folder, &entry.name);
        let went = match entry.look(&path)? {
            Some(Entry::Folder) if depth > 0 => walk(&entry.place, &path, depth - 1, visit)?,
            Some(Entry::Object(size_and_time)) => visit(size_and_time.at(path)),
            Some(Entry::Folder) | None => Walk::On,
        };
        if went == Walk::Enough {
            return Ok(Walk::Enough);
        }
    }
    Ok(Walk::On)
}

/// Whether a file of this name is an object that was never published.
fn is_staged(name: &str) -> bool {
    let ours = name.starts_with('.') && name.contains(".walhold-");
    let theirs = name.rsplit_once('#').is_some_and(|(stem, number)| {
        !stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    ours || theirs
}

fn walk_staged(place: &Path, folder: &str, depth: usize, found: &mut Vec<RawObject>) -> Result<(), Failed> {
    let read = match fs::read_dir(place) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(classify("list", folder, &error)),
    };
    for entry in read {
        let entry = entry.map_err(|error| classify("list", folder, &error))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = below(folder, &name);
        // Links are not followed: nothing beyond the repository is touched.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(classify("list", &path, &error)),
        };
        if metadata.is_dir() && depth > 0 && !is_hidden(&name) && name != LOST_AND_FOUND {
            walk_staged(&entry.path(), &path, depth - 1, found)?;
        } else if metadata.is_file() && is_staged(&name) {
            found.push(raw_object(&path, &metadata));
        }
    }
    Ok(())
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// What lies in a directory that is about to become a repository and is not: `None` if nothing does. Hidden files
/// and `lost+found` are a file system's own.
pub(super) fn foreign_name(root: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if name != OsStr::new(LOST_AND_FOUND) && !name.as_encoded_bytes().starts_with(b".") {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
