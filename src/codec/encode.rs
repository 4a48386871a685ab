//! Writing objects.
//!
//! In: plaintext, chunk by chunk. Out: an object in the envelope, to a sink, in order. The memory taken is a few
//! chunks per worker, whatever the object's size.

use std::thread::available_parallelism;

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::envelope::{CHUNK_SIZE, MAX_CHUNK_SIZE, ObjectFacts, ObjectKind};
use crate::format::{Digest, ObjectKey};

use super::compress::{Compression, Compressor, Effort, compressed_bound};
use super::crew::{Crew, CrewError, Worker, window};
use super::seal::{ChunkSealer, Layout, SealPlan};
use super::tree_hash::{Subtree, TreeDigest};
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
    /// Replaces what `chunk` holds, an earlier chunk or zeros, with exactly [`crate::format::envelope::CHUNK_SIZE`] bytes, fewer
    /// only for the last chunk. Returns whether this was the last chunk; an empty object has one empty last chunk.
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
    source: S,
    facts: &ObjectFacts,
    key: &ObjectKey,
    sealing: &Sealing,
    index: impl FnOnce(S) -> Vec<u8>,
    sink: &mut dyn ObjectSink,
) -> Result<Encoded, EncodeError> {
    let codec = |problem| EncodeError::Codec { key: key.to_string(), problem };
    // A pack's header has no chunk size however it was written: it must be derivable from what manifests know.
    let chunk_size = if facts.kind == ObjectKind::Pack { 0 } else { CHUNK_SIZE as u32 };
    let plan = SealPlan::new(facts, key, sealing, chunk_size).map_err(codec)?;
    encode_with_plan(source, &plan, key, worker_count(sealing), index, sink)
}

/// What encoding on one thread needs and the next object can use again: two buffers and a compression context.
#[derive(Default)]
pub struct EncodeKit {
    plaintext: Vec<u8>,
    stored: Vec<u8>,
    compressor: Option<(Compression, Compressor)>,
}

impl std::fmt::Debug for EncodeKit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncodeKit").finish_non_exhaustive()
    }
}

/// [`encode_object`] on the calling thread alone: for many objects at once the cores are better used so, because no chunk changes hands.
pub fn encode_object_alone<S: ChunkSource>(
    mut source: S,
    facts: &ObjectFacts,
    key: &ObjectKey,
    sealing: &Sealing,
    kit: &mut EncodeKit,
    index: impl FnOnce(S) -> Vec<u8>,
    sink: &mut dyn ObjectSink,
) -> Result<Encoded, EncodeError> {
    let codec = |problem| EncodeError::Codec { key: key.to_string(), problem };
    let plan = SealPlan::new(facts, key, sealing, CHUNK_SIZE as u32).map_err(codec)?;
    let compressor = match kit.compressor.take() {
        Some((compression, compressor)) if compression == sealing.compression => Ok(compressor),
        _ => Compressor::new(sealing.compression),
    };
    let mut sealer = ChunkSealer::with_compressor(&plan, compressor.map_err(codec)?);
    sink.write(plan.header()).map_err(EncodeError::Sink)?;
    let mut layout = Layout { stored_length: plan.header().len() as u64, ..Layout::default() };
    let mut digest = TreeDigest::default();
    let mut last = false;
    while !last {
        let number = layout.next_number().map_err(codec)?;
        last = source.next_chunk(&mut kit.plaintext).map_err(EncodeError::Source)?;
        let length = kit.plaintext.len();
        if length != CHUNK_SIZE && !(last && length < CHUNK_SIZE) {
            return Err(codec(format!("the source gave {length} bytes instead of a chunk")));
        }
        // A source that learns only after a full chunk that it was the last one gives an empty one more.
        if length == 0 && number > 0 {
            break;
        }
        digest.push(Subtree::of(number, CHUNK_SIZE, &kit.plaintext));
        sealer.seal_chunk(number, &kit.plaintext, &mut kit.stored).map_err(codec)?;
        sink.write(&kit.stored).map_err(EncodeError::Sink)?;
        layout.add_chunk(kit.stored.len(), length);
    }
    let digest = digest.finish();
    let end = sealer.seal_end(&layout, digest, &index(source)).map_err(codec)?;
    sink.write(&end).map_err(EncodeError::Sink)?;
    layout.stored_length += end.len() as u64;
    kit.compressor = Some((sealing.compression, sealer.into_compressor()));
    Ok(layout.encoded(digest))
}

