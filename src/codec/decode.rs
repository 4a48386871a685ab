//! Reading objects back: everything that comes out was checked.
//!
//! In: stored bytes that may be anything, and what they must be. Out: plaintext, in order, or an error. Memory is
//! bounded by the read size and the chunk size, whatever lengths the bytes claim.

use std::sync::Mutex;
use std::thread::available_parallelism;

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::envelope::{
    CHUNK_PREFIX_SIZE, ChunkLengths, ChunkPrefix, FOOTER_SIZE, FRAME_HEADER_SIZE, Frame, Header, ObjectFacts,
};
use crate::format::{Digest, ObjectKey};

use super::crew::{Crew, CrewError, Worker};
use super::encode::SinkError;
use super::open::{OpenPlan, PartOpener, codec_failed, damaged, refuse, split_chunk, split_end};
use super::stored_stream::{Piece, StoredStream, StreamError};
use super::tail::cut_off;
pub use super::tail::{ObjectTail, StoredLayout, read_tail};
use super::tree_hash::{Subtree, TreeDigest};
use super::{Compression, KeyId, KeyRing};

/// Random access to a stored object's bytes: a repository object, or memory.
pub trait ObjectSource: Sync {
    /// Bytes as stored.
    fn stored_length(&self) -> u64;
    /// Exactly `length` bytes from `offset`; an error if the object is shorter.
    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError>;
    /// [`ObjectSource::read_range`] that may use `spare`, whose contents nobody needs any more, for what it returns.
    fn read_range_reusing(&self, offset: u64, length: usize, spare: Vec<u8>) -> Result<Vec<u8>, SinkError> {
        drop(spare);
        self.read_range(offset, length)
    }
    /// Bytes per request when the object is read from front to back.
    fn read_size(&self) -> usize {
        READ_SIZE
    }
}

/// Large enough that a far store's latency is paid seldom, small enough for two of them in memory.
pub const READ_SIZE: usize = 2 << 20;

/// An object whose first bytes are in memory already, because finding it brought them along.
pub struct WithPrefix<'a> {
    first: Mutex<Vec<u8>>,
    first_length: u64,
    rest: &'a dyn ObjectSource,
}

impl<'a> WithPrefix<'a> {
    /// `first` are the object's first bytes, at most all of them; everything else comes from `rest`.
    pub fn new(first: Vec<u8>, rest: &'a dyn ObjectSource) -> WithPrefix<'a> {
        let first_length = first.len() as u64;
        WithPrefix { first: Mutex::new(first), first_length, rest }
    }
}

impl ObjectSource for WithPrefix<'_> {
    fn stored_length(&self) -> u64 {
        self.rest.stored_length()
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        let mut first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let whole = offset == 0 && length as u64 == self.first_length;
        if whole && first.len() == length {
            // Reading from front to back asks once: hand the bytes over instead of copying them.
            return Ok(std::mem::take(&mut *first));
        }
        let available =
            usize::try_from(offset).ok().and_then(|offset| first.get(offset..)).unwrap_or_default();
        if available.is_empty() {
            drop(first);
            return self.rest.read_range(offset, length);
        }
        let part = available.get(..length).unwrap_or(available);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(part);
        if bytes.len() < length {
            let from = offset + bytes.len() as u64;
            bytes.extend_from_slice(&self.rest.read_range(from, length - bytes.len())?);
        }
        Ok(bytes)
    }
}

/// What a reader requires an object to be. Anything else is refused before a byte is delivered.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// Kind, name, system identifier; a segment size is compared if both sides know it.
    pub facts: &'a ObjectFacts,
    /// The key that it was stored under; encryption authenticates it.
    pub key: &'a ObjectKey,
}

/// Decodes a whole object, chunks in parallel, into `deliver`, in order. The stored bytes are read once, from
/// front to back, in ranges of some MiB. Nothing may be relied on before this has returned `Ok`:
/// length and digest are only known to be right then.
pub fn decode_object(
    source: &dyn ObjectSource,
    expected: &Expected<'_>,
    keys: &KeyRing,
    deliver: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
) -> Result<ObjectTail, DecodeError> {
    let workers = available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    decode_with_workers(source, expected, keys, workers, deliver)
}

/// Enough for what one object's stored bytes can be read with; more would only hold more memory.
const MAX_WORKERS: usize = 4;

