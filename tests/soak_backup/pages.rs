//! Bits of two backups of the same moment, one incremental and one full.
//!
//! Nothing writes between the two, and the first begins with a checkpoint, so the files of both come from the same disk. Both are laid
//! out and not started, so no WAL was replayed. Then every page must be the same in both: those that changed since the
//! base were read by both, those that did not come from the base in one of them and from the disk in the other.
//!
//! What may differ:
//! - files that name the backup, the directory or the moment: `backup_label`, `tablespace_map`, `postgresql.auto.conf`,
//!   `global/pg_control` (the second backup's checkpoint), `pg_wal`;
//! - without page checksums and without `wal_log_hints`, hint bits: PostgreSQL sets them without WAL, so a page that was only
//!   read since the base is unchanged for WAL, and its hints are those that the base had. Masked as PostgreSQL's own
//!   consistency check masks them (`src/backend/access/common/bufmask.c` and the `*_mask` functions of the access methods):
//!   commit and abort hints of tuples, the prune hint and the "page full" and "has free lines" flags, and dead
//!   markers of index entries. Unlike there, `PD_ALL_VISIBLE` must be equal: a stale one would break the visibility map.
//!
//! - after a recovery of the cluster itself, the same, and what replay does not bring back: what lies in the unused space of a page
//!   (a whole page is logged without its hole), command ids within a transaction, and a sequence's exact place, which
//!   replay leaves up to 32 values ahead. The recovered page has the contents and the LSN of the original one, and a page from a
//!   backup of before is that original one.
//!
//! Sessions that take a backup read the catalogs, and reading may mark an index entry as dead. Where hints are logged
//! that gives the page an LSN after the first backup's start: such a page did change meanwhile, and replay mends it. There must
//! be few.
//!
//! With page checksums a hint on a page that was not written since the last checkpoint is logged as a whole page, so
//! nothing is masked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::archive::contents;
use crate::support::postgres::Cluster;

const PAGE: usize = 8192;

/// What may differ.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tolerance {
    Nothing,
    Hints,
    /// And what replay leaves out.
    Replay,
}

/// What a relation's file holds, as far as its hints go.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Heap,
    BTree,
    Sequence,
}

/// The files of relations, below the data directory.
pub struct Kinds(BTreeMap<String, Kind>);

impl Kinds {
    pub fn of(cluster: &Cluster) -> Kinds {
        let mut kinds = BTreeMap::new();
        for database in cluster.databases() {
            let rows = cluster.query_in(
                &database,
                "SELECT pg_relation_filepath(c.oid), CASE relkind WHEN 'S' THEN 'sequence' ELSE coalesce(a.amname, '') END FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam
                 WHERE pg_relation_filepath(c.oid) IS NOT NULL AND c.relkind IN ('r', 'm', 't', 'i', 'S')",
            );
            for row in rows {
                let kind = match row[1].as_str() {
                    "heap" => Kind::Heap,
                    "btree" => Kind::BTree,
                    "sequence" => Kind::Sequence,
                    _ => continue,
                };
                kinds.insert(row[0].clone(), kind);
            }
        }
        Kinds(kinds)
    }

    /// Of a file, or of one of its later gigabytes; other forks have none.
    fn of_file(&self, path: &str) -> Option<Kind> {
        self.0.get(path.rsplit_once('.').map_or(path, |(first, _)| first)).copied()
    }
}

fn may_differ(path: &str) -> bool {
    let named = ["backup_label", "tablespace_map", "postgresql.auto.conf", "global/pg_control"];
    named.contains(&path) || path.starts_with("pg_wal/") || path.starts_with("pg_tblspc/")
}

/// The files of a restored directory and of its tablespaces, by the paths that the server has for them.
fn files(place: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(&place.join("data"));
    files.retain(|path, _| !may_differ(path));
    let links: Vec<_> =
        fs::read_dir(place.join("data/pg_tblspc")).expect("list pg_tblspc").flatten().collect();
    assert!(!links.is_empty(), "no tablespace");
    for link in links {
        let oid = link.file_name().into_string().expect("a number");
        let directory = fs::read_link(link.path()).expect("read the link");
        assert!(directory.starts_with(place), "{oid} lies in {}", directory.display());
        for (path, bytes) in contents(&directory) {
            files.insert(format!("pg_tblspc/{oid}/{path}"), bytes);
        }
    }
    files
}

