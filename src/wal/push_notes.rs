//! What a wal-push leaves behind for the next one: which waiting files it archived ahead, and which repository it found.
//!
//! In: files that are durable in the repository. Out: for a file that PostgreSQL asks to archive, whether it is one of those and still the same. What must hold: a note
//! acknowledges only what was durable when it was written, only for the very same file, only under the same settings, cluster and directory, and only for
//! some minutes. In any doubt there is no note: the file is then pushed, which costs time and finds it archived.
//!
//! One small file per directory of WAL, replaced whole, with a checksum. It is not synced: what a power loss leaves of it fails the checksum or is older, and
//! the objects that it speaks of were durable before it was written.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::archive_file::{ArchiveFile, FileStamp};
use crate::config::Config;
use crate::config::fingerprint::Fields;
use crate::format::Digest;
use crate::format::marker::Marker;
use crate::local::durable::parent_of;

/// How long a note counts. A repository that was emptied or replaced meanwhile is noticed after this at the latest.
pub const LIFE: Duration = Duration::from_secs(300);
/// How long the repository's marker is worth a guess, which is then checked.
const MARKER_LIFE: Duration = Duration::from_secs(24 * 3600);
/// More than look-ahead ever notes.
const LARGEST_FILE: u64 = 1 << 20;

/// The notes for one directory of WAL.
#[derive(Debug)]
pub struct PushNotes {
    path: PathBuf,
    binding: Digest,
    content: Option<Content>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Content {
    /// Settings, cluster and directory that the notes hold for.
    binding: Digest,
    /// The repository that the files are in.
    repository: Marker,
    /// When `repository` was last seen.
    seen: Timestamp,
    files: Vec<Note>,
}

/// A file that is durable in the repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    name: String,
    stamp: FileStamp,
    stored_length: u64,
    archived: Timestamp,
}

impl Note {
    /// A note for a file that is durable now.
    pub fn of(file: &ArchiveFile, stored_length: u64) -> Note {
        Note { name: file.name.to_string(), stamp: file.stamp(), stored_length, archived: Timestamp::now() }
    }

    /// Bytes of its object.
    pub fn stored_length(&self) -> u64 {
        self.stored_length
    }

    fn is_fresh(&self) -> bool {
        is_recent(self.archived, LIFE)
    }
}

/// A clock that was set back makes a note old, not young.
fn is_recent(then: Timestamp, life: Duration) -> bool {
    Duration::try_from(Timestamp::now().duration_since(then)).is_ok_and(|age| age <= life)
}

impl PushNotes {
    /// Reads the notes for the directory that `file` lies in. Whatever is wrong with them, there are none then.
    pub fn read(config: &Config, file: &ArchiveFile) -> PushNotes {
        let (binding, place) = binding_of(config, file);
        let path = config.state_dir.join("wal-push").join(format!("{}.notes", place.short()));
        let content = read_content(&path).filter(|content| content.binding == binding);
        PushNotes { path, binding, content }
    }

    /// The note for this file, if it was archived ahead and is still the same.
    pub fn find(&self, file: &ArchiveFile) -> Option<&Note> {
        let name = file.name.to_string();
        let stamp = file.stamp();
        let notes = self.content.iter().flat_map(|content| &content.files);
        notes.into_iter().find(|note| note.name == name && note.stamp == stamp && note.is_fresh())
    }

    /// The repository that was found last time: a guess to be checked.
    pub fn repository(&self) -> Option<&Marker> {
        let content = self.content.as_ref()?;
        is_recent(content.seen, MARKER_LIFE).then_some(&content.repository)
    }

    /// Whether notes can be left at all; makes their directory.
    pub fn can_be_written(&self) -> bool {
        let directory = parent_of(&self.path);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.is_ok() && nix::unistd::access(&directory, nix::unistd::AccessFlags::W_OK).is_ok()
    }

