//! An open session and the questions that walhold asks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{FromSqlOwned, ToSql};
use postgres::{Client, Row};

use super::connect::{self, Origin};
use super::facts::{DatabaseFacts, RelationFacts, TablespaceFacts};
use super::parameters::{Parameters, Surroundings};
use super::{ClientError, ConnectionSettings};
use crate::pg::{Lsn, PgTimestamp, SystemIdentifier};

/// The oldest server that walhold knows.
const OLDEST_SERVER: u32 = 130_000;

/// An open session; blocking. Session and statement timeouts are off.
pub struct Session {
    client: Client,
    version: u32,
    origin: Origin,
}

/// What `pg_backup_stop` returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoppedBackup {
    /// Where the backup's WAL ends: replay up to here makes it consistent.
    pub lsn: Lsn,
    /// The text for `backup_label`.
    pub label: String,
    /// The text for `tablespace_map`; empty if there is nothing to map.
    pub tablespace_map: String,
}

/// Whether the checkpoint that a backup begins with hurries (`pg_backup_start`'s second argument).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartCheckpoint {
    /// At once.
    Fast,
    /// Spread over `checkpoint_completion_target`.
    Spread,
}

impl Session {
    /// Connects. `application_name` is `walhold` unless something else is asked for.
    pub fn connect(settings: &ConnectionSettings) -> Result<Session, ClientError> {
        Session::connect_in(settings, Surroundings::of_process())
    }

    /// The same with an environment that need not be the process's.
    pub fn connect_in(
        settings: &ConnectionSettings,
        surroundings: Surroundings,
    ) -> Result<Session, ClientError> {
        let parameters = Arc::new(Parameters::collect(settings, surroundings)?);
        let (client, endpoint) = connect::connect(&parameters, parameters.database())?;
        Session::prepare(client, Origin { parameters, endpoint })
    }

    /// Another database of the same server.
    pub fn connect_to(&self, database: &str) -> Result<Session, ClientError> {
        Session::prepare(self.origin.connect(database)?, self.origin.clone())
    }

    fn prepare(client: Client, origin: Origin) -> Result<Session, ClientError> {
        let mut session = Session { client, version: 0, origin };
        let version = session.show("server_version_num")?;
        session.version =
            version.parse().map_err(|_| ClientError::unexpected("read the server's version", &version))?;
        if session.version < OLDEST_SERVER {
            let problem =
                format!("the server is PostgreSQL {}; walhold knows 13 and later", session.version / 10_000);
            return Err(ClientError::Connect { address: session.address(), problem });
        }
        session.set_up()?;
        Ok(session)
    }

    /// Whatever the role or database is set to: nothing may end a session that waits for a long copy, and nobody's schema may
    /// stand in front of the system's functions.
    fn set_up(&mut self) -> Result<(), ClientError> {
        let mut settings = String::from(
            "SET search_path = pg_catalog, pg_temp; SET statement_timeout = 0; SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = 'read committed'; \
             SET datestyle = 'ISO'; SET client_min_messages = 'warning';",
        );
        if self.version >= 140_000 {
            settings.push_str(" SET idle_session_timeout = 0;");
        }
        if self.version >= 170_000 {
            settings.push_str(" SET transaction_timeout = 0;");
        }
        self.client.batch_execute(&settings).map_err(|error| ClientError::query("set up the session", &error))
    }

    /// The plain client, for queries.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Host or socket directory and port, for messages.
    pub fn address(&self) -> String {
        self.origin.endpoint.to_string()
    }

    /// `server_version_num`: 150018 for 15.18.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }

    /// 15 for 15.18.
    pub fn server_major(&self) -> u32 {
        self.version / 10_000
    }

    /// Whether the server is a standby or still recovering.
    pub fn in_recovery(&mut self) -> Result<bool, ClientError> {
        self.value("ask whether the server is in recovery", "SELECT pg_is_in_recovery()", &[])
    }

    /// A setting as `SHOW` prints it, units included.
    pub fn show(&mut self, name: &str) -> Result<String, ClientError> {
        self.value(format!("read the setting {name}"), "SELECT pg_catalog.current_setting($1)", &[&name])
    }

    /// Settings by name, as `pg_settings` has them: numbers in the setting's own unit. Names that the server does not know, or does
    /// not show to this role, are left out.
    pub fn settings(&mut self, names: &[&str]) -> Result<BTreeMap<String, String>, ClientError> {
        let what = "read settings";
        let rows =
            self.rows(what, "SELECT name, setting FROM pg_settings WHERE name = ANY ($1)", &[&names])?;
        rows.iter().map(|row| Ok((column(row, 0, what)?, column(row, 1, what)?))).collect()
    }

    /// The cluster's identity.
    pub fn system_identifier(&mut self) -> Result<SystemIdentifier, ClientError> {
        let what = "read the system identifier";
        let signed: i64 = self.value(what, "SELECT system_identifier FROM pg_control_system()", &[])?;
        Ok(SystemIdentifier::new(signed.cast_unsigned()))
    }

