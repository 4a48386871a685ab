//! What the scanner reads in WAL, compared with what PostgreSQL itself says is there: `pg_walinspect` and `pg_waldump` record by
//! record, and the server's own functions.

mod support;

#[path = "wal_index/arbitrary_bytes.rs"]
mod arbitrary_bytes;
#[path = "wal_index/blocks.rs"]
mod blocks;
#[path = "wal_index/blocks_workload.rs"]
mod blocks_workload;
#[path = "wal_index/damage.rs"]
mod damage;
#[path = "wal_index/oracle.rs"]
mod oracle;
#[path = "wal_index/workload.rs"]
mod workload;

use std::fs;
use std::path::PathBuf;

use support::postgres::{Cluster, StopMode};
use walhold::format::wal_index::{
    IndexChain, RecordVerdict, SegmentFacts, SpanningRecord, TransactionEnd, WalIndex,
};
use walhold::pg::wal_page::LongPageHeader;
use walhold::pg::{Lsn, TimelineId, WalSegmentName};
use walhold::wal::scan::SegmentScanner;

/// A segment as archived, and what a scan of it found.
struct Scanned {
    name: WalSegmentName,
    bytes: Vec<u8>,
    index: WalIndex,
    ends: Vec<TransactionEnd>,
}

fn scan(name: WalSegmentName, bytes: Vec<u8>) -> Scanned {
    let header = LongPageHeader::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut scanner = SegmentScanner::new(name, &header).with_transaction_ends();
    let mut ends = Vec::new();
    for chunk in bytes.chunks(256 << 10) {
        scanner.feed(chunk);
        ends.extend(scanner.take_transaction_ends());
    }
    let index = scanner.finish();
    assert_eq!(WalIndex::decode(&index.encode()).as_ref(), Ok(&index), "{name}");
    Scanned { name, bytes, index, ends }
}

/// Every segment of a timeline in pg_wal that lies before the one that is being written.
fn finished_segments(cluster: &Cluster, timeline: TimelineId) -> Vec<Scanned> {
    let current: WalSegmentName = cluster
        .value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        .parse()
        .expect("a segment's name");
    let directory = cluster.data_directory().join("pg_wal");
    let mut paths: Vec<(WalSegmentName, PathBuf)> = fs::read_dir(&directory)
        .expect("list pg_wal")
        .filter_map(|entry| {
            let path = entry.expect("read pg_wal").path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path))
        })
        .filter(|(name, _): &(WalSegmentName, _)| name.timeline == timeline && *name < current)
        .collect();
    paths.sort();
    let read = |(name, path): (_, PathBuf)| scan(name, fs::read(&path).expect("read a segment"));
    paths.into_iter().map(read).collect()
}

fn chain(segments: &[Scanned]) -> Vec<SegmentFacts> {
    let mut chain = IndexChain::new();
    let mut facts: Vec<_> = segments.iter().flat_map(|segment| chain.push(segment.index.clone())).collect();
    facts.extend(chain.finish());
    facts
}

fn builder(major: u32) -> support::postgres::ClusterBuilder {
    let builder = Cluster::builder(major)
        .wal_segment_mib(1)
        .setting("max_prepared_transactions", "10")
        .setting("track_commit_timestamp", "on")
        .setting("autovacuum", "off")
        .setting("max_wal_size", "4GB")
        .setting("checkpoint_timeout", "1h");
    // Nothing may be recycled before it was compared.
    builder.setting("wal_keep_size", "4GB")
}

/// The whole comparison for one major version.
fn agrees_with_the_server(major: u32) {
    let mut cluster = builder(major).start();
    workload::run(&mut cluster);
    let segments = finished_segments(&cluster, TimelineId::FIRST);
    assert!(segments.len() > 20, "{} segments", segments.len());
    for segment in &segments {
        assert_eq!(segment.index.verdict, RecordVerdict::Intact, "{}", segment.name);
        assert_eq!(segment.index.valid_until, segment.index.end, "{}", segment.name);
        assert_eq!(segment.index.postgresql_major, major);
        assert!(!segment.index.abridged);
    }
    let facts = chain(&segments);
    for facts in &facts {
        assert_eq!(facts.break_after, None, "at {}", facts.index.start);
    }
    workload::assert_reached_corners(&segments, &facts);
    oracle::compare_with_functions(&cluster, &facts);
    if major == 15 {
        oracle::compare_with_records(&oracle::waldump(&cluster, &segments), &segments, &facts);
    }
    if major >= 15 {
        oracle::compare_with_records(&oracle::walinspect(&cluster, &segments), &segments, &facts);
    }
    cluster.stop(StopMode::Fast);
}

