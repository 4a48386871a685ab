//! `wal-fetch`: delivers one archived file to PostgreSQL, or proves that there is none.
//!
//! 1. Read the name and find the server that asks.
//! 2. A segment for a recovering server: take it from the window of those that were fetched ahead.
//! 3. Else, if an agent answers, let it fetch the file, or prove its absence.
//! 4. Else open the repository and do that here.
//! 5. If nobody keeps a window for this server, start somebody who does.
//! 6. Turn the end into a status that PostgreSQL reads rightly.
//!
//! Status 1 ends recovery or lets a standby go on; everything above 125 aborts. So 1 is said only for a proven absence, and where
//! `wal.fetch_on_error` or a standby asks for it.

use std::path::PathBuf;
use std::time::Instant;

use crate::agent::client::{AgentFetch, AgentFetched, fetch_through_agent};
use crate::config::{Config, FetchOnError};
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::interrupt;
use crate::local::caller;
use crate::local::durable::parent_of;
use crate::pg::{ArchiveFileName, WalSegmentName};
use crate::repository::{Patience, Repository};
use crate::wal::absence::Archive;
use crate::wal::destination::Durability;
use crate::wal::fetch::{Crew, FetchRequest, Fetched, GapRule, Place, fetch_file};
use crate::wal::prefetch::client::{Delivery, WindowRequest, binding_of, start_worker, take};
use crate::wal::prefetch::worker::{is_recovering, remove_abandoned};
use crate::wal::server_directory::{ServerDirectory, ServerDirectoryError};

/// Fetch one archived file (restore_command)
///
/// In postgresql.conf: restore_command = 'walhold wal-fetch %f %p'
#[derive(Debug, clap::Args)]
pub struct WalFetchArgs {
    /// The archived file's name, as PostgreSQL's %f gives it
    pub name: String,
    /// Where to put it, as PostgreSQL's %p gives it; replaced if it exists
    pub destination: PathBuf,
}

/// Runs the command.
pub fn run(args: WalFetchArgs, config: &Config) -> Result<Outcome, Failure> {
    caller::note();
    let name: ArchiveFileName = args.name.parse().map_err(|problem| unknown_name(&args, problem))?;
    let server = ServerDirectory::locate(&args.destination, config.pgdata.as_deref(), config.pgdata_origin)?
        .ok_or_else(|| ServerDirectoryError::NotFound { what: name.to_string() })?;
    fetch(name, &args, config, &server)
        .or_else(|failure| end_after_failure(name, config.wal.fetch_on_error, &server, failure))
}

fn fetch(
    name: ArchiveFileName,
    args: &WalFetchArgs,
    config: &Config,
    server: &ServerDirectory,
) -> Result<Outcome, Failure> {
    let deadline = Instant::now()
        + match name {
            ArchiveFileName::TimelineHistory(_) => config.wal.history_deadline,
            _ => config.wal.fetch_deadline,
        };
    let ahead = segment_of_recovery(name, args, server);
    let window = match ahead {
        Some(segment) => take_from_window(segment, args, config, server, deadline),
        None => Delivery::NotThere,
    };
    if window == Delivery::Delivered {
        tracing::info!("fetched {name}, which was ready");
        return Ok(Outcome::Done);
    }
    let outcome = match ask_the_agent(name, args, config, server, deadline)? {
        Some(outcome) => outcome,
        None => fetch_directly(name, args, config, server, deadline)?,
    };
    let wants_window = window == Delivery::NoWindow && config.wal.prefetch > 0;
    if let Some(segment) = ahead.filter(|_| outcome == Outcome::Done && wants_window) {
        start_worker(config, server, &parent_of(&args.destination), segment);
    }
    Ok(outcome)
}

/// `None` if there is no agent that can.
fn ask_the_agent(
    name: ArchiveFileName,
    args: &WalFetchArgs,
    config: &Config,
    server: &ServerDirectory,
    deadline: Instant,
) -> Result<Option<Outcome>, Failure> {
    let asked = AgentFetch {
        name,
        destination: &args.destination,
        durability: durability(args, server),
        server,
        deadline,
    };
    Ok(match fetch_through_agent(config, &asked)? {
        Some(AgentFetched::Delivered { stored_length }) => {
            tracing::info!("fetched {name} by the agent: from {stored_length} bytes");
            Some(Outcome::Done)
        }
        Some(AgentFetched::Absent { later }) => Some(absent(name, later)),
        None => None,
    })
}