/// [`decode_object`] with this many worker threads.
pub fn decode_with_workers(
    source: &dyn ObjectSource,
    expected: &Expected<'_>,
    keys: &KeyRing,
    workers: usize,
    deliver: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
) -> Result<ObjectTail, DecodeError> {
    std::thread::scope(|scope| {
        let stream_failed = |error: StreamError| error.into_decode_error(expected.key);
        let crew_failed = |error: CrewError| codec_failed(expected.key, error.to_string());
        if source.stored_length() == 0 {
            return Err(damaged(expected.key, cut_off(0)));
        }
        let mut stream = StoredStream::start(scope, source).map_err(stream_failed)?;
        let plan = OpenPlan::new(&read_header(&mut stream, expected.key)?, expected, keys)?;
        let digest = match plan.regular_chunk_size() {
            Some(_) => WholeDigest::Tree(TreeDigest::default()),
            None => WholeDigest::Sequential(Box::default()),
        };
        let make_worker = {
            let (plan, key) = (plan.clone(), expected.key.clone());
            move || OpenWorker { plan: plan.clone(), key: key.clone(), opener: None }
        };
        let mut crew = Crew::new(scope, workers, make_worker.clone());
        let mut delivery = Delivery {
            key: expected.key,
            plan: &plan,
            digest,
            chunks: Vec::new(),
            spare: Vec::new(),
            deliver,
        };
        let mut chunks = StoredChunks { stream, key: expected.key, number: 0, index_length: None };

        // The last chunk is held back: if it is the only one, no thread is worth starting.
        let mut held: Option<Job> = None;
        loop {
            // A wait for the store is the time to deliver; a full window leaves no choice.
            let full = crew.under_way() >= crew.window();
            if full || (crew.under_way() > 0 && chunks.must_wait()) {
                let opened = crew.take().map_err(crew_failed)?;
                delivery.accept(opened)?;
                continue;
            }
            let Some((number, prefix, payload)) = chunks.next()? else { break };
            let job = Job { number, prefix, payload, plaintext: delivery.spare.pop().unwrap_or_default() };
            if let Some(previous) = held.replace(job) {
                crew.submit(previous).map_err(crew_failed)?;
            }
        }
        if let Some(last) = held {
            if crew.is_idle() {
                delivery.accept(make_worker().work(last))?;
            } else {
                crew.submit(last).map_err(crew_failed)?;
            }
        }
        while crew.under_way() > 0 {
            let opened = crew.take().map_err(crew_failed)?;
            delivery.accept(opened)?;
        }
        let end = chunks.end()?;
        delivery.finish(&end, source.stored_length())
    })
}

/// The header frame at the object's begin.
fn read_header(stream: &mut StoredStream<'_>, key: &ObjectKey) -> Result<Vec<u8>, DecodeError> {
    let failed = |error: StreamError| error.into_decode_error(key);
    let first: [u8; FRAME_HEADER_SIZE] = stream.take_array().map_err(failed)?;
    match Frame::parse(&first) {
        Ok(Frame::Header(length)) => {
            let rest = stream.take(length - FRAME_HEADER_SIZE).map_err(failed)?;
            Ok([&first, &*rest].concat())
        }
        _ => Err(damaged(key, "it does not begin with a walhold header")),
    }
}

/// The chunks as they come from the store.
struct StoredChunks<'a, 'env> {
    stream: StoredStream<'env>,
    key: &'a ObjectKey,
    number: u32,
    /// Bytes of the index frame, once it was reached.
    index_length: Option<([u8; FRAME_HEADER_SIZE], usize)>,
}

impl StoredChunks<'_, '_> {
    /// True if the next chunk can't be had without waiting for the store.
    fn must_wait(&mut self) -> bool {
        let prefix = self.stream.peek().and_then(|prefix| ChunkPrefix::parse(prefix).ok());
        let payload = prefix.map_or(0, |prefix| prefix.payload_length as usize);
        self.stream.must_wait(CHUNK_PREFIX_SIZE + payload)
    }

