//! Archives for askers, and what waits behind each asked file meanwhile.
//!
//! In: files that askers have open. Out: durable objects. What must hold: an answer from memory is given only for the very same file, which became durable minutes ago at most; the repository was proven to be the one
//! that was opened within the last seconds (`PROOF_LIFE`); compressed bytes in memory are bounded over all clusters.
//!
//! As many files are encoded at once as [`super::bounds`] lets; several more wait for the store.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bounds::{Held, Hurry, Kits, Room, Seats, locked};
use super::protocol::ArchiveStatus;
use crate::config::{Config, PgdataOrigin};
use crate::error::Failure;
use crate::exit_status::Cause;
use crate::format::ClusterName;
use crate::interrupt;
use crate::local::durable::parent_of;
use crate::local::kill_point::kill_point;
use crate::output::seconds_between;
use crate::pg::{ArchiveFileName, PgTimestamp, SystemIdentifier, WalSegmentName};
use crate::repository::{Patience, Repository};
use crate::wal::archive_file::{ArchiveFile, FileStamp};
use crate::wal::identity::prove_recorded_here;
use crate::wal::push::{Crew, Pushed, Writing, encode_file};
use crate::wal::push_notes::LIFE;
use crate::wal::ready;

/// The repository's marker and the cluster's identity are read again beside an upload when they were last seen so long ago.
const PROOF_LIFE: Duration = Duration::from_secs(10);
/// How long that may take where the answer is known.
const PATIENCE_FOR_ANSWER: Duration = Duration::from_secs(1);
/// Files of one directory under way at once.
const PARALLEL: usize = 8;
/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(200);

/// Everything that pushes share.
pub struct Archiver {
    config: Config,
    writing: Writing,
    repository: Mutex<Option<Repository>>,
    proven: Mutex<HashMap<(ClusterName, SystemIdentifier), Instant>>,
    kits: Kits,
    room: Room,
    lanes: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    /// Files that are being encoded or uploaded.
    uploads: Seats,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct LaneKey {
    device: u64,
    inode: u64,
    cluster: ClusterName,
    system: SystemIdentifier,
}

/// One directory of WAL.
struct Lane {
    key: LaneKey,
    directory: PathBuf,
    pgdata: Option<PathBuf>,
    state: Mutex<LaneState>,
    changed: Condvar,
}

#[derive(Default)]
struct LaneState {
    entries: BTreeMap<String, Entry>,
    asked: Option<WalSegmentName>,
    last_asked: Option<String>,
    queue: VecDeque<PathBuf>,
    /// Not tried again before the next question.
    failed: HashSet<String>,
    threads: usize,
    acknowledged: u64,
    ahead: u64,
    failures: u64,
    last_failure: Option<String>,
    newest_commit: Option<PgTimestamp>,
}

struct Entry {
    stamp: FileStamp,
    /// When it became durable; `None` while it is under way.
    durable: Option<Instant>,
}

/// Why a file is archived.
#[derive(Clone, Copy)]
enum Turn<'a> {
    /// Somebody waits for it; what is to be done when it is encoded.
    Asked(&'a dyn Fn()),
    /// It will be asked for.
    Ahead,
}

impl Turn<'_> {
    fn hurry(self) -> Hurry {
        match self {
            Turn::Asked(_) => Hurry::Asked,
            Turn::Ahead => Hurry::Ahead,
        }
    }
}

/// A file to archive for somebody who waits.
#[derive(Debug)]
pub struct PushOrder {
    /// Under which name.
    pub cluster: ClusterName,
    /// Opened and compared with what the asker has.
    pub file: ArchiveFile,
    /// See [`ArchiveFile::open`].
    pub pgdata: Option<PathBuf>,
    /// When it must be done.
    pub deadline: Instant,
}

impl Archiver {
    /// An archiver that has asked the store nothing yet.
    pub fn new(config: Config, writing: Writing) -> Archiver {
        let workers = writing.sealing.workers.unwrap_or(1);
        let room = Room::new(config.wal.push_ahead_memory);
        Archiver {
            config,
            writing,
            repository: Mutex::new(None),
            proven: Mutex::default(),
            kits: Kits::new(workers),
            room,
            lanes: Mutex::default(),
            uploads: Seats::new(usize::MAX),
        }
    }

    /// Archives a file, unless that is done already; in a few words how.
    pub fn push(self: &Arc<Self>, order: PushOrder) -> Result<String, Failure> {
        let lane = self.lane_of(&order)?;
        let name = order.file.name;
        let result = self.push_in(&lane, order);
        let mut state = locked(&lane.state);
        state.last_asked = Some(name.to_string());
        match &result {
            Ok(_) => state.acknowledged += 1,
            Err(failure) => {
                state.failures += 1;
                state.last_failure = Some(failure.message.clone());
            }
        }
        result
    }

