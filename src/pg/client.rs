//! A connection to the server, configured as libpq's programs are.
//!
//! In: a connection string or URI, `PG*` variables, the service file, pgpass, the user's certificates; tokio-postgres
//! reads none of the latter four. Out: a [`Session`] whose timeouts are off and whose search path is safe. What must hold: passwords
//! reach the server and nothing else, and a setting that would make the connection safer is obeyed or refused, never ignored.

mod connect;
mod connection_string;
mod facts;
mod parameters;
mod passfile;
mod service;
mod session;
mod tls;

use std::fmt;

use crate::error::Explain;
use crate::exit_status::Cause;

pub use facts::{DatabaseFacts, RelationFacts, TablespaceFacts};
pub use parameters::Surroundings;
pub use session::{Session, StartCheckpoint, StoppedBackup};

/// What `libpq` would take from the command line; everything else comes from `PG*` variables, the service file
/// and pgpass, as in libpq.
#[derive(Clone, Default)]
pub struct ConnectionSettings {
    /// A libpq connection string or URI (`--connection`, `WALHOLD_CONNECTION`); may hold a password.
    pub connection: Option<String>,
}

impl ConnectionSettings {
    /// The connection string without its secrets, for people; `None` if there is none.
    pub fn shown(&self) -> Option<String> {
        let connection = self.connection.as_deref()?;
        Some(connection_string::without_secrets(connection).unwrap_or_else(|| "(malformed)".to_owned()))
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSettings").field("connection", &self.shown()).finish()
    }
}

/// Why the server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A setting cannot be used.
    #[error("connection settings: {problem}")]
    Settings {
        /// Which, where from and why; without secrets.
        problem: String,
    },
    /// No connection.
    #[error("connect to PostgreSQL at {address}: {problem}")]
    Connect {
        /// Host or socket directory and port.
        address: String,
        /// The server's or the system's words.
        problem: String,
    },
    /// A query failed.
    #[error("{what}: {problem}")]
    Query {
        /// What was asked for, as verb and object.
        what: String,
        /// The server's words.
        problem: String,
    },
}

impl ClientError {
    /// A failed query; `what` is verb and object (`start the backup`).
    pub fn query(what: impl Into<String>, error: &postgres::Error) -> ClientError {
        ClientError::Query { what: what.into(), problem: server_words(error) }
    }

    /// The server answered, but not with what was asked for.
    pub(crate) fn unexpected(what: impl Into<String>, answer: impl fmt::Display) -> ClientError {
        ClientError::Query { what: what.into(), problem: format!("the server answered {answer}") }
    }

    fn settings(problem: impl Into<String>) -> ClientError {
        ClientError::Settings { problem: problem.into() }
    }
}

impl Explain for ClientError {
    fn exit_cause(&self) -> Cause {
        match self {
            ClientError::Settings { .. } => Cause::Configuration,
            ClientError::Connect { .. } | ClientError::Query { .. } => Cause::Server,
        }
    }

    fn hint(&self) -> Option<String> {
        let (problem, hints) = match self {
            ClientError::Settings { .. } => return None,
            ClientError::Connect { problem, .. } => (problem, CONNECT_HINTS),
            ClientError::Query { problem, .. } => (problem, QUERY_HINTS),
        };
        hints.iter().find(|(words, _)| problem.contains(words)).map(|(_, hint)| (*hint).to_owned())
    }
}

/// What to do about a problem that contains these words.
const CONNECT_HINTS: &[(&str, &str)] = &[
    (
        "No such file or directory",
        "is the server running? Set PGHOST (a host or the socket's directory) and PGPORT, or --connection",
    ),
    (
        "Connection refused",
        "is the server running, and does it listen there? Check PGHOST, PGPORT and listen_addresses",
    ),
    ("password authentication failed", "check PGUSER and the password in pgpass (PGPASSFILE) or PGPASSWORD"),
    ("password missing", "put the password into ~/.pgpass (mode 0600) or set PGPASSFILE"),
    (
        "Peer authentication failed",
        "run walhold as the user postgres, or set PGUSER to a role that this user may take",
    ),
    (
        "no pg_hba.conf entry",
        "add a line to pg_hba.conf for this user, database and address, and reload the server",
    ),
    (
        "rejects connection",
        "add a line to pg_hba.conf for this user, database and address, and reload the server",
    ),
    ("certificate", "check sslmode and sslrootcert (PGSSLMODE, PGSSLROOTCERT)"),
    ("the database system is starting up", "the server accepts no connections yet; try again"),
    ("too many clients", "raise max_connections, or let walhold in with superuser_reserved_connections"),
    (
        "timed out",
        "check the network between here and the server; PGCONNECT_TIMEOUT sets how long walhold waits",
    ),
];

const QUERY_HINTS: &[(&str, &str)] = &[(
    "permission denied",
    "connect as a superuser, or grant what is missing: pg_read_all_settings, and EXECUTE on the backup functions",
)];

/// The server's message with its detail, in one line; for failures without one, the chain of causes.
fn server_words(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
        return one_line(&format!("{}: {}{detail}", db.severity(), db.message()));
    }
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = cause.source();
    }
    one_line(&words)
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for connection in [
            "host=db user=u password=hush",
            "password = 'hu\\'sh hush' host=db",
            "postgresql://u:hush@db/x",
            "postgresql://u@db/x?password=hush",
            "postgres://u:hu%73h@db",
            "host=db password=hush broken",
        ] {
            let settings = ConnectionSettings { connection: Some(connection.to_owned()) };
            let shown = format!("{settings:?} {:?}", settings.shown());
            assert!(!shown.contains("hush") && !shown.contains("hu"), "{shown}");
        }
        let settings = ConnectionSettings { connection: Some("postgresql://u:hush@db:1/x".to_owned()) };
        assert_eq!(settings.shown().as_deref(), Some("dbname=x host=db port=1 user=u"));
    }

    #[test]
    fn hints_tell_what_to_do() {
        let error =
            ClientError::Connect { address: "/tmp:5432".into(), problem: "No such file or directory".into() };
        assert!(error.hint().is_some_and(|hint| hint.starts_with("is the server running?")));
        assert_eq!(error.to_string(), "connect to PostgreSQL at /tmp:5432: No such file or directory");
    }
}
