//! Whose turn it is to deliver into a server's pg_wal.
//!
//! In: a destination. Out: the turn, which one process at a time has, from its look for the server's process that asked until its file has its name. What must hold: when a call ends with
//! success, what lies at the destination is what that call put there.
//!
//! Every server of a directory takes its files from one path, and a call that outlived its server may be anywhere between its look and its rename when the next server's call delivers.
//! With turns it is over before that call looks, and replaced; or it looks afterwards, when the process that asked has been gone for long. A call that holds the turn looks once more at the
//! end and takes its file away again, so that what it brought too late does not even lie there for the next one.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::destination::DestinationError;
use crate::interrupt;
use crate::local::caller;
use crate::local::durable::parent_of;
use crate::local::kill_point::{kill_point, test_number};

/// A turn takes a rename. Who has it for so long is stopped, or its disk is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(2);

/// The right to put one file in place, until it is dropped or its process dies.
pub struct DeliveryTurn {
    destination: PathBuf,
    /// The directory, locked. `None` where nobody competes, or the file system has no such locks.
    _directory: Option<File>,
}

impl DeliveryTurn {
    /// Waits for the turn; an error if who asked for the file has gone meanwhile.
    pub fn take(destination: &Path) -> Result<DeliveryTurn, DestinationError> {
        let directory = match caller::is_postgres() {
            true => lock(destination)?,
            false => None,
        };
        let turn = DeliveryTurn { destination: destination.to_owned(), _directory: directory };
        turn.look()?;
        kill_point("fetch: its turn");
        Ok(turn)
    }

    /// Looks once more, now that the file is in place: it goes again if nobody waits for it.
    pub fn end(self) -> Result<(), DestinationError> {
        let looked = self.look();
        if looked.is_err() {
            let _ = std::fs::remove_file(&self.destination);
        }
        looked
    }

    fn look(&self) -> Result<(), DestinationError> {
        match caller::is_gone() {
            true => Err(DestinationError::CallerGone { path: self.destination.clone() }),
            false => Ok(()),
        }
    }
}

fn lock(destination: &Path) -> Result<Option<File>, DestinationError> {
    let Ok(directory) = File::open(parent_of(destination)) else { return Ok(None) };
    let patience = test_number("WALHOLD_TEST_TURN_PATIENCE_MS").map_or(PATIENCE, Duration::from_millis);
    let began = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) => {}
            // Not every network file system locks directories.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        if began.elapsed() >= patience || !interrupt::sleep(LOOK) {
            return Err(DestinationError::Busy { path: destination.to_owned() });
        }
    }
}
