//! Finish: what makes the files a cluster that recovers to the target, then everything onto the disk, then
//! `global/pg_control`.
//!
//! Until pg_control stands nothing can be started by accident: an interrupted restore has none.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::configuration::{READ_AHEAD, auto_conf, own_places_text, without_recovery_settings};
use super::error::RestoreError;
use super::includes::Included;
use super::layout::ownership;
use super::place::{Owner, UNFINISHED};
use super::plan::{RestorePlan, find_file};
use super::sync::SyncedTrees;
use crate::local::durable::sync_directory;
use crate::local::kill_point::kill_point;
use crate::pg::backup_label::{format_tablespace_map, parse_tablespace_map};

/// Writes what the backup does not hold: label, map, settings, signal file, and pg_wal's directories.
pub fn write_recovery_files(plan: &RestorePlan) -> Result<(), RestoreError> {
    let writer = Writer { owner: ownership(&plan.place), pgdata: &plan.place.pgdata };
    for directory in ["pg_wal", "pg_wal/archive_status"] {
        writer.ensure_directory(directory)?;
    }
    writer.write("backup_label", plan.manifest.backup_label.as_bytes())?;
    if let Some(map) = tablespace_map(plan)? {
        writer.write("tablespace_map", map.as_bytes())?;
    }
    if !plan.own_places.is_empty() {
        writer.append("postgresql.conf", &own_places_text(&plan.own_places))?;
    }
    for stand_in in plan.stand_ins.iter().filter(|stand_in| stand_in.kind == Included::File) {
        writer.write(&stand_in.path.to_string_lossy(), b"")?;
    }
    let restored = match find_file(&plan.manifest, b"postgresql.auto.conf") {
        Some(_) => writer.read("postgresql.auto.conf")?,
        None => Vec::new(),
    };
    let settings = auto_conf(&restored, &plan.recovery, &plan.extra_settings);
    writer.write("postgresql.auto.conf", &settings)?;
    writer.write(plan.recovery.mode.signal_file(), b"")
}

/// Puts everything onto the disk, then writes `global/pg_control`.
pub fn seal(plan: &RestorePlan, trees: &SyncedTrees, jobs: usize) -> Result<(), RestoreError> {
    let pgdata = &plan.place.pgdata;
    let writer = Writer { owner: ownership(&plan.place), pgdata };
    trees.sync(jobs)?;
    kill_point("restore: synced");
    kill_point("restore: before pg_control");
    let mode = find_file(&plan.manifest, b"global/pg_control").map_or(0o600, |(_, file)| file.mode);
    writer.write_synced("global/pg_control", &plan.control, mode)?;
    let sync = |directory: &Path| {
        sync_directory(directory).map_err(|error| RestoreError::local("sync", directory, &error))
    };
    sync(&pgdata.join("global"))?;
    // The server does not mind the note; without it nobody could tell later what an interrupted restore left.
    let note = pgdata.join(UNFINISHED);
    std::fs::remove_file(&note).map_err(|error| RestoreError::local("remove", &note, &error))?;
    sync(pgdata)
}

/// Takes the recovery settings out of `postgresql.auto.conf` again, once the server is a primary: the next recovery of this cluster
/// must not inherit them.
pub fn reset_recovery_settings(plan: &RestorePlan) -> Result<(), RestoreError> {
    let writer = Writer { owner: ownership(&plan.place), pgdata: &plan.place.pgdata };
    let text = without_recovery_settings(&writer.read("postgresql.auto.conf")?, READ_AHEAD);
    let path = plan.place.pgdata.join("postgresql.auto.conf");
    crate::local::durable::replace_file(&path, &text, 0o600)
        .map_err(|error| RestoreError::local("write", &path, &error))?;
    writer.own(&path)
}

/// The map with every tablespace at its new place: recovery makes the links anew from it, and unmapped it would point into the original's
/// files.
fn tablespace_map(plan: &RestorePlan) -> Result<Option<String>, RestoreError> {
    let Some(text) = &plan.manifest.tablespace_map else { return Ok(None) };
    let damaged = |problem: String| RestoreError::Damaged {
        object: format!("the tablespace_map of backup {}", plan.manifest.summary.id),
        problem,
    };
    let mut entries = parse_tablespace_map(text).map_err(|error| damaged(error.to_string()))?;
    for (oid, directory) in &mut entries {
        let placed = plan.place.tablespaces.iter().find(|tablespace| tablespace.oid == *oid);
        let placed = placed.ok_or_else(|| damaged(format!("tablespace {oid} is not in the manifest")))?;
        *directory = placed.to.to_string_lossy().into_owned();
    }
    Ok(Some(format_tablespace_map(&entries)))
}

struct Writer<'a> {
    owner: Option<Owner>,
    pgdata: &'a Path,
}

impl Writer<'_> {
    fn own(&self, path: &Path) -> Result<(), RestoreError> {
        let Some(owner) = self.owner else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| RestoreError::local("set the owner of", path, &error))
    }

    fn ensure_directory(&self, name: &str) -> Result<(), RestoreError> {
        let path = self.pgdata.join(name);
        if path.is_dir() {
            return Ok(());
        }
        let mode =
            std::fs::metadata(self.pgdata).map_or(0o700, |metadata| metadata.permissions().mode() & 0o777);
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(&path)
            .map_err(|error| RestoreError::local("create", &path, &error))?;
        self.own(&path)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, RestoreError> {
        let path = self.pgdata.join(name);
        std::fs::read(&path).map_err(|error| RestoreError::local("read", &path, &error))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        let path = self.pgdata.join(name);
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(bytes)
        };
        write().map_err(|error| RestoreError::local("write", &path, &error))?;
        self.own(&path)
    }

    fn append(&self, name: &str, text: &str) -> Result<(), RestoreError> {
        let path = self.pgdata.join(name);
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| RestoreError::local("write", &path, &error))
    }

    fn write_synced(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), RestoreError> {
        let path = self.pgdata.join(name);
        let fail = |error: std::io::Error| RestoreError::local("write", &path, &error);
        let mut file =
            File::options().write(true).create_new(true).mode(mode & 0o7777).open(&path).map_err(fail)?;
        // Owner first: a name that is on the disk must be one that the server can open.
        self.own(&path)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)
    }
}
