//! Base backups: taking, listing and marking them.
//!
//! [`take_backup`] is the whole of `backup-push` as a list of steps. In: a connection, the data directory, a repository, and the
//! backups that are in it: from the second one on, a backup reads and stores what may have changed and points to earlier packs for the rest.
//! Out: packs, and a manifest that is written last of all, so that a backup exists when its manifest does. What must hold
//! before that: every pack is durable, and every WAL segment from the backup's start to its stop is in the repository.

pub mod base;
pub mod catalogue;
pub mod changes;
pub mod control;
pub mod copy;
pub mod error;
pub mod facts;
pub mod intent;
pub mod list;
mod lost_databases;
pub mod marks;
pub mod pack_writer;
pub mod plan;
pub mod publish;
pub mod rate_limit;
pub mod relation_file;
pub mod resume;
pub mod reuse;
pub mod session;
pub mod since;
pub mod tombstone;
pub mod wait_for_wal;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::thread::Scope;
use std::time::{Duration, Instant};

pub use error::BackupError;

use crate::codec::{Effort, KeyRing, Sealing};
use crate::format::manifest::{
    BackupKind, BackupSummary, CatalogueEntry, Manifest, Resumed, Root, Tablespace,
};
use crate::format::{BackupId, ClusterName, keys};
use crate::local::kill_point::kill_point;
use crate::local::pgdata_walk::{self, CONTROL_FILE, FoundFile, PgdataWalk, modified_microseconds};
use crate::pg::backup_label::BackupLabel;
use crate::pg::client::{ConnectionSettings, Session, StartCheckpoint, StoppedBackup};
use crate::pg::{Lsn, PgTimestamp, WalSegmentName, WalSegmentNumber};
use crate::progress::Progress;
use crate::repeating::Repeating;
use crate::repository::Repository;
use crate::wal::identity::ensure_recorded;
use base::{Base, Candidates, NewStart};
use changes::{ChangeSource, Changes, ChangesFrom};
use copy::{Copied, CopyPlan, Copying};
use facts::ServerState;
use intent::Intent;
use pack_writer::{PackFactory, pack_size};
use plan::SourceFile;
use rate_limit::RateLimit;
use relation_file::PageRules;
use resume::StoredParts;
use reuse::{PageLayout, ReusePlan, bytes_to_read};
use session::SessionWatch;
use tombstone::Tombstone;

/// What a backup is taken of, where it goes, and how.
pub struct BackupRequest<'a> {
    /// Where it goes.
    pub repository: &'a Repository,
    /// The cluster's name there.
    pub cluster: &'a ClusterName,
    /// How to reach the server.
    pub connection: &'a ConnectionSettings,
    /// The data directory; `None` to ask the server.
    pub pgdata: Option<&'a Path>,
    /// What opens earlier backups.
    pub keys: &'a KeyRing,
    /// How packs and manifest are written.
    pub sealing: Sealing,
    /// What is taken over from earlier backups.
    pub extent: Extent,
    /// How many threads copy.
    pub jobs: usize,
    /// Stored bytes per second at most.
    pub rate_limit: Option<u64>,
    /// The label in `backup_label`.
    pub label: &'a str,
    /// Whether the checkpoint at the start hurries.
    pub checkpoint: StartCheckpoint,
    /// How long to wait while no WAL arrives.
    pub wal_patience: Duration,
}

/// What a backup takes over from earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Nothing.
    Full,
    /// What has not changed, as this source tells. Everything is stored if there is no earlier backup.
    Incremental(ChangesFrom),
}

/// A backup that is stored.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// What listings show of it.
    pub summary: BackupSummary,
    /// Damaged pages: file and block, counted from the relation's beginning; at most [`DAMAGED_BLOCKS_KEPT`].
    pub damaged_blocks: Vec<(String, u32)>,
    /// How long it took.
    pub elapsed: Duration,
}

/// So many damaged pages are named in a manifest; all are counted.
pub const DAMAGED_BLOCKS_KEPT: usize = 1000;

/// A backup that the server has begun.
struct Started {
    lsn: Lsn,
    segment: WalSegmentName,
    time: PgTimestamp,
}

/// What was copied while the server was in backup mode, and how it ended.
struct Taken {
    copied: Copied,
    found: PgdataWalk,
    tablespaces: Vec<Tablespace>,
    catalogue: Vec<CatalogueEntry>,
    stopped: StoppedBackup,
    /// Right after it stopped.
    databases: lost_databases::Databases,
    stop_time: PgTimestamp,
    damaged: Vec<(String, u32)>,
}

