//! What writing and reading one object costs: by codec, cipher, kind of data and number of workers.
//!
//! `cargo bench --bench envelope`. Figures are bytes of plaintext per second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use walhold::codec::decode::{Expected, ObjectSource, decode_with_workers};
use walhold::codec::encode::{ChunkSource, ObjectSink, SinkError, encode_object};
use walhold::codec::{Compression, KeyRing, MasterKey, Sealing};
use walhold::format::ObjectKey;
use walhold::format::envelope::{CHUNK_SIZE, ObjectFacts, ObjectKind};
use walhold::pg::{SystemIdentifier, WalSegmentSize};

/// One WAL segment of the usual size.
const LENGTH: usize = 16 << 20;

/// Deterministic numbers (xorshift), so that runs can be compared.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// WAL as pgbench writes it: small updates and inserts, now and then a full page; unique are transaction ids,
/// checksums, block numbers and balances.
fn wal_like() -> Vec<u8> {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let mut wal = Vec::with_capacity(LENGTH + (32 << 10));
    let (mut xid, mut previous) = (700_u32, 0_u64);
    while wal.len() < LENGTH {
        let lsn = 0x0000_000A_FE00_0000 + wal.len() as u64;
        xid += 1;
        let record = numbers.below(100);
        let body = match record {
            0..3 => full_page(&mut numbers),
            3..45 => row_change(&mut numbers, xid, 60),
            45..75 => row_change(&mut numbers, xid, 100),
            _ => lsn.to_le_bytes()[..4].to_vec(),
        };
        wal.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        wal.extend_from_slice(&xid.to_le_bytes());
        wal.extend_from_slice(&previous.to_le_bytes());
        wal.extend_from_slice(&[0x20, 10, 0, 0]);
        wal.extend_from_slice(&(numbers.next() as u32).to_le_bytes());
        wal.extend_from_slice(&body);
        wal.resize(wal.len().next_multiple_of(8), 0);
        previous = lsn;
    }
    wal.truncate(LENGTH);
    wal
}

/// Block reference, offsets, and a tuple of a few integers and a blank-padded text.
fn row_change(numbers: &mut Numbers, xid: u32, filler: usize) -> Vec<u8> {
    let mut body = vec![0, 0x80, 40, 0, 0x7F, 6, 0, 0, 5, 0, 0, 0];
    body.extend_from_slice(&(16_384 + numbers.below(4) as u32).to_le_bytes());
    body.extend_from_slice(&(numbers.below(16_400) as u32).to_le_bytes());
    body.extend_from_slice(&xid.to_le_bytes());
    body.extend_from_slice(&[(numbers.below(61)) as u8, 0, 0x20, 0, 4, 0, 2, 0x09, 24]);
    body.extend_from_slice(&(numbers.below(1_000_000) as u32).to_le_bytes());
    body.extend_from_slice(&(numbers.below(10) as u32).to_le_bytes());
    body.extend_from_slice(&(numbers.below(20_000) as i32 - 10_000).to_le_bytes());
    body.resize(body.len() + filler, b' ');
    body
}

/// A heap page of 60 such tuples.
fn full_page(numbers: &mut Numbers) -> Vec<u8> {
    let mut page = vec![1, 0, 0, 0x10, 0, 0, 0, 0];
    for tuple in 0..60_u32 {
        page.extend_from_slice(&(8192 - (tuple + 1) * 128).to_le_bytes());
    }
    let first = numbers.below(900_000) as u32;
    for tuple in 0..60_u32 {
        page.extend_from_slice(&(700 + numbers.below(5000) as u32).to_le_bytes());
        page.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 9, 24, 0]);
        page.extend_from_slice(&(first + tuple).to_le_bytes());
        page.extend_from_slice(&(numbers.below(20_000) as i32 - 10_000).to_le_bytes());
        page.extend_from_slice(&numbers.next().to_le_bytes());
        page.resize(page.len() + 76, b' ');
    }
    page
}

