//! Objects go in and come back, and the zstd command opens them.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use walhold::codec::decode::{ChunkOpener, Expected, ObjectSource, READ_SIZE, WithPrefix, read_tail};
use walhold::codec::encode::{ChunkSource, ObjectSink, ObjectWriter, SinkError, encode_object};
use walhold::codec::{Compression, Effort, KeyRing, MasterKey};
use walhold::error::Explain;
use walhold::exit_status::Cause;
use walhold::format::Digest;
use walhold::format::envelope::{CHUNK_SIZE, MAX_CHUNK_SIZE};

use super::objects::*;

const MIB: usize = 1 << 20;

fn assert_comes_back(plaintext: &[u8], sealing: &walhold::codec::Sealing) {
    let (stored, encoded) = write_segment(plaintext, sealing);
    assert_eq!(encoded.stored_length, stored.len() as u64);
    assert_eq!(encoded.plaintext_length, plaintext.len() as u64);
    assert_eq!(encoded.digest, Digest::of(plaintext));
    let keys = ring(sealing.key.as_ref());
    let (back, tail) = read_segment(&stored, &keys).expect("decode what was encoded");
    assert!(back == plaintext, "{} bytes came back as other {} bytes", plaintext.len(), back.len());

    let expected = Expected { facts: &segment_facts(), key: &segment_key() };
    let read = read_tail(&MemoryObject(&stored), &expected, &keys).expect("read the tail");
    for tail in [tail, read] {
        assert_eq!(tail.facts, segment_facts());
        assert_eq!(tail.digest, encoded.digest);
        assert_eq!(tail.plaintext_length, encoded.plaintext_length);
        assert_eq!(tail.stored_length, encoded.stored_length);
        assert_eq!(tail.key_id, sealing.key.as_ref().map(MasterKey::id));
        assert_eq!(tail.index, INDEX);
    }
}

#[test]
fn objects_of_all_sizes_come_back() {
    let plaintext = rows(5 * CHUNK_SIZE);
    for sealing in sealings() {
        for chunks in 0..=3 {
            for length in
                [(chunks * CHUNK_SIZE).wrapping_sub(1), chunks * CHUNK_SIZE, chunks * CHUNK_SIZE + 1]
            {
                if let Some(plaintext) = plaintext.get(..length) {
                    assert_comes_back(plaintext, &sealing);
                }
            }
        }
    }
}

