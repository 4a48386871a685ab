//! Writing a manifest's body: sections of varints, each value written against the one before it.

use std::collections::HashMap;

use super::bytes::{put_bytes, put_signed, put_varint};
use super::{
    CatalogueEntry, Digested, DirectoryEntry, FileEntry, FileRange, Manifest, PackEntry, RangeSource, Root,
};
use crate::codec::Compression;
use crate::format::BackupId;
use crate::format::digest::ShortDigest;

/// The first bytes of every body: what it is, and the version of this layout.
pub(super) const MAGIC: &[u8; 5] = b"WHMF\x01";

/// What a section holds. A reader skips tags from [`OPTIONAL_FROM`] on that it does not know and refuses other unknown ones.
pub(super) mod tag {
    pub(in super::super) const SUMMARY: u8 = 1;
    pub(in super::super) const SERVER: u8 = 2;
    pub(in super::super) const BACKUP_LABEL: u8 = 3;
    pub(in super::super) const TABLESPACE_MAP: u8 = 4;
    pub(in super::super) const TABLESPACES: u8 = 5;
    pub(in super::super) const CATALOGUE: u8 = 6;
    pub(in super::super) const PACKS: u8 = 7;
    pub(in super::super) const DIRECTORIES: u8 = 8;
    pub(in super::super) const FILES: u8 = 9;
}

/// Sections with tags from here on may be skipped by readers that do not know them.
pub(super) const OPTIONAL_FROM: u8 = 128;

/// Bits of a range's first byte.
pub(super) mod flag {
    /// The bytes are in a chunk; otherwise they are zeros.
    pub(in super::super) const CHUNK: u8 = 1;
    /// In the same chunk as the range before: no location follows.
    pub(in super::super) const SAME_CHUNK: u8 = 2;
    /// In the chunk that follows the one before in the same pack: only its lengths follow.
    pub(in super::super) const NEXT_CHUNK: u8 = 4;
    /// The range is the whole chunk: neither plaintext length nor offset within it follow.
    pub(in super::super) const WHOLE_CHUNK: u8 = 8;
    /// In the chunk before the last one: no location follows. What was rewritten and what was kept often alternate.
    pub(in super::super) const OTHER_CHUNK: u8 = 16;
    /// The digest is of more bytes than the range: where they begin and how many they are follow.
    pub(in super::super) const PART: u8 = 32;
    /// The digest of the last range in this chunk, whole: neither it nor its place follow.
    pub(in super::super) const SAME_DIGEST: u8 = 64;
    pub(in super::super) const ALL: u8 =
        CHUNK | SAME_CHUNK | NEXT_CHUNK | WHOLE_CHUNK | OTHER_CHUNK | PART | SAME_DIGEST;
}

/// The two chunks that ranges were in last.
#[derive(Clone, Copy, Default)]
pub(super) struct RecentChunks {
    pub(super) last: RecentChunk,
    pub(super) other: RecentChunk,
}

impl RecentChunks {
    /// A range goes to another chunk than the last one.
    pub(super) fn turn_to(&mut self, place: ChunkPlace) {
        self.other = self.last;
        self.last = RecentChunk { place, digested: NOT_DIGESTED };
    }

    /// A range goes to the other chunk.
    pub(super) fn turn_back(&mut self) {
        std::mem::swap(&mut self.last, &mut self.other);
    }
}

/// A chunk, and the digest of the last range in it.
#[derive(Clone, Copy)]
pub(super) struct RecentChunk {
    pub(super) place: ChunkPlace,
    pub(super) digested: Digested,
}

/// No range has this.
const NOT_DIGESTED: Digested = Digested { within: 0, length: 0, digest: ShortDigest([0; 16]) };

impl Default for RecentChunk {
    fn default() -> Self {
        RecentChunk { place: ChunkPlace::default(), digested: NOT_DIGESTED }
    }
}

