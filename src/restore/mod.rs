//! Restore: choose → prove → lay out → fetch → finish → (start → watch).
//!
//! In: what the operator asks for, the repository. Out: a data directory that recovers to the target, or nothing at all. What must hold: whatever
//! cannot work is refused by the plan, which only reads; a restore that fails removes what it made; until the last step the directory
//! cannot be started, because `global/pg_control` is not there.

pub mod binaries;
pub mod choose;
pub mod configuration;
pub mod delta;
pub mod error;
pub mod fetch;
pub mod finish;
mod includes;
mod later_tablespaces;
pub mod layout;
pub mod lease;
pub mod packs;
pub mod place;
pub mod plan;
pub mod prove;
pub mod render;
pub mod start;
pub mod stored_wal;
pub mod sync;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod target;
pub mod target_files;
pub mod time_text;
pub mod watch;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::codec::KeyRing;
use crate::format::ClusterName;
use crate::format::manifest::{FileEntry, RangeSource, Root};
use crate::local::kill_point::kill_point;
use crate::progress::Progress;
use crate::repository::Repository;

pub use crate::wal::{archive_view, wal_path};
pub use error::RestoreError;
use target_files::{Presence, TargetFile, TargetFiles};

pub use plan::{RestorePlan, RestoreRequest, StartRequest, make_plan};

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// Files written.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Reading, checking and writing them.
    pub fetching: Duration,
    /// Putting them onto the disk.
    pub syncing: Duration,
    /// How the server's recovery ended, if it was started.
    pub verdict: Option<watch::Verdict>,
}

/// Carries a plan out. Meanwhile expire leaves the backup alone.
pub fn restore(
    plan: &RestorePlan,
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
    jobs: usize,
) -> Result<Restored, RestoreError> {
    std::thread::scope(|scope| {
        let _leased = lease::take(scope, repository, cluster, &plan.choice.backup.id);
        carry_out(plan, repository, keys, jobs)
    })
}

fn carry_out(
    plan: &RestorePlan,
    repository: &Repository,
    keys: &KeyRing,
    jobs: usize,
) -> Result<Restored, RestoreError> {
    let selection = select_files(plan);
    let note = unfinished_note(plan);
    if let Some(existing) = &plan.existing {
        delta::clear::clear(plan, existing, &selection, &note)?;
    }
    let cleanup = layout::lay_out(&plan.place, &plan.manifest, &note)?;
    let directories = plan.place.tablespaces.iter().map(|tablespace| tablespace.to.as_path());
    let trees = sync::SyncedTrees::open(std::iter::once(plan.place.pgdata.as_path()).chain(directories))?;
    kill_point("restore: laid out");
    let began = Instant::now();
    let bytes = fetch_files(plan, repository, keys, jobs, &selection)?;
    kill_point("restore: fetched");
    finish::write_recovery_files(plan)?;
    let fetching = began.elapsed();
    finish::seal(plan, &trees, jobs)?;
    let syncing = began.elapsed() - fetching;
    cleanup.keep();
    let mut restored = Restored { files: selection.len() + 1, bytes, fetching, syncing, verdict: None };
    if let Some(binaries) = &plan.binaries {
        let mut server = start::start(plan, binaries)?;
        let verdict = watch::watch(plan, &mut server)?;
        if verdict.end == watch::RecoveryEnd::Promoted {
            finish::reset_recovery_settings(plan)?;
        }
        restored.verdict = Some(verdict);
    }
    Ok(restored)
}

fn unfinished_note(plan: &RestorePlan) -> String {
    format!(
        "backup {} of system {}, begun at {}\n",
        plan.choice.backup.id,
        plan.choice.backup.system_identifier,
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC")
    )
}

/// Files that are never restored as they are: recovery writes its own, and pg_control comes last.
const WRITTEN_OTHERWISE: [&[u8]; 9] = [
    b"global/pg_control",
    b"backup_label",
    b"backup_label.old",
    b"tablespace_map",
    b"tablespace_map.old",
    b"recovery.signal",
    b"standby.signal",
    b"postmaster.pid",
    b"postmaster.opts",
];

/// Which files of the manifest are written, and where.
fn select_files(plan: &RestorePlan) -> Vec<(usize, PathBuf)> {
    let pgdata = &plan.place.pgdata;
    let adopted: HashSet<&[u8]> =
        plan.adopted.iter().map(|adopted| adopted.to.as_os_str().as_bytes()).collect();
    let place_of = |(index, file): (usize, &FileEntry)| match file.root {
        Root::DataDirectory if WRITTEN_OTHERWISE.contains(&file.path.as_slice()) => None,
        Root::DataDirectory if adopted.contains(file.path.as_slice()) => None,
        Root::DataDirectory => Some((index, pgdata.join(OsStr::from_bytes(&file.path)))),
        Root::External => {
            let adopted = plan.adopted.iter().find(|adopted| adopted.file == index)?;
            Some((index, pgdata.join(&adopted.to)))
        }
    };
    plan.manifest.files.iter().enumerate().filter_map(place_of).collect()
}

/// Fetches the selected files; returns the bytes written.
fn fetch_files(
    plan: &RestorePlan,
    repository: &Repository,
    keys: &KeyRing,
    jobs: usize,
    selection: &[(usize, PathBuf)],
) -> Result<u64, RestoreError> {
    let owner = layout::ownership(&plan.place);
    let kept = match plan.existing {
        Some(_) => delta::keep_what_is_right(&plan.manifest, selection, owner, jobs)?,
        None => delta::Kept::default(),
    };
    kill_point("restore: compared");
    let target = |(at, (index, path)): (usize, &(usize, PathBuf))| {
        let file = plan.manifest.files.get(*index)?;
        let missing = file.ranges.iter().enumerate().filter(|(range, _)| !kept.has_range(at, *range));
        let stored = missing.filter(|(_, range)| range.source != RangeSource::Zeros);
        let written = stored.map(|(_, range)| u64::from(range.length)).sum();
        let presence = if kept.has_file(at) { Presence::There } else { Presence::New };
        Some(TargetFile { path: path.clone(), mode: file.mode, size: file.size, written, presence })
    };
    let files: Vec<TargetFile> = selection.iter().enumerate().filter_map(target).collect();
    let bytes: u64 = files.iter().map(|file| file.written).sum();
    layout::make_adopted_directories(plan)?;
    let targets = TargetFiles::new(files, owner);
    let progress = Progress::new("restore", bytes);
    let indexes: Vec<usize> = selection.iter().map(|(index, _)| *index).collect();
    let fetch = fetch::Fetch {
        manifest: &plan.manifest,
        kept: &kept,
        packs: &plan.packs,
        repository,
        keys,
        jobs,
        progress: &progress,
    };
    fetch.run(&indexes, &targets)?;
    progress.finish();
    Ok(bytes.saturating_sub(targets.found_right()))
}
