//! Damage, exchange and the wrong key: always an error that says so, never data.

use walhold::codec::decode::{ChunkOpener, DecodeError, Expected, ObjectTail, read_tail};
use walhold::codec::{Compression, KeyRing, MasterKey, Sealing};
use walhold::error::Explain;
use walhold::exit_status::Cause;
use walhold::format::ObjectKey;
use walhold::format::envelope::{ObjectFacts, ObjectKind};
use walhold::pg::{SystemIdentifier, WalSegmentSize};

use super::objects::*;

/// Small objects of every make, with what reads them: one chunk, several chunks, empty.
fn small_objects() -> Vec<(String, Vec<u8>, ObjectFacts, ObjectKey, Sealing)> {
    let rows = rows(700);
    let mut objects = Vec::new();
    for sealing in sealings() {
        let name = format!("{:?} encrypted={}", sealing.compression, sealing.key.is_some());
        for length in [700, 0] {
            let stored = write_segment(&rows[..length], &sealing).0;
            objects.push((
                format!("{name} {length}"),
                stored,
                segment_facts(),
                segment_key(),
                sealing.clone(),
            ));
        }
        let stored = write_pack(&[&rows[..300], &rows[300..301], &rows[301..]], &sealing).0;
        objects.push((format!("{name} pack"), stored, pack_facts(), pack_key(), sealing));
    }
    objects
}

fn tail(
    stored: &[u8],
    facts: &ObjectFacts,
    key: &ObjectKey,
    keys: &KeyRing,
) -> Result<ObjectTail, DecodeError> {
    read_tail(&MemoryObject(stored), &Expected { facts, key }, keys)
}

#[test]
fn every_flipped_byte_is_noticed() {
    for (name, stored, facts, key, sealing) in small_objects() {
        let keys = ring(sealing.key.as_ref());
        let intact = tail(&stored, &facts, &key, &keys).expect("the tail of the intact object");
        for offset in 0..stored.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut damaged = stored.clone();
                damaged[offset] ^= flip;
                let decoded = read_object(&MemoryObject(&damaged), &facts, &key, &keys);
                let error = decoded
                    .err()
                    .unwrap_or_else(|| panic!("{name}: byte {offset} ^ {flip:#x} went unnoticed"));
                assert!(
                    matches!(error, DecodeError::Damaged { .. }) && error.exit_cause() == Cause::Damaged,
                    "{name}: byte {offset} ^ {flip:#x}: {error}"
                );
                // The chunks are not part of a tail; everything that it tells must be as it was.
                if let Ok(tail) = tail(&damaged, &facts, &key, &keys) {
                    assert_eq!(
                        (tail.digest, tail.index, tail.facts),
                        (intact.digest, intact.index.clone(), facts.clone())
                    );
                }
            }
        }
    }
}

#[test]
fn every_truncation_and_anything_appended_is_noticed() {
    for (name, stored, facts, key, sealing) in small_objects() {
        let keys = ring(sealing.key.as_ref());
        for length in 0..stored.len() {
            let cut = &stored[..length];
            let decoded = read_object(&MemoryObject(cut), &facts, &key, &keys);
            assert!(matches!(decoded, Err(DecodeError::Damaged { .. })), "{name}: cut to {length} bytes");
            let tail = tail(cut, &facts, &key, &keys);
            assert!(matches!(tail, Err(DecodeError::Damaged { .. })), "{name}: tail of {length} bytes");
        }
        for extra in [&[0_u8][..], &[0; 200], &stored] {
            let longer = [&stored, extra].concat();
            let decoded = read_object(&MemoryObject(&longer), &facts, &key, &keys);
            assert!(
                matches!(decoded, Err(DecodeError::Damaged { .. })),
                "{name}: {} bytes more",
                extra.len()
            );
        }
        let problem = read_object(&MemoryObject(&[]), &facts, &key, &keys).expect_err("empty").to_string();
        assert_eq!(problem, format!("object {key} is damaged: it is empty"));
    }
}

