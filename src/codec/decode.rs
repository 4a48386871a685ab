//! Reading objects back: everything that comes out was checked.

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::envelope::ObjectFacts;
use crate::format::{Digest, ObjectKey};

use super::encode::SinkError;
use super::{Compression, KeyId, KeyRing};

/// Random access to a stored object's bytes: a repository object, or memory.
pub trait ObjectSource: Sync {
    /// Bytes as stored.
    fn stored_length(&self) -> u64;
    /// Exactly `length` bytes from `offset`; an error if the object is shorter.
    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError>;
}

/// What a reader requires an object to be. Anything else is refused before a byte is delivered.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// Kind, name, system identifier; a segment size is compared if both sides know it.
    pub facts: &'a ObjectFacts,
    /// The key that it was stored under; encryption authenticates it.
    pub key: &'a ObjectKey,
}

/// An object's end, read and checked: what it holds, without its chunks.
#[derive(Clone, Debug)]
pub struct ObjectTail {
    /// What the object says it is.
    pub facts: ObjectFacts,
    /// BLAKE3 of the plaintext.
    pub digest: Digest,
    /// Bytes of plaintext.
    pub plaintext_length: u64,
    /// Bytes as stored.
    pub stored_length: u64,
    /// The key that it is encrypted with.
    pub key_id: Option<KeyId>,
    /// What the writer put into the index (a WAL index, a manifest's summary); may be empty.
    pub index: Vec<u8>,
}

/// Reads header, index and footer of an object with at most three small range reads (one for objects below 64 KiB).
pub fn read_tail(
    _source: &dyn ObjectSource,
    _expected: &Expected<'_>,
    _keys: &KeyRing,
) -> Result<ObjectTail, DecodeError> {
    todo!()
}

/// Decodes a whole object, chunks in parallel, into `deliver`, in order. The stored bytes are read once, from
/// front to back, in ranges of some MiB. Nothing may be relied on before this has returned `Ok`:
/// length and digest are only known to be right then.
pub fn decode_object(
    _source: &dyn ObjectSource,
    _expected: &Expected<'_>,
    _keys: &KeyRing,
    _deliver: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
) -> Result<ObjectTail, DecodeError> {
    todo!()
}

/// What a manifest knows about a pack: enough to open any of its chunks alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFacts {
    /// The pack's header facts.
    pub facts: ObjectFacts,
    /// The pack's key.
    pub key: ObjectKey,
    /// How it was compressed (part of the header that encryption authenticates).
    pub compression: Compression,
    /// The key that it is encrypted with.
    pub key_id: Option<KeyId>,
    /// Its salt.
    pub salt: [u8; 32],
}

/// Opens single chunks of one pack; cheap to make per thread, reuses its zstd context.
pub struct ChunkOpener {
    _private: (),
}

impl ChunkOpener {
    /// An opener for the chunks of this pack.
    pub fn new(_pack: &PackFacts, _keys: &KeyRing) -> Result<ChunkOpener, DecodeError> {
        todo!()
    }

    /// Opens stored chunk `number` (prefix included, as [`super::encode::ChunkLocation`] says) into `plaintext`, which is
    /// cleared first and must come out `plaintext_length` long.
    pub fn open(
        &mut self,
        _number: u32,
        _stored: &[u8],
        _plaintext_length: u32,
        _plaintext: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        todo!()
    }
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Reading failed.
    #[error("{0}")]
    Source(SinkError),
    /// Delivering failed.
    #[error("{0}")]
    Sink(SinkError),
    /// The object is not intact.
    #[error("object {key} is damaged: {problem}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The object is intact but is not the one that this key should hold.
    #[error("object {key} is not what its name says: {problem}")]
    OtherObject {
        /// The object.
        key: String,
        /// What differs.
        problem: String,
    },
    /// The object belongs to another cluster.
    #[error("object {key} belongs to another cluster: {problem}")]
    OtherCluster {
        /// The object.
        key: String,
        /// Both identifiers.
        problem: String,
    },
    /// Encrypted with a key that is not configured.
    #[error("object {key} is encrypted with key {key_id}, which is not configured")]
    KeyMissing {
        /// The object.
        key: String,
        /// The key's id, hexadecimal.
        key_id: String,
    },
    /// Plain, although encryption is configured.
    #[error("object {key} is not encrypted, although a key is configured")]
    NotEncrypted {
        /// The object.
        key: String,
    },
    /// Written by a newer walhold.
    #[error("object {key} has format version {version}; this walhold reads up to version 1")]
    NewerVersion {
        /// The object.
        key: String,
        /// Its version.
        version: u16,
    },
}

impl Explain for DecodeError {
    fn exit_cause(&self) -> Cause {
        match self {
            DecodeError::Source(error) | DecodeError::Sink(error) => error.exit_cause(),
            DecodeError::Damaged { .. }
            | DecodeError::OtherObject { .. }
            | DecodeError::NewerVersion { .. } => Cause::Damaged,
            DecodeError::OtherCluster { .. } => Cause::OtherCluster,
            DecodeError::KeyMissing { .. } | DecodeError::NotEncrypted { .. } => Cause::Key,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            DecodeError::Source(error) | DecodeError::Sink(error) => error.hint(),
            DecodeError::Damaged { .. } | DecodeError::OtherObject { .. } => {
                Some("restore this object from a copy of the repository, or recover to a moment that does not need it".to_owned())
            }
            DecodeError::OtherCluster { .. } => Some("check WALHOLD_CLUSTER and PGDATA: two clusters may share a name".to_owned()),
            DecodeError::KeyMissing { .. } => Some("add the key's file to [encryption] key_file; all listed keys read".to_owned()),
            DecodeError::NotEncrypted { .. } => {
                Some("somebody without the key wrote it, or it predates encryption: unset the key to read it".to_owned())
            }
            DecodeError::NewerVersion { .. } => Some("upgrade walhold".to_owned()),
        }
    }
}
