//! One job's packs: chunks are appended to the open one; a full one is finished while the job goes on with the next.
//!
//! In: plaintext chunks. Out: where each chunk lies, and in the end the packs. What must hold: a pack that a manifest
//! names was published, that is, durable; at most one pack per job is being finished, so memory stays bounded.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use super::BackupError;
use super::rate_limit::{Limited, RateLimit};
use crate::codec::encode::{ChunkLocation, ObjectWriter};
use crate::codec::{Effort, Sealing};
use crate::format::digest::ShortDigest;
use crate::format::envelope::{MAX_CHUNK_SIZE, ObjectFacts, ObjectKind};
use crate::format::manifest::{Digested, PackEntry, RangeSource};
use crate::format::pack_contents::ContentsWriter;
use crate::format::{BackupId, ClusterName, ObjectKey, keys};
use crate::local::kill_point::{kill_point, test_number};
use crate::pg::{SystemIdentifier, WalSegmentSize};
use crate::repository::{Naming, Publication, Published, Repository};

/// Stored bytes after which a pack is finished.
pub const PACK_SIZE: u64 = 64 << 20;

/// [`PACK_SIZE`], unless a test wants smaller ones.
pub fn pack_size() -> u64 {
    test_number("WALHOLD_TEST_PACK_SIZE").unwrap_or(PACK_SIZE)
}

/// What all packs of a backup have in common.
pub struct PackFactory<'a> {
    /// Where they go.
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a ClusterName,
    /// The backup that they belong to.
    pub id: &'a BackupId,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// The cluster's segment size.
    pub wal_segment_size: WalSegmentSize,
    /// How they are written.
    pub sealing: &'a Sealing,
    /// What counts most while they are compressed.
    pub effort: Effort,
    /// How fast they may be written.
    pub limit: Option<&'a RateLimit>,
    /// Stored bytes after which a pack is finished: [`PACK_SIZE`].
    pub pack_size: u64,
    /// The number of the next pack.
    pub next_number: AtomicU32,
}

type Sink<'a> = Limited<'a, Publication>;

struct OpenPack<'a> {
    key: ObjectKey,
    entry: PackEntry,
    writer: ObjectWriter<Sink<'a>>,
    contents: ContentsWriter,
}

/// Where a chunk lies.
#[derive(Clone, Copy, Debug)]
pub struct StoredChunk {
    /// The pack: its index among those that the one who says so has. A backup's own packs are counted by their numbers, and
    /// come first in its manifest.
    pub pack: u32,
    /// Where in the pack.
    pub location: ChunkLocation,
}

impl StoredChunk {
    /// As the source of a range that is `length` bytes of the chunk from `within` on, whose digest this is.
    pub fn source(&self, within: u32, length: u32, digest: ShortDigest) -> RangeSource {
        RangeSource::Chunk {
            pack: self.pack,
            number: self.location.number,
            offset: self.location.offset,
            stored_length: self.location.stored_length,
            plaintext_length: self.location.plaintext_length,
            within,
            digested: Digested { within, length, digest },
        }
    }
}

/// One job's packs.
pub struct PackWriter<'scope, 'env> {
    factory: &'env PackFactory<'env>,
    scope: &'scope Scope<'scope, 'env>,
    open: Option<OpenPack<'env>>,
    finishing: Option<ScopedJoinHandle<'scope, Result<PackEntry, BackupError>>>,
    finished: Vec<PackEntry>,
}

impl<'scope, 'env> PackWriter<'scope, 'env> {
    /// Opens no pack before the first chunk comes.
    pub fn new(factory: &'env PackFactory<'env>, scope: &'scope Scope<'scope, 'env>) -> Self {
        PackWriter { factory, scope, open: None, finishing: None, finished: Vec::new() }
    }

    /// Compresses, seals and appends one chunk, which is made of `parts`: their lengths and digests, in order.
    pub fn write_chunk(
        &mut self,
        plaintext: &[u8],
        parts: &[(u32, ShortDigest)],
    ) -> Result<StoredChunk, BackupError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.factory.open()?,
        };
        let location = open.writer.write_chunk(plaintext)?;
        open.contents.add_chunk(parts);
        let chunk = StoredChunk { pack: open.entry.number, location };
        if open.writer.stored_length() >= self.factory.pack_size {
            self.finish_behind(open)?;
        } else {
            self.open = Some(open);
        }
        Ok(chunk)
    }

    /// Syncing takes the disk's time, not the job's: another thread waits for it.
    fn finish_behind(&mut self, open: OpenPack<'env>) -> Result<(), BackupError> {
        self.join_finishing()?;
        self.finishing = Some(self.scope.spawn(|| open.finish()));
        Ok(())
    }

    fn join_finishing(&mut self) -> Result<(), BackupError> {
        if let Some(handle) = self.finishing.take() {
            self.finished.push(handle.join().map_err(|_| BackupError::JobLost)??);
        }
        Ok(())
    }

    /// Finishes the last pack; all of them are durable when this returns `Ok`.
    pub fn finish(mut self) -> Result<Vec<PackEntry>, BackupError> {
        if let Some(open) = self.open.take() {
            let last = open.finish()?;
            self.finished.push(last);
        }
        self.join_finishing()?;
        Ok(self.finished)
    }
}

impl<'a> PackFactory<'a> {
    fn open(&'a self) -> Result<OpenPack<'a>, BackupError> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let key = keys::pack(self.cluster, self.id, number);
        let facts = ObjectFacts {
            kind: ObjectKind::Pack,
            name: key.name().to_owned(),
            system_identifier: self.system_identifier,
            segment_size: Some(self.wal_segment_size),
        };
        let expected_length = self.pack_size + MAX_CHUNK_SIZE as u64;
        let publication = self.repository.publish(&key, Naming::Unique, expected_length)?;
        let sink = Limited { sink: publication, limit: self.limit };
        let writer = ObjectWriter::new(&facts, &key, self.sealing, self.effort, sink)?;
        let (salt, key_id) = writer.salt_and_key();
        let entry = PackEntry {
            backup: self.id.clone(),
            number,
            stored_length: 0,
            compression: self.sealing.compression,
            key_id,
            salt,
        };
        Ok(OpenPack { key, entry, writer, contents: ContentsWriter::default() })
    }
}

impl OpenPack<'_> {
    fn finish(self) -> Result<PackEntry, BackupError> {
        let (encoded, sink) = self.writer.finish(&self.contents.finish())?;
        match sink.sink.finish(&encoded.digest)? {
            Published::Created => {
                kill_point("backup: pack stored");
                Ok(PackEntry { stored_length: encoded.stored_length, ..self.entry })
            }
            Published::Exists(_) => Err(BackupError::Taken(self.key.to_string())),
        }
    }
}