#[test]
fn truncations_of_a_large_object_are_noticed() {
    let (stored, _) = write_segment(&noise(9 << 20), &sealing(Compression::None, None));
    for length in [1, 100, 4 << 20, (4 << 20) + 1, 5 << 20, 8 << 20, stored.len() - 113, stored.len() - 1] {
        let decoded = read_segment(&stored[..length], &KeyRing::default());
        assert!(matches!(decoded, Err(DecodeError::Damaged { .. })), "cut to {length} bytes");
    }
}

#[test]
fn a_source_shorter_than_listed_is_damage() {
    struct Shrunk<'a>(&'a [u8]);
    impl walhold::codec::decode::ObjectSource for Shrunk<'_> {
        fn stored_length(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_range(
            &self,
            offset: u64,
            length: usize,
        ) -> Result<Vec<u8>, walhold::codec::encode::SinkError> {
            Ok(self.0[offset as usize..offset as usize + length - 1].to_vec())
        }
    }
    let (stored, _) = write_segment(&rows(100), &sealing(Compression::None, None));
    let error = read_object(&Shrunk(&stored), &segment_facts(), &segment_key(), &KeyRing::default())
        .expect_err("short");
    assert_eq!(error.to_string(), format!("object {} is damaged: it is cut off", segment_key()));
    let tail = read_tail(
        &Shrunk(&stored),
        &Expected { facts: &segment_facts(), key: &segment_key() },
        &KeyRing::default(),
    );
    assert!(matches!(tail, Err(DecodeError::Damaged { .. })));
}

#[test]
fn exchanged_chunks_are_noticed() {
    let rows = rows(2000);
    for sealing in sealings() {
        let (stored, locations, _) = write_pack(&[&rows[..1000], &rows[..1000], &rows[1000..]], &sealing);
        let part = |n: usize| {
            let begin = locations[n].offset as usize;
            begin..begin + locations[n].stored_length as usize
        };
        let mut exchanged = stored[..part(0).start].to_vec();
        exchanged.extend_from_slice(&stored[part(1)]);
        exchanged.extend_from_slice(&stored[part(0)]);
        exchanged.extend_from_slice(&stored[part(1).end..]);
        let keys = ring(sealing.key.as_ref());
        let error =
            read_object(&MemoryObject(&exchanged), &pack_facts(), &pack_key(), &keys).expect_err("exchanged");
        let problem = format!("object {} is damaged: the checksum of chunk 0 is wrong", pack_key());
        assert_eq!(error.to_string(), problem);
        let mut dropped = stored.clone();
        dropped.drain(part(2));
        let error =
            read_object(&MemoryObject(&dropped), &pack_facts(), &pack_key(), &keys).expect_err("dropped");
        assert!(matches!(error, DecodeError::Damaged { .. }), "{error}");
    }
}

#[test]
fn parts_of_two_objects_do_not_make_one() {
    for sealing in sealings() {
        let keys = ring(sealing.key.as_ref());
        let (one, other) = (write_segment(&rows(500), &sealing).0, write_segment(&noise(500), &sealing).0);
        // The footer has a fixed size.
        let mixed = [&one[..one.len() - 112], &other[other.len() - 112..]].concat();
        assert!(matches!(read_segment(&mixed, &keys), Err(DecodeError::Damaged { .. })));
        for at in 1..one.len().min(other.len()) {
            let mixed = [&one[..at], &other[at..]].concat();
            if mixed != one && mixed != other {
                assert!(
                    matches!(read_segment(&mixed, &keys), Err(DecodeError::Damaged { .. })),
                    "mixed at {at}"
                );
            }
        }
    }
}

