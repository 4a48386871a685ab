//! Archives one file: one read pass into one object, durable when this returns `Ok`.
//!
//! In: an [`ArchiveFile`], checked. Out: a durable object, new or found there with the same content. What must hold: nothing stored is replaced; the same
//! name with other content is an error; a file that changed on the way is not published.

use std::cell::Cell;

use crate::codec::decode::{DecodeError, Expected, ObjectTail, decode_object, read_tail};
use crate::codec::encode::{
    ChunkSource, EncodeError, EncodeKit, Encoded, ObjectSink, SinkError, encode_object, encode_object_alone,
};
use crate::codec::{KeyRing, Sealing};
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::format::envelope::CHUNK_SIZE;
use crate::format::wal_index::RecordVerdict;
use crate::format::{ClusterName, ObjectKey, keys};
use crate::local::kill_point::kill_point;
use crate::pg::{ArchiveFileName, PgTimestamp};
use crate::repository::{
    MOST_HELD, Naming, Publication, Published, Repository, RepositoryError, RepositoryObject, StoredObject,
};

use super::archive_file::{ArchiveFile, ArchiveFileError};
use super::interruption::stop_if_asked;
use super::scan::SegmentScanner;

/// Room that header, index and footer may take beside the chunks, for the store's choice between one request and several.
const ENVELOPE_ALLOWANCE: u64 = 512 << 10;

/// Bytes read at once; a multiple of the WAL page size.
const READ_PIECE: usize = 128 << 10;

/// How objects are written, and how stored ones are compared.
#[derive(Clone, Debug)]
pub struct Writing {
    /// Compression and encryption of new objects.
    pub sealing: Sealing,
    /// The keys that open stored ones.
    pub keys: KeyRing,
}

/// How a push ended. Either way the object is durable.
#[derive(Clone, Debug)]
pub enum Pushed {
    /// The object is new.
    Archived(Encoded),
    /// The same content was stored before.
    AlreadyArchived(StoredObject),
}

/// Archives `file` under its name.
pub fn push_file(
    file: &ArchiveFile,
    repository: &Repository,
    cluster: &ClusterName,
    writing: &Writing,
) -> Result<Pushed, PushError> {
    let encoded = encode_file(file, repository, cluster, writing, Crew::Whole, &mut |_| ())?;
    encoded.publish(file, repository, &writing.keys)
}

/// Who encodes.
#[derive(Debug)]
pub enum Crew<'a> {
    /// As many threads as [`Writing::sealing`] says, and the calling one reads: one file is done soonest so.
    Whole,
    /// The calling thread: several files at once are done soonest so.
    Alone(&'a mut EncodeKit),
}

/// A file that was read, checked and encoded, and that is not durable yet.
pub struct EncodedFile {
    key: ObjectKey,
    publication: Publication,
    encoded: Encoded,
    last_commit: Option<PgTimestamp>,
}

/// The first half of [`push_file`]: all the work on the file's bytes. `grown` is told, before it happens, how much will be held in memory until the store has it.
pub fn encode_file(
    file: &ArchiveFile,
    repository: &Repository,
    cluster: &ClusterName,
    writing: &Writing,
    crew: Crew<'_>,
    grown: &mut dyn FnMut(u64),
) -> Result<EncodedFile, PushError> {
    let key = keys::wal(cluster, file.system_identifier(), file.name);
    let naming = naming_of(file.name);
    let mut publication =
        repository.publish(&key, naming, file.length().saturating_add(ENVELOPE_ALLOWANCE))?;
    let source = FileChunks { file, position: 0, scanner: scanner_for(file) };
    let last_commit = Cell::new(None);
    let index = |source: FileChunks<'_>| source.into_index(&last_commit);
    let (facts, sealing) = (&file.facts, &writing.sealing);
    let sink = &mut Watched { publication: &mut publication, written: 0, repository, grown };
    let encoded = match crew {
        Crew::Whole => encode_object(source, facts, &key, sealing, index, sink),
        Crew::Alone(kit) => encode_object_alone(source, facts, &key, sealing, kit, index, sink),
    }?;
    file.check_unchanged()?;
    Ok(EncodedFile { key, publication, encoded, last_commit: last_commit.get() })
}

