//! Databases that PostgreSQL could not recover from a backup, because replay copies them from a directory that the backup may not have.
//!
//! `CREATE DATABASE` on PostgreSQL 14 and with `STRATEGY file_copy`, and `ALTER DATABASE … SET TABLESPACE`, copy a directory without
//! logging its pages; what they log is "copy this directory to that one". Replay empties the new directory and copies the old one again
//! (`dbase_redo`, `src/backend/commands/dbcommands.c`). If the old one was removed while the backup was taken, because the template was
//! dropped or because the database moved away from it, the backup may have none of it or a part; replay then makes it up, empty, and the
//! new database is empty too. It is listed, and nobody can connect to it. Recovery says nothing.
//!
//! In: the databases before the backup begins and right after it has ended, and the WAL in between, once it is in the repository. Out:
//! a refusal, or nothing. The catalog tells whether there is anything to look for, and WAL tells the truth: in the catalog one cannot see which
//! database was whose template, how it was copied, or that one moved and came back. What must hold: no backup is published from which a
//! database would be lost. What remains: a template that is made between the first look and the backup's start, and is copied and dropped during the
//! backup, while its copy is dropped between the backup's end and the second look, is in neither list.

mod copies;

use std::collections::BTreeMap;

use super::facts::ServerState;
use super::wait_for_wal::WalSpan;
use super::{BackupError, BackupRequest};
use crate::pg::client::{ClientError, Session};
use crate::pg::wal_storage::DatabaseDirectory;
use crate::wal::stored_segments::{StoredSegments, WalOf};

/// One database, as its row in the catalog says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Database {
    name: String,
    tablespace: u32,
    /// The transaction that wrote the row (`xmin`): another one if the database moved, even if it moved back.
    written_by: String,
}

/// By oid.
pub(super) type Databases = BTreeMap<u32, Database>;

/// Which databases there are. To be asked before the backup's checkpoint, so that one that is made after it is new.
pub(super) fn ask(session: &mut Session) -> Result<Databases, BackupError> {
    let failed = |error: &postgres::Error| ClientError::query("ask where databases lie", error);
    let sql = "SELECT oid, datname::text, dattablespace, xmin::text FROM pg_catalog.pg_database";
    let rows = session.client().query(sql, &[]).map_err(|error| failed(&error))?;
    let mut databases = Databases::new();
    for row in &rows {
        let oid = row.try_get(0).map_err(|error| failed(&error))?;
        let name = row.try_get(1).map_err(|error| failed(&error))?;
        let tablespace = row.try_get(2).map_err(|error| failed(&error))?;
        let written_by = row.try_get(3).map_err(|error| failed(&error))?;
        databases.insert(oid, Database { name, tablespace, written_by });
    }
    Ok(databases)
}

/// Databases that were made, or whose row was written, while the backup was taken, or that went meanwhile or a moment later: a copy that was dropped
/// between the backup's end and the second look is in neither list, but there is a moment after the end that has it, and what it was copied
/// from was there at the beginning.
pub(super) struct Suspects(BTreeMap<u32, String>);

impl Suspects {
    /// Refuses at once if a database lies elsewhere now.
    pub(super) fn new(before: &Databases, after: &Databases) -> Result<Suspects, BackupError> {
        let was = |oid: &u32| before.get(oid);
        let moved = |oid: &u32, now: &Database| was(oid).is_some_and(|was| was.tablespace != now.tablespace);
        if let Some((_, database)) = after.iter().find(|(oid, now)| moved(oid, now)) {
            return Err(refused(moved_away(&database.name)));
        }
        let written = |oid: &u32, now: &Database| was(oid).is_none_or(|was| was.written_by != now.written_by);
        let suspects = after.iter().filter(|(oid, now)| written(oid, now));
        let gone = before.iter().filter(|(oid, _)| !after.contains_key(oid));
        let suspects = suspects.chain(gone);
        Ok(Suspects(suspects.map(|(oid, database)| (*oid, database.name.clone())).collect()))
    }

    /// Refuses if WAL, which is stored by now, says that one would be lost. Mostly there is nothing to look for.
    pub(super) fn check(
        &self,
        request: &BackupRequest<'_>,
        state: &ServerState,
        span: &WalSpan,
    ) -> Result<(), BackupError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let of = WalOf {
            cluster: request.cluster,
            system_identifier: state.system_identifier(),
            segment_size: state.control.wal_segment_size,
        };
        let stored = StoredSegments::open(request.repository, request.keys, of)?;
        match copies::events(&stored, span)? {
            Ok(events) => match copies::lost(&events).first() {
                None => Ok(()),
                Some((directory, origin)) => Err(refused(self.say(*directory, *origin))),
            },
            Err(reason) => {
                let names: Vec<&str> = self.0.values().map(String::as_str).collect();
                Err(refused(format!(
                    "whether PostgreSQL could recover {}, made, altered or dropped while the backup was taken, cannot be told: {reason}",
                    names.join(", ")
                )))
            }
        }
    }

    fn say(&self, lost: DatabaseDirectory, origin: DatabaseDirectory) -> String {
        let name = self.0.get(&lost.database).cloned();
        let name = name.unwrap_or_else(|| format!("with oid {}", lost.database));
        if lost.database == origin.database {
            return moved_away(&name);
        }
        format!(
            "database {name} was made as a copy of one that was dropped or moved while the backup was taken, which PostgreSQL cannot recover"
        )
    }
}

fn moved_away(name: &str) -> String {
    format!(
        "database {name} was moved to another tablespace while it was backed up, which PostgreSQL cannot recover"
    )
}

fn refused(problem: String) -> BackupError {
    BackupError::Refused { problem, hint: "take the backup again".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases(list: &[(u32, u32, &str)]) -> Databases {
        let database = |(oid, tablespace, written_by): &(u32, u32, &str)| {
            let database = Database {
                name: format!("d{oid}"),
                tablespace: *tablespace,
                written_by: (*written_by).to_owned(),
            };
            (*oid, database)
        };
        list.iter().map(database).collect()
    }

    #[test]
    fn what_was_made_written_or_dropped_is_looked_at() {
        let before = databases(&[(1, 1663, "3"), (4, 1663, "3"), (5, 1663, "3")]);
        let suspects = |after: &[(u32, u32, &str)]| {
            Suspects::new(&before, &databases(after))
                .map(|suspects| suspects.0.into_keys().collect::<Vec<u32>>())
        };
        assert_eq!(suspects(&[(1, 1663, "3"), (4, 1663, "3"), (5, 1663, "3")]).unwrap(), Vec::<u32>::new());
        assert_eq!(
            suspects(&[(1, 1663, "3"), (4, 1663, "700"), (9, 1700, "701")]).unwrap(),
            vec![4u32, 5, 9]
        );
        let moved = suspects(&[(1, 1663, "3"), (4, 1700, "700")]).unwrap_err().to_string();
        assert!(moved.starts_with("database d4 was moved to another tablespace"), "{moved}");
    }
}
