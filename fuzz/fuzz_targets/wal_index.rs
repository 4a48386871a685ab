//! WAL indexes from any bytes; what is read is written and read again, and chains of such indexes hold.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::format::wal_index::{IndexChain, WalIndex};

fuzz_target!(|input: (&[u8], &[u8])| {
    let mut chain = IndexChain::new();
    for bytes in [input.0, input.1] {
        let Ok(index) = WalIndex::decode(bytes) else { continue };
        assert_eq!(WalIndex::decode(&index.encode()).as_ref(), Ok(&index));
        chain.push(index);
    }
    chain.finish();
});
