//! What backups that ended early have stored already, so that the next one need not store it again.
//!
//! In: attempts without a manifest that are newer than the newest backup; each of their packs tells in its own end what it holds, by digest.
//! Out: for bytes that were just read from the cluster, where the same bytes lie. Everything that would be stored is still read, so when the attempt read it, and
//! what has happened since, plays no part; nor does it matter whether the attempt is dead or only slow, because packs never change.
//!
//! What must hold: a pack is used only if its end is whole, is this cluster's and is sealed with the key that this backup writes with. In a
//! directory, whose disk may be why the attempt ended, stored bytes are read back and compared with the present ones before they are used; an object
//! store confirmed the checksum of what it took. The intent names every attempt that is used, and tombstones are read after it
//! was published: so expire keeps the packs, or they are not used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::pack_writer::StoredChunk;
use super::tombstone::Tombstone;
use super::{BackupError, BackupRequest};
use crate::codec::decode::{ChunkOpener, Expected, PackFacts, read_tail};
use crate::codec::encode::ChunkLocation;
use crate::fan_out;
use crate::format::digest::ShortDigest;
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::{Manifest, PackEntry, RangeSource};
use crate::format::pack_contents::{self, StoredPart};
use crate::format::{BackupId, keys};
use crate::pg::{SystemIdentifier, WalSegmentSize};
use crate::repository::{Repository, RepositoryObject, StoredObject};

/// Ends of packs that are read at once.
const READERS: usize = 64;
/// So many attempts are looked at, the newest: where every backup fails, they pile up until expire comes.
const ATTEMPTS: usize = 16;

/// What earlier attempts stored. Empty if there are none.
#[derive(Default)]
pub struct StoredParts {
    /// The packs.
    pub packs: Vec<PackEntry>,
    objects: Vec<StoredObject>,
    /// What each pack's chunks are opened with.
    facts: Vec<PackFacts>,
    /// Packs that turned out not to hold what they say.
    broken: Vec<AtomicBool>,
    chunks: Vec<StoredChunk>,
    /// In the order of their digests.
    parts: Vec<Part>,
}

#[derive(Clone, Copy)]
struct Part {
    digest: ShortDigest,
    length: u32,
    within: u32,
    /// Index into the chunks.
    chunk: u32,
}

/// A pack's end.
struct PackEnd {
    entry: PackEntry,
    facts: PackFacts,
    object: StoredObject,
    chunks: Vec<ChunkLocation>,
    parts: Vec<StoredPart>,
}

/// The attempts that a backup of this cluster may take over from. `base` is the backup that it is based on: its packs are known already.
pub(super) fn find(
    request: &BackupRequest<'_>,
    system: SystemIdentifier,
    segment_size: WalSegmentSize,
    base: Option<&Manifest>,
) -> Result<StoredParts, BackupError> {
    let known: BTreeSet<(&BackupId, u32)> =
        base.iter().flat_map(|base| &base.packs).map(|pack| (&pack.backup, pack.number)).collect();
    let mut stored = Vec::new();
    for attempt in attempts(request)? {
        let packs = request.repository.list(&keys::packs_folder(request.cluster, &attempt))?;
        stored.extend(packs.into_iter().map(|object| (attempt.clone(), object)));
    }
    let ends = fan_out::map(&stored, READERS, |(attempt, object)| {
        let read = read_end(request, system, segment_size, attempt, object);
        read.unwrap_or_else(|problem| {
            tracing::warn!("{} of an interrupted backup is not used: {problem}", object.path);
            None
        })
    });
    let ends = ends.into_iter().flatten();
    Ok(StoredParts::of(ends.filter(|end| !known.contains(&(&end.entry.backup, end.entry.number)))))
}

/// Announced, without a manifest, and newer than the newest backup: what is older was taken over by that one, or is of no use.
fn attempts(request: &BackupRequest<'_>) -> Result<Vec<BackupId>, BackupError> {
    let folder = keys::backups(request.cluster);
    let mut seen: BTreeMap<BackupId, bool> = BTreeMap::new();
    for object in request.repository.list(&folder)? {
        let mut segments = object.key.as_str().split('/').skip(2);
        let Some(Ok(id)) = segments.next().map(str::parse) else { continue };
        let is_complete = segments.next() == Some("manifest");
        *seen.entry(id).or_default() |= is_complete;
    }
    let newest_first = seen.into_iter().rev().take_while(|(_, is_complete)| !is_complete);
    Ok(newest_first.map(|(id, _)| id).take(ATTEMPTS).collect())
}

