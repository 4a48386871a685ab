//! Writes the golden files of the format version that is current, and checks that nothing about it changes.
//!
//! `tests/format/golden.rs` reads them back. A file that was released is never written again: a new format version
//! gets a new directory.

use std::path::{Path, PathBuf};

use crate::format::ObjectKey;
use crate::format::envelope::{CHUNK_SIZE, ObjectFacts, ObjectKind};
use crate::pg::{SystemIdentifier, WalSegmentSize};

use super::encode::{ChunkSource, ObjectWriter, SinkError, encode_with_plan};
use super::seal::SealPlan;
use super::{Compression, Effort, MasterKey, Sealing};

const SEGMENT: &str = "000000010000000A000000FE";
const INDEX: &[u8] = b"golden index";

fn facts(kind: ObjectKind, name: &str, segment_size: Option<WalSegmentSize>) -> ObjectFacts {
    ObjectFacts { kind, name: name.to_owned(), system_identifier: SystemIdentifier::new(7371), segment_size }
}

fn sealing(compression: Compression, encrypted: bool) -> Sealing {
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let key = encrypted.then(|| MasterKey::parse(key).unwrap());
    Sealing { compression, key, workers: Some(2) }
}

/// 20, 21, … 3f; zeros where nothing is encrypted.
fn salt(sealing: &Sealing) -> [u8; 32] {
    if sealing.key.is_some() { std::array::from_fn(|n| 0x20 + n as u8) } else { [0; 32] }
}

/// Every 4 KiB begin with their offset and are otherwise all one byte.
fn plaintext(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|offset| (offset >> 12) as u8).collect();
    for (page, bytes) in bytes.chunks_exact_mut(4096).enumerate() {
        bytes[..8].copy_from_slice(&(page as u64 * 4096).to_le_bytes());
    }
    bytes
}

struct MemoryChunks(Vec<u8>);

impl ChunkSource for MemoryChunks {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        chunk.clear();
        chunk.extend(self.0.drain(..self.0.len().min(CHUNK_SIZE)));
        Ok(self.0.is_empty())
    }
}

fn object(facts: &ObjectFacts, key: &str, sealing: &Sealing, plaintext: Vec<u8>) -> Vec<u8> {
    let key = ObjectKey::from_listing(key);
    let plan = SealPlan::with_salt(facts, &key, sealing, CHUNK_SIZE as u32, salt(sealing)).unwrap();
    let mut stored = Vec::new();
    encode_with_plan(MemoryChunks(plaintext), &plan, &key, 2, |_| INDEX.to_vec(), &mut stored).unwrap();
    stored
}

fn pack(sealing: &Sealing) -> Vec<u8> {
    let key = ObjectKey::from_listing("main/packs/20261120T224613Z-00000001-0000000A000000FE/00000003");
    let facts = facts(ObjectKind::Pack, "00000003", Some(WalSegmentSize::DEFAULT));
    let plan = SealPlan::with_salt(&facts, &key, sealing, 0, salt(sealing)).unwrap();
    let mut writer = ObjectWriter::with_plan(plan, &key, Effort::Quick, Vec::new()).unwrap();
    for length in [100, 1, 5000] {
        writer.write_chunk(&plaintext(length)).unwrap();
    }
    writer.finish(INDEX).unwrap().1
}

/// Name and bytes of every golden object.
fn golden_objects() -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    for (compression, codec) in [(Compression::None, "none"), (Compression::Zstd(1), "zstd1")] {
        for (encrypted, cipher) in [(false, "plain"), (true, "aes")] {
            let sealing = sealing(compression, encrypted);
            let segment = facts(ObjectKind::WalSegment, SEGMENT, Some(WalSegmentSize::DEFAULT));
            let segment_key = format!("main/wal/7371/00000001/0000000A/{SEGMENT}");
            if compression != Compression::None {
                let stored = object(&segment, &segment_key, &sealing, plaintext(5 << 19));
                objects.push((format!("segment-{codec}-{cipher}"), stored));
            }
            let history = facts(ObjectKind::TimelineHistory, "00000002.history", None);
            let history_key = "main/wal/7371/00000002.history";
            let text = b"1\t0/3000000\tno recovery target specified\n".to_vec();
            objects
                .push((format!("history-{codec}-{cipher}"), object(&history, history_key, &sealing, text)));
            objects.push((
                format!("empty-{codec}-{cipher}"),
                object(&segment, &segment_key, &sealing, Vec::new()),
            ));
            objects.push((format!("pack-{codec}-{cipher}"), pack(&sealing)));
        }
    }
    objects
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

#[test]
fn version_1_is_still_written_byte_for_byte() {
    for (name, stored) in golden_objects() {
        let path = directory().join(&name);
        let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if name.contains("none") {
            assert!(golden == stored, "{name} is written differently now");
        } else {
            // Another release of zstd may compress differently; what is around the frames may not change.
            let header = 8 + u32::from_le_bytes(golden[4..8].try_into().unwrap()) as usize;
            assert!(golden[..header] == stored[..header], "the header of {name} is written differently now");
        }
    }
}

#[test]
#[ignore = "only for a format version that was not released: writes the golden files"]
fn write_golden_files() {
    std::fs::create_dir_all(directory()).unwrap();
    for (name, stored) in golden_objects() {
        std::fs::write(directory().join(name), stored).unwrap();
    }
}