    /// Replaces the notes: `files` are durable in `repository`, which was seen just now. Nothing depends on whether it works.
    pub fn replace(&self, repository: &Marker, mut files: Vec<Note>) {
        let content = self.content.iter().filter(|content| content.repository == *repository);
        let kept = content.flat_map(|content| &content.files).filter(|note| note.is_fresh());
        let missing = |note: &&Note| !files.iter().any(|file| file.name == note.name);
        let kept: Vec<Note> = kept.filter(missing).cloned().collect();
        files.extend(kept);
        files.truncate(512);
        let content =
            Content { binding: self.binding, repository: repository.clone(), seen: Timestamp::now(), files };
        if let Err(error) = write_content(&self.path, &content) {
            tracing::debug!("write {}: {}", self.path.display(), crate::error::system_words(&error));
        }
    }

    /// Removes the notes: something in them was found wrong.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What the notes are bound to, and which file they are in: settings that differ replace each other's notes, directories do not.
fn binding_of(config: &Config, file: &ArchiveFile) -> (Digest, Digest) {
    let directory = fs::metadata(parent_of(file.path())).map(|found| (found.dev(), found.ino())).ok();
    let mut place = Fields::default();
    place.add(format!("{directory:?}").as_bytes());
    place.add(file.system_identifier().to_string().as_bytes());
    place.add(config.cluster.as_str().as_bytes());
    let mut binding = Fields::default();
    binding.add(&place.digest().0).add(&config.fingerprint().0);
    (binding.digest(), place.digest())
}

fn read_content(path: &Path) -> Option<Content> {
    let file = File::open(path).ok()?;
    let facts = file.metadata().ok()?;
    // Whoever else could write here could make PostgreSQL drop what was never archived.
    let own = facts.uid() == nix::unistd::geteuid().as_raw() && facts.mode() & 0o022 == 0;
    if !own || !facts.is_file() || facts.len() > LARGEST_FILE {
        return None;
    }
    let mut text = String::new();
    file.take(LARGEST_FILE).read_to_string(&mut text).ok()?;
    let (checksum, json) = text.split_once('\n')?;
    if Digest::of(json.as_bytes()).to_string() != checksum {
        return None;
    }
    serde_json::from_str(json).ok()
}

fn write_content(path: &Path, content: &Content) -> io::Result<()> {
    let json = serde_json::to_string(content).map_err(io::Error::other)?;
    let text = format!("{}\n{json}", Digest::of(json.as_bytes()));
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let written = || {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    written().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(archived: Timestamp) -> Content {
        let stamp = serde_json::json!({
            "device": 1, "inode": 2, "length": 3, "modified": [4, 5], "changed": [6, 7],
            "beginning": "00112233445566778899aabbccddeeff"
        });
        let note = Note {
            name: "000000010000000000000001".to_owned(),
            stamp: serde_json::from_value(stamp).unwrap(),
            stored_length: 9,
            archived,
        };
        let repository = Marker {
            format_version: 1,
            repository_id: "ab".repeat(16),
            created: archived,
            create_only: crate::format::marker::CreateOnly::Enforced,
        };
        Content { binding: Digest([7; 32]), repository, seen: archived, files: vec![note] }
    }

    #[test]
    fn whatever_is_left_of_a_torn_write_is_no_note() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.notes");
        write_content(&path, &content(Timestamp::now())).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let whole = fs::read(&path).unwrap();
        assert!(read_content(&path).is_some());
        for length in (0..whole.len()).step_by(13) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read_content(&path).is_none(), "{length} bytes were believed");
            let mut flipped = whole.clone();
            flipped[length] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(read_content(&path).is_none(), "a flipped bit at {length} was believed");
        }
    }

    #[test]
    fn notes_of_somebody_else_are_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.notes");
        write_content(&path, &content(Timestamp::now())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(read_content(&path).is_none());
    }

    #[test]
    fn notes_live_minutes_and_do_not_come_from_the_future() {
        let now = Timestamp::now();
        let fresh = |then: Timestamp| content(then).files[0].is_fresh();
        assert!(fresh(now));
        assert!(fresh(now - Duration::from_secs(200)));
        assert!(!fresh(now - LIFE - Duration::from_secs(1)));
        assert!(!fresh(now + Duration::from_secs(60)));
    }
}