/// Heap pages of a table with JSON and text, as a backup reads them.
fn row_like() -> Vec<u8> {
    const WORDS: [&str; 24] = [
        "order",
        "customer",
        "shipped",
        "pending",
        "invoice",
        "amount",
        "street",
        "city",
        "north",
        "garden",
        "blue",
        "return",
        "express",
        "standard",
        "gift",
        "note",
        "fragile",
        "priority",
        "warehouse",
        "carrier",
        "label",
        "refund",
        "partial",
        "complete",
    ];
    let mut numbers = Numbers(0x2545_F491_4F6C_DD1D);
    let mut pages = Vec::with_capacity(LENGTH + 8192);
    let mut id = 1_u64;
    while pages.len() < LENGTH {
        let begin = pages.len();
        pages.extend_from_slice(&numbers.next().to_le_bytes());
        pages.resize(begin + 180, 0);
        while pages.len() < begin + 7800 {
            id += 1;
            pages.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0, 5, 0, 2, 9, 24, 0]);
            let (word, other) = (WORDS[numbers.below(24) as usize], WORDS[numbers.below(24) as usize]);
            let row = format!(
                "{{\"id\": {id}, \"customer\": {}, \"status\": \"{word}\", \"total\": {}.{:02}, \"reference\": \"{:016x}{:016x}{:016x}\", \
                 \"created\": \"2026-11-{:02}T{:02}:{:02}:00Z\", \"note\": \"{other} {word} {}\"}}",
                numbers.below(50_000),
                numbers.below(900),
                numbers.below(100),
                numbers.next(),
                numbers.next(),
                numbers.next(),
                numbers.below(28) + 1,
                numbers.below(24),
                numbers.below(60),
                WORDS[numbers.below(24) as usize],
            );
            pages.extend_from_slice(row.as_bytes());
        }
        pages.resize(begin + 8192, 0);
    }
    pages.truncate(LENGTH);
    pages
}

struct MemoryChunks<'a>(&'a [u8]);

impl ChunkSource for MemoryChunks<'_> {
    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SinkError> {
        let (now, later) = self.0.split_at(self.0.len().min(CHUNK_SIZE));
        chunk.clear();
        chunk.extend_from_slice(now);
        self.0 = later;
        Ok(later.is_empty())
    }
}

struct MemoryObject<'a>(&'a [u8]);

impl ObjectSource for MemoryObject<'_> {
    fn stored_length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        Ok(self.0[offset as usize..offset as usize + length].to_vec())
    }
}

/// Counts and forgets.
struct Nowhere(u64);

impl ObjectSink for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0 += bytes.len() as u64;
        Ok(())
    }
}

fn facts() -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::WalSegment,
        name: "000000010000000A000000FE".to_owned(),
        system_identifier: SystemIdentifier::new(7371),
        segment_size: Some(WalSegmentSize::DEFAULT),
    }
}

fn key() -> ObjectKey {
    ObjectKey::from_listing("main/wal/7371/00000001/0000000A/000000010000000A000000FE")
}

fn encode(plaintext: &[u8], sealing: &Sealing, sink: &mut dyn ObjectSink) {
    encode_object(MemoryChunks(plaintext), &facts(), &key(), sealing, |_| Vec::new(), sink).expect("encode");
}

fn envelope(criterion: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let master = MasterKey::generate().expect("make a key");
    let codecs = [
        ("none", Compression::None),
        ("zstd-1", Compression::Zstd(-1)),
        ("zstd1", Compression::Zstd(1)),
        ("zstd3", Compression::Zstd(3)),
        ("zstd9", Compression::Zstd(9)),
    ];
    let mut group = criterion.benchmark_group("envelope");
    group.sample_size(10).throughput(Throughput::Bytes(LENGTH as u64));
    for (data, plaintext) in [("wal", wal_like()), ("rows", row_like())] {
        for (codec, compression) in codecs {
            for (cipher, key_used) in [("plain", None), ("aes", Some(master.clone()))] {
                let sealing =
                    |workers| Sealing { compression, key: key_used.clone(), workers: Some(workers) };
                let mut stored = Vec::new();
                encode(&plaintext, &sealing(1), &mut stored);
                let (facts, key, keys) = (facts(), key(), KeyRing::new(key_used.iter().cloned().collect()));
                let expected = Expected { facts: &facts, key: &key };
                if cipher == "plain" {
                    println!("{data} {codec}: ratio {:.2}", LENGTH as f64 / stored.len() as f64);
                }
                for workers in [1, cores] {
                    let name = format!("{data}/{codec}/{cipher}/workers={workers}");
                    group.bench_function(BenchmarkId::new("encode", &name), |bencher| {
                        bencher.iter(|| encode(black_box(&plaintext), &sealing(workers), &mut Nowhere(0)));
                    });
                    group.bench_function(BenchmarkId::new("decode", &name), |bencher| {
                        bencher.iter(|| {
                            let mut length = 0;
                            let mut deliver = |bytes: &[u8]| {
                                length += black_box(bytes).len();
                                Ok(())
                            };
                            let source = MemoryObject(&stored);
                            decode_with_workers(&source, &expected, &keys, workers, &mut deliver)
                                .expect("decode");
                            length
                        });
                    });
                }
            }
        }
    }
    group.finish();
}

criterion_group!(benches, envelope);
criterion_main!(benches);
