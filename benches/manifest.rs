//! Encoding and decoding the manifest of a terabyte: a million ranges of 1 MiB; and what it takes of store and memory, also when incremental
//! backups have cut every tenth MiB into pieces.

use std::process::Command;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use walhold::codec::Compression;
use walhold::format::digest::ShortDigest;
use walhold::format::manifest::{
    BackupKind, BackupSummary, Digested, DirectoryEntry, FileEntry, FileRange, Manifest, PackEntry,
    RangeSource, Root, ServerFacts,
};
use walhold::pg::{Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentSize};

const RANGES: u32 = 1_000_000;
const CHUNK: u32 = 1 << 20;
/// What a chunk of rows compresses to.
const STORED: u32 = 290_000;
const CHUNKS_PER_PACK: u32 = 230;
const RANGES_PER_FILE: u32 = 1024;

fn summary() -> BackupSummary {
    BackupSummary {
        id: "20261120T224613Z-00000001-0000000A000000FE".parse().expect("a backup id"),
        system_identifier: SystemIdentifier::new(7_371_000_000_000_000_000),
        server_version: 180_001,
        kind: BackupKind::Full,
        base: None,
        from_standby: false,
        start_timeline: TimelineId::FIRST,
        stop_timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0xA_FE00_0028),
        checkpoint_lsn: Lsn::new(0xA_FE00_0060),
        stop_lsn: Lsn::new(0xA_FE00_0100),
        start_time: PgTimestamp::new(850_000_000_000_000),
        stop_time: PgTimestamp::new(850_000_010_000_000),
        wal_segment_size: WalSegmentSize::DEFAULT,
        block_size: 8192,
        data_checksums: true,
        cluster_bytes: u64::from(RANGES) << 20,
        file_count: u64::from(RANGES.div_ceil(RANGES_PER_FILE)),
        new_bytes: u64::from(RANGES) * u64::from(STORED),
        repository_bytes: u64::from(RANGES) * u64::from(STORED),
        resumed: None,
        damaged_pages: 0,
        encrypted: true,
        changes_from: "full".to_owned(),
        time_zone: "Europe/Berlin".to_owned(),
        walhold_version: "0.1.0".to_owned(),
    }
}

/// A terabyte in files of 1 GiB, each cut into runs that went to two packs in turn, as two jobs write them.
fn terabyte() -> Manifest {
    let packs = (0..RANGES.div_ceil(CHUNKS_PER_PACK) + 2).map(|number| PackEntry {
        backup: summary().id,
        number,
        stored_length: u64::from(CHUNKS_PER_PACK) * u64::from(STORED) + 4096,
        compression: Compression::Zstd(1),
        key_id: None,
        salt: [number as u8; 32],
    });
    // The next free chunk of each job's pack.
    let mut open = [(0u32, 0u32), (1, 0)];
    let mut next_pack = 2;
    let mut range = |index: u32| {
        let job = (index / 16 % 2) as usize;
        if open[job].1 == CHUNKS_PER_PACK {
            open[job] = (next_pack, 0);
            next_pack += 1;
        }
        let (pack, number) = open[job];
        open[job].1 += 1;
        FileRange {
            offset: u64::from(index % RANGES_PER_FILE) << 20,
            length: CHUNK,
            source: RangeSource::Chunk {
                pack,
                number,
                offset: u64::from(number) * u64::from(STORED),
                stored_length: STORED - index % 100,
                plaintext_length: CHUNK,
                within: 0,
                digested: Digested {
                    within: 0,
                    length: CHUNK,
                    digest: ShortDigest::of(&index.to_le_bytes()),
                },
            },
        }
    };
    let files = (0..RANGES.div_ceil(RANGES_PER_FILE)).map(|file| {
        let first = file * RANGES_PER_FILE;
        let ranges: Vec<FileRange> = (first..(first + RANGES_PER_FILE).min(RANGES)).map(&mut range).collect();
        FileEntry {
            root: Root::DataDirectory,
            path: format!("base/16384/{:07}", 1_000_000 + file).into_bytes(),
            mode: 0o600,
            size: ranges.len() as u64 * u64::from(CHUNK),
            modified: 1_790_000_000_000_000 + i64::from(file),
            ranges,
        }
    });
    let directory = |path: &str| DirectoryEntry { path: path.into(), mode: 0o700 };
    Manifest {
        summary: summary(),
        server: ServerFacts::default(),
        backup_label: "START WAL LOCATION: A/FE000028 (file 000000010000000A000000FE)\n".to_owned(),
        tablespace_map: None,
        tablespaces: Vec::new(),
        catalogue: Vec::new(),
        packs: packs.collect(),
        directories: vec![directory("base"), directory("base/16384")],
        files: files.collect(),
    }
}

