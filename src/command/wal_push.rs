//! `wal-push`: archives one file for PostgreSQL, and the segments that wait behind it.
//!
//! 1. Open the file and check that it is what its name says.
//! 2. If an earlier call archived it ahead, and it still is the same file, that is all.
//! 3. If an agent answers, let it do the work.
//! 4. Open the repository: a cloud's marker is taken from the notes, and checked while the file is on its way.
//! 5. See that the cluster's identity is recorded.
//! 6. Encode and publish the file in one pass, and those behind it; if a name is taken, compare.
//! 7. Leave notes for the calls that follow.
//!
//! Status 0 is said only when the object is durable: PostgreSQL removes the file then.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::agent::client::push_through_agent;
use crate::codec::{Compression, Sealing};
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::local::kill_point::kill_point;
use crate::pg::ArchiveFileName;
use crate::repository::{Patience, Repository};
use crate::wal::archive_file::ArchiveFile;
use crate::wal::identity::{ensure_recorded, prove_recorded_here};
use crate::wal::push::{Pushed, Writing};
use crate::wal::push_ahead::{Following, PushContext, push_with_following};
use crate::wal::push_notes::PushNotes;
use crate::wal::ready;

/// Archive one file (archive_command)
///
/// In postgresql.conf: archive_command = 'walhold wal-push %p'
#[derive(Debug, clap::Args)]
pub struct WalPushArgs {
    /// The file to archive, as PostgreSQL's %p names it: a segment, .partial, .history or .backup file
    pub path: PathBuf,
}

/// Runs the command.
pub fn run(args: WalPushArgs, config: &Config) -> Result<Outcome, Failure> {
    let deadline = Instant::now() + config.wal.push_deadline;
    let file = ArchiveFile::open(&args.path, config.pgdata.as_deref(), config.pgdata_origin)?;
    let notes = PushNotes::read(config, &file);
    if was_archived_ahead(&file, &notes, config, deadline)? {
        return Ok(Outcome::Done);
    }
    if let Some(how) = push_through_agent(config, &file)? {
        tracing::info!("archived {} by the agent: {how}", file.name);
        return Ok(Outcome::Done);
    }
    let paths = waiting_behind(&file, &notes, config);
    let writing = writing(config, paths.len())?;
    let (repository, proof) = open_repository(&file, &notes, config, deadline)?;
    let name = file.name;
    let context = PushContext { repository: repository.clone(), cluster: config.cluster.clone(), writing };
    let following = Following {
        paths,
        pgdata: config.pgdata.as_deref(),
        pgdata_origin: config.pgdata_origin,
        memory: config.wal.push_ahead_memory,
    };
    let (pushed, files) = push_with_following(file, context, following);
    if let Err(failure) = proof.end() {
        notes.forget();
        return Err(failure);
    }
    kill_point("ahead: before notes");
    // Where nothing was archived ahead, only a cloud's marker is worth a note.
    let worth_it = !files.is_empty() || (!repository.is_directory() && pushed.is_ok());
    if worth_it && notes.can_be_written() {
        notes.replace(repository.marker(), files);
    }
    kill_point("ahead: after notes");
    match pushed? {
        Pushed::Archived(encoded) => tracing::info!(
            "archived {name}: {} bytes stored as {}",
            encoded.plaintext_length,
            encoded.stored_length
        ),
        Pushed::AlreadyArchived(stored) => {
            tracing::info!("{name} is already archived with the same content: {}", stored.path);
        }
    }
    Ok(Outcome::Done)
}

/// Whether an earlier call left a note for this very file. A directory is also looked at: that costs next to nothing.
fn was_archived_ahead(
    file: &ArchiveFile,
    notes: &PushNotes,
    config: &Config,
    deadline: Instant,
) -> Result<bool, Failure> {
    let Some(note) = notes.find(file) else { return Ok(false) };
    if config.repository.url.starts_with("file:") {
        let repository = Repository::open(&config.repository, Patience::Until(deadline))?;
        let key = crate::format::keys::wal(&config.cluster, file.system_identifier(), file.name);
        let stored = repository.find(&key, crate::wal::push::naming_of(file.name))?;
        let is_there = stored.is_some_and(|stored| stored.size == note.stored_length());
        if !is_there || notes.repository() != Some(repository.marker()) {
            notes.forget();
            return Ok(false);
        }
    }
    tracing::info!("{} was archived ahead by an earlier call", file.name);
    Ok(true)
}

fn waiting_behind(file: &ArchiveFile, notes: &PushNotes, config: &Config) -> Vec<PathBuf> {
    match file.name {
        ArchiveFileName::Segment(segment) if config.wal.push_ahead > 0 => {
            let paths = ready::following(file.path(), segment, config.wal.push_ahead);
            // Without a note the work would be done twice.
            if paths.is_empty() || notes.can_be_written() { paths } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

/// What must be true before anything is acknowledged, found out meanwhile.
enum Proof {
    Done,
    UnderWay(JoinHandle<Result<(), Failure>>),
}

impl Proof {
    fn end(self) -> Result<(), Failure> {
        match self {
            Proof::Done => Ok(()),
            Proof::UnderWay(thread) => thread.join().unwrap_or_else(|_| {
                Err(Failure::new(Cause::Internal, "internal error: the thread that read the marker died"))
            }),
        }
    }
}

/// In a cloud each question costs a round trip, so what the last call was told is taken for true until the proof beside the upload has shown it.
fn open_repository(
    file: &ArchiveFile,
    notes: &PushNotes,
    config: &Config,
    deadline: Instant,
) -> Result<(Repository, Proof), Failure> {
    let patience = Patience::Until(deadline);
    let system = file.system_identifier();
    let major = file.postgresql_major;
    let known = notes.repository().filter(|_| !config.repository.url.starts_with("file:"));
    if let Some(marker) = known {
        let repository = Repository::open_assuming(&config.repository, patience, marker.clone())?;
        let (shared, cluster) = (repository.clone(), config.cluster.clone());
        let thread = std::thread::Builder::new()
            .name("prove".to_owned())
            .spawn(move || Ok(prove_recorded_here(&shared, &cluster, system, major)?));
        if let Ok(thread) = thread {
            return Ok((repository, Proof::UnderWay(thread)));
        }
    }
    let repository = Repository::open(&config.repository, patience)?;
    ensure_recorded(&repository, &config.cluster, system, major)?;
    Ok((repository, Proof::Done))
}

/// How files are written, with `behind` more to come.
pub(super) fn writing(config: &Config, behind: usize) -> Result<Writing, Failure> {
    let keys = config.key_ring()?;
    // Objects that wait for a cloud take the memory that a larger crew would.
    let waits_for_a_cloud = behind > 0 && !config.repository.url.starts_with("file:");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match config.compression {
        _ if !waits_for_a_cloud => None,
        Compression::None | Compression::Zstd(..=6) => Some(cores.min(WORKERS_BESIDE_UPLOADS)),
        Compression::Zstd(_) => Some(1),
    };
    let sealing = Sealing { compression: config.compression, key: keys.writing_key().cloned(), workers };
    Ok(Writing { sealing, keys })
}

/// Threads that encode while encoded segments wait for the store.
const WORKERS_BESIDE_UPLOADS: usize = 2;