/// A publication that says how large it becomes.
struct Watched<'a> {
    publication: &'a mut Publication,
    written: u64,
    repository: &'a Repository,
    grown: &'a mut dyn FnMut(u64),
}

impl ObjectSink for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.written += bytes.len() as u64;
        (self.grown)(held_of(self.written, self.repository));
        self.publication.write(bytes)
    }
}

/// How much of so many encoded bytes is held in memory: a directory takes them at once.
fn held_of(encoded: u64, repository: &Repository) -> u64 {
    if repository.is_directory() { 0 } else { encoded.min(MOST_HELD as u64) }
}

impl EncodedFile {
    /// The time of the last commit in it.
    pub fn last_commit(&self) -> Option<PgTimestamp> {
        self.last_commit
    }

    /// Bytes that are held in memory until the store has them.
    pub fn held(&self, repository: &Repository) -> u64 {
        held_of(self.encoded.stored_length, repository)
    }

    /// The second half of [`push_file`]: waits for the store. Durable when this returns `Ok`.
    pub fn publish(
        self,
        file: &ArchiveFile,
        repository: &Repository,
        keys: &KeyRing,
    ) -> Result<Pushed, PushError> {
        let EncodedFile { key, publication, encoded, .. } = self;
        kill_point("push: before publish");
        let published = publication.finish(&encoded.digest)?;
        kill_point("push: after publish");
        match published {
            Published::Created => Ok(Pushed::Archived(encoded)),
            Published::Exists(stored) => {
                compare_with_stored(file, repository, &key, &encoded, &stored, keys)?;
                Ok(Pushed::AlreadyArchived(stored))
            }
        }
    }
}

/// Two standbys promoted from one segment leave different, legitimate partial segments; every other name has one content.
pub fn naming_of(name: ArchiveFileName) -> Naming {
    match name {
        ArchiveFileName::Partial(_) => Naming::AlwaysSuffixed,
        ArchiveFileName::Segment(_)
        | ArchiveFileName::TimelineHistory(_)
        | ArchiveFileName::BackupHistory { .. } => Naming::ByStore,
    }
}

/// Succeeds if the stored object is intact and holds the same bytes.
fn compare_with_stored(
    file: &ArchiveFile,
    repository: &Repository,
    key: &ObjectKey,
    encoded: &Encoded,
    stored: &StoredObject,
    keys: &KeyRing,
) -> Result<(), PushError> {
    let tail = read_stored(file, repository, key, stored, keys)
        .map_err(|source| PushError::StoredUnreadable { path: stored.path.clone(), source })?;
    if tail.is_of(encoded.digest, encoded.plaintext_length) {
        return Ok(());
    }
    Err(PushError::Conflict { name: file.name, path: stored.path.clone(), url: repository.url().to_owned() })
}

/// In a directory the whole object is read: that costs little, and a disk that lost a part of it shows. A store that verified the
/// upload's checksum is believed after the object's end, so that repeated pushes don't download an archive.
fn read_stored(
    file: &ArchiveFile,
    repository: &Repository,
    key: &ObjectKey,
    stored: &StoredObject,
    keys: &KeyRing,
) -> Result<ObjectTail, DecodeError> {
    let source = RepositoryObject { repository, object: stored };
    let expected = Expected { facts: &file.facts, key };
    if repository.is_directory() {
        decode_object(&source, &expected, keys, &mut |_| Ok(()))
    } else {
        read_tail(&source, &expected, keys)
    }
}

/// WAL of a server newer than this walhold can't be understood: it is archived without an index.
fn scanner_for(file: &ArchiveFile) -> Option<SegmentScanner> {
    let header = file.header.as_ref().filter(|header| header.postgresql_major().is_some())?;
    match file.name {
        ArchiveFileName::Segment(segment) => Some(SegmentScanner::new(segment, header)),
        ArchiveFileName::Partial(segment) => Some(SegmentScanner::of_partial(segment, header)),
        ArchiveFileName::TimelineHistory(_) | ArchiveFileName::BackupHistory { .. } => None,
    }
}

