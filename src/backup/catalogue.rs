//! Names for numbers: what every database and relation was called, so that people can be told names.

use crate::format::manifest::CatalogueEntry;
use crate::pg::client::{ClientError, DatabaseFacts, Session};

/// The kind of a database's own line.
const DATABASE: char = 'd';

/// Asks every database that lets us in. One that does not (a rule in pg_hba.conf, a database dropped meanwhile) costs its
/// relations' names and nothing else.
pub fn snapshot(session: &mut Session) -> Vec<CatalogueEntry> {
    let databases = session.databases().unwrap_or_else(|error| {
        tracing::warn!("the backup names no relations: {error}");
        Vec::new()
    });
    let mut entries = Vec::new();
    for database in databases {
        entries.push(entry_of(&database));
        if !database.connectable {
            continue;
        }
        match relations(session, &database) {
            Ok(relations) => entries.extend(relations),
            Err(error) => {
                tracing::warn!(
                    "the backup does not name the relations of database {}: {error}",
                    database.name
                );
            }
        }
    }
    entries
}

fn entry_of(database: &DatabaseFacts) -> CatalogueEntry {
    CatalogueEntry {
        database: database.name.clone(),
        database_oid: database.oid,
        schema: String::new(),
        relation: String::new(),
        oid: 0,
        relfilenode: 0,
        tablespace: database.tablespace,
        kind: DATABASE,
    }
}

fn relations(session: &Session, database: &DatabaseFacts) -> Result<Vec<CatalogueEntry>, ClientError> {
    let relations = session.connect_to(&database.name)?.relations()?;
    let entry = |relation: crate::pg::client::RelationFacts| CatalogueEntry {
        database: database.name.clone(),
        database_oid: database.oid,
        schema: relation.schema,
        relation: relation.name,
        oid: relation.oid,
        relfilenode: relation.relfilenode,
        tablespace: relation.tablespace,
        kind: relation.kind,
    };
    Ok(relations.into_iter().map(entry).collect())
}
