//! Where the cluster goes on this machine: looked at before anything is written.
//!
//! In: the directories asked for, the manifest. Out: a [`Place`] that is empty, large enough, writable and whose tablespaces do not
//! lie in each other, or a refusal.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::delta::clear::leads_to;
use super::delta::examine::{Over, check_identity};
use super::error::RestoreError;
use super::target::TablespaceMapping;
use crate::format::manifest::{Manifest, RangeSource, Root, Tablespace};
use crate::local::durable::parent_of;
use crate::local::postmaster::noted_process;
use crate::output::human_size;
use crate::pg::SystemIdentifier;

/// Says in a data directory that a restore into it has not ended; removed by its last step.
pub const UNFINISHED: &str = "walhold-restore-unfinished";

/// The directories of the restored cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// PGDATA, absolute.
    pub pgdata: PathBuf,
    /// Whether it is there already, empty.
    pub pgdata_state: DirectoryState,
    /// Who its files will belong to.
    pub owner: Owner,
    /// Tablespaces outside PGDATA.
    pub tablespaces: Vec<PlacedTablespace>,
    /// What it takes and what is free, per file system.
    pub space: Vec<Space>,
}

/// A directory that may be restored into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectoryState {
    /// Not there; its parent is.
    Absent,
    /// There, and empty.
    Empty,
    /// A part of a cluster that is taken over (`--delta`).
    Existing,
}

/// Numbers, because names may not exist here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A tablespace and where it goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlacedTablespace {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it was.
    pub from: String,
    /// Where it goes.
    pub to: PathBuf,
    /// Whether that is there already.
    pub state: DirectoryState,
}

/// A file system that the restore writes to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Space {
    /// The first of the restore's directories on it.
    pub directory: PathBuf,
    /// Bytes that the restore takes.
    pub needed: u64,
    /// Bytes that are free.
    pub available: u64,
}

/// Looks at the directories. `wal_bytes` is what recovery will want to have in pg_wal.
pub fn examine(
    pgdata: &Path,
    manifest: &Manifest,
    mappings: &[TablespaceMapping],
    wal_bytes: u64,
    over: Over,
) -> Result<Place, RestoreError> {
    let pgdata = absolute(pgdata)?;
    let pgdata_state = examine_pgdata(&pgdata, manifest.summary.system_identifier, over)?;
    let owner = owner_of(&pgdata, pgdata_state)?;
    let tablespaces = place_tablespaces(&pgdata, pgdata_state, &manifest.tablespaces, mappings)?;
    let space = measure_space(&pgdata, pgdata_state, &tablespaces, manifest, wal_bytes)?;
    Ok(Place { pgdata, pgdata_state, owner, tablespaces, space })
}

fn absolute(path: &Path) -> Result<PathBuf, RestoreError> {
    let absolute = std::path::absolute(path).map_err(|error| RestoreError::local("find", path, &error))?;
    if absolute.components().any(|component| component == Component::ParentDir) {
        return Err(RestoreError::refused(
            format!("directory {} goes through '..'", path.display()),
            "write it without '..'",
        ));
    }
    Ok(absolute)
}

fn examine_pgdata(pgdata: &Path, ours: SystemIdentifier, over: Over) -> Result<DirectoryState, RestoreError> {
    if let Some(pid) = running_server(pgdata) {
        return Err(RestoreError::refused(
            format!("a server (process {pid}) is running in {}", pgdata.display()),
            format!("stop it (pg_ctl stop -D {}), or restore to another directory", pgdata.display()),
        ));
    }
    let empty = examine_directory(pgdata, "--pgdata");
    if over != Over::Nothing && empty.is_err() && pgdata.is_dir() {
        require_writable(pgdata, "--pgdata").map_err(|problem| {
            RestoreError::refused(problem, "run restore as the user that owns the directory")
        })?;
        check_identity(pgdata, ours, over)?;
        return Ok(DirectoryState::Existing);
    }
    if let Ok(text) = std::fs::read_to_string(pgdata.join(UNFINISHED)) {
        return Err(RestoreError::refused(
            format!("{} holds an unfinished restore ({})", pgdata.display(), text.trim()),
            "it cannot be started: --delta finishes it, keeping what is right; or empty the directory (and the tablespaces' directories) and run restore again",
        ));
    }
    empty.map_err(|problem| {
        let hint = match pgdata.is_dir() {
            true => {
                "move it away (mv), it may hold WAL that was never archived; or take it over with --delta"
            }
            false => "name a directory that is empty, or that can be made",
        };
        RestoreError::refused(problem, hint)
    })
}