#[test]
fn objects_larger_than_one_read_come_back() {
    let plaintext = noise(11 * CHUNK_SIZE + 12_345);
    for sealing in sealings() {
        assert_comes_back(&plaintext, &sealing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_object_comes_back(
        length in prop_oneof![0..2000_usize, CHUNK_SIZE - 300..CHUNK_SIZE + 300, 0..4 * CHUNK_SIZE],
        level in prop_oneof![Just(None), (-7..=9).prop_map(Some)],
        encrypted in any::<bool>(),
        compressible in any::<bool>(),
        workers in 1..5_usize,
    ) {
        let plaintext = if compressible { rows(length) } else { noise(length) };
        let compression = level.map_or(Compression::None, Compression::Zstd);
        let key = encrypted.then(|| MasterKey::generate().expect("make a key"));
        let sealing = walhold::codec::Sealing { compression, key, workers: Some(workers) };
        assert_comes_back(&plaintext, &sealing);
    }

    #[test]
    fn any_pack_comes_back(
        lengths in prop::collection::vec(prop_oneof![1..3000_usize, 1..MAX_CHUNK_SIZE / 4], 0..12),
        encrypted in any::<bool>(),
        raw in any::<bool>(),
    ) {
        let compression = if raw { Compression::None } else { Compression::Zstd(1) };
        let sealing = sealing(compression, encrypted.then(test_key));
        let plaintext = rows(lengths.iter().sum());
        let mut rest = plaintext.as_slice();
        let chunks: Vec<&[u8]> = lengths.iter().map(|length| rest.split_off(..*length).expect("enough rows")).collect();
        assert_pack_comes_back(&chunks, &sealing);
    }
}

fn assert_pack_comes_back(chunks: &[&[u8]], sealing: &walhold::codec::Sealing) {
    let (stored, locations, facts) = write_pack(chunks, sealing);
    let keys = ring(sealing.key.as_ref());
    let whole = read_object(&MemoryObject(&stored), &pack_facts(), &pack_key(), &keys);
    let (plaintext, tail) = whole.expect("decode a pack");
    assert!(plaintext == chunks.concat());
    assert_eq!((tail.digest, tail.index.as_slice()), (Digest::of(&plaintext), INDEX));

    let mut opener = ChunkOpener::new(&facts, &keys).expect("an opener");
    let mut opened = vec![1, 2, 3];
    for (chunk, location) in chunks.iter().zip(&locations).rev() {
        let begin = location.offset as usize;
        let part = &stored[begin..begin + location.stored_length as usize];
        opener.open(location.number, part, location.plaintext_length, &mut opened).expect("open a chunk");
        assert!(opened == *chunk);
    }
}

#[test]
fn a_pack_of_the_largest_chunks_comes_back() {
    let plaintext = noise(3 * MAX_CHUNK_SIZE);
    let chunks: Vec<&[u8]> = plaintext.chunks(MAX_CHUNK_SIZE).collect();
    for sealing in sealings() {
        assert_pack_comes_back(&chunks, &sealing);
    }
}

#[test]
fn a_chunk_opens_only_as_itself() {
    let plaintext = rows(3000);
    let chunks: Vec<&[u8]> = plaintext.chunks(1000).collect();
    for sealing in sealings() {
        let (stored, locations, facts) = write_pack(&chunks, &sealing);
        let keys = ring(sealing.key.as_ref());
        let chunk = |n: usize| {
            let begin = locations[n].offset as usize;
            &stored[begin..begin + locations[n].stored_length as usize]
        };
        let problem = |facts: &walhold::codec::decode::PackFacts, number, stored, length| {
            let mut opener = ChunkOpener::new(facts, &keys).expect("an opener");
            let mut plaintext = vec![7];
            let error = opener.open(number, stored, length, &mut plaintext).expect_err("refused");
            assert!(plaintext.is_empty(), "a refused chunk leaves nothing behind");
            error.to_string()
        };
        let prefix = format!("object {} is damaged: ", pack_key());
        assert_eq!(problem(&facts, 1, chunk(2), 1000), format!("{prefix}the checksum of chunk 1 is wrong"));
        assert_eq!(problem(&facts, 1, chunk(1), 999), format!("{prefix}chunk 1 has 1000 bytes, not 999"));
        assert_eq!(problem(&facts, 1, &chunk(1)[..15], 1000), format!("{prefix}a chunk is cut off"));
        assert_eq!(problem(&facts, 1, &[], 1000), format!("{prefix}a chunk is cut off"));
        let one_less = &chunk(1)[..chunk(1).len() - 1];
        assert_eq!(problem(&facts, 1, one_less, 1000), format!("{prefix}the checksum of chunk 1 is wrong"));
        let mut other = facts.clone();
        other.facts.name = "00000004".to_owned();
        assert_eq!(problem(&other, 1, chunk(1), 1000), format!("{prefix}the checksum of chunk 1 is wrong"));
        if sealing.key.is_some() {
            let mut moved = facts.clone();
            moved.key = walhold::format::ObjectKey::from_listing("main/packs/other/00000003");
            assert_eq!(
                problem(&moved, 1, chunk(1), 1000),
                "object main/packs/other/00000003 is damaged: chunk 1 does not open: it was changed, or stored under another name"
            );
        }
    }
}

/// Pipes `stored` through `zstd -dc`.
fn zstd_command(stored: &[u8]) -> Vec<u8> {
    let mut child = Command::new("zstd")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run the zstd command (Debian package zstd)");
    let mut stdin = child.stdin.take().expect("its standard input");
    let stored = stored.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&stored));
    let output = child.wait_with_output().expect("wait for zstd");
    writer.join().expect("the writing thread").expect("write to zstd");
    assert!(output.status.success(), "zstd -dc ended with {}", output.status);
    output.stdout
}