    /// Whether a file is known to be durable, without asking anybody.
    pub fn is_known(&self, order: &PushOrder) -> bool {
        let Ok(lane) = self.lane_of(order) else { return false };
        let name = order.file.name.to_string();
        let mut state = locked(&lane.state);
        let fresh = |entry: &Entry| {
            entry.stamp == order.file.stamp() && entry.durable.is_some_and(|then| then.elapsed() < LIFE)
        };
        let known = state.entries.get(&name).is_some_and(fresh) && self.is_proven(&lane);
        if known {
            state.acknowledged += 1;
            state.last_asked = Some(name);
        }
        known
    }

    /// Goes on behind a file that was known; its asker has its answer already.
    pub fn go_on(self: &Arc<Self>, order: &PushOrder) {
        if let Ok(lane) = self.lane_of(order) {
            self.look_ahead(&lane, order.file.name);
        }
    }

    fn push_in(self: &Arc<Self>, lane: &Arc<Lane>, order: PushOrder) -> Result<String, Failure> {
        let name = order.file.name.to_string();
        if lane.was_archived(&name, &order.file.stamp(), order.deadline) {
            self.prove_for_answer(lane, &order.file)?;
            self.look_ahead(lane, order.file.name);
            return Ok("ahead".to_owned());
        }
        let file = order.file;
        let mark = UnderWay { lane, file: &file };
        let pushed =
            self.push_one(lane, &file, order.deadline, Turn::Asked(&|| self.look_ahead(lane, file.name)));
        mark.end(&pushed);
        match pushed? {
            Pushed::Archived(encoded) => {
                Ok(format!("{} bytes stored as {}", encoded.plaintext_length, encoded.stored_length))
            }
            Pushed::AlreadyArchived(stored) => {
                Ok(format!("already archived with the same content: {}", stored.path))
            }
        }
    }

    fn lane_of(&self, order: &PushOrder) -> Result<Arc<Lane>, Failure> {
        let directory = parent_of(order.file.path());
        let found = fs::metadata(&directory).map_err(|error| {
            let words = crate::error::system_words(&error);
            Failure::new(Cause::FileUnusable, format!("read {}: {words}", directory.display()))
        })?;
        let key = LaneKey {
            device: found.dev(),
            inode: found.ino(),
            cluster: order.cluster.clone(),
            system: order.file.system_identifier(),
        };
        let mut lanes = locked(&self.lanes);
        let lane = lanes.entry(key.clone()).or_insert_with(|| {
            Arc::new(Lane {
                key,
                directory,
                pgdata: order.pgdata.clone(),
                state: Mutex::default(),
                changed: Condvar::new(),
            })
        });
        Ok(Arc::clone(lane))
    }

    /// Encodes in turn, publishes beside others.
    fn push_one(
        &self,
        lane: &Lane,
        file: &ArchiveFile,
        deadline: Instant,
        turn: Turn<'_>,
    ) -> Result<Pushed, Failure> {
        let repository = self.repository(deadline)?;
        let _upload = self.uploads.take();
        std::thread::scope(|scope| {
            let is_stale = !self.is_proven(lane);
            let proof = is_stale.then(|| scope.spawn(|| self.prove(&repository, lane, file)));
            let (ready, mut held) = {
                // Who waits alone is served by all cores.
                let idle = matches!(turn, Turn::Asked(_)).then(|| self.kits.all_if_idle()).flatten();
                let mut taken = idle.unwrap_or_else(|| self.kits.one(turn.hurry()));
                // With the kit in hand: room that is reserved and not used would be missing elsewhere.
                let mut held = self.room_for_one(&repository)?;
                let crew = taken.single().map_or(Crew::Whole, Crew::Alone);
                let grown = &mut |bytes| {
                    if let Some(held) = &mut held {
                        held.grow(bytes, || interrupt::requested().is_some());
                    }
                };
                (encode_file(file, &repository, &lane.key.cluster, &self.writing, crew, grown)?, held)
            };
            if let Some(held) = &mut held {
                held.settle(ready.held(&repository));
            }
            if let Turn::Asked(encoded) = turn {
                encoded();
            }
            let last_commit = ready.last_commit();
            let pushed = ready.publish(file, &repository, &self.writing.keys);
            drop(held);
            kill_point("agent: after publish");
            let died = |_| Err(Failure::new(Cause::Internal, "internal error: the proving thread died"));
            proof.map_or(Ok(()), |proof| proof.join().unwrap_or_else(died))?;
            let pushed = pushed?;
            let mut state = locked(&lane.state);
            state.newest_commit = state.newest_commit.max(last_commit);
            Ok(pushed)
        })
    }