/// [`encode_object`] with header and salt decided.
pub(super) fn encode_with_plan<S: ChunkSource>(
    mut source: S,
    plan: &SealPlan,
    key: &ObjectKey,
    workers: usize,
    index: impl FnOnce(S) -> Vec<u8>,
    sink: &mut dyn ObjectSink,
) -> Result<Encoded, EncodeError> {
    let codec = |problem| EncodeError::Codec { key: key.to_string(), problem };
    sink.write(plan.header()).map_err(EncodeError::Sink)?;
    let layout = Layout { stored_length: plan.header().len() as u64, ..Layout::default() };
    let mut assembly = Assembly { layout, digest: TreeDigest::default(), sink, key, spare: Vec::new() };
    assembly.write_chunks(&mut source, plan, workers)?;

    let Assembly { mut layout, digest, sink, .. } = assembly;
    let digest = digest.finish();
    let content = index(source);
    let mut sealer = ChunkSealer::new(plan).map_err(codec)?;
    let end = sealer.seal_end(&layout, digest, &content).map_err(codec)?;
    sink.write(&end).map_err(EncodeError::Sink)?;
    layout.stored_length += end.len() as u64;
    Ok(layout.encoded(digest))
}

/// One worker per core, as far as their contexts and the chunks under way fit the memory that one object may
/// take; at least one.
fn worker_count(sealing: &Sealing) -> usize {
    if let Some(workers) = sealing.workers {
        return workers.max(1);
    }
    let cores = available_parallelism().map_or(1, usize::from);
    let memory = |workers: usize| {
        window(workers) * 2 * CHUNK_SIZE + workers * Compression::context_size(sealing.compression)
    };
    (1..=cores).take_while(|workers| *workers == 1 || memory(*workers) <= MEMORY_BUDGET).last().unwrap_or(1)
}

/// What encoding one object may take, of the 32 MiB that wal-push may: the rest is the program, the WAL index and
/// the connection to the store.
const MEMORY_BUDGET: usize = 18 << 20;

/// A chunk on its way through a worker; the same two buffers go round and round.
struct Job {
    number: u32,
    plaintext: Vec<u8>,
    stored: Vec<u8>,
}

struct Sealed {
    job: Job,
    subtree: Subtree,
    result: Result<(), String>,
}

struct SealWorker {
    plan: SealPlan,
    sealer: Option<ChunkSealer>,
}

impl Worker<Job, Sealed> for SealWorker {
    fn work(&mut self, mut job: Job) -> Sealed {
        let subtree = Subtree::of(job.number, CHUNK_SIZE, &job.plaintext);
        let sealer = match &mut self.sealer {
            Some(sealer) => Ok(sealer),
            None => ChunkSealer::new(&self.plan).map(|sealer| self.sealer.insert(sealer)),
        };
        let result = sealer.and_then(|sealer| sealer.seal_chunk(job.number, &job.plaintext, &mut job.stored));
        Sealed { job, subtree, result }
    }
}

/// An object being put together on the calling thread.
struct Assembly<'a> {
    layout: Layout,
    digest: TreeDigest,
    sink: &'a mut dyn ObjectSink,
    key: &'a ObjectKey,
    /// Buffers to use again.
    spare: Vec<Job>,
}

impl Assembly<'_> {
    fn write_chunks(
        &mut self,
        source: &mut impl ChunkSource,
        plan: &SealPlan,
        workers: usize,
    ) -> Result<(), EncodeError> {
        let (first, mut last) = self.read_chunk(source, 0)?;
        let make_worker = {
            let plan = plan.clone();
            move || SealWorker { plan: plan.clone(), sealer: None }
        };
        if last {
            let sealed = make_worker().work(first);
            return self.write_chunk(sealed);
        }
        std::thread::scope(|scope| {
            let mut crew = Crew::new(scope, workers, make_worker);
            let crew_failed = |error: CrewError| self.key_problem(error.to_string());
            crew.submit(first).map_err(crew_failed)?;
            let mut number = 1;
            while !last || crew.under_way() > 0 {
                // Reading comes first: it is what keeps the workers busy.
                if last || crew.under_way() >= crew.window() {
                    let sealed = crew.take().map_err(|error| self.key_problem(error.to_string()))?;
                    self.write_chunk(sealed)?;
                    continue;
                }
                let (job, was_last) = self.read_chunk(source, number)?;
                last = was_last;
                number = number.checked_add(1).ok_or_else(|| self.key_problem("it has too many chunks"))?;
                // A source that learns only after a full chunk that it was the last one gives an empty one more.
                if !job.plaintext.is_empty() {
                    crew.submit(job).map_err(|error| self.key_problem(error.to_string()))?;
                }
            }
            Ok(())
        })
    }

    fn key_problem(&self, problem: impl Into<String>) -> EncodeError {
        EncodeError::Codec { key: self.key.to_string(), problem: problem.into() }
    }

    fn read_chunk(&mut self, source: &mut impl ChunkSource, number: u32) -> Result<(Job, bool), EncodeError> {
        let mut job = self.spare.pop().unwrap_or_else(|| Job {
            number,
            // The system's zeros cost nothing; sources that read into them need none of their own.
            plaintext: vec![0; CHUNK_SIZE],
            stored: Vec::new(),
        });
        job.number = number;
        let last = source.next_chunk(&mut job.plaintext).map_err(EncodeError::Source)?;
        let length = job.plaintext.len();
        if length == CHUNK_SIZE || (last && length < CHUNK_SIZE) {
            return Ok((job, last));
        }
        Err(self.key_problem(format!("the source gave {length} bytes instead of a chunk")))
    }

    fn write_chunk(&mut self, sealed: Sealed) -> Result<(), EncodeError> {
        let Sealed { job, subtree, result } = sealed;
        result.map_err(|problem| self.key_problem(problem))?;
        self.sink.write(&job.stored).map_err(EncodeError::Sink)?;
        self.layout.add_chunk(job.stored.len(), job.plaintext.len());
        self.digest.push(subtree);
        self.spare.push(job);
        Ok(())
    }
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
    key: ObjectKey,
    plan: SealPlan,
    sealer: ChunkSealer,
    layout: Layout,
    digest: blake3::Hasher,
    stored: Vec<u8>,
}

