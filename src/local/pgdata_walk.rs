//! Which files a base backup holds, and what is known of each before it is read.
//!
//! In: a data directory. Out: its directories, files and tablespace links, without whatever PostgreSQL leaves out
//! of its own base backups (`src/backend/backup/basebackup.c`: `excludeDirContents`, `excludeFiles`, `sendDir`).
//! The walk runs after the backup was started, so whatever changes under it is put right by replay: files that
//! vanish are no error.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::manifest::DirectoryEntry;

/// What a data directory holds, in path order.
#[derive(Clone, Debug, Default)]
pub struct PgdataWalk {
    /// Directories below PGDATA, parents before children, without tablespace links.
    pub directories: Vec<DirectoryEntry>,
    /// Regular files that a backup holds; without `global/pg_control`, which is read last of all.
    pub files: Vec<FoundFile>,
    /// Links in `pg_tblspc`.
    pub links: Vec<TablespaceLink>,
    /// What is there but is not saved, one line each: symbolic links, sockets, names that nothing explains.
    pub warnings: Vec<String>,
}

/// A regular file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundFile {
    /// Relative to PGDATA, `/`-separated.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes, when the walk passed.
    pub size: u64,
    /// Microseconds since 1970.
    pub modified: i64,
    /// For relation files, the segment: 0 for `16384`, 1 for `16384.1`. Their pages carry checksums.
    pub relation_segment: Option<u32>,
}

/// A symbolic link in `pg_tblspc`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceLink {
    /// The tablespace's oid: the link's name.
    pub oid: u32,
    /// Where it points.
    pub location: PathBuf,
}

/// A directory that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read directory {}: {error}", path.display())]
pub struct WalkError {
    /// The directory or file.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

impl Explain for WalkError {
    fn exit_cause(&self) -> Cause {
        Cause::FileUnusable
    }

    fn hint(&self) -> Option<String> {
        Some("run walhold as the user that owns the data directory".to_owned())
    }
}

/// Directories whose contents the server removes or recreates at its start; they are saved empty, wherever they are.
const EMPTIED_DIRECTORIES: [&str; 7] =
    ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

/// The log of a recovery that `restore --start` watched, in the data directory.
pub const RECOVERY_LOG: &str = "walhold-recovery.log";

/// Files that are never saved, wherever they are: they belong to the running server, to an earlier backup or to an earlier restore.
const EXCLUDED_FILES: [&str; 11] = [
    RECOVERY_LOG,
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    "backup_manifest.old",
];

/// The same by how their names begin: temporary files, and the relation cache, which is rebuilt.
const EXCLUDED_PREFIXES: [&str; 2] = ["pgsql_tmp", "pg_internal.init"];

/// The control file, relative to PGDATA.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Walks `pgdata`. Of tablespaces only `version_directory` (`PG_<major>_<catalog version>`) is this server's.
pub fn walk(pgdata: &Path, version_directory: &str) -> Result<PgdataWalk, WalkError> {
    let mut walk = Walk { pgdata, version_directory, inside: Vec::new(), found: PgdataWalk::default() };
    walk.tablespace_links()?;
    walk.directory(b"")?;
    let mut found = walk.found;
    found.directories.sort_by(|a, b| a.path.cmp(&b.path));
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.links.sort_by_key(|link| link.oid);
    Ok(found)
}

struct Walk<'a> {
    pgdata: &'a Path,
    version_directory: &'a str,
    /// Directories inside PGDATA that tablespace links point to: they are reached through their links.
    inside: Vec<PathBuf>,
    found: PgdataWalk,
}

