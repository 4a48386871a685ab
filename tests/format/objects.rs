//! Objects to test with, and shorthands for writing and reading them.

use walhold::codec::decode::{DecodeError, Expected, ObjectSource, ObjectTail, decode_object};
use walhold::codec::encode::{ChunkSource, Encoded, ObjectWriter, SinkError, encode_object};
use walhold::codec::{Compression, Effort, KeyRing, MasterKey, Sealing};
use walhold::error::Explain;
use walhold::exit_status::Cause;
use walhold::format::ObjectKey;
use walhold::format::envelope::{CHUNK_SIZE, ObjectFacts, ObjectKind};
use walhold::pg::{SystemIdentifier, WalSegmentSize};

pub const SEGMENT: &str = "000000010000000A000000FE";

pub fn segment_key() -> ObjectKey {
    ObjectKey::from_listing(format!("main/wal/7371/00000001/0000000A/{SEGMENT}"))
}

pub fn segment_facts() -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::WalSegment,
        name: SEGMENT.to_owned(),
        system_identifier: SystemIdentifier::new(7371),
        segment_size: Some(WalSegmentSize::DEFAULT),
    }
}

pub fn pack_key() -> ObjectKey {
    ObjectKey::from_listing("main/packs/20261120T224613Z-00000001-0000000A000000FE/00000003")
}

pub fn pack_facts() -> ObjectFacts {
    ObjectFacts { kind: ObjectKind::Pack, name: "00000003".to_owned(), ..segment_facts() }
}

/// A key that every test may know.
pub fn test_key() -> MasterKey {
    MasterKey::parse("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
        .expect("parse the test key")
}

pub fn sealing(compression: Compression, key: Option<MasterKey>) -> Sealing {
    Sealing { compression, key, workers: Some(2) }
}

pub fn ring(key: Option<&MasterKey>) -> KeyRing {
    KeyRing::new(key.into_iter().cloned().collect())
}

/// Every way of sealing that differs in the bytes.
pub fn sealings() -> Vec<Sealing> {
    [Compression::None, Compression::Zstd(1)]
        .into_iter()
        .flat_map(|compression| [None, Some(test_key())].map(|key| sealing(compression, key)))
        .collect()
}

/// Text that compresses, different everywhere.
pub fn rows(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 64);
    let mut number = 1_u64;
    while text.len() < length {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend_from_slice(
            format!("{{\"id\": {}, \"name\": \"row {}\"}}\n", text.len(), number >> 48).as_bytes(),
        );
    }
    text.truncate(length);
    text
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Memory as a source of chunks.
pub struct MemoryChunks<'a>(pub &'a [u8]);

impl ChunkSource for MemoryChunks<'_> {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        let (now, later) = self.0.split_at(self.0.len().min(CHUNK_SIZE));
        chunk.clear();
        chunk.extend_from_slice(now);
        self.0 = later;
        Ok(later.is_empty())
    }
}

/// Memory as a stored object.
pub struct MemoryObject<'a>(pub &'a [u8]);

impl ObjectSource for MemoryObject<'_> {
    fn stored_length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        let begin = usize::try_from(offset).expect("an offset inside the object");
        Ok(self.0.get(begin..begin + length).expect("a range inside the object").to_vec())
    }
}

/// A failure made for a test.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Told(pub &'static str);

impl Explain for Told {
    fn exit_cause(&self) -> Cause {
        Cause::Unreachable
    }

    fn hint(&self) -> Option<String> {
        Some("a test told it to fail".to_owned())
    }
}

pub const INDEX: &[u8] = b"the index of this object, which says what its records touch";

pub fn write_segment(plaintext: &[u8], sealing: &Sealing) -> (Vec<u8>, Encoded) {
    let mut stored = Vec::new();
    let index = |_: MemoryChunks<'_>| INDEX.to_vec();
    let encoded =
        encode_object(MemoryChunks(plaintext), &segment_facts(), &segment_key(), sealing, index, &mut stored)
            .expect("encode a segment");
    (stored, encoded)
}

pub fn read_segment(stored: &[u8], keys: &KeyRing) -> Result<(Vec<u8>, ObjectTail), DecodeError> {
    read_object(&MemoryObject(stored), &segment_facts(), &segment_key(), keys)
}

pub fn read_object(
    source: &dyn ObjectSource,
    facts: &ObjectFacts,
    key: &ObjectKey,
    keys: &KeyRing,
) -> Result<(Vec<u8>, ObjectTail), DecodeError> {
    let mut plaintext = Vec::new();
    let mut deliver = |bytes: &[u8]| {
        plaintext.extend_from_slice(bytes);
        Ok(())
    };
    let tail = decode_object(source, &Expected { facts, key }, keys, &mut deliver)?;
    Ok((plaintext, tail))
}

/// A pack with these chunks, and where they lie.
pub fn write_pack(
    chunks: &[&[u8]],
    sealing: &Sealing,
) -> (Vec<u8>, Vec<walhold::codec::encode::ChunkLocation>, walhold::codec::decode::PackFacts) {
    let mut writer = ObjectWriter::new(&pack_facts(), &pack_key(), sealing, Effort::Quick, Vec::new())
        .expect("begin a pack");
    let locations = chunks.iter().map(|chunk| writer.write_chunk(chunk).expect("write a chunk")).collect();
    let (salt, key_id) = writer.salt_and_key();
    let (encoded, stored) = writer.finish(INDEX).expect("finish a pack");
    assert_eq!(encoded.stored_length, stored.len() as u64);
    let facts = walhold::codec::decode::PackFacts {
        facts: pack_facts(),
        key: pack_key(),
        compression: sealing.compression,
        key_id,
        salt,
    };
    (stored, locations, facts)
}
