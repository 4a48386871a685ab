//! Settings: flag, then `WALHOLD_*`, then the TOML file, then default. See docs/configuration.md.

use std::path::PathBuf;
use std::time::Duration;

use crate::codec::{Compression, KeyRing};
use crate::format::ClusterName;
use crate::pg::client::ConnectionSettings;
use crate::repository::RepositorySettings;

/// The effective settings of one run, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The TOML file that was read, if any.
    pub file: Option<PathBuf>,
    /// Where the repository is.
    pub repository: RepositorySettings,
    /// The name under which the cluster's objects lie.
    pub cluster: ClusterName,
    /// `--pgdata`, `PGDATA`; `None` if neither is set.
    pub pgdata: Option<PathBuf>,
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// Where notes, locks and journals lie.
    pub state_dir: PathBuf,
    /// How new objects are compressed.
    pub compression: Compression,
    /// Where keys come from, unread: [`Config::key_ring`] reads them.
    pub encryption: EncryptionSettings,
    /// Parallel jobs of backup and restore; default the cores.
    pub jobs: usize,
    /// Bytes per second that a backup may write to the repository; `None` for no limit.
    pub rate_limit: Option<u64>,
    /// WAL settings.
    pub wal: WalSettings,
    /// How logs are written.
    pub log: LogSettings,
}

/// `[encryption]`.
#[derive(Clone, Debug, Default)]
pub struct EncryptionSettings {
    /// Files with one key each; the first writes.
    pub key_files: Vec<PathBuf>,
    /// A command whose standard output is a key; instead of files.
    pub key_command: Option<String>,
}

/// `[wal]`.
#[derive(Clone, Debug)]
pub struct WalSettings {
    /// How long wal-push asks a failing store again: 60 s.
    pub push_deadline: Duration,
    /// How long wal-fetch does for segments: 60 s.
    pub fetch_deadline: Duration,
    /// How long wal-fetch does for `.history` files: 10 min.
    pub history_deadline: Duration,
    /// What an error in wal-fetch ends with.
    pub fetch_on_error: FetchOnError,
    /// Treats a hole before stored segments as the end of WAL: only for a host that is lost for good.
    pub allow_gap: bool,
}

/// `wal.fetch_on_error`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOnError {
    /// Abort recovery, except for segments where `standby.signal` stands.
    Auto,
    /// Always exit above 125.
    Abort,
    /// Always exit 1.
    Absent,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people, and for PostgreSQL's log.
    Text,
    /// One object per line.
    Json,
}

impl Config {
    /// Reads the keys.
    pub fn key_ring(&self) -> Result<KeyRing, crate::error::Failure> {
        todo!()
    }
}
