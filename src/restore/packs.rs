//! The packs that a backup points to: found in the repository, their sizes compared, their parts read.

use std::collections::BTreeMap;

use super::error::RestoreError;
use crate::codec::KeyRing;
use crate::codec::decode::{ChunkOpener, PackFacts};
use crate::format::digest::ShortDigest;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::{Digested, FileEntry, Manifest, RangeSource};
use crate::format::{BackupId, ClusterName, keys};
use crate::repository::{Repository, StoredObject};

/// A pack of the manifest, found.
#[derive(Clone, Debug)]
pub struct FoundPack {
    /// As stored.
    pub object: StoredObject,
    /// What its chunks are opened with.
    pub facts: PackFacts,
}

/// Finds every pack of the manifest; one that is missing or has another length is refused here, before anything is
/// written.
pub fn find_packs(
    repository: &Repository,
    cluster: &ClusterName,
    manifest: &Manifest,
) -> Result<Vec<FoundPack>, RestoreError> {
    let mut listed: BTreeMap<&BackupId, BTreeMap<String, StoredObject>> = BTreeMap::new();
    for pack in &manifest.packs {
        if !listed.contains_key(&pack.backup) {
            let objects = repository.list(&keys::packs_folder(cluster, &pack.backup))?;
            let by_key = objects.into_iter().map(|object| (object.key.to_string(), object)).collect();
            listed.insert(&pack.backup, by_key);
        }
    }
    let find = |pack: &crate::format::manifest::PackEntry| {
        let key = keys::pack(cluster, &pack.backup, pack.number);
        let object = listed.get(&pack.backup).and_then(|objects| objects.get(key.as_str()));
        let problem = match object {
            None => "is missing".to_owned(),
            Some(object) if object.size != pack.stored_length => {
                format!("has {} bytes instead of {}", object.size, pack.stored_length)
            }
            Some(object) => {
                let facts = ObjectFacts {
                    kind: ObjectKind::Pack,
                    name: key.name().to_owned(),
                    system_identifier: manifest.summary.system_identifier,
                    segment_size: Some(manifest.summary.wal_segment_size),
                };
                return Ok(FoundPack {
                    object: object.clone(),
                    facts: PackFacts {
                        facts,
                        key,
                        compression: pack.compression,
                        key_id: pack.key_id,
                        salt: pack.salt,
                    },
                });
            }
        };
        Err(RestoreError::refused(
            format!("backup {} cannot be restored: pack {key} {problem}", manifest.summary.id),
            "restore another backup (--backup), or this object from a copy of the repository",
        ))
    };
    manifest.packs.iter().map(find).collect()
}

/// Reads one small file of a backup into memory: what a plan looks into, and pg_control.
pub fn read_file(
    repository: &Repository,
    packs: &[FoundPack],
    keys: &KeyRing,
    file: &FileEntry,
) -> Result<Vec<u8>, RestoreError> {
    let size = usize::try_from(file.size).unwrap_or(usize::MAX).min(16 << 20);
    let mut bytes = vec![0; size];
    let mut chunk = Vec::new();
    for range in &file.ranges {
        let RangeSource::Chunk { pack, number, offset, stored_length, plaintext_length, within, digested } =
            range.source
        else {
            continue;
        };
        let pack = pack_at(packs, pack)?;
        let stored = repository.read_range(&pack.object, offset, stored_length as usize)?;
        ChunkOpener::new(&pack.facts, keys)?.open(number, &stored, plaintext_length, &mut chunk)?;
        let part = part_of(&chunk, within, range.length, &digested)
            .ok_or_else(|| damaged_range(file, range.offset))?;
        let start = usize::try_from(range.offset).unwrap_or(usize::MAX);
        let target = start.checked_add(part.len()).and_then(|end| bytes.get_mut(start..end));
        target.ok_or_else(|| damaged_range(file, range.offset))?.copy_from_slice(part);
    }
    Ok(bytes)
}

/// The pack with this index.
pub fn pack_at(packs: &[FoundPack], index: u32) -> Result<&FoundPack, RestoreError> {
    packs.get(index as usize).ok_or_else(|| RestoreError::Damaged {
        object: "the manifest".to_owned(),
        problem: format!("it names pack {index}, which is not in it"),
    })
}

/// A range's bytes in its chunk, if the bytes that its digest is of are what the manifest says.
pub fn part_of<'a>(chunk: &'a [u8], within: u32, length: u32, digested: &Digested) -> Option<&'a [u8]> {
    (ShortDigest::of(slice_of(chunk, digested.within, digested.length)?) == digested.digest)
        .then(|| slice_of(chunk, within, length))?
}

/// A part of a chunk.
pub fn slice_of(chunk: &[u8], within: u32, length: u32) -> Option<&[u8]> {
    let start = within as usize;
    chunk.get(start..start.checked_add(length as usize)?)
}

/// The error for bytes that are not what the manifest says.
pub fn damaged_range(file: &FileEntry, offset: u64) -> RestoreError {
    RestoreError::Damaged {
        object: format!("file {} of the backup", String::from_utf8_lossy(&file.path)),
        problem: format!("the bytes from {offset} on are not those that were backed up"),
    }
}
