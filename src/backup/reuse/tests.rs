#![allow(clippy::single_range_in_vec_init, reason = "one run is a list of runs too")]

use std::ops::Range;

use super::*;
use crate::format::digest::ShortDigest;
use crate::format::manifest::tests::{file, sample};
use crate::format::manifest::{Digested, Root};
use crate::format::wal_index::BlockChanges;
use crate::local::pgdata_walk::FoundFile;
use crate::pg::Lsn;
use crate::pg::wal_record::{BlockReference, RelFileLocator};
use crate::pg::wal_storage::StorageChange;

const PAGE: u64 = 8192;
const LAYOUT: PageLayout = PageLayout { block_size: 8192, segment_blocks: 131_072 };
const TABLE: RelFileLocator = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * PAGE..range.end * PAGE
}

/// A range that is a whole chunk of the pack.
fn range(pack: u32, number: u32, offset: u64, length: u64) -> FileRange {
    let length = length as u32;
    FileRange {
        offset,
        length,
        source: RangeSource::Chunk {
            pack,
            number,
            offset: u64::from(number) << 20,
            stored_length: 1000,
            plaintext_length: length,
            within: 0,
            digested: Digested { within: 0, length, digest: ShortDigest([number as u8; 16]) },
        },
    }
}

fn base(files: Vec<(&str, Vec<FileRange>)>) -> Manifest {
    let mut manifest = sample();
    manifest.server.damaged_blocks.clear();
    manifest.files = files.into_iter().map(|(path, ranges)| file(path, ranges)).collect();
    manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
    manifest
}

fn source(path: &str, size: u64) -> SourceFile {
    let found = FoundFile { path: path.into(), mode: 0o600, size, modified: 0, relation_segment: Some(0) };
    SourceFile { root: Root::DataDirectory, found }
}

fn blocks(changed: &[u32], limit: Option<u32>) -> Changes {
    let mut blocks = BlockChanges::default();
    if let Some(limit) = limit {
        blocks.add_storage_change(&StorageChange::Truncated {
            relation: TABLE,
            fork: ForkNumber::MAIN,
            from: limit,
        });
    }
    for block in changed {
        blocks.add_block(&BlockReference {
            id: 0,
            relation: TABLE,
            fork: ForkNumber::MAIN,
            block: *block,
            will_init: false,
            data_length: 0,
            image: None,
        });
    }
    Changes::Blocks(Box::new(blocks))
}

fn read_of(base: &Manifest, file: SourceFile, changes: &Changes) -> Vec<Range<u64>> {
    let plan = ReusePlan::new(&[file], base, changes, LAYOUT);
    match &plan.files[0] {
        Reuse::Known { read, .. } => read.clone(),
        other => panic!("{other:?}"),
    }
}

fn megabytes(count: u64) -> Vec<FileRange> {
    (0..count).map(|number| range(0, number as u32, number << 20, 1 << 20)).collect()
}

#[test]
fn only_changed_blocks_are_read() {
    let base = base(vec![("base/5/16384", megabytes(4))]);
    let file = || source("base/5/16384", 4 << 20);
    assert_eq!(read_of(&base, file(), &blocks(&[], None)), []);
    assert_eq!(read_of(&base, file(), &blocks(&[3, 4, 200], None)), [pages(3..5), pages(200..201)]);
    assert_eq!(read_of(&base, file(), &blocks(&[600], Some(500))), [pages(500..512)]);
}

#[test]
fn a_file_is_described_as_long_as_it_is_now() {
    let base = base(vec![("base/5/16384", megabytes(20))]);
    let changes = blocks(&[7], None);
    // Longer: what the base does not know is read, and the piece of a page at its end.
    let longer = source("base/5/16384", (20 << 20) + 3 * PAGE + 100);
    assert_eq!(
        read_of(&base, longer, &changes),
        [pages(7..8), pages(2560..2563).start..pages(2560..2563).end + 100]
    );
    // Shorter: only what is there is kept.
    let shorter = source("base/5/16384", 2 * PAGE + (10 << 20));
    let plan = ReusePlan::new(&[shorter], &base, &changes, LAYOUT);
    let Reuse::Known { base: index, read } = &plan.files[0] else { panic!() };
    let kept = plan.kept(*index, read, 2 * PAGE + (10 << 20));
    let spans: Vec<Range<u64>> = kept.iter().map(span_of).collect();
    assert_eq!(spans[..3], [pages(0..7), pages(8..128), pages(128..256)]);
    assert_eq!(spans[10..], [pages(1152..1280), pages(1280..1282)]);
}

#[test]
fn parts_of_ranges_keep_the_digest_of_the_whole() {
    let base = base(vec![("base/5/16384", megabytes(1))]);
    let changes = blocks(&[2, 9, 10], None);
    let plan = ReusePlan::new(&[source("base/5/16384", 1 << 20)], &base, &changes, LAYOUT);
    let Reuse::Known { base: index, read } = &plan.files[0] else { panic!() };
    let kept = plan.kept(*index, read, 1 << 20);
    let parts: Vec<(Range<u64>, u32, u32)> = kept
        .iter()
        .map(|range| match range.source {
            RangeSource::Chunk { within, digested, .. } => (span_of(range), within, digested.length),
            RangeSource::Zeros => panic!(),
        })
        .collect();
    let part = |range: Range<u64>| (pages(range.clone()), (range.start * PAGE) as u32, 1 << 20);
    assert_eq!(parts, [part(0..2), part(3..9), part(11..128)]);
    assert!(kept.iter().all(|range| range.own_digest().is_none()));
}

