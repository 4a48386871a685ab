//! Bytes of any kind: the scanner never panics, and chunks make no difference.

use std::sync::OnceLock;

use proptest::prelude::*;
use walhold::format::wal_index::{IndexChain, WalIndex};
use walhold::pg::TimelineId;
use walhold::pg::wal_page::LongPageHeader;
use walhold::wal::scan::SegmentScanner;

use crate::{Scanned, builder, finished_segments};

/// Three consecutive segments of a real server.
fn segments() -> &'static [Scanned] {
    static SEGMENTS: OnceLock<Vec<Scanned>> = OnceLock::new();
    SEGMENTS.get_or_init(|| {
        let cluster = builder(15).start();
        cluster.execute("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
        cluster.execute("INSERT INTO t VALUES (1); UPDATE t SET i = i + 1 WHERE i < 1000");
        cluster.switch_wal();
        finished_segments(&cluster, TimelineId::FIRST).split_off(1)
    })
}

#[derive(Debug, Clone)]
enum Change {
    Byte { at: usize, xor: u8 },
    Fill { at: usize, length: usize, byte: u8 },
    Copy { from: usize, to: usize, length: usize },
    Truncate { at: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..1usize << 20;
    prop_oneof![
        4 => (at.clone(), 1u8..).prop_map(|(at, xor)| Change::Byte { at, xor }),
        2 => (0..128usize, 0..40usize, 1u8..)
            .prop_map(|(page, at, xor)| Change::Byte { at: page * 8192 + at, xor }),
        1 => (at.clone(), 0..100_000usize, any::<u8>())
            .prop_map(|(at, length, byte)| Change::Fill { at, length, byte }),
        1 => (0..128usize, 0..128usize, 1..4usize)
            .prop_map(|(from, to, pages)| Change::Copy { from: from * 8192, to: to * 8192, length: pages * 8192 }),
        1 => at.prop_map(|at| Change::Truncate { at }),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let length = bytes.len();
    match *change {
        Change::Byte { at, xor } if at < length => bytes[at] ^= xor,
        Change::Fill { at, length: fill, byte } if at < length => {
            bytes[at..(at + fill).min(length)].fill(byte)
        }
        Change::Copy { from, to, length: copied } if from.max(to) + copied <= length => {
            bytes.copy_within(from..from + copied, to);
        }
        Change::Truncate { at } => bytes.truncate(at),
        _ => {}
    }
}

fn scan_in(segment: &Scanned, bytes: &[u8], sizes: &[usize]) -> WalIndex {
    let header = LongPageHeader::parse(&segment.bytes).expect("a real first page");
    let mut scanner = SegmentScanner::new(segment.name, &header);
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (chunk, more) = rest.split_at((*size).min(rest.len()));
        scanner.feed(chunk);
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    scanner.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_make_no_difference_and_nothing_panics(
        changes in prop::collection::vec(change(), 0..4),
        sizes in prop::collection::vec(1..300_000usize, 1..5),
    ) {
        let mut chain = IndexChain::new();
        for segment in segments().iter().take(3) {
            let mut bytes = segment.bytes.clone();
            changes.iter().for_each(|change| apply(&mut bytes, change));
            let whole = scan_in(segment, &bytes, &[1 << 20]);
            prop_assert_eq!(&whole, &scan_in(segment, &bytes, &sizes));
            prop_assert!(whole.valid_until <= whole.end && whole.start <= whole.valid_until);
            let decoded = WalIndex::decode(&whole.encode());
            prop_assert_eq!(decoded.as_ref(), Ok(&whole));
            chain.push(whole);
        }
        chain.finish();
    }

    #[test]
    fn noise_is_never_an_index_that_cannot_be_written_again(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        if let Ok(index) = WalIndex::decode(&bytes) {
            prop_assert_eq!(WalIndex::decode(&index.encode()), Ok(index));
        }
        // Real indexes with a piece of noise in them come closer.
        let mut real = segments()[0].index.encode();
        let at = cut.index(real.len());
        bytes.truncate(real.len() - at);
        real[at..at + bytes.len()].copy_from_slice(&bytes);
        if let Ok(index) = WalIndex::decode(&real) {
            prop_assert_eq!(WalIndex::decode(&index.encode()), Ok(index));
        }
        real.truncate(at);
        let _ = WalIndex::decode(&real);
    }
}