/// How many pages were looked at, and how many of them had other hints.
#[derive(Clone, Copy, Default, Debug)]
pub struct Compared {
    pub pages: usize,
    pub masked: usize,
    /// Written since the first backup began.
    pub newer: usize,
}

/// `pd_lsn`.
fn lsn(page: &[u8]) -> u64 {
    let half =
        |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    half(0) << 32 | half(4)
}

/// Compares two restored directories, of which the first began at `since`.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path, kinds: &Kinds, tolerance: Tolerance, since: u64) -> Compared {
    let (left, right) = (files(left), files(right));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    let mut compared = Compared::default();
    for (path, bytes) in &left {
        let other = &right[path];
        assert_eq!(bytes.len(), other.len(), "{path}");
        for (number, (page, other)) in bytes.chunks(PAGE).zip(other.chunks(PAGE)).enumerate() {
            compared.pages += 1;
            if page == other {
                continue;
            }
            let kind = kinds.of_file(path);
            if kind.is_some() && page.len() == PAGE && lsn(other) >= since {
                compared.newer += 1;
                continue;
            }
            let Some(kind) = kind.filter(|_| tolerance != Tolerance::Nothing) else {
                panic!("{path} ({kind:?}), page {number}: different bytes at {:?}", differences(page, other));
            };
            let (page, other) = (masked(page, kind, tolerance), masked(other, kind, tolerance));
            let at = differences(&page, &other);
            assert!(
                at.is_empty(),
                "{path} ({kind:?}), page {number}, {tolerance:?}: different bytes at {at:?}"
            );
            compared.masked += 1;
        }
    }
    assert!(compared.newer <= 20, "{compared:?}: something wrote between the backups");
    compared
}

fn differences(page: &[u8], other: &[u8]) -> Vec<usize> {
    (0..page.len()).filter(|at| page[*at] != other[*at]).take(40).collect()
}

fn number(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

/// The page without what may differ.
fn masked(page: &[u8], kind: Kind, tolerance: Tolerance) -> Vec<u8> {
    let mut page = page.to_vec();
    if page.len() != PAGE {
        return page;
    }
    let (lower, upper, special) = (number(&page, 12), number(&page, 14), number(&page, 16));
    if lower < 24 || upper < lower || special < upper || PAGE < special {
        return page;
    }
    let is_replayed = tolerance == Tolerance::Replay;
    // pd_checksum.
    page[8..10].fill(0);
    // pd_flags: PD_HAS_FREE_LINES, PD_PAGE_FULL; pd_prune_xid.
    page[10] &= !0b11;
    page[20..24].fill(0);
    if is_replayed {
        page[lower..upper].fill(0);
    }
    for pointer in (24..lower).step_by(4) {
        let item =
            u32::from_le_bytes([page[pointer], page[pointer + 1], page[pointer + 2], page[pointer + 3]]);
        let (offset, flags, length) = ((item & 0x7FFF) as usize, item >> 15 & 3, (item >> 17) as usize);
        match kind {
            Kind::Heap if flags == 1 && length >= 23 && offset + length <= PAGE => {
                mask_tuple(&mut page[offset..offset + length], is_replayed);
            }
            // LP_DEAD of an entry that still has its place, as LP_NORMAL.
            Kind::BTree if flags == 3 && length > 0 => {
                page[pointer..pointer + 4].copy_from_slice(&(item & !(3 << 15) | 1 << 15).to_le_bytes());
            }
            // `State` compares it.
            Kind::Sequence if is_replayed && offset + length <= PAGE => page[offset..offset + length].fill(0),
            Kind::Heap | Kind::BTree | Kind::Sequence => {}
        }
    }
    if kind == Kind::BTree && special + 16 <= PAGE {
        // btpo_flags: BTP_HAS_GARBAGE; btpo_cycleid.
        page[special + 12] &= !0x40;
        page[special + 14..special + 16].fill(0);
    }
    page
}

fn mask_tuple(tuple: &mut [u8], is_replayed: bool) {
    // t_infomask: HEAP_XMIN_COMMITTED, HEAP_XMIN_INVALID, HEAP_XMAX_COMMITTED, HEAP_XMAX_INVALID.
    tuple[21] &= !0x0F;
    if is_replayed {
        // t_field3, t_infomask: HEAP_COMBOCID.
        tuple[8..12].fill(0);
        tuple[20] &= !0x20;
    }
}
