//! Names of archive files, segments and positions from any text: one spelling each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::pg::{ArchiveFileName, Lsn, SystemIdentifier, WalSegmentName, WalSegmentSize};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<ArchiveFileName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(name) = text.parse::<WalSegmentName>() {
        assert_eq!(name.to_string(), text);
        for exponent in 20..=30 {
            let size = WalSegmentSize::new(1 << exponent).expect("a size of segments");
            if let Some(number) = name.number(size) {
                assert_eq!(WalSegmentName::new(name.timeline, number, size), name);
            }
        }
    }
    if let Ok(identifier) = text.parse::<SystemIdentifier>() {
        assert_eq!(identifier.to_string(), text);
    }
    // Positions are people's input: zeros in front and lower case are the same position.
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
});