/// What is taken over, and how what has changed was found.
struct Reused {
    base: Base,
    source: ChangeSource,
    changes: Changes,
}

/// What need not be stored again.
#[derive(Clone, Copy)]
struct TakenOver<'a> {
    reused: Option<&'a Reused>,
    resumed: &'a StoredParts,
}

/// Takes a backup. Whatever fails before the manifest is published leaves nothing that is listed; closing the session
/// makes the server end the backup.
pub fn take_backup(request: &BackupRequest<'_>) -> Result<BackupReport, BackupError> {
    let began = Instant::now();
    let mut session = Session::connect(request.connection)?;
    let state = facts::learn(&mut session, request.pgdata)?;
    facts::check(&mut session, &state)?;
    record_identity(request, &state)?;
    let before = lost_databases::ask(&mut session)?;
    reached(began, "connected");
    let (started, candidates) = start(&mut session, request, &state)?;
    reached(began, "begun, candidates for a base read");
    let base = choose_base(request, &state, &started, candidates)?;
    let resumed = find_attempts(request, &state, base.as_ref())?;
    let announcement = Announcement {
        segment: started.segment,
        base: base.as_ref().map(|base| base.manifest.summary.id.clone()),
        resumes: resumed.attempts(),
    };
    std::thread::scope(|scope| {
        // Its way to the disk takes as long as finding what has changed.
        let announced = scope.spawn(|| announcement.announce(scope, request));
        let found = find_changes(&mut session, request, &state, &started, base);
        reached(began, "changes found");
        let Announced { id, _alive, tombstones } = announced.join().map_err(|_| BackupError::JobLost)??;
        reached(began, "announced");
        let withdraw = |_: &BackupError| intent::withdraw(request.repository, request.cluster, &id);
        let reused = found.inspect_err(withdraw)?;
        let (reused, resumed) = still_there(&tombstones, reused, resumed);
        let from = TakenOver { reused: reused.as_ref(), resumed: &resumed };
        let taken = copy_until_stopped(&mut session, request, &state, &started, &id, from)?;
        reached(began, "stopped, all packs durable");
        let suspects = lost_databases::Suspects::new(&before, &taken.databases)?;
        kill_point("backup: copied");
        let wal = session::wal_of(&state, &started.lsn, &taken.stopped)?;
        let manifest = describe(request, &state, &started, &wal, id, taken, from)?;
        let encoded = publish::encode_manifest(request, &manifest)?;
        reached(began, "manifest encoded");
        session::wait_for_wal(&mut session, request, &state, &wal)?;
        reached(began, "WAL arrived");
        suspects.check(request, &state, &wal.span)?;
        kill_point("backup: before manifest");
        encoded.publish(request)?;
        reached(began, "published");
        Ok(BackupReport {
            summary: manifest.summary,
            damaged_blocks: manifest.server.damaged_blocks,
            elapsed: began.elapsed(),
        })
    })
    .map_err(|error| session::lost_if_closed(&mut session, error))
    .inspect(|report| intent::clean_up(request.repository, request.cluster, &report.summary.id))
}

/// Where the time goes, for who asks (`--log-level debug`).
fn reached(began: Instant, what: &str) {
    tracing::debug!("{:.1} ms after the beginning: {what}", began.elapsed().as_secs_f64() * 1e3);
}

/// Before the first object of a cluster lies under a name, the name is the cluster's.
fn record_identity(request: &BackupRequest<'_>, state: &ServerState) -> Result<(), BackupError> {
    let system = state.system_identifier();
    let others = request.repository.list(&keys::identities(request.cluster))?;
    for other in others {
        if other.key != keys::identity(request.cluster, system) {
            tracing::warn!(
                "another cluster uses the name {} in {} too ({}): give each cluster a name of its own (WALHOLD_CLUSTER)",
                request.cluster,
                request.repository.url(),
                other.key.name()
            );
        }
    }
    Ok(ensure_recorded(request.repository, request.cluster, system, Some(state.major()))?)
}