fn fetch_directly(
    name: ArchiveFileName,
    args: &WalFetchArgs,
    config: &Config,
    server: &ServerDirectory,
    deadline: Instant,
) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::Until(deadline))?;
    let archive = Archive {
        repository: &repository,
        keys: &keys,
        cluster: &config.cluster,
        system: server.control.system_identifier,
        segment_size: server.control.wal_segment_size,
    };
    let request = FetchRequest {
        name,
        place: Place::Path(&args.destination, durability(args, server)),
        gap: if config.wal.allow_gap { GapRule::EndOfWal } else { GapRule::WaitUntil(deadline) },
        crew: Crew::Full,
    };
    Ok(match fetch_file(&archive, &request)? {
        Fetched::Delivered(tail) => {
            tracing::info!("fetched {name}: {} bytes from {}", tail.plaintext_length, tail.stored_length);
            Outcome::Done
        }
        Fetched::Absent => absent(name, None),
        Fetched::AllowedGap { later } => absent(name, Some(later)),
    })
}

/// Says why there is no such file: `later` is stored where the operator allows a gap.
fn absent(name: ArchiveFileName, later: Option<WalSegmentName>) -> Outcome {
    match later {
        None => tracing::info!("{name} is not in the archive"),
        Some(later) => tracing::warn!(
            "{name} is missing from the archive, although {later} is there; wal.allow_gap lets recovery end here"
        ),
    }
    Outcome::Absent
}

/// The segment, if it is a server that asks for it, in recovery, and others will follow.
fn segment_of_recovery(
    name: ArchiveFileName,
    args: &WalFetchArgs,
    server: &ServerDirectory,
) -> Option<WalSegmentName> {
    match name {
        ArchiveFileName::Segment(segment)
            if is_recovering(&server.path) && server.owns_wal_directory(&parent_of(&args.destination)) =>
        {
            Some(segment)
        }
        _ => None,
    }
}

fn take_from_window(
    name: WalSegmentName,
    args: &WalFetchArgs,
    config: &Config,
    server: &ServerDirectory,
    deadline: Instant,
) -> Delivery {
    if config.wal.prefetch == 0 {
        // What a worker left that was killed before this was switched off.
        remove_abandoned(&parent_of(&args.destination));
        return Delivery::NoWindow;
    }
    take(&WindowRequest {
        name,
        destination: &args.destination,
        system: server.control.system_identifier,
        segment_size: server.control.wal_segment_size,
        binding: binding_of(config, server.control.system_identifier),
        deadline,
    })
}

fn durability(args: &WalFetchArgs, server: &ServerDirectory) -> Durability {
    if server.owns_wal_directory(&parent_of(&args.destination)) {
        Durability::LeftToPostgres
    } else {
        Durability::Synced
    }
}

/// Where status 1 is the lesser evil, says so and gives it; otherwise the failure goes on.
///
/// A standby asks again by itself, and a status above 125 would shut it down. `.history` files are different even there:
/// a promotion looks through them for a free timeline, and a wrong "absent" puts two servers on one.
fn end_after_failure(
    name: ArchiveFileName,
    rule: FetchOnError,
    server: &ServerDirectory,
    failure: Failure,
) -> Result<Outcome, Failure> {
    // Whatever fails after a signal may be its consequence.
    let says_nothing = matches!(failure.cause, Cause::Interrupted | Cause::Internal);
    // Asking again cures no configuration, and a standby that never gets a segment would look alive.
    let is_misconfigured = matches!(failure.cause, Cause::Key | Cause::Configuration);
    if says_nothing || is_misconfigured || interrupt::requested().is_some() {
        return Err(failure);
    }
    let standby_segment = matches!(name, ArchiveFileName::Segment(_)) && server.is_standby();
    let reason = match rule {
        FetchOnError::Auto if standby_segment => "this server is a standby and will ask again",
        FetchOnError::Absent => "wal.fetch_on_error is absent",
        FetchOnError::Auto | FetchOnError::Abort => return Err(failure),
    };
    tracing::error!("{failure}");
    tracing::warn!("{name} could not be had; it is reported as not archived, because {reason}");
    Ok(Outcome::Absent)
}

fn unknown_name(args: &WalFetchArgs, problem: impl std::fmt::Display) -> Failure {
    Failure::new(Cause::NotWal, format!("fetch {}: {problem}", args.name))
        .with_hint("restore_command is: walhold wal-fetch %f %p")
}