/// The one read pass over a file: every chunk goes to the scanner and on to the encoder.
struct FileChunks<'a> {
    file: &'a ArchiveFile,
    position: u64,
    scanner: Option<SegmentScanner>,
}

impl FileChunks<'_> {
    /// What the pass learned. Damage is archived all the same, because refusing it would fill pg_wal and save nothing, but it is said.
    fn into_index(self, last_commit: &Cell<Option<PgTimestamp>>) -> Vec<u8> {
        let Some(scanner) = self.scanner else { return Vec::new() };
        let index = scanner.finish();
        if let RecordVerdict::Damaged { at, problem } = &index.verdict {
            tracing::warn!(
                "{} is damaged: at {at}: {problem}; it is archived as it is, but recovery cannot go beyond {at}: take a new base backup now and check this server's disk and memory",
                self.file.name
            );
        }
        last_commit.set(index.transactions.and_then(|span| span.last_commit).map(|end| end.time));
        index.encode()
    }
}

impl ChunkSource for FileChunks<'_> {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        stop_if_asked()?;
        let left = self.file.length().saturating_sub(self.position);
        let length = left.min(CHUNK_SIZE as u64);
        chunk.resize(length as usize, 0);
        // In pieces that are still in the core's own cache when the scanner comes.
        for piece in chunk.chunks_mut(READ_PIECE) {
            self.file.read_at(self.position, piece).map_err(|error| Box::new(error) as SinkError)?;
            if let Some(scanner) = &mut self.scanner {
                scanner.feed(piece);
            }
            self.position += piece.len() as u64;
        }
        if self.position > self.file.length() / 2 {
            kill_point("push: mid-write");
        }
        Ok(self.position >= self.file.length())
    }
}

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The file changed or could not be read.
    #[error(transparent)]
    File(#[from] ArchiveFileError),
    /// Reading, encoding or writing failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// No thread could be started.
    #[error("start a thread: {}", system_words(.0))]
    Thread(std::io::Error),
    /// A thread ended without a word: a mistake in walhold, logged where it happened.
    #[error("internal error: the thread that published the file died")]
    Died,
    /// Another content lies under this name.
    #[error("archive {name}: {path} in {url} holds other content under this name; it was not touched")]
    Conflict {
        /// The file's name.
        name: ArchiveFileName,
        /// The stored object.
        path: String,
        /// Without secrets.
        url: String,
    },
    /// Something lies under this name that can't be compared.
    #[error("compare with {path}, which is stored under this name already: {source}")]
    StoredUnreadable {
        /// The stored object.
        path: String,
        /// Why not.
        source: DecodeError,
    },
}

impl Explain for PushError {
    fn exit_cause(&self) -> Cause {
        match self {
            PushError::File(error) => error.exit_cause(),
            PushError::Encode(error) => error.exit_cause(),
            PushError::Repository(error) => error.exit_cause(),
            PushError::Thread(_) | PushError::Died => Cause::Internal,
            PushError::Conflict { .. } => Cause::Conflict,
            PushError::StoredUnreadable { source, .. } => source.exit_cause(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            PushError::File(error) => error.hint(),
            PushError::Encode(error) => error.hint(),
            PushError::Repository(error) => error.hint(),
            PushError::Thread(_) => {
                Some("the system's limit of processes or of memory is reached; PostgreSQL will try again".to_owned())
            }
            PushError::Died => None,
            PushError::Conflict { .. } => Some(
                "two servers archive to one place, or this one was rolled back and wrote its WAL anew: fetch the stored file and compare with pg_waldump; give each server its own WALHOLD_CLUSTER"
                    .to_owned(),
            ),
            PushError::StoredUnreadable { source: DecodeError::Damaged { .. }, .. } => Some(
                "the stored object is damaged and was not touched: move it out of the repository, and PostgreSQL's next attempt archives the file again"
                    .to_owned(),
            ),
            PushError::StoredUnreadable { source, .. } => source.hint(),
        }
    }
}