    /// The server's clock.
    pub fn now(&mut self) -> Result<PgTimestamp, ClientError> {
        let what = "read the server's clock";
        let since_1970: i64 =
            self.value(what, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", &[])?;
        match jiff::Timestamp::from_microsecond(since_1970) {
            Ok(moment) => Ok(PgTimestamp::from_jiff(moment)),
            Err(_) => Err(ClientError::unexpected(what, since_1970)),
        }
    }

    /// Begins a backup, which lasts as long as this session or until [`Session::stop_backup`]; where its WAL begins.
    pub fn start_backup(&mut self, label: &str, checkpoint: StartCheckpoint) -> Result<Lsn, ClientError> {
        let fast = checkpoint == StartCheckpoint::Fast;
        let sql = match self.server_major() {
            15.. => "SELECT pg_backup_start($1, $2)::text",
            _ => "SELECT pg_start_backup($1, $2, false)::text",
        };
        self.parsed("start a backup", sql, &[&label, &fast])
    }

    /// Ends the backup without waiting for its WAL to be archived: that is for the caller to see to.
    pub fn stop_backup(&mut self) -> Result<StoppedBackup, ClientError> {
        let what = "stop the backup";
        let sql = match self.server_major() {
            15.. => "SELECT lsn::text, labelfile, coalesce(spcmapfile, '') FROM pg_backup_stop(false)",
            _ => "SELECT lsn::text, labelfile, coalesce(spcmapfile, '') FROM pg_stop_backup(false, false)",
        };
        let row = self.client.query_one(sql, &[]).map_err(|error| ClientError::query(what, &error))?;
        Ok(StoppedBackup {
            lsn: parse(what, &column::<String>(&row, 0, what)?)?,
            label: column(&row, 1, what)?,
            tablespace_map: column(&row, 2, what)?,
        })
    }

    /// Ends the current WAL segment; the position after its last record. Does nothing in a segment that holds no record yet.
    pub fn switch_wal(&mut self) -> Result<Lsn, ClientError> {
        self.parsed("switch to a new WAL segment", "SELECT pg_switch_wal()::text", &[])
    }

    /// Tablespaces but `pg_default` and `pg_global`.
    pub fn tablespaces(&mut self) -> Result<Vec<TablespaceFacts>, ClientError> {
        let what = "list tablespaces";
        let sql = "SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace \
                   WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
        let rows = self.rows(what, sql, &[])?;
        let facts = |row| {
            Ok(TablespaceFacts {
                oid: column(row, 0, what)?,
                name: column(row, 1, what)?,
                location: column(row, 2, what)?,
            })
        };
        rows.iter().map(facts).collect()
    }

    /// All databases, templates included.
    pub fn databases(&mut self) -> Result<Vec<DatabaseFacts>, ClientError> {
        let what = "list databases";
        let sql = "SELECT oid, datname::text, dattablespace, datallowconn AND datconnlimit <> -2 FROM pg_database ORDER BY oid";
        let rows = self.rows(what, sql, &[])?;
        let facts = |row| {
            Ok(DatabaseFacts {
                oid: column(row, 0, what)?,
                name: column(row, 1, what)?,
                tablespace: column(row, 2, what)?,
                connectable: column(row, 3, what)?,
            })
        };
        rows.iter().map(facts).collect()
    }

    /// The relations of the connected database, shared ones included, temporary ones not.
    pub fn relations(&mut self) -> Result<Vec<RelationFacts>, ClientError> {
        let what = "list relations";
        let sql = "SELECT n.nspname::text, c.relname::text, c.oid, coalesce(pg_relation_filenode(c.oid), 0::oid), \
                          c.reltablespace, c.relkind::text \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE c.relpersistence <> 't' AND c.relkind IN ('r', 'i', 'S', 't', 'm', 'p') ORDER BY c.oid";
        let facts = |row: &Row| {
            let kind: String = column(row, 5, what)?;
            Ok(RelationFacts {
                schema: column(row, 0, what)?,
                name: column(row, 1, what)?,
                oid: column(row, 2, what)?,
                relfilenode: column(row, 3, what)?,
                tablespace: column(row, 4, what)?,
                kind: kind.chars().next().unwrap_or('?'),
            })
        };
        // One row at a time: there may be a hundred thousand.
        let failed = |error: postgres::Error| ClientError::query(what, &error);
        let mut rows = self.client.query_raw(sql, Vec::<&(dyn ToSql + Sync)>::new()).map_err(failed)?;
        let mut relations = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            relations.push(facts(&row)?);
        }
        Ok(relations)
    }

    fn rows(
        &mut self,
        what: impl Into<String>,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ClientError> {
        self.client.query(sql, arguments).map_err(|error| ClientError::query(what, &error))
    }

    /// The first column of the only row.
    fn value<T: FromSqlOwned>(
        &mut self,
        what: impl Into<String>,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<T, ClientError> {
        let row = self.client.query_one(sql, arguments).and_then(|row| row.try_get(0));
        row.map_err(|error| ClientError::query(what, &error))
    }

    /// The same, from text.
    fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        what: &str,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<T, ClientError> {
        parse(what, &self.value::<String>(what, sql, arguments)?)
    }
}

fn parse<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, ClientError> {
    text.parse().map_err(|error: T::Err| ClientError::unexpected(what, error))
}

fn column<T: FromSqlOwned>(row: &Row, index: usize, what: &str) -> Result<T, ClientError> {
    row.try_get(index).map_err(|error| ClientError::query(what, &error))
}