/// `Err` with one line if the directory cannot be restored into.
fn examine_directory(directory: &Path, what: &str) -> Result<DirectoryState, String> {
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|error| format!("read {}: {error}", directory.display()))?;
                if entry.file_name() != "lost+found" {
                    return Err(format!("{what} {} is not empty", directory.display()));
                }
            }
            require_writable(directory, what)?;
            Ok(DirectoryState::Empty)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = parent_of(directory);
            if !parent.is_dir() {
                return Err(format!(
                    "{what} {} cannot be created: {} does not exist",
                    directory.display(),
                    parent.display()
                ));
            }
            require_writable(&parent, what)?;
            Ok(DirectoryState::Absent)
        }
        Err(error) => Err(format!("{what} {} cannot be read: {error}", directory.display())),
    }
}

fn require_writable(directory: &Path, what: &str) -> Result<(), String> {
    let rights = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    nix::unistd::access(directory, rights)
        .map_err(|error| format!("{what}: {} cannot be written: {}", directory.display(), error.desc()))
}

/// The process that `postmaster.pid` names, if it lives.
pub fn running_server(pgdata: &Path) -> Option<i32> {
    let pid = noted_process(pgdata)?.try_into().ok()?;
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Err(nix::errno::Errno::ESRCH) => None,
        _ => Some(pid),
    }
}

/// Root restores for whoever owns the directory (or its parent); anybody else for themselves.
fn owner_of(pgdata: &Path, state: DirectoryState) -> Result<Owner, RestoreError> {
    let looked_at = match state {
        DirectoryState::Empty | DirectoryState::Existing => pgdata.to_owned(),
        DirectoryState::Absent => parent_of(pgdata),
    };
    let metadata =
        std::fs::metadata(&looked_at).map_err(|error| RestoreError::local("look at", &looked_at, &error))?;
    let me = nix::unistd::geteuid().as_raw();
    if me == 0 {
        return Ok(Owner { uid: metadata.uid(), gid: metadata.gid() });
    }
    if state != DirectoryState::Absent && metadata.uid() != me {
        return Err(RestoreError::refused(
            format!(
                "{} belongs to user {}, this is user {me}: PostgreSQL would refuse it",
                pgdata.display(),
                metadata.uid()
            ),
            "run restore as the owner of the directory",
        ));
    }
    Ok(Owner { uid: me, gid: nix::unistd::getegid().as_raw() })
}

fn place_tablespaces(
    pgdata: &Path,
    pgdata_state: DirectoryState,
    tablespaces: &[Tablespace],
    mappings: &[TablespaceMapping],
) -> Result<Vec<PlacedTablespace>, RestoreError> {
    let fits = |mapping: &TablespaceMapping, tablespace: &Tablespace| {
        mapping.old == tablespace.name
            || mapping.old == tablespace.oid.to_string()
            || mapping.old.trim_end_matches('/') == tablespace.location.trim_end_matches('/')
    };
    let unused =
        mappings.iter().find(|mapping| !tablespaces.iter().any(|tablespace| fits(mapping, tablespace)));
    if let Some(unused) = unused {
        let list: Vec<String> =
            tablespaces.iter().map(|t| format!("{} ({}, {})", t.name, t.oid, t.location)).collect();
        return Err(RestoreError::refused(
            format!("--tablespace {:?} names no tablespace of this backup", unused.old),
            if list.is_empty() { "it has none".to_owned() } else { format!("it has: {}", list.join(", ")) },
        ));
    }
    let mut placed: Vec<PlacedTablespace> = Vec::new();
    let mut real_places = vec![("PGDATA".to_owned(), real_place(pgdata))];
    for tablespace in tablespaces {
        let mapped = mappings.iter().rev().find(|mapping| fits(mapping, tablespace));
        let to = mapped.map_or_else(|| PathBuf::from(&tablespace.location), |mapping| mapping.new.clone());
        let to = absolute(&to)?;
        let real = real_place(&to);
        if let Some((other, _)) =
            real_places.iter().find(|(_, other)| real.starts_with(other) || other.starts_with(&real))
        {
            return Err(RestoreError::refused(
                format!(
                    "tablespace {} would go to {}, which overlaps {other}",
                    tablespace.name,
                    to.display()
                ),
                format!("give it a directory of its own: --tablespace {}=DIRECTORY", tablespace.name),
            ));
        }
        let what = format!("the directory of tablespace {}", tablespace.name);
        let link = pgdata.join(format!("pg_tblspc/{}", tablespace.oid));
        let is_ours = pgdata_state == DirectoryState::Existing && leads_to(&link, &to);
        let state = match examine_directory(&to, &what) {
            Ok(state) => state,
            // The cluster that is taken over has its tablespace here already.
            Err(_) if is_ours => DirectoryState::Existing,
            Err(problem) => {
                return Err(RestoreError::refused(
                    problem,
                    format!("put it elsewhere: --tablespace {}=DIRECTORY (empty)", tablespace.name),
                ));
            }
        };
        real_places.push((format!("tablespace {}", tablespace.name), real));
        placed.push(PlacedTablespace {
            oid: tablespace.oid,
            name: tablespace.name.clone(),
            from: tablespace.location.clone(),
            to,
            state,
        });
    }
    Ok(placed)
}

