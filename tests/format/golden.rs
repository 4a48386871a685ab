//! Objects written by every version ever released come back as they went in.

use std::path::Path;

use walhold::codec::decode::{ChunkOpener, PackFacts};
use walhold::codec::{Compression, KeyRing};
use walhold::format::ObjectKey;
use walhold::format::envelope::{ObjectFacts, ObjectKind};

use super::objects::*;

fn golden(version: &str, name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Every 4 KiB begin with their offset and are otherwise all one byte.
fn pages(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|offset| (offset >> 12) as u8).collect();
    for (page, bytes) in bytes.chunks_exact_mut(4096).enumerate() {
        bytes[..8].copy_from_slice(&(page as u64 * 4096).to_le_bytes());
    }
    bytes
}

fn history() -> (ObjectFacts, ObjectKey, Vec<u8>) {
    let facts = ObjectFacts {
        kind: ObjectKind::TimelineHistory,
        name: "00000002.history".to_owned(),
        segment_size: None,
        ..segment_facts()
    };
    let text = b"1\t0/3000000\tno recovery target specified\n".to_vec();
    (facts, ObjectKey::from_listing("main/wal/7371/00000002.history"), text)
}

fn comes_back(name: &str, facts: &ObjectFacts, key: &ObjectKey, plaintext: &[u8]) {
    let keys = if name.ends_with("aes") { ring(Some(&test_key())) } else { KeyRing::default() };
    let stored = golden("v1", name);
    let (back, tail) = read_object(&MemoryObject(&stored), facts, key, &keys)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(back == plaintext, "{name} comes back as something else");
    assert_eq!((&tail.facts, tail.index.as_slice()), (facts, &b"golden index"[..]), "{name}");
    assert_eq!(tail.key_id.is_some(), name.ends_with("aes"), "{name}");
}

#[test]
fn version_1_is_readable() {
    let (history_facts, history_key, text) = history();
    for codec in ["none", "zstd1"] {
        for cipher in ["plain", "aes"] {
            comes_back(&format!("history-{codec}-{cipher}"), &history_facts, &history_key, &text);
            comes_back(&format!("empty-{codec}-{cipher}"), &segment_facts(), &segment_key(), &[]);
            let pack = [pages(100), pages(1), pages(5000)].concat();
            comes_back(&format!("pack-{codec}-{cipher}"), &pack_facts(), &pack_key(), &pack);
        }
    }
    for cipher in ["plain", "aes"] {
        comes_back(&format!("segment-zstd1-{cipher}"), &segment_facts(), &segment_key(), &pages(5 << 19));
    }
}

#[test]
fn chunks_of_version_1_open_alone() {
    for (codec, compression) in [("none", Compression::None), ("zstd1", Compression::Zstd(1))] {
        for encrypted in [false, true] {
            let key = encrypted.then(test_key);
            let stored = golden("v1", &format!("pack-{codec}-{}", if encrypted { "aes" } else { "plain" }));
            let salt = if encrypted { std::array::from_fn(|n| 0x20 + n as u8) } else { [0; 32] };
            let key_id = key.as_ref().map(|key| key.id());
            let pack = PackFacts { facts: pack_facts(), key: pack_key(), compression, key_id, salt };
            let mut opener = ChunkOpener::new(&pack, &ring(key.as_ref())).expect("an opener");

            // The header frame, then each chunk with a prefix of 16 bytes.
            let mut offset = 8 + u32::from_le_bytes(stored[4..8].try_into().expect("four bytes")) as usize;
            for (number, length) in [100_u32, 1, 5000].into_iter().enumerate() {
                let payload =
                    u32::from_le_bytes(stored[offset + 8..offset + 12].try_into().expect("four bytes"));
                let end = offset + 16 + payload as usize;
                let mut plaintext = Vec::new();
                opener
                    .open(number as u32, &stored[offset..end], length, &mut plaintext)
                    .expect("open a chunk");
                assert!(
                    plaintext == pages(length as usize),
                    "chunk {number}, {codec}, encrypted={encrypted}"
                );
                offset = end;
            }
        }
    }
}
