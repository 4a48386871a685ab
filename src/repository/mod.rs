//! The repository: the only part that talks to a store.
//!
//! Everything above sees typed keys, create-only publishing, retried reads and listings, in blocking calls. A
//! `file://` repository is served by [`directory`] without any runtime; S3, GCS and Azure by [`cloud`] through
//! object_store on a small runtime of its own.

pub mod cloud;
pub mod connect;
pub mod directory;
pub mod init;
pub mod publish;
pub mod read;
pub mod retry;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::codec::encode::{ObjectSink, SinkError};
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::marker::{CreateOnly, Marker};
use crate::format::{Digest, ObjectKey};

/// Where the repository is and how to get there.
#[derive(Clone)]
pub struct RepositorySettings {
    /// `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// object_store keys passed through (`[repository.options]`); values may be secrets.
    pub options: BTreeMap<String, String>,
}

/// How long a failing store is asked again.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Every request of this handle must be done by then: one segment's push or fetch.
    Until(Instant),
    /// Each request has this long: backups and restores, which have no end of their own.
    PerRequest(Duration),
}

/// An open repository. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Repository {
    _private: (),
}

/// An object as the store reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// The key without suffix: what the object claims to be.
    pub key: ObjectKey,
    /// The path it really lies under: `key`, or `key` plus `.` and 32 hexadecimal digits.
    pub path: String,
    /// Bytes as stored.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: jiff::Timestamp,
}

/// Whether an object's key carries its digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    /// Plain where the store enforces create-only, suffixed where it does not.
    ByStore,
    /// Suffixed everywhere: `.partial` files.
    AlwaysSuffixed,
    /// Plain everywhere: packs, whose keys belong to one backup, and the marker.
    Unique,
}

/// How a publication ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The object is durable and new.
    Created,
    /// Something is stored under this key already (perhaps by an attempt of ours whose answer was lost); it was
    /// not touched, and is durable (a directory is synced again). The caller compares.
    Exists(StoredObject),
}

/// An object on its way into the repository. Dropped unfinished, it leaves nothing behind.
pub struct Publication {
    _private: (),
}

impl ObjectSink for Publication {
    fn write(&mut self, _bytes: &[u8]) -> Result<(), SinkError> {
        todo!()
    }
}

impl Publication {
    /// Makes the object durable and visible, unless something lies under its key already. `digest` is the
    /// plaintext's: suffixed keys carry it.
    pub fn finish(self, _digest: &Digest) -> Result<Published, RepositoryError> {
        todo!()
    }
}

impl Repository {
    /// Connects and reads the marker. Fails with [`RepositoryError::NoMarker`] where there is none.
    pub fn open(_settings: &RepositorySettings, _patience: Patience) -> Result<Repository, RepositoryError> {
        todo!()
    }

    /// The same connections under another patience.
    pub fn with_patience(&self, _patience: Patience) -> Repository {
        todo!()
    }

    /// What `open` read.
    pub fn marker(&self) -> &Marker {
        todo!()
    }

    /// Reads the marker again: promise 3's proof that the repository itself answers.
    pub fn prove_present(&self) -> Result<(), RepositoryError> {
        todo!()
    }

    /// The URL for messages, without secrets.
    pub fn url(&self) -> &str {
        todo!()
    }

    /// True for `file://`: readers may then expect local speed and writers local syncs.
    pub fn is_directory(&self) -> bool {
        todo!()
    }

    /// Begins an object. `expected_length` (stored bytes, an upper guess) lets small ones go out as one request.
    pub fn publish(
        &self,
        _key: &ObjectKey,
        _naming: Naming,
        _expected_length: u64,
    ) -> Result<Publication, RepositoryError> {
        todo!()
    }

    /// Publishes a small object whole. The suffix, where needed, is the digest of `bytes`.
    pub fn put(
        &self,
        _key: &ObjectKey,
        _naming: Naming,
        _bytes: &[u8],
    ) -> Result<Published, RepositoryError> {
        todo!()
    }

    /// The object under this key, `None` if the store says there is none (which proves nothing about the
    /// repository: see [`Repository::prove_present`]). Two different objects of one key are an error.
    pub fn find(&self, _key: &ObjectKey, _naming: Naming) -> Result<Option<StoredObject>, RepositoryError> {
        todo!()
    }

    /// Exactly `length` bytes from `offset`.
    pub fn read_range(
        &self,
        _object: &StoredObject,
        _offset: u64,
        _length: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        todo!()
    }