/// Where a chunk lies.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ChunkPlace {
    pub(super) pack: u32,
    pub(super) number: u32,
    pub(super) offset: u64,
    pub(super) stored_length: u32,
    pub(super) plaintext_length: u32,
}

impl ChunkPlace {
    /// Where the chunk after this one begins: its number and offset.
    pub(super) fn following(self) -> (u32, u64) {
        (self.number.saturating_add(1), self.offset.saturating_add(u64::from(self.stored_length)))
    }
}

pub(super) fn encode(manifest: &Manifest) -> Vec<u8> {
    let ranges: usize = manifest.files.iter().map(|file| file.ranges.len()).sum();
    let mut out = Vec::with_capacity(4096 + manifest.files.len() * 48 + ranges * 28);
    out.extend_from_slice(MAGIC);
    put_section(&mut out, tag::SUMMARY, &json(&manifest.summary));
    put_section(&mut out, tag::SERVER, &json(&manifest.server));
    put_section(&mut out, tag::BACKUP_LABEL, manifest.backup_label.as_bytes());
    if let Some(map) = &manifest.tablespace_map {
        put_section(&mut out, tag::TABLESPACE_MAP, map.as_bytes());
    }
    put_section(&mut out, tag::TABLESPACES, &json(&manifest.tablespaces));
    put_section(&mut out, tag::CATALOGUE, &encode_catalogue(&manifest.catalogue));
    put_section(&mut out, tag::PACKS, &encode_packs(&manifest.packs));
    put_section(&mut out, tag::DIRECTORIES, &encode_directories(&manifest.directories));
    // The files are last and most of the body, so they are written in place: their section has no length and goes to
    // the end.
    out.push(tag::FILES);
    encode_files(&mut out, &manifest.files);
    out
}

fn put_section(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    put_bytes(out, content);
}

/// JSON of a value whose keys are strings and whose values always serialize, except moments outside the years that jiff
/// knows: those become nothing, and the body is refused when it is read back.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn encode_catalogue(entries: &[CatalogueEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 32);
    put_varint(&mut out, entries.len() as u64);
    let mut before: Option<&CatalogueEntry> = None;
    for entry in entries {
        let same_database =
            before.is_some_and(|b| b.database_oid == entry.database_oid && b.database == entry.database);
        let same_schema = same_database && before.is_some_and(|b| b.schema == entry.schema);
        out.push(u8::from(same_database) | u8::from(same_schema) << 1);
        if !same_database {
            put_bytes(&mut out, entry.database.as_bytes());
            put_varint(&mut out, u64::from(entry.database_oid));
        }
        if !same_schema {
            put_bytes(&mut out, entry.schema.as_bytes());
        }
        put_bytes(&mut out, entry.relation.as_bytes());
        put_varint(&mut out, u64::from(entry.oid));
        put_signed(&mut out, i64::from(entry.relfilenode) - i64::from(entry.oid));
        put_varint(&mut out, u64::from(entry.tablespace));
        put_varint(&mut out, u64::from(u32::from(entry.kind)));
        before = Some(entry);
    }
    out
}

fn encode_packs(packs: &[PackEntry]) -> Vec<u8> {
    let mut backups: Vec<&BackupId> = Vec::new();
    let mut positions: HashMap<&BackupId, u64> = HashMap::new();
    for pack in packs {
        positions.entry(&pack.backup).or_insert_with(|| {
            backups.push(&pack.backup);
            backups.len() as u64 - 1
        });
    }
    let mut out = Vec::with_capacity(packs.len() * 48 + backups.len() * 48);
    put_varint(&mut out, backups.len() as u64);
    for backup in &backups {
        put_bytes(&mut out, backup.as_str().as_bytes());
    }
    put_varint(&mut out, packs.len() as u64);
    for pack in packs {
        put_varint(&mut out, positions.get(&pack.backup).copied().unwrap_or_default());
        put_varint(&mut out, u64::from(pack.number));
        put_varint(&mut out, pack.stored_length);
        match pack.compression {
            Compression::None => out.push(0),
            Compression::Zstd(level) => {
                out.push(1);
                put_signed(&mut out, i64::from(level));
            }
        }
        match pack.key_id {
            None => out.push(0),
            Some(key_id) => {
                out.push(1);
                out.extend_from_slice(&key_id.0);
            }
        }
        out.extend_from_slice(&pack.salt);
    }
    out
}