#[test]
fn the_zstd_command_opens_unencrypted_objects() {
    for compression in [Compression::None, Compression::Zstd(-7), Compression::Zstd(1), Compression::Zstd(19)]
    {
        let sealing = sealing(compression, None);
        for length in [0, 1, 300, 128 << 10, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 77] {
            let plaintext = rows(length);
            let (stored, _) = write_segment(&plaintext, &sealing);
            assert!(zstd_command(&stored) == plaintext, "{compression:?}, {length} bytes");
        }
        let rows = rows(5000);
        let (stored, ..) = write_pack(&[&rows[..1000], &rows[1000..]], &sealing);
        assert!(zstd_command(&stored) == rows);
        let (stored, ..) = write_pack(&[], &sealing);
        assert_eq!(zstd_command(&stored), b"");
    }
}

/// Counts what is read of an object.
struct Counted<'a> {
    object: MemoryObject<'a>,
    reads: AtomicUsize,
    bytes: AtomicUsize,
}

impl<'a> Counted<'a> {
    fn new(stored: &'a [u8]) -> Counted<'a> {
        Counted { object: MemoryObject(stored), reads: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    fn seen(&self) -> (usize, usize) {
        (self.reads.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }
}

impl ObjectSource for Counted<'_> {
    fn stored_length(&self) -> u64 {
        self.object.stored_length()
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(length, Ordering::SeqCst);
        self.object.read_range(offset, length)
    }
}

#[test]
fn an_object_is_read_once_and_in_large_ranges() {
    let sealing = sealing(Compression::None, None);
    let (stored, _) = write_segment(&noise(9 * MIB), &sealing);
    let source = Counted::new(&stored);
    read_object(&source, &segment_facts(), &segment_key(), &KeyRing::default()).expect("decode");
    assert_eq!(source.seen(), (stored.len().div_ceil(READ_SIZE), stored.len()));

    let (stored, _) = write_segment(&noise(MIB), &sealing);
    let source = Counted::new(&stored);
    read_object(&source, &segment_facts(), &segment_key(), &KeyRing::default()).expect("decode");
    assert_eq!(source.seen(), (1, stored.len()));
}

#[test]
fn a_tail_costs_one_small_read() {
    let expected = Expected { facts: &segment_facts(), key: &segment_key() };
    for (length, bytes) in [(0, None), (10_000, None), (3 * MIB, Some(64 << 10))] {
        let (stored, _) = write_segment(&noise(length), &sealing(Compression::Zstd(1), Some(test_key())));
        let source = Counted::new(&stored);
        read_tail(&source, &expected, &ring(Some(&test_key()))).expect("read the tail");
        assert_eq!(source.seen(), (1, bytes.unwrap_or(stored.len())), "{length} bytes");
    }
}

#[test]
fn a_large_index_costs_one_read_more() {
    let index = noise(300_000);
    let mut stored = Vec::new();
    let sealing = sealing(Compression::Zstd(1), None);
    let plaintext = noise(200_000);
    let source = MemoryChunks(&plaintext);
    encode_object(source, &segment_facts(), &segment_key(), &sealing, |_| index.clone(), &mut stored)
        .expect("encode");
    let source = Counted::new(&stored);
    let expected = Expected { facts: &segment_facts(), key: &segment_key() };
    let tail = read_tail(&source, &expected, &KeyRing::default()).expect("read the tail");
    assert!(tail.index == index);
    assert_eq!(source.seen().0, 2);
}

#[test]
fn a_prefix_in_memory_is_not_read_again() {
    let plaintext = noise(5 * MIB);
    let (stored, _) = write_segment(&plaintext, &sealing(Compression::None, None));
    for prefix in [0, 1, 100, MIB, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, stored.len()] {
        let rest = Counted::new(&stored);
        let source = WithPrefix::new(stored[..prefix].to_vec(), &rest);
        let back = read_object(&source, &segment_facts(), &segment_key(), &KeyRing::default());
        assert!(back.expect("decode").0 == plaintext, "prefix of {prefix}");
        assert_eq!(rest.seen().1, stored.len() - prefix, "prefix of {prefix}");
        // What was handed over is read again from where it came.
        let again = read_object(&source, &segment_facts(), &segment_key(), &KeyRing::default());
        assert!(again.expect("decode again").0 == plaintext, "prefix of {prefix}");
    }
    let (small, _) = write_segment(b"a history file", &sealing(Compression::Zstd(1), None));
    let rest = Counted::new(&small);
    let source = WithPrefix::new(small.clone(), &rest);
    let expected = Expected { facts: &segment_facts(), key: &segment_key() };
    read_tail(&source, &expected, &KeyRing::default()).expect("read the tail");
    assert_eq!(rest.seen(), (0, 0));
}

#[test]
fn two_encryptions_of_one_content_have_nothing_in_common_and_plain_ones_are_equal() {
    let plaintext = rows(5000);
    let encrypted = sealing(Compression::None, Some(test_key()));
    let (one, other) = (write_segment(&plaintext, &encrypted).0, write_segment(&plaintext, &encrypted).0);
    let name =
        one.windows(SEGMENT.len()).position(|part| part == SEGMENT.as_bytes()).expect("the name is plain");
    let chunk = name + SEGMENT.len() + 4 + 16;
    let same =
        one[chunk..chunk + 5000].iter().zip(&other[chunk..chunk + 5000]).filter(|(a, b)| a == b).count();
    assert!(same < 100, "{same} of 5000 ciphertext bytes agree");
    assert!(
        !one.windows(8).any(|part| part == &plaintext[..8])
            && !one.windows(8).any(|part| part == &INDEX[..8])
    );
    let plain = sealing(Compression::Zstd(1), None);
    assert!(write_segment(&plaintext, &plain).0 == write_segment(&plaintext, &plain).0);
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_workers() {
    let plaintext = rows(6 * CHUNK_SIZE + 5);
    let with = |workers| {
        let sealing = walhold::codec::Sealing { compression: Compression::Zstd(1), key: None, workers };
        write_segment(&plaintext, &sealing).0
    };
    let one = with(Some(1));
    assert!(one == with(Some(7)) && one == with(None));
}

#[test]
fn many_objects_at_once_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            scope.spawn(move || {
                for sealing in sealings() {
                    assert_comes_back(&rows(thread * 700_000 + 1), &sealing);
                }
            });
        }
    });
}

