//! What else waits to be archived.
//!
//! In: the path of the file that PostgreSQL asks to archive. Out: the segments that it will ask for next, in its order. PostgreSQL marks each file that waits by
//! `archive_status/<name>.ready` and takes history files first, then the lowest name
//! (`src/backend/postmaster/pgarch.c`, `pgarch_readyXlog`). Only whole segments of the asked one's timeline are looked at: everything else is rare and small.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::local::durable::parent_of;
use crate::pg::WalSegmentName;

/// Up to `limit` segments that follow `asked` and wait too; none if PostgreSQL did not ask for `asked` itself, which it marks as well.
pub fn following(path: &Path, asked: WalSegmentName, limit: usize) -> Vec<PathBuf> {
    let directory = parent_of(path);
    let status = directory.join("archive_status");
    if limit == 0 || !status.join(format!("{asked}.ready")).exists() {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(&status) else { return Vec::new() };
    let mut names = BTreeSet::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".ready")) else { continue };
        let Ok(name) = name.parse::<WalSegmentName>() else { continue };
        if name.timeline == asked.timeline && name > asked {
            // A backlog may be long: only the lowest names are kept.
            names.insert(name);
            if names.len() > limit {
                names.pop_last();
            }
        }
    }
    names.into_iter().map(|name| directory.join(name.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_segments_of_the_timeline_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let status = directory.path().join("archive_status");
        std::fs::create_dir(&status).unwrap();
        let asked: WalSegmentName = "000000010000000000000005".parse().unwrap();
        let path = directory.path().join(asked.to_string());
        let mark = |name: &str| std::fs::write(status.join(name), "").unwrap();
        for name in [
            "000000010000000000000009.ready",
            "000000010000000000000006.ready",
            "000000010000000000000007.done",
            "000000010000000000000004.ready",
            "00000001000000000000000A.ready",
            "000000020000000000000006.ready",
            "000000010000000000000008.partial.ready",
            "00000002.history.ready",
            "nonsense.ready",
        ] {
            mark(name);
        }
        assert!(following(&path, asked, 9).is_empty(), "the asked one does not wait itself");
        mark("000000010000000000000005.ready");
        let names = |limit| -> Vec<String> {
            let paths = following(&path, asked, limit);
            paths.iter().map(|path| path.file_name().unwrap().to_string_lossy()[22..].to_owned()).collect()
        };
        assert_eq!(names(9), ["06", "09", "0A"]);
        assert_eq!(names(2), ["06", "09"]);
        assert!(names(0).is_empty());
    }
}