    /// The repository, opened when it is first needed.
    pub(super) fn repository(&self, deadline: Instant) -> Result<Repository, Failure> {
        let patience = Patience::Until(deadline);
        let mut known = locked(&self.repository);
        if let Some(repository) = &*known {
            return Ok(repository.with_patience(patience));
        }
        let repository = Repository::open(&self.config.repository, patience)?;
        *known = Some(repository.clone());
        Ok(repository)
    }

    /// The next one who needs the repository opens it anew; nothing that was stored before counts there.
    pub(super) fn forget_repository(&self) {
        *locked(&self.repository) = None;
        locked(&self.proven).clear();
        locked(&self.lanes).values().for_each(|lane| locked(&lane.state).entries.clear());
    }

    fn is_proven(&self, lane: &Lane) -> bool {
        let key = (lane.key.cluster.clone(), lane.key.system);
        locked(&self.proven).get(&key).is_some_and(|then| then.elapsed() < PROOF_LIFE)
    }

    /// Sees that the repository still is the one that was opened, and that the cluster is recorded in it.
    fn prove(&self, repository: &Repository, lane: &Lane, file: &ArchiveFile) -> Result<(), Failure> {
        let key = (lane.key.cluster.clone(), lane.key.system);
        let begun = Instant::now();
        let proven = prove_recorded_here(repository, &key.0, key.1, file.postgresql_major);
        let result = proven.map_err(Failure::from);
        match &result {
            Ok(()) => drop(locked(&self.proven).insert(key, begun)),
            Err(failure) if matches!(failure.cause, Cause::NoRepository | Cause::Damaged) => {
                self.forget_repository();
            }
            Err(_) => {}
        }
        result
    }

    /// An answer from memory needs the repository too, as far as it can be asked: an outage does not unmake what is durable.
    fn prove_for_answer(&self, lane: &Lane, file: &ArchiveFile) -> Result<(), Failure> {
        if self.is_proven(lane) {
            return Ok(());
        }
        let repository = self.repository(Instant::now() + PATIENCE_FOR_ANSWER)?;
        match self.prove(&repository, lane, file) {
            Err(failure) if matches!(failure.cause, Cause::NoRepository | Cause::Damaged) => Err(failure),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Room for another file's bytes while they wait for a store; a directory takes them at once.
    fn room_for_one(&self, repository: &Repository) -> Result<Option<Held<'_>>, Failure> {
        if repository.is_directory() {
            return Ok(None);
        }
        let interrupted = || match interrupt::requested() {
            Some(signal) => format!("interrupted by {}", signal.as_str()),
            None => "interrupted".to_owned(),
        };
        let held = self.room.reserve(|| interrupt::requested().is_some());
        held.map(Some).ok_or_else(|| Failure::new(Cause::Interrupted, interrupted()))
    }

    /// Sees that what waits behind `asked` is worked on.
    fn look_ahead(self: &Arc<Self>, lane: &Arc<Lane>, asked: ArchiveFileName) {
        let ArchiveFileName::Segment(asked) = asked else { return };
        let limit = self.config.wal.push_ahead;
        if limit == 0 {
            return;
        }
        let missing = {
            let mut state = locked(&lane.state);
            state.begin_behind(asked);
            state.refill(&lane.directory, limit);
            let wanted = state.queue.len().min(PARALLEL);
            let missing = wanted.saturating_sub(state.threads);
            state.threads += missing;
            missing
        };
        for _ in 0..missing {
            let (archiver, theirs) = (Arc::clone(self), Arc::clone(lane));
            let thread = std::thread::Builder::new().name("ahead".to_owned());
            if thread.spawn(move || archiver.archive_ahead(&theirs)).is_err() {
                locked(&lane.state).threads -= 1;
            }
        }
    }

    /// Archives what waits until nothing does, or enough is ready.
    fn archive_ahead(&self, lane: &Lane) {
        while let Some((name, file)) = self.next_ahead(lane) {
            let deadline = Instant::now() + self.config.wal.push_deadline;
            let mark = UnderWay { lane, file: &file };
            let pushed = self.push_one(lane, &file, deadline, Turn::Ahead);
            mark.end(&pushed);
            let mut state = locked(&lane.state);
            match pushed {
                Ok(_) => {
                    state.ahead += 1;
                    tracing::debug!("archived {name} ahead");
                }
                Err(failure) => {
                    tracing::debug!("{name} was not archived ahead: {failure}");
                    state.failed.insert(name);
                }
            }
            drop(state);
            kill_point("agent: after one ahead");
        }
    }

    /// The next file, marked as under way; `None` ends the thread, which is counted off.
    fn next_ahead(&self, lane: &Lane) -> Option<(String, ArchiveFile)> {
        let mut state = locked(&lane.state);
        loop {
            let enough = state.entries.len() > self.config.wal.push_ahead;
            if enough || interrupt::requested().is_some() {
                state.threads -= 1;
                return None;
            }
            let Some(path) = state.queue.pop_front() else {
                state.threads -= 1;
                return None;
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if state.entries.contains_key(&name) || state.failed.contains(&name) {
                continue;
            }
            // What is wrong with it is for its own question to tell.
            let Ok(file) = ArchiveFile::open(&path, lane.pgdata.as_deref(), PgdataOrigin::Flag) else {
                state.failed.insert(name);
                continue;
            };
            if file.system_identifier() != lane.key.system {
                state.failed.insert(name);
                continue;
            }
            state.entries.insert(name.clone(), Entry { stamp: file.stamp(), durable: None });
            return Some((name, file));
        }
    }

    /// Files that are being encoded or uploaded now.
    pub fn under_way(&self) -> usize {
        self.uploads.taken()
    }

    /// How each directory is.
    pub fn status(&self) -> Vec<ArchiveStatus> {
        let lanes: Vec<Arc<Lane>> = locked(&self.lanes).values().cloned().collect();
        let mut archives: Vec<ArchiveStatus> = lanes.iter().map(|lane| lane.status()).collect();
        archives.sort_by(|one, other| one.directory.cmp(&other.directory));
        archives
    }
}

/// A file that is being archived. Dropped without an end, because the thread panicked, it is as if it had not been begun.
struct UnderWay<'a> {
    lane: &'a Lane,
    file: &'a ArchiveFile,
}

impl UnderWay<'_> {
    /// Notes how it ended.
    fn end<E>(self, pushed: &Result<Pushed, E>) {
        if pushed.is_ok() {
            self.lane.mark(self.file, Some(Instant::now()));
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.lane.mark(self.file, None);
    }
}

impl LaneState {
    /// What was asked for before is over.
    fn begin_behind(&mut self, asked: WalSegmentName) {
        if self.asked != Some(asked) {
            self.asked = Some(asked);
            self.failed.clear();
        }
        let own = asked.to_string();
        // Names of one timeline sort by position; what is under way ends by itself.
        self.entries.retain(|name, entry| {
            entry.durable.is_none_or(|then| then.elapsed() < LIFE)
                && (*name >= own || entry.durable.is_none())
        });
    }

