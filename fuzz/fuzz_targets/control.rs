//! `global/pg_control` from any bytes; with a checksum made to fit, so that what lies behind it is reached too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::pg::control::{ControlFile, ControlIdentity};

fuzz_target!(|bytes: &[u8]| {
    let _ = ControlIdentity::parse(bytes);
    let _ = ControlFile::parse(bytes);
    for (version, crc) in [(1300u32, 288), (1700, 288), (1800, 292)] {
        let mut fitting = bytes.to_vec();
        fitting.resize(fitting.len().max(crc + 4), 0);
        fitting[8..12].copy_from_slice(&version.to_le_bytes());
        let checksum = crc32c::crc32c(&fitting[..crc]);
        fitting[crc..crc + 4].copy_from_slice(&checksum.to_le_bytes());
        let _ = ControlFile::parse(&fitting);
    }
});