impl Walk<'_> {
    fn absolute(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.pgdata.to_owned() } else { self.pgdata.join(OsStr::from_bytes(path)) }
    }

    /// Learns the links first, because a directory may be the target of one.
    fn tablespace_links(&mut self) -> Result<(), WalkError> {
        let real_pgdata = self.pgdata.canonicalize().unwrap_or_else(|_| self.pgdata.to_owned());
        for name in self.names(b"pg_tblspc")? {
            let path = join(b"pg_tblspc", &name);
            let absolute = self.absolute(&path);
            let Some(metadata) = metadata(&absolute)? else { continue };
            if !metadata.file_type().is_symlink() {
                continue;
            }
            let Some(oid) = parse_oid(&name) else {
                self.skip(&path, "its name is not a tablespace's oid");
                continue;
            };
            let location =
                std::fs::read_link(&absolute).map_err(|error| WalkError { path: absolute.clone(), error })?;
            // The link as PostgreSQL resolves it, from pg_tblspc; compared as seen from PGDATA.
            if let Ok(target) = absolute.canonicalize()
                && let Ok(relative) = target.strip_prefix(&real_pgdata)
            {
                self.inside.push(relative.to_owned());
            }
            self.found.links.push(TablespaceLink { oid, location });
        }
        Ok(())
    }

    /// Everything below the directory at `path` (empty for PGDATA); its own entry is its parent's work.
    fn directory(&mut self, path: &[u8]) -> Result<(), WalkError> {
        let names = self.names(path)?;
        let holds_relations = holds_relations(path);
        let unlogged =
            if holds_relations == Relations::OfDatabase { unlogged_numbers(&names) } else { HashSet::new() };
        for name in names {
            if is_excluded(&name) {
                continue;
            }
            let relation = match holds_relations {
                Relations::None => None,
                _ => RelationFileName::parse(&name),
            };
            if holds_relations == Relations::OfDatabase {
                let init_only = relation.as_ref().is_some_and(|file| unlogged.contains(file.number));
                let is_init = relation.as_ref().is_some_and(|file| file.fork == Some(b"init"));
                if (init_only && !is_init) || is_temporary_relation(&name) {
                    continue;
                }
            }
            let below = join(path, &name);
            if below == CONTROL_FILE.as_bytes() {
                continue;
            }
            let segment = relation.map(|file| file.segment);
            self.entry(&below, &name, segment)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], name: &[u8], relation_segment: Option<u32>) -> Result<(), WalkError> {
        let absolute = self.absolute(path);
        let Some(metadata) = metadata(&absolute)? else { return Ok(()) };
        let kind = metadata.file_type();
        if EMPTIED_DIRECTORIES.iter().any(|emptied| emptied.as_bytes() == name) {
            self.keep_directory(path, &metadata);
        } else if path == b"pg_wal" {
            self.wal_directory(&absolute, &metadata);
        } else if path == b"pg_tblspc" && kind.is_dir() {
            self.keep_directory(path, &metadata);
            self.tablespaces()?;
        } else if kind.is_dir() {
            if !self.inside.iter().any(|inside| inside.as_os_str().as_bytes() == path) {
                self.keep_directory(path, &metadata);
                self.directory(path)?;
            }
        } else if kind.is_file() {
            self.found.files.push(FoundFile {
                path: path.to_owned(),
                mode: metadata.mode() & 0o7777,
                size: metadata.len(),
                modified: modified_microseconds(&metadata),
                relation_segment,
            });
        } else {
            let what = if kind.is_symlink() { "it is a symbolic link" } else { "it is not a regular file" };
            self.skip(path, what);
        }
        Ok(())
    }

    /// `pg_wal` itself, even if it is a link: its files come from the archive, the subdirectories from nowhere else.
    fn wal_directory(&mut self, absolute: &Path, metadata: &Metadata) {
        self.keep_directory(b"pg_wal", metadata);
        self.keep_directory(b"pg_wal/archive_status", metadata);
        // Since PostgreSQL 17.
        if absolute.join("summaries").is_dir() {
            self.keep_directory(b"pg_wal/summaries", metadata);
        }
    }

    /// What lies behind `pg_tblspc`: through links, and in directories (`allow_in_place_tablespaces`).
    fn tablespaces(&mut self) -> Result<(), WalkError> {
        for name in self.names(b"pg_tblspc")? {
            if is_excluded(&name) {
                continue;
            }
            let path = join(b"pg_tblspc", &name);
            let Some(link_metadata) = metadata(&self.absolute(&path))? else { continue };
            if parse_oid(&name).is_none() || !(link_metadata.is_dir() || link_metadata.is_symlink()) {
                // Links with such names were reported when links were collected.
                if !link_metadata.is_symlink() {
                    self.skip(&path, "it is not a tablespace");
                }
                continue;
            }
            if link_metadata.is_dir() {
                self.keep_directory(&path, &link_metadata);
            }
            let version = join(&path, self.version_directory.as_bytes());
            if let Some(version_metadata) = metadata(&self.absolute(&version))?
                && version_metadata.is_dir()
            {
                self.keep_directory(&version, &version_metadata);
                self.directory(&version)?;
            }
        }
        Ok(())
    }

    fn keep_directory(&mut self, path: &[u8], metadata: &Metadata) {
        // A link's own bits say nothing: PostgreSQL uses the data directory's mode then, 0700 or 0750.
        let mode = if metadata.is_symlink() { 0o700 } else { metadata.mode() & 0o7777 };
        self.found.directories.push(DirectoryEntry { path: path.to_owned(), mode });
    }

    fn skip(&mut self, path: &[u8], why: &str) {
        let path = self.absolute(path);
        self.found.warnings.push(format!("{} is not part of the backup: {why}", path.display()));
    }

    /// Names in a directory; none if it has vanished.
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, WalkError> {
        let absolute = self.absolute(path);
        let read = || std::fs::read_dir(&absolute)?.map(|entry| Ok(entry?.file_name().into_vec())).collect();
        let names: io::Result<Vec<Vec<u8>>> = read();
        match names {
            Ok(names) => Ok(names),
            // PGDATA itself must be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => Ok(Vec::new()),
            Err(error) => Err(WalkError { path: absolute, error }),
        }
    }
}