    fn next(&mut self) -> Result<Option<(u32, ChunkPrefix, Piece)>, DecodeError> {
        let failed = |error: StreamError| error.into_decode_error(self.key);
        let frame: [u8; FRAME_HEADER_SIZE] = self.stream.take_array().map_err(failed)?;
        match Frame::parse(&frame).map_err(|error| refuse(self.key, error))? {
            Frame::ChunkPrefix => {
                let rest: [u8; CHUNK_PREFIX_SIZE - FRAME_HEADER_SIZE] =
                    self.stream.take_array().map_err(failed)?;
                let mut prefix = [0; CHUNK_PREFIX_SIZE];
                prefix[..FRAME_HEADER_SIZE].copy_from_slice(&frame);
                prefix[FRAME_HEADER_SIZE..].copy_from_slice(&rest);
                let prefix = ChunkPrefix::parse(&prefix).map_err(|error| refuse(self.key, error))?;
                let payload = self.stream.take(prefix.payload_length as usize).map_err(failed)?;
                let number = self.number;
                self.number =
                    number.checked_add(1).ok_or_else(|| damaged(self.key, "it has too many chunks"))?;
                Ok(Some((number, prefix, payload)))
            }
            Frame::Index(length) => {
                self.index_length = Some((frame, length));
                Ok(None)
            }
            Frame::Header(_) | Frame::Footer => Err(damaged(self.key, "its parts are out of order")),
        }
    }

    /// Everything from the index frame on.
    fn end(mut self) -> Result<Vec<u8>, DecodeError> {
        let failed = |error: StreamError| error.into_decode_error(self.key);
        let Some((frame, length)) = self.index_length else {
            return Err(damaged(self.key, "it has no index"));
        };
        let rest = (length - FRAME_HEADER_SIZE) + FOOTER_SIZE;
        if self.stream.remaining() != rest as u64 {
            return Err(damaged(self.key, "it is cut off, or something follows it"));
        }
        let rest = self.stream.take(rest).map_err(failed)?;
        Ok([&frame, &*rest].concat())
    }
}

/// A chunk on its way through a worker; the plaintext buffer goes round and round.
struct Job {
    number: u32,
    prefix: ChunkPrefix,
    payload: Piece,
    plaintext: Vec<u8>,
}

struct Opened {
    number: u32,
    stored: u32,
    plaintext: Vec<u8>,
    /// `None` where chunks differ in size.
    subtree: Option<Subtree>,
    result: Result<(), DecodeError>,
}

struct OpenWorker {
    plan: OpenPlan,
    key: ObjectKey,
    opener: Option<PartOpener>,
}

impl Worker<Job, Opened> for OpenWorker {
    fn work(&mut self, job: Job) -> Opened {
        let Job { number, prefix, payload, mut plaintext } = job;
        let opener = match &mut self.opener {
            Some(opener) => Ok(opener),
            None => PartOpener::new(&self.plan, &self.key).map(|opener| self.opener.insert(opener)),
        };
        let result = opener.and_then(|opener| {
            let opened = opener.open_chunk(number, prefix, &payload, &mut plaintext);
            opened.map_err(|problem| damaged(&self.key, problem))
        });
        let size = self.plan.regular_chunk_size().filter(|_| result.is_ok());
        let subtree = size.map(|size| Subtree::of(number, size, &plaintext));
        Opened {
            number,
            stored: CHUNK_PREFIX_SIZE as u32 + prefix.payload_length,
            plaintext,
            subtree,
            result,
        }
    }
}

enum WholeDigest {
    Tree(TreeDigest),
    Sequential(Box<blake3::Hasher>),
}

/// The calling thread's side: order, lengths, digest.
struct Delivery<'a> {
    key: &'a ObjectKey,
    plan: &'a OpenPlan,
    digest: WholeDigest,
    chunks: Vec<ChunkLengths>,
    spare: Vec<Vec<u8>>,
    deliver: &'a mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
}