/// Begins the backup, and reads meanwhile what it may be based on: the checkpoint takes the server's time, not ours.
fn start(
    session: &mut Session,
    request: &BackupRequest<'_>,
    state: &ServerState,
) -> Result<(Started, Candidates), BackupError> {
    let size = state.control.wal_segment_size;
    std::thread::scope(|scope| {
        let candidates = scope.spawn(|| match request.extent {
            Extent::Full => Ok(Candidates::default()),
            Extent::Incremental(_) => base::candidates(request, state.system_identifier(), size),
        });
        let lsn = session.start_backup(request.label, request.checkpoint)?;
        let time = session.now()?;
        // The checkpoint that the start waited for, or on a standby the last one replayed.
        let timeline = control::read(&state.pgdata)?.file.checkpoint_timeline;
        let segment = WalSegmentName::new(timeline, WalSegmentNumber::containing(lsn, size), size);
        let candidates = candidates.join().map_err(|_| BackupError::JobLost)??;
        Ok((Started { lsn, segment, time }, candidates))
    })
}

/// The backup to take over from, if there is one.
fn choose_base(
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    candidates: Candidates,
) -> Result<Option<Base>, BackupError> {
    let Extent::Incremental(_) = request.extent else { return Ok(None) };
    let new = NewStart {
        block_size: state.control.block_size,
        data_checksums: state.control.data_checksum_version != 0,
        major: state.major(),
        lsn: started.lsn,
        history: session::history_of(state, started.segment.timeline).map_err(|error| error.to_string()),
    };
    let base = base::choose(request, candidates, &new)?;
    if base.is_none() {
        tracing::info!("there is no earlier backup to take over from: everything is stored");
    }
    Ok(base)
}

/// What attempts that ended early have stored already.
fn find_attempts(
    request: &BackupRequest<'_>,
    state: &ServerState,
    base: Option<&Base>,
) -> Result<StoredParts, BackupError> {
    match request.extent {
        Extent::Full => Ok(StoredParts::default()),
        Extent::Incremental(_) => resume::find(
            request,
            state.system_identifier(),
            state.control.wal_segment_size,
            base.map(|base| &base.manifest),
        ),
    }
}

/// What of base and attempts is not being expired.
fn still_there(
    tombstones: &[Tombstone],
    reused: Option<Reused>,
    resumed: StoredParts,
) -> (Option<Reused>, StoredParts) {
    let is_doomed = |reused: &Reused| {
        let id = &reused.base.manifest.summary.id;
        let doomed = tombstones.iter().any(|tombstone| tombstone.names(id));
        if doomed {
            tracing::warn!("backup {id}, the base, is being expired meanwhile: everything is stored");
        }
        doomed
    };
    let resumed = resumed.without_doomed(tombstones);
    if !resumed.is_empty() {
        let attempts: Vec<String> = resumed.attempts().iter().map(BackupId::to_string).collect();
        tracing::info!("what the interrupted {} stored is not stored again", attempts.join(", "));
    }
    (reused.filter(|reused| !is_doomed(reused)), resumed)
}

/// Finds out what has changed since the base.
fn find_changes(
    session: &mut Session,
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    base: Option<Base>,
) -> Result<Option<Reused>, BackupError> {
    let (Some(base), Extent::Incremental(from)) = (base, request.extent) else { return Ok(None) };
    let found = since::find_changes(session, request, state, started, &base, from)?;
    let why = match found.passed_over.join("; ") {
        why if why.is_empty() => why,
        why => format!(" ({why})"),
    };
    tracing::info!(
        "the base is backup {}, changes are taken from: {}{why}",
        base.manifest.summary.id,
        found.source
    );
    Ok(Some(Reused { base, source: found.source, changes: found.changes }))
}

/// What a backup says of itself before it stores anything.
struct Announcement {
    segment: WalSegmentName,
    base: Option<BackupId>,
    resumes: Vec<BackupId>,
}

/// A backup that others know of.
struct Announced {
    id: BackupId,
    /// Goes on saying so until it is dropped.
    _alive: Repeating,
    /// Read after the intent that names base and attempts was published: an expire that begins later keeps them, and one that began
    /// earlier had left a tombstone by then.
    tombstones: Vec<Tombstone>,
}

impl Announcement {
    /// Finds an id that nobody uses and announces it. Two hosts may begin in one second at one segment.
    fn announce<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        request: &'env BackupRequest<'env>,
    ) -> Result<Announced, BackupError> {
        let (repository, cluster) = (request.repository, request.cluster);
        let mut attempts = 0;
        loop {
            let id = BackupId::new(jiff::Timestamp::now(), self.segment);
            let intent = Intent::new(id.clone(), self.base.clone(), self.resumes.clone());
            match intent.announce(repository, cluster) {
                Ok(()) => {
                    let _alive = intent::keep_announcing(scope, repository, cluster, intent);
                    let tombstones = tombstone::list(repository, cluster)
                        .inspect_err(|_| intent::withdraw(repository, cluster, &id))?;
                    let tombstones = tombstones.into_iter().map(|(_, tombstone)| tombstone).collect();
                    return Ok(Announced { id, _alive, tombstones });
                }
                Err(BackupError::Taken(_)) if attempts < 5 => attempts += 1,
                Err(error) => return Err(error),
            }
            if !crate::interrupt::sleep(Duration::from_millis(1100)) {
                return Err(BackupError::Interrupted);
            }
        }
    }
}

