//! Tablespaces that were created after a backup began: replay makes them again at their original places, whatever else is mapped.
//!
//! In: the file events of the WAL between the backup's start and the target. Out: refusals, notes and warnings of the plan. What must
//! hold: no restored server ever replays into a directory that has something in it. Replay of `CREATE TABLESPACE` removes what it finds
//! there (`create_tablespace_directories`, `src/backend/commands/tablespace.c`): on the original's host, the living server's files.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::error::RestoreError;
use super::plan::{RestorePlan, StartRequest};
use super::stored_wal::StoredWal;
use super::target::Role;
use crate::format::wal_index::{TablespaceEvent, TablespaceEventKind};

/// Segments that are read whole for a restore that replaces the original, if their indexes do not tell of tablespaces. For a clone all are.
const SCANS_FOR_A_REPLACEMENT: usize = 64;

/// What lies at a tablespace's original place on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Absent,
    Empty,
    /// Something is there, or it cannot be told.
    Used(String),
}

impl RestorePlan {
    /// Looks for tablespaces that replay would create outside of what this restore lays out.
    pub(super) fn look_for_later_tablespaces(&mut self, stored: &StoredWal<'_>) -> Result<(), RestoreError> {
        let most = match self.request.role {
            Role::Clone => usize::MAX,
            Role::Replacement | Role::Standby => SCANS_FOR_A_REPLACEMENT,
        };
        let (events, unknown) = stored.tablespace_events(&self.choice.path, most)?;
        if unknown > 0 {
            self.warnings.push(format!(
                "{unknown} WAL segments were archived by an older walhold, which did not note new tablespaces: one that was created since the backup began is replayed to its original path"
            ));
        }
        let range = self.choice.backup.start_lsn..self.choice.stop.lsn;
        for event in events.iter().filter(|event| range.contains(&event.lsn)) {
            if let TablespaceEventKind::Created { path } = &event.kind
                && !path.is_empty()
            {
                self.judge_later_tablespace(event, path, &look_at(Path::new(path)))?;
            }
        }
        Ok(())
    }

    fn judge_later_tablespace(
        &mut self,
        event: &TablespaceEvent,
        path: &str,
        place: &Place,
    ) -> Result<(), RestoreError> {
        let what = format!(
            "tablespace {} was created after the backup began, at {} ({}): replay creates it there again",
            event.tablespace, event.lsn, path
        );
        let hint = format!(
            "take a newer backup and restore that, choose a target before {}, or restore on another machine, where {path} is an empty directory",
            event.lsn
        );
        let owner = self.place.owner;
        let create = format!("install -d -o {} -g {} -m 700 {path}", owner.uid, owner.gid);
        let start = matches!(self.request.start, StartRequest::Yes { .. });
        match (place, self.request.role) {
            (Place::Used(problem), _) => Err(RestoreError::refused(format!("{what}, and {problem}"), hint)),
            (Place::Empty, _) => {
                self.notes.push(format!("{what}, into the empty directory"));
                Ok(())
            }
            (Place::Absent, Role::Clone) => Err(RestoreError::refused(
                format!("{what}, and a clone must not share directories with its original"),
                format!("{hint} (made with {create})"),
            )),
            (Place::Absent, _) if start => Err(RestoreError::refused(
                format!("{what}, and would stop there, because the directory does not exist"),
                format!("create it first: {create}"),
            )),
            (Place::Absent, _) => {
                self.warnings.push(format!(
                    "{what}, and stops there if the directory does not exist: before the server is started, {create}"
                ));
                Ok(())
            }
        }
    }
}

fn look_at(path: &Path) -> Place {
    if path.to_string_lossy().contains(char::REPLACEMENT_CHARACTER) {
        return Place::Used("its path is not UTF-8, so that it cannot be looked at".to_owned());
    }
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Place::Empty,
            Some(_) => Place::Used("that directory is in use on this machine".to_owned()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Place::Absent,
        Err(error) => Place::Used(format!("it cannot be looked at: {}", crate::error::system_words(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_anything_in_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(look_at(directory.path()), Place::Empty);
        assert_eq!(look_at(&directory.path().join("absent")), Place::Absent);
        fs::create_dir(directory.path().join("PG_15_202209061")).unwrap();
        let used = Place::Used("that directory is in use on this machine".to_owned());
        assert_eq!(look_at(directory.path()), used);
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(matches!(look_at(&directory.path().join("file")), Place::Used(_)));
        assert!(matches!(look_at(Path::new("/a\u{FFFD}b")), Place::Used(_)));
    }
}