fn encode_directories(directories: &[DirectoryEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(directories.len() * 24);
    put_varint(&mut out, directories.len() as u64);
    let mut before: &[u8] = b"";
    for directory in directories {
        put_path(&mut out, before, &directory.path);
        put_varint(&mut out, u64::from(directory.mode));
        before = &directory.path;
    }
    out
}

/// A path as the length of what it shares with the one before, and the rest.
fn put_path(out: &mut Vec<u8>, before: &[u8], path: &[u8]) {
    let shared = before.iter().zip(path).take_while(|(a, b)| a == b).count();
    put_varint(out, shared as u64);
    put_bytes(out, path.get(shared..).unwrap_or_default());
}

fn encode_files(out: &mut Vec<u8>, files: &[FileEntry]) {
    put_varint(out, files.len() as u64);
    let mut before: &[u8] = b"";
    let mut modified = 0;
    let mut recent = RecentChunks::default();
    for file in files {
        out.push(match file.root {
            Root::DataDirectory => 0,
            Root::External => 1,
        });
        put_path(out, before, &file.path);
        put_varint(out, u64::from(file.mode));
        put_varint(out, file.size);
        put_signed(out, file.modified.wrapping_sub(modified));
        put_varint(out, file.ranges.len() as u64);
        for range in &file.ranges {
            put_range(out, range, &mut recent);
        }
        before = &file.path;
        modified = file.modified;
    }
}

/// Writes one range against the chunks that ranges were in last. Its offset is not written: ranges cover their file
/// without a gap.
fn put_range(out: &mut Vec<u8>, range: &FileRange, recent: &mut RecentChunks) {
    let RangeSource::Chunk { pack, number, offset, stored_length, plaintext_length, within, digested } =
        range.source
    else {
        out.push(0);
        put_varint(out, u64::from(range.length));
        return;
    };
    let place = ChunkPlace { pack, number, offset, stored_length, plaintext_length };
    let before = recent.last.place;
    let whole = within == 0 && range.length == plaintext_length;
    let same = place == before;
    let other = !same && place == recent.other.place;
    let next = !same && !other && pack == before.pack && (number, offset) == before.following();
    match (same, other) {
        (true, _) => {}
        (false, true) => recent.turn_back(),
        (false, false) => recent.turn_to(place),
    }
    let part = (digested.within, digested.length) != (within, range.length);
    let known = part && recent.last.digested == digested;
    recent.last.digested = digested;
    let bits = [
        (flag::SAME_CHUNK, same),
        (flag::NEXT_CHUNK, next),
        (flag::WHOLE_CHUNK, whole),
        (flag::OTHER_CHUNK, other),
        (flag::PART, part),
        (flag::SAME_DIGEST, known),
    ];
    out.push(bits.iter().filter(|(_, set)| *set).fold(flag::CHUNK, |flags, (bit, _)| flags | bit));
    put_varint(out, u64::from(range.length));
    if !same && !other {
        if !next {
            put_varint(out, u64::from(pack));
            put_varint(out, u64::from(number));
            put_varint(out, offset);
        }
        put_varint(out, u64::from(stored_length));
        if !whole {
            put_varint(out, u64::from(plaintext_length));
        }
    }
    if !whole {
        put_varint(out, u64::from(within));
    }
    if known {
        return;
    }
    if part {
        put_varint(out, u64::from(digested.within));
        put_varint(out, u64::from(digested.length));
    }
    out.extend_from_slice(&digested.digest.0);
}