/// The error of reading an object that expects these facts; whole and tail must agree.
fn refusal(
    stored: &[u8],
    facts: &ObjectFacts,
    key: &ObjectKey,
    keys: &KeyRing,
) -> (String, Cause, Option<String>) {
    let mut delivered = 0;
    let mut deliver = |bytes: &[u8]| {
        delivered += bytes.len();
        Ok(())
    };
    let expected = Expected { facts, key };
    let decoded = walhold::codec::decode::decode_object(&MemoryObject(stored), &expected, keys, &mut deliver);
    let error = decoded.expect_err("another object was expected");
    assert_eq!(delivered, 0, "a byte was delivered before the refusal");
    let tail = tail(stored, facts, key, keys).expect_err("another object was expected");
    assert_eq!(tail.to_string(), error.to_string());
    (error.to_string(), error.exit_cause(), error.hint())
}

#[test]
fn another_object_is_refused_before_a_byte_is_delivered() {
    for sealing in sealings() {
        let stored = write_segment(&rows(500), &sealing).0;
        let keys = ring(sealing.key.as_ref());
        let key = segment_key();
        let refused = |facts: ObjectFacts| refusal(&stored, &facts, &key, &keys);
        let damage_hint =
            "restore this object from a copy of the repository, or recover to a moment that does not need it";
        assert_eq!(
            refused(ObjectFacts { name: "000000010000000A000000FF".to_owned(), ..segment_facts() }),
            (
                format!(
                    "object {key} is not what its name says: it holds \"{SEGMENT}\", not \"000000010000000A000000FF\""
                ),
                Cause::Damaged,
                Some(damage_hint.to_owned())
            )
        );
        assert_eq!(
            refused(ObjectFacts { kind: ObjectKind::Pack, ..segment_facts() }).0,
            format!("object {key} is not what its name says: it is a WAL segment, not a pack")
        );
        assert_eq!(
            refused(ObjectFacts { system_identifier: SystemIdentifier::new(1), ..segment_facts() }),
            (
                format!("object {key} belongs to another cluster: its system identifier is 7371, not 1"),
                Cause::OtherCluster,
                Some("check WALHOLD_CLUSTER and PGDATA: two clusters may share a name".to_owned())
            )
        );
        assert_eq!(
            refused(ObjectFacts { segment_size: WalSegmentSize::new(1 << 20), ..segment_facts() }).0,
            format!(
                "object {key} is not what its name says: its WAL segment size is 16777216 bytes, not 1048576"
            )
        );
        let unknown_size = ObjectFacts { segment_size: None, ..segment_facts() };
        assert!(read_object(&MemoryObject(&stored), &unknown_size, &key, &keys).is_ok());
    }
}

#[test]
fn keys_are_asked_for_and_plain_objects_refused_where_there_is_one() {
    let key = segment_key();
    let encrypted = write_segment(&rows(500), &sealing(Compression::Zstd(1), Some(test_key()))).0;
    let missing = (
        format!("object {key} is encrypted with key {}, which is not configured", test_key().id()),
        Cause::Key,
        Some("add the key's file to [encryption] key_file; all listed keys read".to_owned()),
    );
    let other = MasterKey::generate().expect("make a key");
    assert_eq!(refusal(&encrypted, &segment_facts(), &key, &KeyRing::default()), missing);
    assert_eq!(refusal(&encrypted, &segment_facts(), &key, &ring(Some(&other))), missing);
    let both = KeyRing::new(vec![other, test_key()]);
    assert!(read_segment(&encrypted, &both).is_ok());

    let plain = write_segment(&rows(500), &sealing(Compression::Zstd(1), None)).0;
    assert_eq!(
        refusal(&plain, &segment_facts(), &key, &both),
        (
            format!("object {key} is not encrypted, although a key is configured"),
            Cause::Key,
            Some(
                "somebody without the key wrote it, or it predates encryption: unset the key to read it"
                    .to_owned()
            )
        )
    );
    let (_, _, pack) = write_pack(&[b"chunk"], &sealing(Compression::None, None));
    assert!(matches!(ChunkOpener::new(&pack, &both), Err(DecodeError::NotEncrypted { .. })));
    let (_, _, pack) = write_pack(&[b"chunk"], &sealing(Compression::None, Some(test_key())));
    assert!(matches!(ChunkOpener::new(&pack, &KeyRing::default()), Err(DecodeError::KeyMissing { .. })));
}

