//! Fetches for askers, over connections that are open.
//!
//! In: names, and the askers' own open files. Out: their content, checked, or a proven absence. What must hold: nothing here gives a file a name, so an asker that went away, or that gave up and fetched
//! by itself, finds nothing changed; an absence is proven anew for each question; a doubt about the repository itself is left to the asker, who opens it anew.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Instant;

use super::archiver::Archiver;
use super::bounds::Seats;
use crate::codec::KeyRing;
use crate::error::Failure;
use crate::exit_status::Cause;
use crate::format::ClusterName;
use crate::local::kill_point::kill_point;
use crate::pg::{ArchiveFileName, SystemIdentifier, WalSegmentSize};
use crate::wal::absence::Archive;
use crate::wal::fetch::{Crew, FetchRequest, Fetched, GapRule, Place, fetch_file};

/// Fetches at once; more are left to their askers.
const MOST: usize = 4;

/// Everything that fetches share.
pub struct Fetcher {
    archiver: Arc<Archiver>,
    keys: KeyRing,
    /// Held by the one that decodes on all cores; others take less memory.
    whole_crew: Mutex<()>,
    seats: Seats,
}

/// A file that somebody waits for.
pub struct FetchOrder<'a> {
    /// Under which name it was archived.
    pub cluster: ClusterName,
    /// What is wanted.
    pub name: ArchiveFileName,
    /// The server's cluster.
    pub system: SystemIdentifier,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
    /// Where it goes.
    pub file: &'a File,
    /// What that will be called.
    pub destination: &'a Path,
    /// When it must be done.
    pub deadline: Instant,
    /// Whether a gap is the end of WAL.
    pub allow_gap: bool,
}

/// How a question ended.
pub enum FetchEnd {
    /// As it would have for the asker itself.
    Done(Result<Fetched, Failure>),
    /// The asker has to do it.
    Left(String),
}

impl Fetcher {
    /// A fetcher over the archiver's connections.
    pub fn new(archiver: Arc<Archiver>, keys: KeyRing) -> Fetcher {
        Fetcher { archiver, keys, whole_crew: Mutex::default(), seats: Seats::new(MOST) }
    }

    /// Fetches a file into the asker's own, or proves that there is none.
    pub fn fetch(&self, order: &FetchOrder<'_>) -> FetchEnd {
        let Some(_seat) = self.seats.take() else {
            return FetchEnd::Left("the agent is fetching for others".to_owned());
        };
        let result = self.fetch_now(order);
        match &result {
            // The repository may be another one by now, or the object be damaged: whoever opens it anew sees for himself.
            Err(failure) if matches!(failure.cause, Cause::NoRepository | Cause::Damaged) => {
                self.archiver.forget_repository();
                FetchEnd::Left(failure.message.clone())
            }
            _ => FetchEnd::Done(result),
        }
    }

    fn fetch_now(&self, order: &FetchOrder<'_>) -> Result<Fetched, Failure> {
        let repository = self.archiver.repository(order.deadline)?;
        let archive = Archive {
            repository: &repository,
            keys: &self.keys,
            cluster: &order.cluster,
            system: order.system,
            segment_size: order.segment_size,
        };
        let turn = self.whole_crew.try_lock();
        let crew = match &turn {
            Ok(_) | Err(TryLockError::Poisoned(_)) => Crew::Full,
            Err(TryLockError::WouldBlock) => Crew::Small,
        };
        let request = FetchRequest {
            name: order.name,
            place: Place::Lent(order.file, order.destination),
            gap: if order.allow_gap { GapRule::EndOfWal } else { GapRule::WaitUntil(order.deadline) },
            crew,
        };
        let fetched = fetch_file(&archive, &request)?;
        kill_point("agent: fetched");
        Ok(fetched)
    }
}
