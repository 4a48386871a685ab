//! A manifest's body may be anything: it is refused or it keeps every invariant, and then it goes both ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::format::manifest::{BackupSummary, Manifest};

fuzz_target!(|body: &[u8]| {
    let _ = BackupSummary::from_json(body);
    if let Ok(manifest) = Manifest::decode(body) {
        let again = Manifest::decode(&manifest.encode()).expect("what was accepted encodes to something acceptable");
        assert_eq!(again, manifest);
    }
});