#[test]
fn agrees_with_postgresql_14() {
    agrees_with_the_server(14);
}

#[test]
fn agrees_with_postgresql_15() {
    agrees_with_the_server(15);
}

#[test]
fn agrees_with_postgresql_16() {
    agrees_with_the_server(16);
}

#[test]
fn agrees_with_postgresql_17() {
    agrees_with_the_server(17);
}

#[test]
fn agrees_with_postgresql_18() {
    agrees_with_the_server(18);
}

/// A promotion writes an end-of-recovery record on a new timeline, in a segment that begins as a copy of the old one's.
#[test]
fn follows_a_promotion_to_its_new_timeline() {
    for major in [14, 18] {
        let primary = builder(major).start();
        primary.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i");
        let standby = Cluster::standby_of(&primary);
        primary.execute("INSERT INTO t VALUES (0)");
        primary.wait_replayed_by(&standby);
        standby.promote();
        standby.execute("INSERT INTO t SELECT i FROM generate_series(1, 20000) i");
        standby.switch_wal();
        let second = TimelineId::new(2).expect("2 is a timeline");
        let segments = finished_segments(&standby, second);
        let ends: Vec<_> = segments
            .iter()
            .flat_map(|segment| &segment.index.checkpoints)
            .filter(|checkpoint| checkpoint.timeline != checkpoint.previous_timeline)
            .collect();
        assert!(!ends.is_empty(), "{major}: no end of recovery");
        assert!(ends.iter().all(|end| (end.timeline, end.previous_timeline) == (second, TimelineId::FIRST)));
        let facts = chain(&segments);
        assert!(facts.iter().all(|facts| facts.break_after.is_none()), "{major}");
        assert!(segments.iter().all(|segment| segment.index.verdict == RecordVerdict::Intact), "{major}");
        assert!(
            ends.iter().any(|end| end.kind == walhold::format::wal_index::CheckpointKind::EndOfRecovery),
            "{major}: {ends:?}"
        );
    }
}

/// A crash that loses the end of a record: the server says in the next segment that it gave the record up.
#[test]
fn sees_records_that_a_crash_cut_off() {
    for major in [14, 15, 18] {
        let mut cluster = builder(major).start();
        cluster.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i");
        cluster.switch_wal();
        cluster.execute("INSERT INTO t VALUES (0)");
        let mut session = cluster.connect("postgres");
        workload::fill_segment_to(&mut session, 4000);
        let whole = cluster.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        cluster.execute("SELECT pg_logical_emit_message(true, '', repeat('x', 100000))");
        let cut = cluster.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        assert_ne!(whole, cut);
        drop(session);
        cluster.kill9();
        let path = cluster.data_directory().join("pg_wal").join(&cut);
        fs::write(&path, vec![0; 1 << 20]).expect("lose the segment's contents");
        cluster.start();
        cluster.execute("INSERT INTO t VALUES (0)");
        cluster.switch_wal();
        let segments = finished_segments(&cluster, TimelineId::FIRST);
        let at = segments.iter().position(|segment| segment.name.to_string() == whole).expect("it is there");
        let begun = segments[at].index.tail.record;
        assert!(begun.is_valid());
        assert_eq!(segments[at + 1].index.abandoned, Some(begun), "{major}");
        assert_eq!(segments[at + 1].index.verdict, RecordVerdict::Intact);
        let facts = chain(&segments);
        assert_eq!(facts[at].spanning, SpanningRecord::Abandoned, "{major}");
        assert!(facts.iter().all(|facts| facts.break_after.is_none()), "{major}");
    }
}

/// Where a segment of this size begins.
fn start_of(segment: &Scanned) -> Lsn {
    segment.index.start
}