    /// A small object whole (records, at most 16 MiB).
    pub fn read(&self, _object: &StoredObject) -> Result<Vec<u8>, RepositoryError> {
        todo!()
    }

    /// The object under `key` found and its first bytes read in as few round trips as the store allows (one where
    /// names are plain): the object, and its first `length` bytes or all of it if it is shorter.
    pub fn find_and_read(
        &self,
        _key: &ObjectKey,
        _naming: Naming,
        _length: usize,
    ) -> Result<Option<(StoredObject, Vec<u8>)>, RepositoryError> {
        todo!()
    }

    /// Everything below a folder, however deep, in path order; temporary objects of publications under way are
    /// not listed.
    pub fn list(&self, _folder: &str) -> Result<Vec<StoredObject>, RepositoryError> {
        todo!()
    }

    /// The names of the folders directly below a folder, in order.
    pub fn list_folders(&self, _folder: &str) -> Result<Vec<String>, RepositoryError> {
        todo!()
    }

    /// Deletes one object; success if it is already gone. Only `expire` and cleaning up after oneself call this.
    pub fn delete(&self, _object: &StoredObject) -> Result<(), RepositoryError> {
        todo!()
    }
}

/// A [`StoredObject`] with its repository, as a decoder reads it.
pub struct RepositoryObject<'a> {
    /// Where it is.
    pub repository: &'a Repository,
    /// Which it is.
    pub object: &'a StoredObject,
}

impl crate::codec::decode::ObjectSource for RepositoryObject<'_> {
    fn stored_length(&self) -> u64 {
        self.object.size
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        self.repository.read_range(self.object, offset, length).map_err(|error| Box::new(error) as SinkError)
    }
}

/// Why the repository could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The URL or an option cannot be used.
    #[error("repository {url}: {problem}")]
    Address {
        /// Without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The marker is not there.
    #[error("no walhold repository at {url}: walhold.json is not there")]
    NoMarker {
        /// Without secrets.
        url: String,
    },
    /// The marker is there but cannot be used.
    #[error("the marker of repository {url} cannot be used: {problem}")]
    BadMarker {
        /// Without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// An object that was there is gone.
    #[error("{verb} {key}: it is not there")]
    Missing {
        /// "read", "list", …
        verb: &'static str,
        /// The object.
        key: String,
    },
    /// Permissions or credentials.
    #[error("{verb} {key}: the store refuses: {problem}")]
    Denied {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The store's words.
        problem: String,
    },
    /// No space.
    #[error("{verb} {key}: the store is full: {problem}")]
    Full {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The store's words.
        problem: String,
    },
    /// Could not be had before the deadline.
    #[error("{verb} {key}: gave up after {attempts} attempts in {elapsed:.1?}: {problem}")]
    Unreachable {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The last failure.
        problem: String,
        /// How often.
        attempts: u32,
        /// For how long.
        elapsed: Duration,
    },
    /// The object is shorter than what was asked for, or the store lies about it.
    #[error("{verb} {key}: {problem}")]
    Damaged {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Two objects claim one key.
    #[error("two different objects are stored as {key}: {first} and {second}")]
    TwoObjects {
        /// The key.
        key: String,
        /// One path.
        first: String,
        /// The other.
        second: String,
    },
}

impl Explain for RepositoryError {
    fn exit_cause(&self) -> Cause {
        match self {
            RepositoryError::Address { .. } => Cause::Configuration,
            RepositoryError::NoMarker { .. } => Cause::NoRepository,
            RepositoryError::BadMarker { .. }
            | RepositoryError::Damaged { .. }
            | RepositoryError::Missing { .. } => Cause::Damaged,
            RepositoryError::Denied { .. } => Cause::Denied,
            RepositoryError::Full { .. } => Cause::RepositoryFull,
            RepositoryError::Unreachable { .. } => Cause::Unreachable,
            RepositoryError::TwoObjects { .. } => Cause::Conflict,
        }
    }
}

/// Creates a repository, or finds that it exists already.
pub fn init(_settings: &RepositorySettings, _patience: Patience) -> Result<InitReport, RepositoryError> {
    todo!()
}

/// What `init` did and found.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The marker, new or found.
    pub marker: Marker,
    /// False if the repository existed already.
    pub created: bool,
    /// What the probe found now.
    pub create_only: CreateOnly,
}
