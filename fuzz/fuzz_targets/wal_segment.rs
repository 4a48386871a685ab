//! WAL segments from any bytes: nothing panics, chunks make no difference, and what is found can be written and joined.
//!
//! The bytes become the pages of two consecutive segments, with page headers and CRCs made to fit, so that what lies
//! behind them is reached too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::format::wal_index::{IndexChain, WalIndex};
use walhold::pg::wal_page::LongPageHeader;
use walhold::pg::wal_record::{decode_record, record_crc};
use walhold::pg::{TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize};
use walhold::wal::scan::SegmentScanner;

const SIZE: u64 = 1 << 20;
const PAGE: usize = 8192;

fuzz_target!(|bytes: &[u8]| {
    let _ = LongPageHeader::parse(bytes);
    for major in [Some(14), Some(18), None] {
        let _ = decode_record(bytes, major);
    }
    let Some(size) = WalSegmentSize::new(SIZE) else { return };
    let mut chain = IndexChain::new();
    for (number, half) in [(7u64, 0), (8, bytes.len() / 2)] {
        let segment = segment(&bytes[half..], number * SIZE);
        let header = LongPageHeader::parse(&segment).expect("a header made to fit");
        let name = WalSegmentName::new(TimelineId::FIRST, WalSegmentNumber::new(number), size);
        let scan = |chunk: usize| {
            let mut scanner = SegmentScanner::new(name, &header).with_transaction_ends();
            segment.chunks(chunk).for_each(|chunk| scanner.feed(chunk));
            let ends = scanner.take_transaction_ends();
            (scanner.finish(), ends)
        };
        let (index, ends) = scan(1 << 20);
        assert_eq!(scan(5000).0, index);
        assert_eq!(index.transactions.map_or(0, |span| span.count), ends.len() as u64);
        assert_eq!(WalIndex::decode(&index.encode()).as_ref(), Ok(&index));
        let _ = SegmentScanner::of_partial(name, &header).finish();
        chain.push(index);
    }
    chain.finish();
});

/// Pages with right addresses whose contents are the bytes; records on the first page get right links and CRCs.
fn segment(bytes: &[u8], start: u64) -> Vec<u8> {
    let mut segment = vec![0; SIZE as usize];
    let (Some((&first, rest)), length) = (bytes.split_first(), bytes.len()) else {
        header(&mut segment, start, 0, 0);
        return segment;
    };
    let remaining = if first & 1 != 0 { u32::from(first) * 100 } else { 0 };
    header(&mut segment, start, u16::from(first & 9), remaining);
    let used = rest.len().min(PAGE - 40);
    segment[40..40 + used].copy_from_slice(&rest[..used]);
    fit_records(&mut segment[..PAGE], start);
    let mut left = remaining.saturating_sub((PAGE - 40) as u32);
    for (page, chunk) in (1..).zip(rest[used..].chunks(PAGE - 24)).take((length / PAGE).min(126)) {
        let at = page * PAGE;
        header(&mut segment[at..], start + at as u64, u16::from(left > 0), left);
        segment[at + 24..at + 24 + chunk.len()].copy_from_slice(chunk);
        left = left.saturating_sub((PAGE - 24) as u32);
    }
    segment
}

fn header(page: &mut [u8], address: u64, flags: u16, remaining: u32) {
    let first = address.is_multiple_of(SIZE);
    page[..2].copy_from_slice(&0xD118u16.to_le_bytes());
    page[2..4].copy_from_slice(&(flags | if first { 2 } else { 0 }).to_le_bytes());
    page[4] = 1;
    page[8..16].copy_from_slice(&address.to_le_bytes());
    page[16..20].copy_from_slice(&remaining.to_le_bytes());
    if first {
        page[24..40].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 16, 0, 0, 32, 0, 0]);
    }
}

fn fit_records(page: &mut [u8], start: u64) {
    let (mut at, mut previous) = (40, 0u64);
    while at + 24 <= page.len() {
        let length = u32::from_le_bytes([page[at], page[at + 1] & 0x0F, 0, 0]) as usize;
        if length < 24 || at + length > page.len() {
            return;
        }
        let record = &mut page[at..at + length];
        record[..4].copy_from_slice(&(length as u32).to_le_bytes());
        record[8..16].copy_from_slice(&previous.to_le_bytes());
        record[17] %= 3;
        let crc = record_crc(record, crc32c::crc32c(&record[24..])).expect("a header");
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        previous = start + at as u64;
        at = (at + length).next_multiple_of(8);
    }
}
