//! Checksums of data pages, MB/s on one core.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walhold::pg::page_checksum::{PageState, check_page, page_checksum};

const PAGE: usize = 8192;
const PAGES: usize = 128;

/// 1 MiB of pages that are valid.
fn pages() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..PAGE * PAGES).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] | 1).collect();
    for (number, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
        let checksum = page_checksum(page, number as u32);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

fn page_checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("page checksum");
    group.throughput(Throughput::Bytes((PAGE * PAGES) as u64));
    let used = pages();
    group.bench_function("1 MiB of used pages", |bencher| {
        bencher.iter(|| {
            let pages = used.chunks_exact(PAGE).enumerate();
            assert!(
                pages.into_iter().all(|(number, page)| check_page(page, number as u32) == PageState::Valid)
            );
        });
    });
    let new = vec![0; PAGE * PAGES];
    group.bench_function("1 MiB of new pages", |bencher| {
        bencher.iter(|| assert!(new.chunks_exact(PAGE).all(|page| check_page(page, 0) == PageState::New)));
    });
    group.finish();
}

criterion_group!(benches, page_checksums);
criterion_main!(benches);