/// The path with its existing part resolved, so that two names of one place are seen to be one.
fn real_place(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// Compares what each file system must take with what is free on it.
fn measure_space(
    pgdata: &Path,
    pgdata_state: DirectoryState,
    tablespaces: &[PlacedTablespace],
    manifest: &Manifest,
    wal_bytes: u64,
) -> Result<Vec<Space>, RestoreError> {
    let mut needed_at: BTreeMap<&Path, u64> = BTreeMap::from([(pgdata, wal_bytes)]);
    for file in manifest.files.iter().filter(|file| file.root == Root::DataDirectory) {
        let home = tablespace_of(&file.path).and_then(|oid| tablespaces.iter().find(|t| t.oid == oid));
        let stored = file.ranges.iter().filter(|range| range.source != RangeSource::Zeros);
        let bytes: u64 = stored.map(|range| u64::from(range.length)).sum();
        *needed_at.entry(home.map_or(pgdata, |tablespace| tablespace.to.as_path())).or_default() += bytes;
    }
    let mut file_systems: BTreeMap<u64, Space> = BTreeMap::new();
    for (directory, needed) in needed_at {
        let there = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let look = |error: io::Error| RestoreError::local("look at", there, &error);
        let device = std::fs::metadata(there).map_err(look)?.dev();
        let figures = nix::sys::statvfs::statvfs(there).map_err(|error| look(error.into()))?;
        let blocks =
            if nix::unistd::geteuid().is_root() { figures.blocks_free() } else { figures.blocks_available() };
        #[allow(clippy::unnecessary_cast)] // 32 bits wide on some targets
        let available = (blocks as u64).saturating_mul(figures.fragment_size() as u64);
        let files = file_count(manifest) + 64;
        // 0 where the file system makes them as needed (btrfs).
        let room = figures.files_free();
        let is_new = pgdata_state != DirectoryState::Existing;
        if is_new && figures.files() > 0 && files > room {
            return Err(RestoreError::refused(
                format!(
                    "on the file system of {} only {room} more files can be made, {files} are needed",
                    directory.display()
                ),
                "restore to another file system (--pgdata, --tablespace)",
            ));
        }
        let space = file_systems.entry(device).or_insert_with(|| Space {
            directory: directory.to_owned(),
            needed: 0,
            available,
        });
        // What is there already makes room, whether it stays or goes.
        let state =
            tablespaces.iter().find(|placed| placed.to == directory).map_or(pgdata_state, |p| p.state);
        let present = if state == DirectoryState::Existing { bytes_on_disk(directory, device) } else { 0 };
        space.needed += needed.saturating_sub(present);
    }
    let space: Vec<Space> = file_systems.into_values().collect();
    match space.iter().find(|space| space.needed > space.available) {
        None => Ok(space),
        Some(short) => Err(RestoreError::refused(
            format!(
                "not enough space on the file system of {}: {} needed, {} free",
                short.directory.display(),
                human_size(short.needed),
                human_size(short.available)
            ),
            "make room, or restore to another file system (--pgdata, --tablespace)",
        )),
    }
}

/// Bytes that files below a directory take on one file system, as far as they can be seen.
fn bytes_on_disk(directory: &Path, device: u64) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            total += bytes_on_disk(&entry.path(), device);
        } else if found.dev() == device {
            total += found.blocks() * 512;
        }
    }
    total
}