/// What `lstat` says; `None` if the name has vanished.
fn metadata(path: &Path) -> Result<Option<Metadata>, WalkError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(WalkError { path: path.to_owned(), error }),
    }
}

/// Modification time, microseconds since 1970.
pub fn modified_microseconds(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000).saturating_add(metadata.mtime_nsec() / 1000)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_owned() } else { [directory, b"/", name].concat() }
}

fn is_excluded(name: &[u8]) -> bool {
    EXCLUDED_FILES.iter().any(|excluded| excluded.as_bytes() == name)
        || EXCLUDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Whether a directory holds relation files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relations {
    None,
    /// `global`: no unlogged and no temporary ones.
    Shared,
    /// `base/<oid>`, `pg_tblspc/<oid>/PG_…/<oid>`.
    OfDatabase,
}

fn holds_relations(path: &[u8]) -> Relations {
    if path == b"global" {
        return Relations::Shared;
    }
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let database = match segments.as_slice() {
        [b"base", database] => database,
        [b"pg_tblspc", _, _, database] => database,
        _ => return Relations::None,
    };
    if is_digits(database) { Relations::OfDatabase } else { Relations::None }
}

fn is_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn parse_oid(name: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(name).ok().filter(|text| is_digits(text.as_bytes()) && !text.starts_with('0'))?;
    text.parse().ok()
}

/// The name of a permanent relation's file: `<number>[_<fork>][.<segment>]`
/// (`src/backend/storage/file/reinit.c`, `parse_filename_for_nontemp_relation`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RelationFileName<'a> {
    /// The relfilenode's digits.
    pub(crate) number: &'a [u8],
    /// `fsm`, `vm` or `init`; `None` for the main fork.
    pub(crate) fork: Option<&'a [u8]>,
    /// 0 for the first file.
    pub(crate) segment: u32,
}

