//! How fast a segment is checked and indexed: WAL that a real server wrote, 16 MiB at a time.
//!
//! `cargo bench --bench wal_scan`. The upload's pass over a segment pays this once, on one core.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::hint::black_box;

use criterion::{Criterion, Throughput};
use support::postgres::Cluster;
use walhold::format::wal_index::WalIndex;
use walhold::pg::WalSegmentName;
use walhold::pg::wal_page::LongPageHeader;
use walhold::wal::scan::SegmentScanner;

/// Complete segments of three kinds of work.
fn segments() -> Vec<(&'static str, WalSegmentName, Vec<u8>)> {
    let cluster = Cluster::builder(15)
        .setting("max_wal_size", "8GB")
        .setting("checkpoint_timeout", "1h")
        .setting("wal_keep_size", "8GB")
        .setting("synchronous_commit", "off")
        .start();
    let pgbench = |arguments: &[&str]| {
        let output = cluster.client_program("pgbench").args(arguments).output().expect("run pgbench");
        assert!(output.status.success(), "{}", support::program::describe(&output));
    };
    pgbench(&["-i", "-s", "10", "-q"]);
    // Page images first, then hardly any: the busiest a scanner can be.
    cluster.execute("CHECKPOINT");
    let images = next_segment(&cluster, &|| pgbench(&["-c", "2", "-t", "2000"]));
    pgbench(&["-c", "2", "-t", "20000"]);
    let small = next_segment(&cluster, &|| pgbench(&["-c", "2", "-t", "20000"]));
    cluster.execute("CREATE TABLE texts (body text)");
    let text = "INSERT INTO texts SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 700000) i GROUP BY i % 12000";
    let texts = next_segment(&cluster, &|| cluster.execute(text));
    vec![
        ("page images", images.0, images.1),
        ("pgbench", small.0, small.1),
        ("random text", texts.0, texts.1),
    ]
}

/// The second segment that the work fills, so that it is all of this kind.
fn next_segment(cluster: &Cluster, work: &dyn Fn()) -> (WalSegmentName, Vec<u8>) {
    let current = || cluster.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let wanted = cluster.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn() + 16 * 1024 * 1024)");
    while current() <= wanted {
        work();
    }
    let path = cluster.data_directory().join("pg_wal").join(&wanted);
    (wanted.parse().expect("a segment's name"), fs::read(path).expect("read the segment"))
}

fn scan(name: WalSegmentName, bytes: &[u8]) -> WalIndex {
    let header = LongPageHeader::parse(bytes).expect("a first page");
    let mut scanner = SegmentScanner::new(name, &header);
    bytes.chunks(1 << 20).for_each(|chunk| scanner.feed(chunk));
    scanner.finish()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("wal scan");
    for (kind, name, bytes) in &segments() {
        let index = scan(*name, bytes);
        println!(
            "{kind}: {} records, index of {} bytes, {:?}",
            index.record_count,
            index.encode().len(),
            index.verdict
        );
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(*kind, |b| b.iter(|| scan(*name, black_box(bytes))));
        group.bench_function(format!("{kind}, CRC of the pages alone"), |b| {
            b.iter(|| black_box(bytes).chunks(8192).fold(0, |crc, page| crc ^ crc32c::crc32c(page)))
        });
    }
    group.finish();
    criterion.final_summary();
}
