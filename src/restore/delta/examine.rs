//! Whose data directory a delta restore finds, looked at by the plan: nothing here writes.

use std::io;
use std::path::Path;

use crate::pg::SystemIdentifier;
use crate::pg::control::ControlFile;
use crate::restore::RestoreError;
use crate::restore::place::UNFINISHED;

/// What a restore may find in its directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// A data directory of the cluster that is restored (`--delta`).
    SameCluster,
    /// Any data directory (`--delta --other-cluster`).
    AnyCluster,
}

/// Fails unless `pgdata`, which is not empty, may be taken over.
pub fn check_identity(pgdata: &Path, ours: SystemIdentifier, over: Over) -> Result<(), RestoreError> {
    let found = match std::fs::read_to_string(pgdata.join(UNFINISHED)) {
        // A note that says nothing was not finished: pg_control goes only after it.
        Ok(note) => noted_system(&note).or_else(|| control_system(pgdata).ok().flatten()),
        Err(_) => control_system(pgdata)?,
    };
    match found {
        _ if over == Over::AnyCluster => Ok(()),
        Some(system) if system == ours => Ok(()),
        Some(system) => Err(RestoreError::refused(
            format!(
                "{} belongs to another cluster (system {system}, the backup is of {ours})",
                pgdata.display()
            ),
            "name the right directory; --other-cluster overwrites this one all the same",
        )),
        None => Err(RestoreError::refused(
            format!(
                "whose data directory {} is cannot be told: its global/pg_control is damaged or missing",
                pgdata.display()
            ),
            "if it is the right one: --other-cluster overwrites it all the same",
        )),
    }
}

/// The system that an unfinished restore's note names.
fn noted_system(note: &str) -> Option<SystemIdentifier> {
    note.split_once(" of system ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn control_system(pgdata: &Path) -> Result<Option<SystemIdentifier>, RestoreError> {
    let path = pgdata.join("global/pg_control");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(ControlFile::parse(&bytes).ok().map(|control| control.system_identifier)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RestoreError::refused(
            format!(
                "--pgdata {} is not empty and not a data directory: it has no global/pg_control",
                pgdata.display()
            ),
            "--delta takes a data directory over; for anything else name an empty directory",
        )),
        Err(error) => Err(RestoreError::local("read", &path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_its_system() {
        let note = "backup 20261120T224613Z-00000001-0000000A000000FE of system 7371234567890123456, begun at 2026\n";
        assert_eq!(noted_system(note), Some("7371234567890123456".parse().unwrap()));
        assert_eq!(noted_system("backup x, begun today"), None);
    }
}