fn file_count(manifest: &Manifest) -> u64 {
    (manifest.files.len() + manifest.directories.len()) as u64
}

/// The oid in `pg_tblspc/<oid>/…`.
pub fn tablespace_of(path: &[u8]) -> Option<u32> {
    let rest = path.strip_prefix(b"pg_tblspc/")?;
    let digits = rest.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Explain;

    fn system() -> SystemIdentifier {
        "7371234567890123456".parse().unwrap()
    }

    fn text(error: RestoreError) -> String {
        format!("{error} HINT: {}", error.hint().unwrap_or_default())
    }

    fn tablespaces(directory: &Path) -> Vec<Tablespace> {
        let location = directory.join("old").display().to_string();
        vec![Tablespace { oid: 16384, name: "fast".to_owned(), location }]
    }

    #[test]
    fn a_directory_in_use_or_with_anything_in_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pgdata = directory.path();
        assert_eq!(examine_pgdata(pgdata, system(), Over::Nothing).unwrap(), DirectoryState::Empty);
        std::fs::create_dir(pgdata.join("lost+found")).unwrap();
        assert_eq!(examine_pgdata(pgdata, system(), Over::Nothing).unwrap(), DirectoryState::Empty);
        assert_eq!(
            examine_pgdata(&pgdata.join("new"), system(), Over::Nothing).unwrap(),
            DirectoryState::Absent
        );
        let shown = pgdata.display();
        assert_eq!(
            text(examine_pgdata(&pgdata.join("new/data"), system(), Over::Nothing).unwrap_err()),
            format!(
                "--pgdata {shown}/new/data cannot be created: {shown}/new does not exist HINT: \
                 name a directory that is empty, or that can be made"
            )
        );
        std::fs::write(pgdata.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(
            text(examine_pgdata(pgdata, system(), Over::Nothing).unwrap_err()),
            format!(
                "a server (process {}) is running in {shown} HINT: stop it (pg_ctl stop -D {shown}), or restore to another directory",
                std::process::id()
            )
        );
        std::fs::write(pgdata.join("postmaster.pid"), "0\n").unwrap();
        assert!(
            text(examine_pgdata(pgdata, system(), Over::Nothing).unwrap_err())
                .starts_with(&format!("--pgdata {shown} is not empty"))
        );
        std::fs::write(pgdata.join(UNFINISHED), "backup x, begun today\n").unwrap();
        assert!(text(examine_pgdata(pgdata, system(), Over::Nothing).unwrap_err()).starts_with(&format!(
            "{shown} holds an unfinished restore (backup x, begun today) HINT: it cannot be started"
        )));
    }

    #[test]
    fn tablespaces_go_where_they_are_told_and_never_into_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let pgdata = directory.path().join("data");
        let place = |mapping: &str| {
            let mappings: Vec<TablespaceMapping> =
                mapping.split_whitespace().map(|m| m.parse().unwrap()).collect();
            place_tablespaces(&pgdata, DirectoryState::Absent, &tablespaces(directory.path()), &mappings)
                .map(|mut placed| placed.remove(0).to)
        };
        let root = directory.path().display();
        assert_eq!(place("").unwrap(), directory.path().join("old"));
        for old in ["fast", "16384", &format!("{root}/old/")] {
            assert_eq!(place(&format!("{old}={root}/new")).unwrap(), directory.path().join("new"));
        }
        assert_eq!(
            text(place(&format!("fast={root}/new slow={root}/slow")).unwrap_err()),
            format!(
                "--tablespace \"slow\" names no tablespace of this backup HINT: it has: fast (16384, {root}/old)"
            )
        );
        for inside in ["data", "data/ts", ""] {
            let message = text(place(&format!("fast={root}/{inside}")).unwrap_err());
            assert!(message.contains("which overlaps PGDATA"), "{message}");
        }
        std::os::unix::fs::symlink(directory.path(), directory.path().join("link")).unwrap();
        assert!(text(place(&format!("fast={root}/link/data/ts")).unwrap_err()).contains("overlaps PGDATA"));
        std::fs::create_dir(directory.path().join("old")).unwrap();
        std::fs::write(directory.path().join("old/x"), "").unwrap();
        assert_eq!(
            text(place("").unwrap_err()),
            format!(
                "the directory of tablespace fast {root}/old is not empty HINT: put it elsewhere: --tablespace fast=DIRECTORY (empty)"
            )
        );
    }
}