/// A pack's end, checked; `None` if it is another cluster's or has nothing to tell. An error says why it is not used.
fn read_end(
    request: &BackupRequest<'_>,
    system_identifier: SystemIdentifier,
    segment_size: WalSegmentSize,
    attempt: &BackupId,
    object: &StoredObject,
) -> Result<Option<PackEnd>, String> {
    let Ok(number) = object.key.name().parse::<u32>() else { return Ok(None) };
    let key = keys::pack(request.cluster, attempt, number);
    if key != object.key {
        return Ok(None);
    }
    let facts = ObjectFacts {
        kind: ObjectKind::Pack,
        name: key.name().to_owned(),
        system_identifier,
        segment_size: Some(segment_size),
    };
    let source = RepositoryObject { repository: request.repository, object };
    let expected = Expected { facts: &facts, key: &key };
    let tail = read_tail(&source, &expected, request.keys).map_err(|error| error.to_string())?;
    if tail.facts != facts {
        return Err("its header is not the one of a pack of this cluster".to_owned());
    }
    if tail.key_id != request.sealing.key.as_ref().map(|key| key.id()) {
        return Err("it is not encrypted with the key that this backup is".to_owned());
    }
    let parts = pack_contents::decode(&tail.index, &tail.layout.chunks)?;
    if parts.is_empty() {
        return Ok(None);
    }
    let (compression, salt) = (tail.layout.compression, tail.layout.salt);
    Ok(Some(PackEnd {
        entry: PackEntry {
            backup: attempt.clone(),
            number,
            stored_length: object.size,
            compression,
            key_id: tail.key_id,
            salt,
        },
        facts: PackFacts { facts, key, compression, key_id: tail.key_id, salt },
        object: object.clone(),
        chunks: tail.layout.locations().collect(),
        parts,
    }))
}

impl StoredParts {
    fn of(ends: impl Iterator<Item = PackEnd>) -> StoredParts {
        let mut all = StoredParts::default();
        for end in ends {
            let (pack, first) = (all.packs.len() as u32, all.chunks.len() as u32);
            all.chunks.extend(end.chunks.into_iter().map(|location| StoredChunk { pack, location }));
            all.parts.extend(end.parts.into_iter().map(|part| Part {
                digest: part.digest,
                length: part.length,
                within: part.within,
                chunk: first + part.chunk,
            }));
            all.packs.push(end.entry);
            all.objects.push(end.object);
            all.facts.push(end.facts);
            all.broken.push(AtomicBool::new(false));
        }
        all.parts.sort_unstable_by_key(|part| (part.digest, part.length, part.chunk, part.within));
        all
    }

    /// The attempts that these packs are of, in order.
    pub fn attempts(&self) -> Vec<BackupId> {
        let ids: BTreeSet<&BackupId> = self.packs.iter().map(|pack| &pack.backup).collect();
        ids.into_iter().cloned().collect()
    }

    /// Gives up what expire is about to delete. To be asked after the intent that names the attempts was published.
    pub(super) fn without_doomed(mut self, tombstones: &[Tombstone]) -> StoredParts {
        let is_doomed = |pack: &PackEntry| {
            tombstones.iter().any(|tombstone| tombstone.names(&pack.backup) || tombstone.dooms(pack))
        };
        let doomed: Vec<bool> = self.packs.iter().map(is_doomed).collect();
        self.parts.retain(|part| {
            let pack = self.chunks.get(part.chunk as usize).map(|chunk| chunk.pack as usize);
            pack.and_then(|pack| doomed.get(pack)).is_some_and(|doomed| !doomed)
        });
        self
    }

    /// Whether there is nothing to be found.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn parts_of(&self, length: u32, digest: ShortDigest) -> impl Iterator<Item = (Part, StoredChunk)> + '_ {
        let first = self.parts.partition_point(|part| (part.digest, part.length) < (digest, length));
        let equal = self.parts.get(first..).unwrap_or_default().iter();
        let equal = equal.take_while(move |part| (part.digest, part.length) == (digest, length));
        equal.filter_map(|part| Some((*part, *self.chunks.get(part.chunk as usize)?)))
    }
}

/// Finds stored bytes for one job.
pub struct Finder<'a> {
    stored: &'a StoredParts,
    repository: &'a Repository,
    keys: &'a crate::codec::KeyRing,
    /// The pack that was read last, and what opens its chunks.
    opener: Option<(u32, ChunkOpener)>,
    /// Pack and number of the chunk that was read last.
    chunk: Option<(u32, u32)>,
    plaintext: Vec<u8>,
}