impl<K: ObjectSink> ObjectWriter<K> {
    /// Begins an object: writes its header.
    pub fn new(
        facts: &ObjectFacts,
        key: &ObjectKey,
        sealing: &Sealing,
        effort: Effort,
        sink: K,
    ) -> Result<Self, EncodeError> {
        let plan = SealPlan::new(facts, key, sealing, 0);
        let plan = plan.map_err(|problem| EncodeError::Codec { key: key.to_string(), problem })?;
        ObjectWriter::with_plan(plan, key, effort, sink)
    }

    /// [`ObjectWriter::new`] with header and salt decided.
    pub(super) fn with_plan(
        plan: SealPlan,
        key: &ObjectKey,
        effort: Effort,
        mut sink: K,
    ) -> Result<Self, EncodeError> {
        let codec = |problem| EncodeError::Codec { key: key.to_string(), problem };
        let compressor = Compressor::of_pages(plan.compression(), effort).map_err(codec)?;
        let sealer = ChunkSealer::with_compressor(&plan, compressor);
        sink.write(plan.header()).map_err(EncodeError::Sink)?;
        let layout = Layout { stored_length: plan.header().len() as u64, ..Layout::default() };
        let stored = Vec::with_capacity(compressed_bound(CHUNK_SIZE) + 64);
        Ok(ObjectWriter {
            sink,
            key: key.clone(),
            plan,
            sealer,
            layout,
            digest: blake3::Hasher::new(),
            stored,
        })
    }

    fn codec_problem(&self, problem: String) -> EncodeError {
        EncodeError::Codec { key: self.key.to_string(), problem }
    }

    /// Compresses, encrypts and writes one chunk of 1 to [`crate::format::envelope::MAX_CHUNK_SIZE`] bytes.
    pub fn write_chunk(&mut self, plaintext: &[u8]) -> Result<ChunkLocation, EncodeError> {
        if plaintext.is_empty() || plaintext.len() > MAX_CHUNK_SIZE {
            let problem = format!("a chunk has 1 to {MAX_CHUNK_SIZE} bytes, not {}", plaintext.len());
            return Err(self.codec_problem(problem));
        }
        let number = self.layout.next_number().map_err(|problem| self.codec_problem(problem))?;
        let sealed = self.sealer.seal_chunk(number, plaintext, &mut self.stored);
        sealed.map_err(|problem| self.codec_problem(problem))?;
        self.digest.update(plaintext);
        self.sink.write(&self.stored).map_err(EncodeError::Sink)?;
        let offset = self.layout.stored_length;
        self.layout.add_chunk(self.stored.len(), plaintext.len());
        Ok(ChunkLocation {
            number,
            offset,
            stored_length: self.stored.len() as u32,
            plaintext_length: plaintext.len() as u32,
        })
    }

    /// Bytes written so far.
    pub fn stored_length(&self) -> u64 {
        self.layout.stored_length
    }

    /// What a manifest must know to read this object's chunks without reading its header.
    pub fn salt_and_key(&self) -> ([u8; 32], Option<KeyId>) {
        (self.plan.salt, self.plan.key_id)
    }

    /// Ends the object: writes its index and footer, and gives the sink back to be published.
    pub fn finish(mut self, index: &[u8]) -> Result<(Encoded, K), EncodeError> {
        let digest = Digest(*self.digest.finalize().as_bytes());
        let end = self.sealer.seal_end(&self.layout, digest, index);
        let end = end.map_err(|problem| self.codec_problem(problem))?;
        self.sink.write(&end).map_err(EncodeError::Sink)?;
        self.layout.stored_length += end.len() as u64;
        Ok((self.layout.encoded(digest), self.sink))
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