#[test]
fn an_encrypted_object_does_not_open_under_another_key_of_the_repository() {
    let (stored, _) = write_segment(&rows(500), &sealing(Compression::Zstd(1), Some(test_key())));
    let elsewhere = ObjectKey::from_listing(format!("other/wal/7371/00000001/0000000A/{SEGMENT}"));
    let keys = ring(Some(&test_key()));
    let problem = read_object(&MemoryObject(&stored), &segment_facts(), &elsewhere, &keys)
        .expect_err("moved")
        .to_string();
    assert_eq!(
        problem,
        format!(
            "object {elsewhere} is damaged: chunk 0 does not open: it was changed, or stored under another name"
        )
    );
    let problem = tail(&stored, &segment_facts(), &elsewhere, &keys).expect_err("moved").to_string();
    assert_eq!(
        problem,
        format!(
            "object {elsewhere} is damaged: the index does not open: it was changed, or stored under another name"
        )
    );
}

/// Changes a field of the header and makes its CRC right again, as a later version or an attacker would.
fn with_header_field(stored: &[u8], offset: usize, value: u8) -> Vec<u8> {
    let mut changed = stored.to_vec();
    let length = 8 + u32::from_le_bytes(changed[4..8].try_into().expect("four bytes")) as usize;
    let copy =
        changed.windows(length).rposition(|part| part == &stored[..length]).expect("the header's copy");
    for begin in [0, copy] {
        changed[begin + offset] = value;
        let crc = crc32fast::hash(&changed[begin..begin + length - 4]);
        changed[begin + length - 4..begin + length].copy_from_slice(&crc.to_le_bytes());
    }
    changed
}

#[test]
fn what_version_1_does_not_know_is_named() {
    let (stored, _) = write_segment(&rows(100), &sealing(Compression::Zstd(1), None));
    let problem = |offset, value| {
        let changed = with_header_field(&stored, offset, value);
        let error = read_segment(&changed, &KeyRing::default()).expect_err("unknown");
        let (key, text) = (segment_key().to_string(), error.to_string());
        text.replace(&format!("object {key} "), "").replace("is damaged: ", "")
    };
    assert_eq!(problem(16, 2), "has format version 2; this walhold reads up to version 1");
    assert_eq!(problem(16, 0), "unknown format version 0");
    assert_eq!(problem(18, 9), "unknown object kind 9");
    assert_eq!(problem(19, 2), "unknown codec 2");
    assert_eq!(problem(20, 20), "the header holds fields that version 1 does not have");
    assert_eq!(problem(21, 2), "unknown cipher 2");
    assert_eq!(problem(22, 1), "the header holds fields that version 1 does not have");
    assert_eq!(problem(25, 1), "chunks of 1048832 bytes");
    assert_eq!(problem(28, 1), "a WAL segment size of 16777217 bytes");
    assert_eq!(problem(40, 1), "the header holds fields that version 1 does not have");
    assert_eq!(problem(48, 1), "the header has a salt but no cipher");
    assert_eq!(problem(80, 1), "the header's name does not fit");
    assert_eq!(problem(82, 0xFF), "the header's name is not UTF-8");
}

#[test]
fn bytes_that_are_no_object_are_refused() {
    let problem =
        |stored: &[u8]| read_segment(stored, &KeyRing::default()).expect_err("no object").to_string();
    let no_header = format!("object {} is damaged: it does not begin with a walhold header", segment_key());
    assert_eq!(problem(&noise(5000)), no_header);
    assert_eq!(problem(&[0; 200]), no_header);
    assert_eq!(problem(b"{\"a\": \"json object somebody put there\"}"), no_header);
}