fn copy_until_stopped(
    session: &mut Session,
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    id: &BackupId,
    from: TakenOver<'_>,
) -> Result<Taken, BackupError> {
    let reused = from.reused;
    let found = pgdata_walk::walk(&state.pgdata, &state.tablespace_directory())?;
    found.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let files = source_files(&found, state)?;
    // pg_control, the last, is for the job that ends last.
    let copied_by_all = files.split_last().map(|(_, before)| before).unwrap_or_default();
    let layout = PageLayout {
        block_size: state.control.block_size,
        segment_blocks: state.control.relation_segment_blocks,
    };
    let reuse =
        reused.map(|reused| ReusePlan::new(copied_by_all, &reused.base.manifest, &reused.changes, layout));
    let queue = plan::plan(copied_by_all, reuse.as_ref().map_or(&[], |reuse| &reuse.files));
    let limit = request.rate_limit.map(RateLimit::new);
    let packs = PackFactory {
        repository: request.repository,
        cluster: request.cluster,
        id,
        system_identifier: state.system_identifier(),
        wal_segment_size: state.control.wal_segment_size,
        sealing: &request.sealing,
        effort: if reuse.is_some() { Effort::Thorough } else { Effort::Quick },
        limit: limit.as_ref(),
        pack_size: pack_size(),
        next_number: AtomicU32::new(0),
    };
    let reuse_of = |index: usize| reuse.as_ref().and_then(|reuse| reuse.files.get(index));
    let total: u64 = files.iter().enumerate().map(|(index, file)| bytes_to_read(file, reuse_of(index))).sum();
    let progress = Progress::new("backup", total);
    let (stop, reading) = (AtomicBool::new(false), AtomicUsize::new(0));
    let plan = CopyPlan {
        pgdata: &state.pgdata,
        files: &files,
        queue: &queue,
        reuse: reuse.as_ref(),
        resumed: from.resumed,
        keys: request.keys,
        pages: page_rules(state, started.lsn),
        packs: &packs,
        jobs: request.jobs,
        progress: &progress,
        stop: &stop,
        reading: &reading,
    };
    let (copied, catalogue, tablespaces, stopped) = std::thread::scope(|scope| {
        let mut copying = Copying::start(scope, &plan);
        let catalogue = catalogue::snapshot(session);
        let tablespaces = session::tablespaces(session, &found)?;
        let mut watch = SessionWatch::new(state.in_recovery);
        copying.wait_read(|| watch.look(session))?;
        // The server need not wait until the last packs are on disk.
        let stopped = match copying.is_sound() {
            true => {
                let stopped = session.stop_backup()?;
                kill_point("backup: stopped");
                Some((stopped, lost_databases::ask(session)?))
            }
            false => None,
        };
        let copied = copying.finish()?;
        Ok::<_, BackupError>((copied, catalogue, tablespaces, stopped.ok_or(BackupError::JobLost)?))
    })?;
    let (stopped, databases) = stopped;
    progress.finish();
    let damaged = damaged_pages(&copied, &files, stopped.lsn);
    let stop_time = session.now()?;
    Ok(Taken { copied, found, tablespaces, catalogue, stopped, databases, stop_time, damaged })
}

fn page_rules(state: &ServerState, start_lsn: Lsn) -> Option<PageRules> {
    (state.control.data_checksum_version != 0).then_some(PageRules {
        block_size: state.control.block_size as usize,
        segment_blocks: state.control.relation_segment_blocks,
        start_lsn,
    })
}

