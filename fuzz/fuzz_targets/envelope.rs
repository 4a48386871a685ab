//! Objects of any bytes: an error or the right data, never a panic, a hang or memory without bound.
//!
//! `cargo fuzz run envelope fuzz/corpus/envelope tests/golden/v1`. Checksums would stop every mutation at once, so
//! the input is also tried with all of them made right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::codec::decode::{
    ChunkOpener, Expected, ObjectSource, PackFacts, decode_with_workers, read_tail,
};
use walhold::codec::encode::SinkError;
use walhold::codec::{KeyRing, MasterKey};
use walhold::format::envelope::{FOOTER_SIZE, Frame, Header, ObjectKind, chunk_checksum, header_crc};
use walhold::format::{Digest, ObjectKey};

struct MemoryObject<'a>(&'a [u8]);

impl ObjectSource for MemoryObject<'_> {
    fn stored_length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        Ok(self.0[offset as usize..offset as usize + length].to_vec())
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    if let Some(repaired) = repair(bytes) {
        read(&repaired);
    }
});

fn read(bytes: &[u8]) {
    let Some(length) = header_length(bytes) else { return };
    let Some(Ok(header)) = bytes.get(..length).map(Header::parse) else { return };
    let key = ObjectKey::from_listing(match header.facts.kind {
        ObjectKind::TimelineHistory => "main/wal/7371/00000002.history",
        ObjectKind::Pack => "main/packs/20261120T224613Z-00000001-0000000A000000FE/00000003",
        _ => "main/wal/7371/00000001/0000000A/000000010000000A000000FE",
    });
    let keys = if header.key_id.is_some() { vec![golden_key()] } else { Vec::new() };
    let keys = KeyRing::new(keys);
    let expected = Expected { facts: &header.facts, key: &key };
    let tail = read_tail(&MemoryObject(bytes), &expected, &keys);

    let mut plaintext = Vec::new();
    let mut deliver = |part: &[u8]| {
        plaintext.extend_from_slice(part);
        Ok(())
    };
    if let Ok(whole) = decode_with_workers(&MemoryObject(bytes), &expected, &keys, 2, &mut deliver) {
        assert_eq!(whole.digest, Digest::of(&plaintext));
        assert_eq!(whole.plaintext_length, plaintext.len() as u64);
        let tail = tail.expect("what can be decoded has a tail");
        assert_eq!((tail.digest, tail.index), (whole.digest, whole.index));
    }
    open_first_chunk(&header, key, &keys, &bytes[length..]);
}

fn open_first_chunk(header: &Header, key: ObjectKey, keys: &KeyRing, stored: &[u8]) {
    let Header { facts, compression, key_id, salt, .. } = header.clone();
    let pack = PackFacts { facts, key, compression, key_id, salt };
    let Ok(mut opener) = ChunkOpener::new(&pack, keys) else { return };
    let payload =
        stored.get(8..12).and_then(|field| field.first_chunk()).map_or(0, |field| u32::from_le_bytes(*field));
    let end = (payload as usize).saturating_add(16).min(stored.len());
    let mut plaintext = Vec::new();
    let _ = opener.open(0, &stored[..end], 100, &mut plaintext);
}

fn golden_key() -> MasterKey {
    let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    MasterKey::parse(hex).expect("parse the key of the golden files")
}

fn header_length(bytes: &[u8]) -> Option<usize> {
    match Frame::parse(bytes.first_chunk()?) {
        Ok(Frame::Header(length)) => Some(length),
        _ => None,
    }
}

/// The input with every checksum made right, as far as its parts can be told apart.
fn repair(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let length = header_length(&bytes)?;
    put_crc(bytes.get_mut(..length)?);
    let header = bytes[..length].to_vec();
    let (mut at, mut number) = (length, 0);
    while let Some(first) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        match Frame::parse(first) {
            Ok(Frame::ChunkPrefix) => {
                let payload = u32::from_le_bytes(*bytes.get(at + 8..)?.first_chunk()?) as usize;
                let end = (at + 16).checked_add(payload)?;
                let checksum = chunk_checksum(header_crc(&header), number, bytes.get(at + 16..end)?);
                bytes[at + 12..at + 16].copy_from_slice(&checksum.to_le_bytes());
                at = end;
                number += 1;
            }
            Ok(Frame::Index(frame)) => {
                let end = at.checked_add(frame)?;
                // The copy of the header, and the footer's fields that describe the index frame.
                bytes.get_mut(at + 8..at + 8 + length)?.copy_from_slice(&header);
                let index_crc = crc32fast::hash(bytes.get(at..end)?);
                let footer = bytes.get_mut(end..).filter(|footer| footer.len() == FOOTER_SIZE)?;
                footer[24..32].copy_from_slice(&(at as u64).to_le_bytes());
                footer[32..36].copy_from_slice(&(frame as u32).to_le_bytes());
                footer[40..44].copy_from_slice(&(length as u32).to_le_bytes());
                footer[44..48].copy_from_slice(&header_crc(&header).to_le_bytes());
                footer[48..52].copy_from_slice(&index_crc.to_le_bytes());
                put_crc(footer);
                return Some(bytes);
            }
            _ => return Some(bytes),
        }
    }
    Some(bytes)
}

fn put_crc(frame: &mut [u8]) {
    if let Some((content, crc)) = frame.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(content).to_le_bytes();
    }
}
