//! Writing objects.

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::envelope::ObjectFacts;
use crate::format::{Digest, ObjectKey};

use super::{KeyId, Sealing};

/// Where an object's stored bytes go, in order: a publication, or memory.
pub trait ObjectSink {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
}

impl ObjectSink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// A sink's own error, kept whole so that its cause and hint reach the operator.
pub type SinkError = Box<dyn Explain + Send + Sync>;

/// Where an object's plaintext comes from, one chunk after another.
pub trait ChunkSource {
    /// Fills `chunk` (cleared by the caller) with exactly [`crate::format::envelope::CHUNK_SIZE`] bytes, fewer only for the last
    /// chunk. Returns whether this was the last chunk; an empty object has one empty last chunk.
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError>;
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// BLAKE3 of the whole plaintext.
    pub digest: Digest,
    /// Bytes of plaintext.
    pub plaintext_length: u64,
    /// Bytes as stored.
    pub stored_length: u64,
}

/// Encodes a whole object in parallel: the source is read once, on the calling thread, in order; worker
/// threads compress, encrypt and digest; `sink` gets the bytes in order on the calling thread.
///
/// `index` is asked for after the last chunk, so that it can hold what the source learned on the way; it gets
/// the source back.
pub fn encode_object<S: ChunkSource>(
    _source: S,
    _facts: &ObjectFacts,
    _key: &ObjectKey,
    _sealing: &Sealing,
    _index: impl FnOnce(S) -> Vec<u8>,
    _sink: &mut dyn ObjectSink,
) -> Result<Encoded, EncodeError> {
    todo!()
}

/// Where one chunk lies in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLocation {
    /// 0 for the first chunk.
    pub number: u32,
    /// Offset in the object of the stored chunk's first byte, its own prefix included.
    pub offset: u64,
    /// Stored bytes, prefix included.
    pub stored_length: u32,
    /// Plaintext bytes.
    pub plaintext_length: u32,
}

/// Writes one object chunk by chunk on the calling thread: how each backup job writes its pack.
pub struct ObjectWriter<K: ObjectSink> {
    sink: K,
}

impl<K: ObjectSink> ObjectWriter<K> {
    /// Begins an object: writes its header.
    pub fn new(
        _facts: &ObjectFacts,
        _key: &ObjectKey,
        _sealing: &Sealing,
        _sink: K,
    ) -> Result<Self, EncodeError> {
        todo!()
    }

    /// Compresses, encrypts and writes one chunk of 1 to [`crate::format::envelope::MAX_CHUNK_SIZE`] bytes.
    pub fn write_chunk(&mut self, _plaintext: &[u8]) -> Result<ChunkLocation, EncodeError> {
        todo!()
    }

    /// Bytes written so far.
    pub fn stored_length(&self) -> u64 {
        todo!()
    }

    /// What a manifest must know to read this object's chunks without reading its header.
    pub fn salt_and_key(&self) -> ([u8; 32], Option<KeyId>) {
        todo!()
    }

    /// Ends the object: writes its index and footer, and gives the sink back to be published.
    pub fn finish(self, _index: &[u8]) -> Result<(Encoded, K), EncodeError> {
        let _ = self.sink;
        todo!()
    }
}

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The source failed.
    #[error("{0}")]
    Source(SinkError),
    /// The sink failed.
    #[error("{0}")]
    Sink(SinkError),
    /// zstd or the cipher failed, or the system gave no randomness.
    #[error("encode object {key}: {problem}")]
    Codec {
        /// The object.
        key: String,
        /// What failed.
        problem: String,
    },
}

impl Explain for EncodeError {
    fn exit_cause(&self) -> Cause {
        match self {
            EncodeError::Source(error) | EncodeError::Sink(error) => error.exit_cause(),
            EncodeError::Codec { .. } => Cause::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            EncodeError::Source(error) | EncodeError::Sink(error) => error.hint(),
            EncodeError::Codec { .. } => None,
        }
    }
}