fn manifests(criterion: &mut Criterion) {
    let manifest = terabyte();
    let body = manifest.encode();
    assert_eq!(Manifest::decode(&body).as_ref(), Ok(&manifest));
    let mut group = criterion.benchmark_group("manifest of a million ranges");
    group.sample_size(10).throughput(Throughput::Elements(u64::from(RANGES)));
    group.bench_function("encode", |bencher| bencher.iter(|| manifest.encode()));
    group.bench_function("decode", |bencher| {
        bencher.iter_batched(|| body.as_slice(), Manifest::decode, BatchSize::PerIteration);
    });
    group.finish();
}

/// Every tenth MiB in so many pieces, which lie in chunks of later backups by turns: what restores bound wear to, and more.
fn worn(pieces: u32) -> Manifest {
    let mut manifest = terabyte();
    let own = manifest.packs.len() as u32;
    let packs = (0..own / 8).map(|number| PackEntry { number: own + number, ..manifest.packs[0].clone() });
    manifest.packs.extend(packs.collect::<Vec<_>>());
    let length = CHUNK / pieces / 8192 * 8192;
    let mut counter = 0;
    for file in &mut manifest.files {
        let whole = std::mem::take(&mut file.ranges);
        for range in whole {
            counter += 1;
            let RangeSource::Chunk {
                pack, number, offset, stored_length, plaintext_length, digested, ..
            } = range.source
            else {
                continue;
            };
            if counter % 10 != 0 {
                file.ranges.push(range);
                continue;
            }
            for piece in 0..pieces {
                let begin = piece * length;
                let size = if piece + 1 == pieces { CHUNK - begin } else { length };
                let kept = RangeSource::Chunk {
                    pack,
                    number,
                    offset,
                    stored_length,
                    plaintext_length,
                    within: begin,
                    digested,
                };
                let anew = RangeSource::Chunk {
                    pack: own + counter / CHUNKS_PER_PACK % (own / 8),
                    number: counter % CHUNKS_PER_PACK,
                    offset: u64::from(counter % CHUNKS_PER_PACK) * u64::from(STORED),
                    stored_length: STORED,
                    plaintext_length: CHUNK,
                    within: begin,
                    digested: Digested {
                        within: begin,
                        length: size,
                        digest: ShortDigest::of(&[piece as u8, counter as u8]),
                    },
                };
                let source = if piece % 2 == 0 { kept } else { anew };
                file.ranges.push(FileRange { offset: range.offset + u64::from(begin), length: size, source });
            }
        }
    }
    manifest
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("read own status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).expect("kB") / 1024
}

/// Decodes what lies in a file, and says what that took, in a process of its own.
fn decode_alone(place: &str) {
    let body = std::fs::read(place).expect("read a body");
    let before = peak_mib();
    let manifest = Manifest::decode(&body).expect("a manifest");
    println!(
        "{} {before} {}",
        manifest.files.iter().map(|file| file.ranges.len()).sum::<usize>(),
        peak_mib()
    );
}

fn sizes() {
    for (what, manifest) in
        [("1 MiB ranges", terabyte()), ("a tenth of it in 20 pieces", worn(20)), ("in 96 pieces", worn(96))]
    {
        let body = manifest.encode();
        let stored: usize =
            body.chunks(1 << 20).map(|chunk| zstd::bulk::compress(chunk, 1).expect("compress").len()).sum();
        let file = tempfile::NamedTempFile::new().expect("make a file");
        std::fs::write(file.path(), &body).expect("write the body");
        let own = std::env::current_exe().expect("own path");
        let output = Command::new(own).arg("--decode-alone").arg(file.path()).output().expect("run again");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        println!(
            "1 TB, {what}: {} ranges, body {:.1} MB, stored {:.1} MB; memory with the body {} MiB, decoded {} MiB",
            figures[0],
            body.len() as f64 / 1e6,
            stored as f64 / 1e6,
            figures[1],
            figures[2],
        );
    }
}

criterion_group!(benches, manifests);

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, mode, place] = words.as_slice()
        && mode == "--decode-alone"
    {
        return decode_alone(place);
    }
    sizes();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