impl<'a> RelationFileName<'a> {
    pub(crate) fn parse(name: &'a [u8]) -> Option<RelationFileName<'a>> {
        let (stem, segment) = match name.iter().position(|byte| *byte == b'.') {
            Some(dot) => (name.get(..dot)?, parse_oid(name.get(dot + 1..)?)?),
            None => (name, 0),
        };
        let (number, fork) = match stem.iter().position(|byte| *byte == b'_') {
            Some(underscore) => (stem.get(..underscore)?, Some(stem.get(underscore + 1..)?)),
            None => (stem, None),
        };
        let known_fork = fork.is_none_or(|fork| matches!(fork, b"fsm" | b"vm" | b"init"));
        let valid = known_fork && number.len() <= 10 && is_digits(number) && !number.starts_with(b"0");
        valid.then_some(RelationFileName { number, fork, segment })
    }
}

/// The relfilenodes in a directory that have an init fork: unlogged relations, whose other forks recovery resets.
fn unlogged_numbers(names: &[Vec<u8>]) -> HashSet<Vec<u8>> {
    let init = names.iter().filter_map(|name| RelationFileName::parse(name));
    init.filter(|file| file.fork == Some(b"init") && file.segment == 0)
        .map(|file| file.number.to_vec())
        .collect()
}

/// `t<backend>_<number>[_<fork>][.<segment>]` (`src/backend/storage/file/fd.c`, `looks_like_temp_rel_name`).
fn is_temporary_relation(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let Some(underscore) = rest.iter().position(|byte| *byte == b'_') else { return false };
    let (backend, number) = rest.split_at(underscore);
    is_digits(backend) && number.get(1..).and_then(RelationFileName::parse).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }

    fn paths(walk: &PgdataWalk) -> Vec<String> {
        walk.files.iter().map(|file| String::from_utf8(file.path.clone()).unwrap()).collect()
    }

    fn directories(walk: &PgdataWalk) -> Vec<String> {
        walk.directories.iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect()
    }