/// What the walk found, configuration from elsewhere, and `pg_control` last.
fn source_files(found: &PgdataWalk, state: &ServerState) -> Result<Vec<SourceFile>, BackupError> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let in_pgdata = |found: &FoundFile| SourceFile { root: Root::DataDirectory, found: found.clone() };
    let mut files: Vec<SourceFile> = found.files.iter().map(in_pgdata).collect();
    let describe = |root, place: &Path, path: &[u8]| {
        let metadata = place.metadata();
        metadata.map(|metadata| SourceFile {
            root,
            found: FoundFile {
                path: path.to_owned(),
                mode: metadata.mode() & 0o7777,
                size: metadata.len(),
                modified: modified_microseconds(&metadata),
                relation_segment: None,
            },
        })
    };
    for place in &state.external_files {
        let path = place.as_os_str().as_bytes();
        match describe(Root::External, place, path.strip_prefix(b"/").unwrap_or(path)) {
            Ok(file) => files.push(file),
            Err(error) => tracing::warn!("{} is not part of the backup: {error}", place.display()),
        }
    }
    let place = state.pgdata.join(CONTROL_FILE);
    let control = describe(Root::DataDirectory, &place, CONTROL_FILE.as_bytes());
    files.push(control.map_err(|error| BackupError::Read { path: place, error })?);
    Ok(files)
}

/// Pages that neither replay will put right nor a second look did, as file and block.
fn damaged_pages(copied: &Copied, files: &[SourceFile], stop_lsn: Lsn) -> Vec<(String, u32)> {
    // No page on disk can be newer than the WAL at the stop: such an LSN is part of the damage.
    let is_damaged = |page: &relation_file::SuspectPage| page.in_motion.is_none_or(|lsn| lsn > stop_lsn);
    let damaged = copied.suspects.iter().filter(|(_, page)| is_damaged(page));
    let named = damaged.filter_map(|(index, page)| {
        let file = files.get(*index as usize)?;
        Some((String::from_utf8_lossy(&file.found.path).into_owned(), page.block))
    });
    let damaged: Vec<(String, u32)> = named.collect();
    for (path, block) in damaged.iter().take(20) {
        tracing::error!("page checksum of block {block} in {path} does not fit: the page is damaged");
    }
    damaged
}

fn resumed_of(copied: &Copied, from: TakenOver<'_>) -> Option<Resumed> {
    let mut attempts = from.resumed.attempts();
    attempts.retain(|attempt| copied.packs.iter().any(|pack| pack.backup == *attempt));
    (copied.resumed_bytes > 0).then_some(Resumed { attempts, bytes: copied.resumed_bytes })
}

fn describe(
    request: &BackupRequest<'_>,
    state: &ServerState,
    started: &Started,
    wal: &session::BackupWal,
    id: BackupId,
    taken: Taken,
    from: TakenOver<'_>,
) -> Result<Manifest, BackupError> {
    let reused = from.reused;
    let label = BackupLabel::parse(&taken.stopped.label).map_err(|error| BackupError::Unusable {
        what: "read what pg_backup_stop returned".to_owned(),
        problem: error.to_string(),
    })?;
    let copied = taken.copied;
    let summary = BackupSummary {
        id,
        system_identifier: state.system_identifier(),
        server_version: state.version,
        kind: if reused.is_some() { BackupKind::Incremental } else { BackupKind::Full },
        base: reused.map(|reused| reused.base.manifest.summary.id.clone()),
        from_standby: label.from_standby,
        start_timeline: label.start_timeline,
        stop_timeline: wal.stop_timeline,
        start_lsn: label.start_lsn,
        checkpoint_lsn: label.checkpoint_lsn,
        stop_lsn: taken.stopped.lsn,
        start_time: started.time,
        stop_time: taken.stop_time,
        wal_segment_size: state.control.wal_segment_size,
        block_size: state.control.block_size,
        data_checksums: state.control.data_checksum_version != 0,
        cluster_bytes: copied.files.iter().map(|file| file.size).sum(),
        file_count: copied.files.len() as u64,
        new_bytes: copied.packs.iter().take(copied.own_packs).map(|pack| pack.stored_length).sum(),
        repository_bytes: copied.chunk_bytes,
        resumed: resumed_of(&copied, from),
        damaged_pages: taken.damaged.len() as u64,
        encrypted: request.sealing.key.is_some(),
        changes_from: reused.map_or("full", |reused| reused.source.word()).to_owned(),
        time_zone: state.time_zone.clone(),
        walhold_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut server = state.facts.clone();
    server.damaged_blocks = taken.damaged.into_iter().take(DAMAGED_BLOCKS_KEPT).collect();
    let map = taken.stopped.tablespace_map;
    Ok(Manifest {
        summary,
        server,
        backup_label: taken.stopped.label,
        tablespace_map: (!map.is_empty()).then_some(map),
        tablespaces: taken.tablespaces,
        catalogue: taken.catalogue,
        packs: copied.packs,
        directories: taken.found.directories,
        files: copied.files,
    })
}