    fn refill(&mut self, directory: &Path, limit: usize) {
        let Some(asked) = self.asked else { return };
        if !self.queue.is_empty() {
            return;
        }
        let found = ready::following(&directory.join(asked.to_string()), asked, limit);
        let is_new = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !self.entries.contains_key(name.as_ref()) && !self.failed.contains(name.as_ref())
        };
        self.queue = found.into_iter().filter(is_new).collect();
    }
}

impl Lane {
    /// True if this very file is durable, waiting for it if it is under way. Else it is marked as under way, for the caller.
    fn was_archived(&self, name: &str, stamp: &FileStamp, deadline: Instant) -> bool {
        let mut state = locked(&self.state);
        loop {
            match state.entries.get(name) {
                Some(entry) if entry.stamp == *stamp => match entry.durable {
                    Some(then) if then.elapsed() < LIFE => return true,
                    Some(_) => {}
                    None if Instant::now() < deadline && interrupt::requested().is_none() => {
                        let waited = self.changed.wait_timeout(state, LOOK);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                        continue;
                    }
                    None => {}
                },
                // Another file of this name: what is known of the old one says nothing.
                Some(_) | None => {}
            }
            state.entries.insert(name.to_owned(), Entry { stamp: stamp.clone(), durable: None });
            return false;
        }
    }

    /// Makes a file that is under way durable, or unknown, unless another file has its name by now.
    fn mark(&self, file: &ArchiveFile, durable: Option<Instant>) {
        let (name, stamp) = (file.name.to_string(), file.stamp());
        let mut state = locked(&self.state);
        if state.entries.get(&name).is_some_and(|entry| entry.stamp == stamp && entry.durable.is_none()) {
            state.entries.remove(&name);
            if durable.is_some() {
                state.entries.insert(name, Entry { stamp, durable });
            }
        }
        self.changed.notify_all();
    }

    fn status(&self) -> ArchiveStatus {
        let state = locked(&self.state);
        let waiting = state.asked.map_or(0, |asked| {
            let asked = asked.to_string();
            state.entries.keys().filter(|name| **name > asked).count()
        });
        ArchiveStatus {
            cluster: self.key.cluster.to_string(),
            system_identifier: self.key.system.to_string(),
            directory: self.directory.clone(),
            last_asked: state.last_asked.clone(),
            acknowledged: state.acknowledged,
            ahead: state.ahead,
            waiting: waiting as u64,
            failures: state.failures,
            last_failure: state.last_failure.clone(),
            newest_commit: state.newest_commit,
            newest_commit_age_seconds: state
                .newest_commit
                .and_then(|commit| Some(seconds_between(commit.to_jiff()?, jiff::Timestamp::now()))),
        }
    }
}
