//! Bytes that must stay readable for good, and bytes that must not be believed.

use super::*;
use crate::format::wal_index::{
    BlockChanges, DatabaseMaking, DatabaseRemoval, FileEvents, Removal, TablespaceEvent, TablespaceEventKind,
};
use crate::pg::wal_record::{BlockReference, ForkNumber, RelFileLocator};
use crate::pg::wal_storage::{DatabaseDirectory, StorageChange};

/// One of everything.
fn full() -> WalIndex {
    let end = |lsn, xid, outcome| TransactionEnd {
        lsn: Lsn::new(lsn),
        end: Lsn::new(lsn + 40),
        xid,
        time: PgTimestamp::new(-3),
        outcome,
    };
    let last = end(0x500, 701, Outcome::Aborted);
    let first = end(0x400, 700, Outcome::Committed);
    WalIndex {
        postgresql_major: 15,
        start: Lsn::new(0x10_0000),
        end: Lsn::new(0x20_0000),
        first_record: Some(Lsn::new(0x10_0028)),
        previous_record: Some(Lsn::new(0xF_FF00)),
        last_record: Some(Lsn::new(0x1F_FF00)),
        valid_until: Lsn::new(0x20_0000),
        verdict: RecordVerdict::Damaged { at: Lsn::new(0x300), problem: "torn".to_owned() },
        record_count: 300,
        transactions: Some(TransactionSpan {
            count: 2,
            least_time: PgTimestamp::new(i64::MIN),
            greatest_time: PgTimestamp::new(i64::MAX),
            first,
            last,
            last_commit: Some(first),
        }),
        committed: XidSet::from_ids(vec![700, 702, 703, u32::MAX]),
        aborted: XidSet::from_ids(vec![0, 701]),
        restore_points: vec![RestorePoint {
            lsn: Lsn::new(1),
            end: Lsn::new(105),
            time: PgTimestamp::new(9),
            name: "Grüße".to_owned(),
        }],
        checkpoints: vec![CheckpointRecord {
            lsn: Lsn::new(0x600),
            redo: Lsn::new(0x5C0),
            kind: CheckpointKind::EndOfRecovery,
            timeline: TimelineId::new(3).unwrap(),
            previous_timeline: TimelineId::new(2).unwrap(),
            time: PgTimestamp::new(1_000_000),
        }],
        wal_levels: vec![(Lsn::new(0x700), 2)],
        abandoned: Some(Lsn::new(0xF_F000)),
        abridged: true,
        head: Fragment {
            record: Lsn::INVALID,
            total_length: 9,
            length: 9,
            crc: 0x0403_0201,
            bytes: vec![7; 9],
        },
        tail: Fragment {
            record: Lsn::new(0x1F_FF00),
            total_length: 5000,
            length: 256,
            crc: 1,
            bytes: vec![5; 24],
        },
        blocks: Some(some_blocks()),
        files: Some(some_file_events()),
        databases_made: Some(some_makings()),
    }
}

fn relation(database: u32, relation: u32) -> RelFileLocator {
    RelFileLocator { tablespace: 1663, database, relation }
}

fn some_blocks() -> BlockChanges {
    let mut blocks = BlockChanges::default();
    let mut add = |relation, fork, number| {
        blocks.add_block(&BlockReference {
            id: 0,
            relation,
            fork: ForkNumber(fork),
            block: number,
            will_init: false,
            data_length: 0,
            image: None,
        });
    };
    [0, 1, 2, 9, 300].into_iter().for_each(|number| add(relation(5, 16384), 0, number));
    add(relation(5, 16384), 2, 0);
    add(relation(0, 1260), 0, u32::MAX - 1);
    let cut = StorageChange::Truncated { relation: relation(5, 16384), fork: ForkNumber::MAIN, from: 10 };
    blocks.add_storage_change(&cut);
    let gone = StorageChange::Removed { relations: vec![relation(5, 16390)], outcome: Outcome::Aborted };
    blocks.add_storage_change(&gone);
    blocks.add_storage_change(&StorageChange::DatabaseCreated {
        database: 7,
        tablespace: 1663,
        copied_from: None,
    });
    blocks
}

fn some_file_events() -> FileEvents {
    let removal = Removal {
        lsn: Lsn::new(0x400),
        xid: 700,
        time: PgTimestamp::new(5),
        count: 3,
        relations: vec![relation(5, 16390), relation(5, 16391)],
    };
    let database = |time| DatabaseRemoval {
        lsn: Lsn::new(0x300),
        xid: 702,
        database: 7,
        tablespaces: vec![1663, 16400],
        time,
    };
    let tablespace = |kind| TablespaceEvent { lsn: Lsn::new(0x200), xid: 703, tablespace: 16400, kind };
    let created = TablespaceEventKind::Created { path: "/srv/é".to_owned() };
    FileEvents {
        removals: vec![removal],
        databases: vec![database(None), database(Some(PgTimestamp::new(-1)))],
        tablespaces: vec![tablespace(created), tablespace(TablespaceEventKind::Dropped)],
    }
}

fn some_makings() -> Vec<DatabaseMaking> {
    let directory = |database| DatabaseDirectory { database, tablespace: 1663 };
    let making = |copied_from| DatabaseMaking { lsn: Lsn::new(0x800), directory: directory(7), copied_from };
    vec![making(None), making(Some(directory(4)))]
}

