//! What PostgreSQL was told is archived, against what is in the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::site::{Site, Tally};
use crate::support::archive::{contents, run};
use crate::support::postgres::PATIENCE;

/// Ends all faults and waits until nothing waits to be archived.
pub fn drain(site: &mut Site) {
    site.calm();
    site.start_agent();
    let begun = Instant::now();
    site.primary.switch_wal();
    loop {
        let waiting = status_files(site, ".ready");
        if waiting.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "still waiting: {waiting:?}\n{}", site.primary.log_tail());
        // An archiver that failed three times waits for a minute or for the next segment.
        site.primary.switch_wal();
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn status_files(site: &Site, extension: &str) -> BTreeSet<String> {
    let status = site.primary.data_directory().join("pg_wal/archive_status");
    let names = fs::read_dir(status).expect("read archive_status").flatten();
    names.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(extension)?.to_owned())).collect()
}

/// Every acknowledged file, byte for byte.
pub fn check(site: &Site, tally: &mut Tally) {
    assert_eq!(site.noted("acknowledged-twice"), Vec::<String>::new(), "acknowledged with two contents");
    let copies: Vec<String> =
        contents(&site.copies()).into_keys().filter(|name| !name.starts_with('.')).collect();
    let known: BTreeSet<&String> = copies.iter().collect();
    for done in status_files(site, ".done") {
        assert!(known.contains(&done), "PostgreSQL takes {done} for archived, and nobody said so");
    }
    let encrypted = site.variables.iter().any(|(name, _)| name == "WALHOLD_ENCRYPTION_KEY_FILE");
    let stored = contents(&site.server.bucket_directory()).into_keys().collect::<Vec<_>>();
    let out = site.place("out");
    for (number, name) in copies.iter().enumerate() {
        let destination = out.join(name);
        let mut fetch = site.command(&["wal-fetch", name, &destination.display().to_string()]);
        run(fetch.current_dir(site.primary.data_directory())).expect_success();
        let expected = fs::read(site.copies().join(name)).expect("read a copy");
        assert!(
            fs::read(&destination).expect("read what was fetched") == expected,
            "{name} came back different"
        );
        fs::remove_file(&destination).expect("remove what was fetched");
        // With other means as well.
        if !encrypted && name.len() == 24 && number % 7 == 0 {
            let path = stored.iter().find(|path| path.contains(&format!("/{name}")));
            let path = path.unwrap_or_else(|| panic!("{name} is not stored"));
            assert!(unpacked(&site.server.bucket_directory().join(path)) == expected, "{path}");
        }
    }
    tally.segments += copies.len();
    tally.failed += site.noted("push-failures").len();
    let verified = site.walhold(&["wal-verify"]);
    assert_eq!(verified.status, Some(0), "{verified:?}");
    println!("  {} files, {} pushes failed", copies.len(), site.noted("push-failures").len());
}

fn unpacked(object: &Path) -> Vec<u8> {
    let output = Command::new("zstd").args(["-dcq"]).arg(object).output().expect("run zstd");
    assert!(output.status.success(), "{}: {}", object.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}