impl<'a> Finder<'a> {
    /// Nothing is read yet.
    pub fn new(
        stored: &'a StoredParts,
        repository: &'a Repository,
        keys: &'a crate::codec::KeyRing,
    ) -> Finder<'a> {
        Finder { stored, repository, keys, opener: None, chunk: None, plaintext: Vec::new() }
    }

    /// Where these bytes, whose digest this is, lie in a pack of [`StoredParts::packs`].
    pub fn find(&mut self, bytes: &[u8], digest: ShortDigest) -> Option<RangeSource> {
        if self.stored.is_empty() {
            return None;
        }
        let length = u32::try_from(bytes.len()).ok()?;
        let stored = self.stored;
        for (part, chunk) in stored.parts_of(length, digest) {
            let broken = stored.broken.get(chunk.pack as usize)?;
            if broken.load(Ordering::Relaxed) {
                continue;
            }
            if self.repository.is_directory()
                && let Err(problem) = self.compare(&part, &chunk, bytes)
            {
                if !broken.swap(true, Ordering::Relaxed) {
                    let path = stored.objects.get(chunk.pack as usize).map_or("a pack", |pack| &pack.path);
                    tracing::warn!("{path} of an interrupted backup is not used any more: {problem}");
                }
                continue;
            }
            return Some(chunk.source(part.within, length, digest));
        }
        None
    }

    /// Reads a part back. Parts of one chunk are mostly asked for one after another.
    fn compare(&mut self, part: &Part, chunk: &StoredChunk, bytes: &[u8]) -> Result<(), String> {
        let place = (chunk.pack, chunk.location.number);
        if self.chunk != Some(place) {
            self.chunk = None;
            self.read(chunk)?;
            self.chunk = Some(place);
        }
        let start = part.within as usize;
        match self.plaintext.get(start..).and_then(|rest| rest.get(..bytes.len())) {
            Some(stored) if stored == bytes => Ok(()),
            _ => Err(format!("chunk {} does not hold what the pack's end says", chunk.location.number)),
        }
    }

    fn read(&mut self, chunk: &StoredChunk) -> Result<(), String> {
        let pack = chunk.pack as usize;
        let (Some(object), Some(facts)) = (self.stored.objects.get(pack), self.stored.facts.get(pack)) else {
            return Err("it is not known".to_owned());
        };
        let location = chunk.location;
        let bytes = self.repository.read_range(object, location.offset, location.stored_length as usize);
        let bytes = bytes.map_err(|error| error.to_string())?;
        if self.opener.as_ref().is_none_or(|(known, _)| *known != chunk.pack) {
            let opener = ChunkOpener::new(facts, self.keys).map_err(|error| error.to_string())?;
            self.opener = Some((chunk.pack, opener));
        }
        let Some((_, opener)) = &mut self.opener else { return Err("it is not known".to_owned()) };
        let opened = opener.open(location.number, &bytes, location.plaintext_length, &mut self.plaintext);
        opened.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::tests::pack_entry;

    fn end(number: u32, bytes: &[&[u8]]) -> PackEnd {
        let entry = PackEntry { number, ..pack_entry() };
        let mut within = 0;
        let parts = bytes.iter().map(|bytes| {
            let length = bytes.len() as u32;
            within += length;
            StoredPart { chunk: 0, within: within - length, length, digest: ShortDigest::of(bytes) }
        });
        let parts: Vec<StoredPart> = parts.collect();
        PackEnd {
            facts: PackFacts {
                facts: ObjectFacts {
                    kind: ObjectKind::Pack,
                    name: format!("{number:08}"),
                    system_identifier: SystemIdentifier::new(1),
                    segment_size: None,
                },
                key: keys::pack(&Default::default(), &entry.backup, number),
                compression: entry.compression,
                key_id: None,
                salt: [0; 32],
            },
            object: StoredObject {
                key: keys::pack(&Default::default(), &entry.backup, number),
                path: String::new(),
                size: 0,
                modified: jiff::Timestamp::UNIX_EPOCH,
            },
            chunks: vec![ChunkLocation {
                number: 0,
                offset: 99,
                stored_length: 50,
                plaintext_length: within,
            }],
            entry,
            parts,
        }
    }

    fn places(stored: &StoredParts, bytes: &[u8]) -> Vec<(u32, u32)> {
        let found = stored.parts_of(bytes.len() as u32, ShortDigest::of(bytes));
        found.map(|(part, chunk)| (chunk.pack, part.within)).collect()
    }

    #[test]
    fn equal_bytes_are_found_wherever_they_lie() {
        let stored = StoredParts::of([end(0, &[b"one", b"two"]), end(1, &[b"three", b"one"])].into_iter());
        assert_eq!(places(&stored, b"one"), [(0, 0), (1, 5)]);
        assert_eq!(places(&stored, b"two"), [(0, 3)]);
        assert_eq!(places(&stored, b"four"), []);
        // Same digest, another length: no bytes are that, but an end could say so.
        assert_eq!(stored.parts_of(4, ShortDigest::of(b"one")).count(), 0);
        assert_eq!(stored.attempts().len(), 1);
    }

    #[test]
    fn what_expire_deletes_is_given_up() {
        let stored = || StoredParts::of([end(0, &[b"one"]), end(1, &[b"two"])].into_iter());
        let doomed = |change: &dyn Fn(&mut Tombstone)| {
            let mut tombstone = Tombstone::new();
            change(&mut tombstone);
            stored().without_doomed(&[tombstone])
        };
        let attempt = pack_entry().backup;
        assert!(!doomed(&|_| {}).is_empty());
        assert!(doomed(&|tombstone| tombstone.attempts.push(attempt.clone())).is_empty());
        let one_less = doomed(&|tombstone| {
            tombstone.packs.insert(attempt.clone(), vec![1]);
        });
        assert_eq!((places(&one_less, b"one").len(), places(&one_less, b"two").len()), (1, 0));
    }
}