impl Delivery<'_> {
    fn accept(&mut self, opened: Opened) -> Result<(), DecodeError> {
        opened.result?;
        let number = opened.number;
        if let (Some(size), Some(previous)) = (self.plan.regular_chunk_size(), self.chunks.last()) {
            // Offsets in the digest's tree, and of ranges, follow from this.
            if previous.plaintext as usize != size {
                return Err(damaged(self.key, format!("chunk {} is short but not the last", number - 1)));
            }
        }
        if opened.plaintext.is_empty() && number > 0 {
            return Err(damaged(self.key, format!("chunk {number} is empty")));
        }
        match (&mut self.digest, opened.subtree) {
            (WholeDigest::Tree(digest), Some(subtree)) => digest.push(subtree),
            (WholeDigest::Sequential(digest), _) => {
                digest.update(&opened.plaintext);
            }
            (WholeDigest::Tree(_), None) => return Err(damaged(self.key, "a chunk was not hashed")),
        }
        self.chunks.push(ChunkLengths { stored: opened.stored, plaintext: opened.plaintext.len() as u32 });
        (self.deliver)(&opened.plaintext).map_err(DecodeError::Sink)?;
        self.spare.push(opened.plaintext);
        Ok(())
    }

    fn finish(self, end: &[u8], stored_length: u64) -> Result<ObjectTail, DecodeError> {
        let refused = |error| refuse(self.key, error);
        let (index_frame, footer) = split_end(end, stored_length).map_err(refused)?;
        let mut opener = PartOpener::new(self.plan, self.key)?;
        let end = opener.open_end(index_frame, &footer).map_err(refused)?;
        if end.chunks != self.chunks {
            return Err(damaged(self.key, "its chunks are not the ones in its table"));
        }
        let digest = match self.digest {
            WholeDigest::Tree(digest) => digest.finish(),
            WholeDigest::Sequential(digest) => Digest(*digest.finalize().as_bytes()),
        };
        if digest != end.digest {
            return Err(damaged(self.key, "its digest is not the one in its footer"));
        }
        Ok(ObjectTail {
            facts: self.plan.header.facts.clone(),
            digest,
            plaintext_length: end.plaintext_length,
            stored_length,
            key_id: self.plan.header.key_id,
            index: end.content,
            layout: StoredLayout {
                compression: self.plan.header.compression,
                salt: self.plan.header.salt,
                header_length: u64::from(footer.header_length),
                chunks: end.chunks,
            },
        })
    }
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
    key: ObjectKey,
    opener: PartOpener,
}

impl ChunkOpener {
    /// An opener for the chunks of this pack.
    pub fn new(pack: &PackFacts, keys: &KeyRing) -> Result<ChunkOpener, DecodeError> {
        let header = Header {
            facts: pack.facts.clone(),
            compression: pack.compression,
            key_id: pack.key_id,
            salt: pack.salt,
            chunk_size: 0,
        };
        let encoded = header.encode();
        let encoded =
            encoded.ok_or_else(|| damaged(&pack.key, "no pack has a header like the one recorded for it"))?;
        let plan = OpenPlan::with_header(header, &encoded, &pack.key, keys)?;
        let opener = PartOpener::new(&plan, &pack.key)?;
        Ok(ChunkOpener { key: pack.key.clone(), opener })
    }

    /// Opens stored chunk `number` (prefix included, as [`super::encode::ChunkLocation`] says) into `plaintext`, which is
    /// cleared first and must come out `plaintext_length` long.
    pub fn open(
        &mut self,
        number: u32,
        stored: &[u8],
        plaintext_length: u32,
        plaintext: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        plaintext.clear();
        let opened = split_chunk(stored).map_err(|error| refuse(&self.key, error));
        let opened = opened.and_then(|(prefix, payload)| {
            let opened = self.opener.open_chunk(number, prefix, payload, plaintext);
            opened.map_err(|problem| damaged(&self.key, problem))
        });
        let right = plaintext.len() == plaintext_length as usize;
        let opened = opened.and_then(|()| {
            let problem = || format!("chunk {number} has {} bytes, not {plaintext_length}", plaintext.len());
            if right { Ok(()) } else { Err(damaged(&self.key, problem())) }
        });
        if opened.is_err() {
            plaintext.clear();
        }
        opened
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
    /// zstd or the system failed; nothing is known about the object.
    #[error("decode object {key}: {problem}")]
    Codec {
        /// The object.
        key: String,
        /// What failed.
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

impl DecodeError {
    /// Whether it is the object that is wrong, not the way to it, a key, or where its bytes go.
    pub fn is_damage(&self) -> bool {
        match self {
            DecodeError::Damaged { .. }
            | DecodeError::OtherObject { .. }
            | DecodeError::OtherCluster { .. } => true,
            // One that became shorter since it was listed.
            DecodeError::Source(error) => error.exit_cause() == Cause::Damaged,
            _ => false,
        }
    }
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
            DecodeError::Codec { .. } => Cause::Internal,
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
            DecodeError::Codec { .. } => None,
        }
    }
}
