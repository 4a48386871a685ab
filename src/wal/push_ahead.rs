//! One wal-push that archives the segments behind the asked one as well, so that their own calls only read a note.
//!
//! In: the asked file, and the paths that wait behind it. Out: how the asked one ended, and notes for the others that are durable. What must hold: the others never make the asked
//! one fail and delay it by a bounded time; what is in memory is bounded; a failure among them is left to their own call, which will tell it.
//!
//! Files are encoded one after another, each on all cores; what remains is waiting for the store, which happens for several at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::config::PgdataOrigin;
use crate::format::ClusterName;
use crate::interrupt;
use crate::local::kill_point::kill_point;
use crate::repository::Repository;

use super::archive_file::ArchiveFile;
use super::push::{Crew, PushError, Pushed, Writing, encode_file};
use super::push_notes::Note;

/// Nothing new is begun after so long: PostgreSQL waits for the asked one.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// When the asked one is durable, the others have at least this long to follow.
const LEAST_GRACE: Duration = Duration::from_secs(5);
/// Requests to the store at once.
const PARALLEL: usize = 8;
/// What a crew's buffers take beyond those of the agent, whose bound the setting is.
const CREW: u64 = 2 << 20;
/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// What all files of one call share.
pub struct PushContext {
    /// Where they go.
    pub repository: Repository,
    /// Under which name.
    pub cluster: ClusterName,
    /// How.
    pub writing: Writing,
}

/// What waits behind the asked file.
pub struct Following<'a> {
    /// In PostgreSQL's order.
    pub paths: Vec<PathBuf>,
    /// See [`ArchiveFile::open`].
    pub pgdata: Option<&'a Path>,
    /// See [`ArchiveFile::open`].
    pub pgdata_origin: PgdataOrigin,
    /// Compressed bytes that may wait for a cloud store at once.
    pub memory: u64,
}

/// The end of one file's push.
struct Ended {
    file: Arc<ArchiveFile>,
    held: u64,
    result: Result<Pushed, PushError>,
}

/// A call under way.
struct Batch {
    context: Arc<PushContext>,
    began: Instant,
    asked: Arc<ArchiveFile>,
    /// How the asked file ended, once it has.
    outcome: Option<Result<Pushed, PushError>>,
    under_way: usize,
    /// Compressed bytes that wait for a cloud store, and how many may.
    held: u64,
    memory: u64,
    largest: u64,
    notes: Vec<Note>,
    report: Sender<Ended>,
    reports: Receiver<Ended>,
}

/// Archives `asked`, and beside it as many of `following` as fit.
pub fn push_with_following(
    asked: ArchiveFile,
    context: PushContext,
    following: Following<'_>,
) -> (Result<Pushed, PushError>, Vec<Note>) {
    let (report, reports) = channel();
    let mut batch = Batch {
        context: Arc::new(context),
        began: Instant::now(),
        asked: Arc::new(asked),
        outcome: None,
        under_way: 0,
        held: 0,
        memory: following.memory.saturating_sub(CREW),
        largest: 0,
        notes: Vec::new(),
        report,
        reports,
    };
    let asked = Arc::clone(&batch.asked);
    if let Err(error) = batch.begin(asked) {
        return (Err(error), Vec::new());
    }
    for path in &following.paths {
        if !batch.wait_for_room() {
            break;
        }
        // What is wrong with it is for its own call to say.
        let opened = ArchiveFile::open(path, following.pgdata, following.pgdata_origin);
        let file = match opened {
            Ok(file) if file.system_identifier() == batch.asked.system_identifier() => Arc::new(file),
            Ok(_) | Err(_) => break,
        };
        if let Err(error) = batch.begin(file) {
            tracing::debug!("not archived ahead: {error}");
            break;
        }
    }
    batch.finish()
}

impl Batch {
    /// Encodes a file on this thread and lets another wait for the store.
    fn begin(&mut self, file: Arc<ArchiveFile>) -> Result<(), PushError> {
        let context = Arc::clone(&self.context);
        let grown = &mut |bytes| self.wait_for_more(bytes);
        let encoded =
            encode_file(&file, &context.repository, &context.cluster, &context.writing, Crew::Whole, grown)?;
        let held = encoded.held(&context.repository);
        let report = self.report.clone();
        let publishing = std::thread::Builder::new().name("publish".to_owned()).spawn(move || {
            let result = encoded.publish(&file, &context.repository, &context.writing.keys);
            // Nobody listens any more when the others' time is over.
            let _ = report.send(Ended { file, held, result });
        });
        publishing.map_err(PushError::Thread)?;
        self.under_way += 1;
        self.held += held;
        self.largest = self.largest.max(held);
        Ok(())
    }

    /// The file that is being encoded has become this large: waits for what is on its way as long as both are too much.
    fn wait_for_more(&mut self, bytes: u64) {
        while self.under_way > 0 && self.held + bytes > self.memory && interrupt::requested().is_none() {
            self.collect(LOOK);
        }
    }

    /// Waits until one more may be begun; false if none is to be any more.
    fn wait_for_room(&mut self) -> bool {
        loop {
            self.collect(Duration::ZERO);
            let failed = self.outcome.as_ref().is_some_and(Result::is_err);
            if failed || self.began.elapsed() > BEGIN_WITHIN || interrupt::requested().is_some() {
                return false;
            }
            let fits = self.held + self.largest / 2 <= self.memory || self.under_way == 0;
            if fits && self.under_way < PARALLEL {
                return true;
            }
            self.collect(LOOK);
        }
    }

    /// Takes in what has ended, waiting up to `patience` for the first.
    fn collect(&mut self, patience: Duration) {
        let mut patience = patience;
        while self.under_way > 0 {
            match self.reports.recv_timeout(patience) {
                Ok(ended) => self.take(ended),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
            patience = Duration::ZERO;
        }
    }

    fn take(&mut self, ended: Ended) {
        self.under_way -= 1;
        self.held -= ended.held;
        if Arc::ptr_eq(&ended.file, &self.asked) {
            self.outcome = Some(ended.result);
            return;
        }
        let stored = match ended.result {
            Ok(Pushed::Archived(encoded)) => encoded.stored_length,
            Ok(Pushed::AlreadyArchived(stored)) => stored.size,
            Err(error) => {
                tracing::debug!("not archived ahead: {error}");
                return;
            }
        };
        tracing::info!(
            "archived {} ahead: {} bytes stored as {stored}",
            ended.file.name,
            ended.file.length()
        );
        self.notes.push(Note::of(&ended.file, stored));
        kill_point("ahead: after a follower");
    }

    /// Waits for the asked file, then a while for the others.
    fn finish(mut self) -> (Result<Pushed, PushError>, Vec<Note>) {
        let mut end = None;
        loop {
            if self.under_way == 0 {
                break;
            }
            if self.outcome.is_some() {
                let failed = self.outcome.as_ref().is_some_and(Result::is_err);
                let end = *end.get_or_insert_with(|| Instant::now() + self.began.elapsed().max(LEAST_GRACE));
                if failed || Instant::now() >= end || interrupt::requested().is_some() {
                    break;
                }
            }
            self.collect(LOOK);
        }
        let outcome = self.outcome.unwrap_or(Err(PushError::Died));
        (outcome, self.notes)
    }
}
