//! Databases that move to another tablespace while a backup is taken, which PostgreSQL cannot recover.
//!
//! `ALTER DATABASE … SET TABLESPACE` copies the database's directory without logging its pages, logs "copy the old directory to the
//! new one", and removes the old one. A backup that was taken meanwhile has the new directory and not the old one, and replay of that
//! record empties the new directory and copies the old one, which it has to make up, empty (`dbase_redo`,
//! `src/backend/commands/dbcommands.c`). The restored server would have lost the database. The same happens to a database that is copied
//! from another one which is dropped meanwhile; who was whose template cannot be seen afterwards, so that is only told.
//!
//! In: where databases lie before the backup begins and after it has ended. Out: a refusal, or a warning. What must hold: no backup
//! during which a database moved is published.

use std::collections::BTreeMap;

use super::BackupError;
use crate::pg::client::{ClientError, Session};

/// By oid: the name, and the tablespace's oid.
type Places = BTreeMap<u32, (String, u32)>;

/// Where databases lie. Asked before the backup's checkpoint: a move that is not seen then is replayed.
pub(super) fn places(session: &mut Session) -> Result<Places, BackupError> {
    let what = "ask where databases lie";
    let failed = |error: &postgres::Error| ClientError::query(what, error);
    let sql = "SELECT oid, datname::text, dattablespace FROM pg_catalog.pg_database";
    let rows = session.client().query(sql, &[]).map_err(|error| failed(&error))?;
    let mut places = Places::new();
    for row in &rows {
        let oid = row.try_get(0).map_err(|error| failed(&error))?;
        let name = row.try_get(1).map_err(|error| failed(&error))?;
        places.insert(oid, (name, row.try_get(2).map_err(|error| failed(&error))?));
    }
    Ok(places)
}

/// Refuses a backup during which a database moved.
pub(super) fn check(session: &mut Session, before: &Places) -> Result<(), BackupError> {
    let after = places(session)?;
    let moved = after.iter().find(|(oid, (_, place))| before.get(oid).is_some_and(|(_, was)| was != place));
    warn_of_templates(before, &after);
    match moved {
        None => Ok(()),
        Some((_, (name, _))) => Err(BackupError::Refused {
            problem: format!(
                "database {name} was moved to another tablespace while it was backed up, which PostgreSQL cannot recover"
            ),
            hint: "take the backup again".to_owned(),
        }),
    }
}

fn warn_of_templates(before: &Places, after: &Places) {
    let only_in = |places: &Places, others: &Places| {
        let names =
            places.iter().filter(|(oid, _)| !others.contains_key(oid)).map(|(_, (name, _))| name.clone());
        names.collect::<Vec<String>>().join(", ")
    };
    let (created, dropped) = (only_in(after, before), only_in(before, after));
    if !created.is_empty() && !dropped.is_empty() {
        tracing::warn!(
            "while the backup was taken databases were created ({created}) and dropped ({dropped}): one that was made as a copy of files (PostgreSQL 14, or STRATEGY file_copy) from one of those cannot be recovered from this backup"
        );
    }
}
