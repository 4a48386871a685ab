//! Real segments with real records, and one thing wrong.

use walhold::format::wal_index::{RecordVerdict, WalIndex};
use walhold::pg::{Lsn, TimelineId};

use crate::{Scanned, builder, finished_segments, oracle, scan};

fn segments() -> (crate::support::postgres::Cluster, Vec<Scanned>) {
    let cluster = builder(15).start();
    cluster.execute("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    cluster.switch_wal();
    let segments = finished_segments(&cluster, TimelineId::FIRST);
    (cluster, segments)
}

fn damaged_at(index: &WalIndex) -> Option<Lsn> {
    match &index.verdict {
        RecordVerdict::Damaged { at, .. } => Some(*at),
        RecordVerdict::Intact => None,
    }
}

/// One bit in every 50th record: reading stops exactly there, and everything before stands.
#[test]
fn a_flipped_bit_in_any_record_is_seen_there() {
    let (cluster, segments) = segments();
    let records = oracle::walinspect(&cluster, &segments);
    let mut tried = 0;
    for (number, record) in records.iter().enumerate().step_by(50) {
        let lsn = record.lsn();
        let Some(segment) = segments.iter().find(|s| s.index.start <= lsn && lsn < s.index.end) else {
            continue;
        };
        let mut bytes = segment.bytes.clone();
        // Behind the length: a flipped length may also show as a record that runs on too far.
        let offset = lsn.bytes_since(segment.index.start) as usize;
        let at = offset + [4, 5, 6, 7, 16, 20][number / 50 % 6];
        bytes[at] ^= 1 << (number % 8);
        // The header of a record at a page's end lies on two pages.
        if at / 8192 != offset / 8192 {
            continue;
        }
        let index = scan(segment.name, bytes).index;
        assert_eq!(damaged_at(&index), Some(lsn), "{record:?}");
        assert_eq!(index.valid_until, lsn);
        let before =
            records.iter().filter(|r| segment.index.start <= r.lsn() && r.lsn() < lsn).count() as u64;
        let head = u64::from(segment.index.head.exists());
        assert_eq!(index.record_count, before + head, "{record:?}");
        tried += 1;
    }
    assert!(tried > 200, "{tried}");
}

/// A segment whose first page is right and whose rest is from another place of the same WAL.
#[test]
fn pages_of_another_segment_are_seen() {
    let (_cluster, segments) = segments();
    let [first, second, ..] = segments.as_slice() else { panic!("two segments are needed") };
    let mut bytes = second.bytes.clone();
    bytes[65536..131072].copy_from_slice(&first.bytes[65536..131072]);
    let index = scan(second.name, bytes).index;
    let at = damaged_at(&index).expect("damage");
    assert!(at <= second.index.start.plus(65536), "{at}");
    let mut bytes = second.bytes.clone();
    bytes[100 * 8192..].fill(0);
    assert!(damaged_at(&scan(second.name, bytes).index).is_some());
}