/// The bytes of version 1, for good: later versions must read them.
const FULL: &str = "\
    0100 17000000 0f8080408080800180808001a8804080fe3f80fe7fac02 \
    0200 07000000 800604746f726e \
    0300 2e000000 02ffffffffffffffffff01feffffffffffffffff018008a808bc050500800aa80abd050501018008a808bc050500 \
    0400 0d000000 03bc0500be0501ffffffff0f00 \
    0500 06000000 020000bd0500 \
    0600 0c000000 01016912074772c3bcc39f65 \
    0700 0b000000 01800cc00b02030280897a \
    0800 04000000 01800e02 \
    0900 11000000 0009090102030409070707070707070707 \
    0a00 24000000 80fe7f882780020100000018050505050505050505050505050505050505050505050505 \
    0b00 03000000 80e03f \
    0c00 00000000 \
    0d00 28000000 0501ff0c00ec0901fcffffff1f03ff0c058080010a0201010c20000100f206000003ff0c07000000 \
    0e00 47000000 018008bc050a0302ff0c05868001ff0c05878001028006be050702ff0c908001008006be050702ff0c90800101010\
    28004bf0590800100072f7372762fc3a98004bf0590800101 \
    0f00 10000000 0280100 7ff0c00 80100 7ff0c0104ff0c";

#[test]
fn goes_both_ways() {
    let index = full();
    assert_eq!(WalIndex::decode(&index.encode()), Ok(index));
    let empty = WalIndex::default();
    assert_eq!(empty.encode().len(), 6 + 8);
    assert_eq!(WalIndex::decode(&empty.encode()), Ok(empty));
}

/// What was written before the sections 13 to 15 is an index that says nothing about blocks and files.
#[test]
fn an_older_index_says_nothing_about_blocks() {
    let older = WalIndex { blocks: None, files: None, databases_made: None, ..full() };
    let bytes = older.encode();
    assert!(full().encode().starts_with(&bytes));
    assert_eq!(WalIndex::decode(&bytes), Ok(older));
    let nothing_changed = WalIndex { blocks: Some(BlockChanges::default()), ..WalIndex::default() };
    assert_eq!(WalIndex::decode(&nothing_changed.encode()), Ok(nothing_changed));
}

#[test]
fn too_many_blocks_are_left_out() {
    let mut blocks = BlockChanges::default();
    (0..600_000)
        .for_each(|number| blocks.add_run(relation(5, 16384), ForkNumber::MAIN, number * 300, number * 300));
    let index = WalIndex { blocks: Some(blocks), ..WalIndex::default() };
    let bytes = index.encode();
    assert!(bytes.len() < 100);
    assert_eq!(WalIndex::decode(&bytes), Ok(WalIndex::default()));
}

#[test]
fn the_bytes_are_these() {
    let hex: String = full().encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, FULL.split_whitespace().collect::<String>());
}

#[test]
fn every_truncation_is_refused_or_lacks_sections() {
    let bytes = full().encode();
    for length in 0..bytes.len() {
        if let Ok(index) = WalIndex::decode(&bytes[..length]) {
            assert_ne!(index, full(), "{length}");
        }
    }
}

#[test]
fn unknown_sections_are_passed_over() {
    let mut bytes = vec![0x34, 0x12, 3, 0, 0, 0, 1, 2, 3];
    bytes.extend(full().encode());
    bytes.extend([16, 0, 0, 0, 0, 0]);
    assert_eq!(WalIndex::decode(&bytes), Ok(full()));
}

#[test]
fn refuses_what_no_writer_writes() {
    let refused = |section: &[u8]| {
        let bytes = [WalIndex::default().encode().as_slice(), section].concat();
        WalIndex::decode(&bytes).unwrap_err().to_string()
    };
    let message = |problem: &str| format!("WAL index cannot be read: {problem}");
    assert_eq!(WalIndex::decode(&[]).unwrap_err().to_string(), message("no section 1 in section 0"));
    assert_eq!(refused(&[1]), message("too few bytes in section 0"));
    assert_eq!(refused(&[12, 0, 1, 0, 0, 0]), message("fewer bytes than announced in section 0"));
    assert_eq!(refused(&[12, 0, 1, 0, 0, 0, 0]), message("bytes left over in section 12"));
    assert_eq!(refused(&[12, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0]), message("a second one in section 12"));
    // Four billion blocks of one relation in a few bytes; a fork that never is; relations out of order.
    assert_eq!(
        refused(&[13, 0, 12, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F]),
        message("more blocks than a segment can name in section 13")
    );
    assert_eq!(refused(&[13, 0, 6, 0, 0, 0, 1, 0x11, 1, 1, 1, 0]), message("an unknown fork in section 13"));
    assert_eq!(
        refused(&[13, 0, 9, 0, 0, 0, 2, 1, 1, 1, 1, 0, 0, 0, 0]),
        message("forks out of order in section 13")
    );
    assert_eq!(refused(&[13, 0, 4, 0, 0, 0, 1, 0, 1, 0]), message("a relation of no database in section 13"));
    // A list that claims far more items than there are bytes.
    assert_eq!(
        refused(&[4, 0, 5, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
        message("too many items in section 4")
    );
    assert_eq!(refused(&[4, 0, 5, 0, 0, 0, 2, 5, 0, 5, 0]), message("ids out of order in section 4"));
    assert_eq!(
        refused(&[11, 0, 10, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
        message("a number above 64 bits in section 11")
    );
    assert_eq!(
        refused(&[10, 0, 9, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1, 7]),
        message("impossible lengths in section 10")
    );
    assert_eq!(refused(&[2, 0, 3, 0, 0, 0, 1, 1, 0xFF]), message("a text that is not UTF-8 in section 2"));
}