/// Gives its chunks as told, whatever the rules say.
struct Script(Vec<Result<(usize, bool), &'static str>>);

impl ChunkSource for Script {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        chunk.clear();
        match self.0.remove(0) {
            Ok((length, last)) => {
                chunk.extend_from_slice(&rows(length));
                Ok(last)
            }
            Err(told) => Err(Box::new(Told(told))),
        }
    }
}

fn encode_script(
    script: Vec<Result<(usize, bool), &'static str>>,
) -> Result<Vec<u8>, walhold::codec::encode::EncodeError> {
    let mut stored = Vec::new();
    let sealing = sealing(Compression::Zstd(1), None);
    encode_object(Script(script), &segment_facts(), &segment_key(), &sealing, |_| Vec::new(), &mut stored)?;
    Ok(stored)
}

#[test]
fn a_source_that_breaks_its_contract_or_fails_makes_no_object() {
    let problem = |script| encode_script(script).expect_err("refused").to_string();
    let wrong = |length| {
        format!("encode object {}: the source gave {length} bytes instead of a chunk", segment_key())
    };
    assert_eq!(problem(vec![Ok((5, false))]), wrong(5));
    assert_eq!(problem(vec![Ok((CHUNK_SIZE, false)), Ok((0, false))]), wrong(0));
    assert_eq!(problem(vec![Ok((CHUNK_SIZE, false)), Ok((CHUNK_SIZE + 1, true))]), wrong(CHUNK_SIZE + 1));
    assert_eq!(problem(vec![Err("read failed")]), "read failed");
    let late = (0..9).map(|_| Ok((CHUNK_SIZE, false))).chain([Err("read failed late")]).collect();
    let error = encode_script(late).expect_err("refused");
    assert_eq!(error.to_string(), "read failed late");
    assert_eq!(error.exit_cause(), Cause::Unreachable);
    assert_eq!(error.hint().as_deref(), Some("a test told it to fail"));
}

