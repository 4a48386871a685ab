//! Why a backup could not be taken, listed or marked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::codec::decode::DecodeError;
use crate::codec::encode::EncodeError;
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::format::BackupId;
use crate::local::pgdata_walk::WalkError;
use crate::output::human_duration;
use crate::pg::client::ClientError;
use crate::repository::RepositoryError;
use crate::wal::identity::IdentityError;
use crate::wal::stored_segments::StoredSegmentsError;

/// What went wrong with a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The server could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A pack or the manifest could not be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A stored object could not be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The cluster's identity record could not be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The archived WAL could not be looked at.
    #[error(transparent)]
    Segments(#[from] StoredSegmentsError),
    /// A directory of the cluster could not be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A file of the cluster could not be read.
    #[error("read {}: {}", path.display(), system_words(error))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// `pg_control` or `backup_label` is not what it must be.
    #[error("{what}: {problem}")]
    Unusable {
        /// Verb and object.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The server or the directory does not allow a backup.
    #[error("{problem}")]
    Refused {
        /// One line.
        problem: String,
        /// The next step.
        hint: String,
    },
    /// The session that holds the backup open ended.
    #[error("the session that held the backup open was lost: {0}")]
    SessionLost(String),
    /// Something else lies where a pack, an intent or the manifest should go.
    #[error("{0} is stored already by somebody else")]
    Taken(String),
    /// Ended by a signal.
    #[error("interrupted by a signal; no backup was made")]
    Interrupted,
    /// The WAL that the backup needs did not arrive.
    #[error("WAL segment {segment} did not arrive in the repository within {}: the backup cannot be restored without it and is discarded", human_duration(*waited))]
    WalMissing {
        /// The first that is missing, or a history file.
        segment: String,
        /// How long nothing arrived.
        waited: Duration,
        /// The next step.
        hint: String,
    },
    /// No such backup.
    #[error("there is no backup {id} of cluster {cluster} in {url}")]
    NoSuchBackup {
        /// What was asked for.
        id: String,
        /// The cluster's name.
        cluster: String,
        /// Without secrets.
        url: String,
    },
    /// A manifest is there but cannot be read.
    #[error("read the manifest of backup {id}: {problem}")]
    BadManifest {
        /// The backup.
        id: BackupId,
        /// What is wrong.
        problem: String,
    },
    /// An expire is deleting, or has deleted, what the backup's manifest would point to.
    #[error("backup {id} cannot be completed: {tombstone} says that what it points to is being deleted")]
    Expiring {
        /// The backup.
        id: BackupId,
        /// The object that says so.
        tombstone: String,
    },
    /// A thread ended in a way that threads must not end.
    #[error("a backup job ended unexpectedly")]
    JobLost,
}

impl Explain for BackupError {
    fn exit_cause(&self) -> Cause {
        match self {
            BackupError::Client(error) => error.exit_cause(),
            BackupError::Repository(error) => error.exit_cause(),
            BackupError::Encode(error) => error.exit_cause(),
            BackupError::Decode(error) => error.exit_cause(),
            BackupError::Identity(error) => error.exit_cause(),
            BackupError::Segments(error) => error.exit_cause(),
            BackupError::Walk(error) => error.exit_cause(),
            BackupError::Read { .. } => Cause::FileUnusable,
            BackupError::Unusable { .. } | BackupError::BadManifest { .. } => Cause::Damaged,
            BackupError::Refused { .. } => Cause::Refused,
            BackupError::SessionLost(_) => Cause::Server,
            BackupError::Taken(_) | BackupError::Expiring { .. } => Cause::Conflict,
            BackupError::Interrupted => Cause::Interrupted,
            BackupError::WalMissing { .. } => Cause::Gap,
            BackupError::NoSuchBackup { .. } => Cause::NotFound,
            BackupError::JobLost => Cause::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            BackupError::Client(error) => error.hint(),
            BackupError::Repository(error) => error.hint(),
            BackupError::Encode(error) => error.hint(),
            BackupError::Decode(error) => error.hint(),
            BackupError::Identity(error) => error.hint(),
            BackupError::Segments(error) => error.hint(),
            BackupError::Walk(error) => error.hint(),
            BackupError::Read { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("run walhold as the user that owns the data directory".to_owned())
            }
            BackupError::Read { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                Some("check --pgdata (PGDATA)".to_owned())
            }
            BackupError::Read { .. } | BackupError::Unusable { .. } => {
                Some("the file system or the disk under the data directory may be failing: look at the kernel's log".to_owned())
            }
            BackupError::Refused { hint, .. } | BackupError::WalMissing { hint, .. } => Some(hint.clone()),
            BackupError::SessionLost(_) => Some(
                "look at the server's log; a restart or a promotion ends every running backup, so start it again"
                    .to_owned(),
            ),
            BackupError::Taken(_) => Some("another backup began in the same second: start it again".to_owned()),
            BackupError::NoSuchBackup { .. } => Some("walhold backup-list shows what there is".to_owned()),
            BackupError::BadManifest { .. } => Some(
                "restore this object from a copy of the repository, or use another backup: walhold backup-list"
                    .to_owned(),
            ),
            BackupError::Expiring { .. } => Some(
                "start it again; if this happens to a backup that ran all the time, retention.attempt_grace is too short for it or its host could not announce that it is at work"
                    .to_owned(),
            ),
            BackupError::Interrupted | BackupError::JobLost => None,
        }
    }
}