    #[test]
    fn names_relation_files_as_postgresql_does() {
        let parse = |name: &'static str| {
            RelationFileName::parse(name.as_bytes()).map(|file| (file.fork, file.segment))
        };
        assert_eq!(parse("16384"), Some((None, 0)));
        assert_eq!(parse("16384.12"), Some((None, 12)));
        assert_eq!(parse("16384_vm"), Some((Some(&b"vm"[..]), 0)));
        assert_eq!(parse("16384_fsm.1"), Some((Some(&b"fsm"[..]), 1)));
        for name in [
            "",
            "x",
            "016384",
            "16384_",
            "16384_foo",
            "16384.",
            "16384.0",
            "16384.01",
            "16384.1x",
            "1.1.1",
            "PG_VERSION",
            "pg_filenode.map",
            "12345678901",
            "_vm",
            ".1",
        ] {
            assert_eq!(parse(name), None, "{name:?} was taken for a relation");
        }
        for name in ["t3_16384", "t12_16384_fsm", "t3_16384.1"] {
            assert!(is_temporary_relation(name.as_bytes()), "{name:?}");
        }
        for name in ["t3", "t_16384", "t3_", "t3_x", "tx_16384", "16384"] {
            assert!(!is_temporary_relation(name.as_bytes()), "{name:?}");
        }
    }

    #[test]
    fn leaves_out_what_postgresql_leaves_out() {
        let root = tempfile::tempdir().unwrap();
        let pgdata = root.path();
        let kept = [
            "PG_VERSION",
            "base/5/1259",
            "base/5/1259.1",
            "base/5/1259_fsm",
            "base/5/16390_init",
            "base/5/pg_filenode.map",
            "global/1262",
            "log/16390",
            "log/16390_init",
            "log/t3_16384",
            "pg_xact/0000",
            "standby.signal",
        ];
        let left_out = [
            "backup_label",
            "backup_label.old",
            "backup_manifest",
            "base/5/16390",
            "base/5/16390.1",
            "base/5/16390_vm",
            "base/5/pg_internal.init",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "global/pg_control",
            "global/pg_internal.init.12",
            "pg_notify/0000",
            "pg_replslot/slot/state",
            "pg_stat_tmp/x",
            "pg_subtrans/0000",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_wal/summaries/x.summary",
            "pg_dynshmem/mmap.1",
            "pg_serial/0000",
            "pg_snapshots/1",
            "postmaster.opts",
            "postmaster.pid",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "tablespace_map",
            "tablespace_map.old",
            "walhold-recovery.log",
        ];
        kept.iter().chain(&left_out).for_each(|path| write(pgdata, path));
        symlink("/etc/passwd", pgdata.join("server.crt")).unwrap();
        let walk = walk(pgdata, "PG_15_202209061").unwrap();
        assert_eq!(paths(&walk), kept);
        assert_eq!(
            directories(&walk),
            [
                "base",
                "base/5",
                "global",
                "log",
                "pg_dynshmem",
                "pg_notify",
                "pg_replslot",
                "pg_serial",
                "pg_snapshots",
                "pg_stat_tmp",
                "pg_subtrans",
                "pg_wal",
                "pg_wal/archive_status",
                "pg_wal/summaries",
                "pg_xact"
            ]
        );
        assert_eq!(walk.warnings.len(), 1);
        assert!(walk.warnings[0].ends_with("server.crt is not part of the backup: it is a symbolic link"));
        let segments = walk.files.iter().map(|file| file.relation_segment).collect::<Vec<_>>();
        assert_eq!(segments[..5], [None, Some(0), Some(1), Some(0), Some(0)]);
        assert_eq!(segments[5..], [None, Some(0), None, None, None, None, None]);
    }

    #[test]
    fn follows_tablespaces_into_this_servers_directory_only() {
        let root = tempfile::tempdir().unwrap();
        let (pgdata, space) = (root.path().join("data"), root.path().join("space"));
        write(&pgdata, "PG_VERSION");
        write(&space, "PG_15_202209061/5/16400");
        write(&space, "PG_15_202209061/5/16400_vm");
        write(&space, "PG_15_202209061/pgsql_tmp/pgsql_tmp1");
        write(&space, "PG_16_202307071/5/16400");
        write(&pgdata, "inside/PG_15_202209061/5/7");
        write(&pgdata, "pg_tblspc/16999/PG_15_202209061/5/9");
        write(&pgdata, "pg_tblspc/note");
        symlink(&space, pgdata.join("pg_tblspc/16500")).unwrap();
        symlink("../inside", pgdata.join("pg_tblspc/16501")).unwrap();
        let walk = walk(&pgdata, "PG_15_202209061").unwrap();
        assert_eq!(
            paths(&walk),
            [
                "PG_VERSION",
                "pg_tblspc/16500/PG_15_202209061/5/16400",
                "pg_tblspc/16500/PG_15_202209061/5/16400_vm",
                "pg_tblspc/16501/PG_15_202209061/5/7",
                "pg_tblspc/16999/PG_15_202209061/5/9"
            ]
        );
        assert!(walk.files[1..].iter().all(|file| file.relation_segment == Some(0)));
        assert!(directories(&walk).contains(&"pg_tblspc/16999".to_owned()));
        assert!(!directories(&walk).contains(&"pg_tblspc/16500".to_owned()));
        assert!(!directories(&walk).contains(&"inside".to_owned()));
        let oids: Vec<u32> = walk.links.iter().map(|link| link.oid).collect();
        assert_eq!((oids, walk.links[0].location.clone()), (vec![16500, 16501], space));
        assert!(walk.warnings[0].contains("pg_tblspc/note"));
    }

    #[test]
    fn a_missing_data_directory_is_an_error() {
        let error = walk(Path::new("/nonexistent/data"), "PG_15_1").unwrap_err().to_string();
        assert!(error.starts_with("read directory /nonexistent/data: No such file"), "{error}");
    }
}