#[test]
fn a_writer_refuses_chunks_of_sizes_that_no_reader_takes() {
    let sealing = sealing(Compression::Zstd(1), None);
    let mut writer = ObjectWriter::new(&pack_facts(), &pack_key(), &sealing, Effort::Quick, Vec::new())
        .expect("begin a pack");
    for length in [0, MAX_CHUNK_SIZE + 1] {
        let error = writer.write_chunk(&vec![0; length]).expect_err("refused");
        let expected = format!("encode object {}: a chunk has 1 to 4194304 bytes, not {length}", pack_key());
        assert_eq!(error.to_string(), expected);
    }
    for (name, compression) in
        [("", Compression::None), ("1", Compression::Zstd(20)), ("1", Compression::Zstd(-8))]
    {
        let facts = walhold::format::envelope::ObjectFacts { name: name.to_owned(), ..pack_facts() };
        let sealing = walhold::codec::Sealing { compression, ..sealing.clone() };
        let error = ObjectWriter::new(&facts, &pack_key(), &sealing, Effort::Quick, Vec::new())
            .err()
            .expect("refused");
        let expected = format!(
            "encode object {}: its name must have 1 to 255 bytes and its compression level lie in -7..=19",
            pack_key()
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn an_end_that_is_learnt_late_is_an_empty_last_chunk() {
    for full in [1, 2, 4] {
        let script = (0..full).map(|_| Ok((CHUNK_SIZE, false))).chain([Ok((0, true))]).collect();
        let stored = encode_script(script).expect("encode");
        let (plaintext, tail) = read_segment(&stored, &KeyRing::default()).expect("decode");
        assert!(plaintext == rows(CHUNK_SIZE).repeat(full));
        assert_eq!(tail.digest, Digest::of(&plaintext));
    }
}

/// Fails after so many writes.
struct FailingSink(usize);

impl ObjectSink for FailingSink {
    fn write(&mut self, _bytes: &[u8]) -> Result<(), SinkError> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| Box::new(Told("the store is gone")) as SinkError)?;
        Ok(())
    }
}

#[test]
fn a_failing_sink_ends_the_work() {
    let plaintext = rows(5 * CHUNK_SIZE);
    // Header, five chunks, the end.
    for writes in 0..7 {
        let mut sink = FailingSink(writes);
        let sealing = sealing(Compression::Zstd(1), None);
        let source = MemoryChunks(&plaintext);
        let error =
            encode_object(source, &segment_facts(), &segment_key(), &sealing, |_| Vec::new(), &mut sink)
                .expect_err("the sink failed");
        assert_eq!(
            (error.to_string().as_str(), error.exit_cause()),
            ("the store is gone", Cause::Unreachable)
        );
    }
}

#[test]
fn a_failing_delivery_or_source_ends_the_work() {
    struct FailsFrom<'a>(MemoryObject<'a>, u64);
    impl ObjectSource for FailsFrom<'_> {
        fn stored_length(&self) -> u64 {
            self.0.stored_length()
        }
        fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
            if offset >= self.1 {
                Err(Box::new(Told("the connection broke")))
            } else {
                self.0.read_range(offset, length)
            }
        }
    }
    let (stored, _) = write_segment(&noise(14 * MIB), &sealing(Compression::None, None));
    for from in [0, 4 * MIB, 8 * MIB, 12 * MIB] {
        let source = FailsFrom(MemoryObject(&stored), from as u64);
        let error =
            read_object(&source, &segment_facts(), &segment_key(), &KeyRing::default()).expect_err("fails");
        assert_eq!(
            (error.to_string().as_str(), error.exit_cause()),
            ("the connection broke", Cause::Unreachable)
        );
    }
    let expected = Expected { facts: &segment_facts(), key: &segment_key() };
    for mut deliveries in [0, 1, 13] {
        let mut deliver = |_: &[u8]| -> Result<(), SinkError> {
            deliveries =
                usize::checked_sub(deliveries, 1).ok_or_else(|| Box::new(Told("disk full")) as SinkError)?;
            Ok(())
        };
        let source = MemoryObject(&stored);
        let decoded =
            walhold::codec::decode::decode_object(&source, &expected, &KeyRing::default(), &mut deliver);
        assert_eq!(decoded.expect_err("fails").to_string(), "disk full");
    }
}
