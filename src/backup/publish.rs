//! Publishing a manifest: from then on the backup exists.

use super::list::manifest_facts;
use super::{BackupError, BackupRequest, tombstone};
use crate::codec::decode::{Expected, read_tail};
use crate::codec::encode::{ChunkSource, EncodeError, Encoded, ObjectSink, SinkError, encode_object};
use crate::format::envelope::{CHUNK_SIZE, ObjectFacts};
use crate::format::manifest::{Manifest, PackEntry};
use crate::format::{BackupId, ObjectKey, keys};
use crate::repository::{Naming, Published, RepositoryObject, StoredObject};

/// Bytes in memory as an object's plaintext.
struct Body<'a>(&'a [u8]);

impl ChunkSource for Body<'_> {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        let (next, rest) = self.0.split_at(self.0.len().min(CHUNK_SIZE));
        chunk.clear();
        chunk.extend_from_slice(next);
        self.0 = rest;
        Ok(rest.is_empty())
    }
}

/// A manifest as it will be stored: made while the server still archives the backup's last WAL.
pub struct EncodedManifest {
    key: ObjectKey,
    id: BackupId,
    packs: Vec<PackEntry>,
    facts: ObjectFacts,
    bytes: Vec<u8>,
    encoded: Encoded,
}

/// Encodes the manifest; nothing of it is stored yet.
pub fn encode_manifest(
    request: &BackupRequest<'_>,
    manifest: &Manifest,
) -> Result<EncodedManifest, BackupError> {
    let summary = &manifest.summary;
    let key = keys::manifest(request.cluster, &summary.id);
    let index = summary.to_json().map_err(|error| BackupError::BadManifest {
        id: summary.id.clone(),
        problem: format!("it cannot be written: {error}"),
    })?;
    let facts = ObjectFacts {
        segment_size: Some(summary.wal_segment_size),
        ..manifest_facts(summary.system_identifier)
    };
    let body = manifest.encode();
    let mut bytes = Vec::new();
    let encoded = encode_object(Body(&body), &facts, &key, &request.sealing, |_| index, &mut bytes)?;
    let (id, packs) = (summary.id.clone(), manifest.packs.clone());
    Ok(EncodedManifest { key, id, packs, facts, bytes, encoded })
}

impl EncodedManifest {
    /// Publishes it; durable when this returns `Ok`.
    pub fn publish(self, request: &BackupRequest<'_>) -> Result<(), BackupError> {
        let is_safe =
            || tombstone::check_before_publish(request.repository, request.cluster, &self.id, &self.packs);
        is_safe()?;
        let mut publication =
            request.repository.publish(&self.key, Naming::ByStore, self.bytes.len() as u64)?;
        for piece in self.bytes.chunks(CHUNK_SIZE) {
            publication.write(piece).map_err(EncodeError::Sink)?;
        }
        match publication.finish(&self.encoded.digest)? {
            Published::Created => {}
            // An upload in parts whose last answer was lost.
            Published::Exists(stored) if is_this(request, &stored, &self.facts, &self.encoded) => {}
            Published::Exists(_) => return Err(BackupError::Taken(self.key.to_string())),
        }
        // A host that slept between the look and the publication was taken for dead meanwhile.
        is_safe().inspect_err(|_| take_back(request, &self.key))
    }
}

/// Whether the manifest that lies there has the same content: then it is ours, because no two backups have one.
fn is_this(
    request: &BackupRequest<'_>,
    stored: &StoredObject,
    facts: &ObjectFacts,
    encoded: &Encoded,
) -> bool {
    let source = RepositoryObject { repository: request.repository, object: stored };
    let tail = read_tail(&source, &Expected { facts, key: &stored.key }, request.keys);
    tail.is_ok_and(|tail| tail.is_of(encoded.digest, encoded.plaintext_length))
}

/// Removes our own manifest, which points to packs that are going. Where it cannot be removed, verify and expire tell that the
/// packs are missing.
fn take_back(request: &BackupRequest<'_>, key: &ObjectKey) {
    let removed = request
        .repository
        .find(key, Naming::ByStore)
        .and_then(|object| object.map_or(Ok(()), |object| request.repository.delete(&object)));
    if let Err(error) = removed {
        tracing::error!("{key} points to packs that are being deleted, and cannot be removed: {error}");
    }
}
