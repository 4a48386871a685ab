//! A connection to the server, configured as libpq's programs are.

use crate::error::Explain;
use crate::exit_status::Cause;

/// What `libpq` would take from the command line; everything else comes from `PG*` variables, the service file
/// and pgpass, as in libpq.
#[derive(Clone, Default)]
pub struct ConnectionSettings {
    /// A libpq connection string or URI (`--connection`, `WALHOLD_CONNECTION`); may hold a password.
    pub connection: Option<String>,
}

/// An open session; blocking. Session and statement timeouts are off.
pub struct Session {
    client: postgres::Client,
}

impl Session {
    /// Connects. `application_name` is `walhold`.
    pub fn connect(_settings: &ConnectionSettings) -> Result<Session, ClientError> {
        todo!()
    }

    /// The plain client, for queries.
    pub fn client(&mut self) -> &mut postgres::Client {
        &mut self.client
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

impl Explain for ClientError {
    fn exit_cause(&self) -> Cause {
        match self {
            ClientError::Settings { .. } => Cause::Configuration,
            ClientError::Connect { .. } | ClientError::Query { .. } => Cause::Server,
        }
    }
}
