//! What the server knows about its own contents.

/// A tablespace that has a directory of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceFacts {
    /// Its oid: the link's name in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// `pg_tablespace_location`; relative (`pg_tblspc/…`) for one that lies inside PGDATA (`allow_in_place_tablespaces`).
    pub location: String,
}

/// A database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseFacts {
    /// Its oid: its directory's name.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: u32,
    /// `datallowconn`, and a connection limit other than -2 (a database that a failed DROP left invalid).
    pub connectable: bool,
}

/// A relation of one database that has a file, or is partitioned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelationFacts {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its oid.
    pub oid: u32,
    /// `pg_relation_filenode`: its files' name; 0 for none.
    pub relfilenode: u32,
    /// Its tablespace; 0 for the database's default.
    pub tablespace: u32,
    /// `relkind`.
    pub kind: char,
}