#[test]
fn other_segments_count_blocks_from_the_relations_beginning() {
    let base = base(vec![("base/5/16384.1", megabytes(2))]);
    let changes = blocks(&[5, 131_072 + 6], None);
    assert_eq!(read_of(&base, source("base/5/16384.1", 2 << 20), &changes), [pages(6..7)]);
    let changes = blocks(&[], Some(100));
    assert_eq!(read_of(&base, source("base/5/16384.1", 2 << 20), &changes), [0..2 << 20]);
}

#[test]
fn what_the_base_found_damaged_is_read_again() {
    let mut base = base(vec![("base/5/16384", megabytes(2))]);
    base.server.damaged_blocks = vec![("base/5/16384".to_owned(), 17), ("base/5/16385".to_owned(), 18)];
    assert_eq!(read_of(&base, source("base/5/16384", 2 << 20), &blocks(&[], None)), [pages(17..18)]);
}

#[test]
fn only_main_forks_are_believed() {
    let names = [
        "base/5/16384_vm",
        "base/5/16384_fsm",
        "base/5/16384_init",
        "base/5/pg_filenode.map",
        "pg_xact/0000",
    ];
    let base = base(names.iter().map(|name| (*name, megabytes(1))).collect());
    for changes in [blocks(&[], None), Changes::PagesSince(Lsn::new(7)), Changes::Unknown] {
        for name in names {
            let plan = ReusePlan::new(&[source(name, 1 << 20)], &base, &changes, LAYOUT);
            assert!(matches!(plan.files[0], Reuse::SameDigest { .. }), "{name}: {:?}", plan.files[0]);
        }
        let plan = ReusePlan::new(&[source("base/5/1", 1 << 20)], &base, &changes, LAYOUT);
        assert_eq!(plan.files[0], Reuse::Nothing);
    }
}

/// Pages that CREATE DATABASE copies keep old LSNs: files of another database under the same number must not pass for unchanged.
#[test]
fn a_scan_does_not_trust_a_database_that_was_made_again() {
    let base = base(vec![("base/5/PG_VERSION", vec![range(0, 0, 0, 3)]), ("base/5/16384", megabytes(1))]);
    let made = base.files[1].modified;
    assert_eq!(base.files[1].path, b"base/5/PG_VERSION");
    let changes = Changes::PagesSince(Lsn::new(7));
    let reuse = |modified: Option<i64>| {
        let mut files = vec![source("base/5/16384", 1 << 20)];
        files.extend(modified.map(|modified| {
            let mut version = source("base/5/PG_VERSION", 3);
            version.found.modified = modified;
            version
        }));
        ReusePlan::new(&files, &base, &changes, LAYOUT).files[0].clone()
    };
    assert_eq!(reuse(Some(made)), Reuse::OldPages { base: 0 });
    assert_eq!(reuse(Some(made + 1)), Reuse::SameDigest { base: 0 });
}

#[test]
fn worn_chunks_are_read_again_until_a_restore_is_cheap_enough() {
    let base = base(vec![("base/5/16384", megabytes(10))]);
    // Half of the first five chunks, most of the sixth, a page of the others.
    let mut changed: Vec<u32> = (0..5).flat_map(|chunk| chunk * 128..chunk * 128 + 64).collect();
    changed.extend(5 * 128..5 * 128 + 120);
    changed.extend((6..10).map(|chunk| chunk * 128));
    let changes = blocks(&changed, None);
    let plan = ReusePlan::new(&[source("base/5/16384", 10 << 20)], &base, &changes, LAYOUT);
    let Reuse::Known { base: index, read } = &plan.files[0] else { panic!() };
    assert!(read.iter().any(|span| span.start <= 5 << 20 && span.end >= 6 << 20), "{read:?}");
    let kept = plan.kept(*index, read, 10 << 20);
    let stored: u64 = read.iter().map(|span| span.end - span.start).sum();
    let chunks: std::collections::BTreeSet<u32> = kept
        .iter()
        .filter_map(|range| match range.source {
            RangeSource::Chunk { number, .. } => Some(number),
            RangeSource::Zeros => None,
        })
        .collect();
    let decoded = stored + ((chunks.len() as u64) << 20);
    assert!(decoded * 100 <= (10 << 20) * DECODE_LIMIT_PERCENT, "{decoded} bytes for {} MiB", 10);
    assert!(
        decoded * 100 > (10 << 20) * (DECODE_LIMIT_PERCENT - 15),
        "more was given up than had to be: {decoded}"
    );
    // Those of which a page changed are worth keeping.
    assert!([6, 7, 8, 9].iter().all(|chunk| chunks.contains(chunk)), "{chunks:?}");
}

#[test]
fn a_window_of_too_many_pieces_is_read_whole() {
    let base = base(vec![("base/5/16384", megabytes(20))]);
    let every_other: Vec<u32> = (0..128).step_by(2).chain([128, 130]).collect();
    let read = read_of(&base, source("base/5/16384", 20 << 20), &blocks(&every_other, None));
    assert_eq!(read, [0..(1 << 20) + PAGE, (1 << 20) + 2 * PAGE..(1 << 20) + 3 * PAGE]);
}

#[test]
fn a_small_relation_is_read_whole() {
    let base = base(vec![("base/5/16384", vec![range(0, 0, 0, 5 * PAGE)])]);
    assert_eq!(read_of(&base, source("base/5/16384", 5 * PAGE), &blocks(&[3], None)), [0..5 * PAGE]);
    assert_eq!(read_of(&base, source("base/5/16384", 5 * PAGE), &blocks(&[9], None)), []);
}
