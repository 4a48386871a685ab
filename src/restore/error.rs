//! Why a restore did not happen, or did not end well.

use std::path::{Path, PathBuf};

use crate::backup::BackupError;
use crate::codec::decode::DecodeError;
use crate::error::{Explain, Failure, system_words};
use crate::exit_status::Cause;
use crate::repository::RepositoryError;
use crate::wal::stored_segments::StoredSegmentsError;

/// A failed or refused restore.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The plan cannot work, or the target must not be touched. Nothing was written.
    #[error("{message}")]
    Refused {
        /// One line: what cannot work, and why.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// What was asked for does not exist.
    #[error("{message}")]
    NotFound {
        /// One line.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object could not be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Backups could not be listed or read.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Another part failed: its words, cause and hint.
    #[error("{message}")]
    Other {
        /// Decides the exit status.
        cause: Cause,
        /// One line.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// What came out of the repository is not what went in.
    #[error("{object} is damaged: {problem}")]
    Damaged {
        /// The object, or the file in the backup.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// A local file could not be read or written.
    #[error("{verb} {path}: {problem}", path = path.display())]
    Local {
        /// "create", "write", …
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        problem: String,
        /// Whether the file system is full.
        full: bool,
    },
    /// The server could not be started, or ended before the target.
    #[error("{message}")]
    Server {
        /// One line, with the server's own words.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
}

impl RestoreError {
    /// A refusal with its next step.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> RestoreError {
        RestoreError::Refused { message: message.into(), hint: Some(hint.into()) }
    }

    /// A failed system call on a local file.
    pub fn local(verb: &'static str, path: &Path, error: &std::io::Error) -> RestoreError {
        let full =
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        RestoreError::Local { verb, path: path.to_owned(), problem: system_words(error), full }
    }
}

impl From<StoredSegmentsError> for RestoreError {
    fn from(error: StoredSegmentsError) -> RestoreError {
        match error {
            StoredSegmentsError::Repository(error) => error.into(),
            StoredSegmentsError::Decode(error) => error.into(),
        }
    }
}

impl From<Failure> for RestoreError {
    fn from(failure: Failure) -> RestoreError {
        RestoreError::Other { cause: failure.cause, message: failure.message, hint: failure.hint }
    }
}

impl Explain for RestoreError {
    fn exit_cause(&self) -> Cause {
        match self {
            RestoreError::Refused { .. } => Cause::Refused,
            RestoreError::NotFound { .. } => Cause::NotFound,
            RestoreError::Repository(error) => error.exit_cause(),
            RestoreError::Decode(error) => error.exit_cause(),
            RestoreError::Backup(error) => error.exit_cause(),
            RestoreError::Other { cause, .. } => *cause,
            RestoreError::Damaged { .. } => Cause::Damaged,
            RestoreError::Local { full: true, .. } => Cause::LocalFull,
            RestoreError::Local { .. } => Cause::FileUnusable,
            RestoreError::Server { .. } => Cause::Server,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RestoreError::Refused { hint, .. }
            | RestoreError::NotFound { hint, .. }
            | RestoreError::Other { hint, .. }
            | RestoreError::Server { hint, .. } => hint.clone(),
            RestoreError::Damaged { .. } | RestoreError::Decode(_) | RestoreError::Backup(_)
                if self.exit_cause() == Cause::Damaged =>
            {
                Some(
                    "restore another backup (--backup), or this object from a copy of the repository"
                        .to_owned(),
                )
            }
            RestoreError::Damaged { .. } => None,
            RestoreError::Repository(error) => error.hint(),
            RestoreError::Decode(error) => error.hint(),
            RestoreError::Backup(error) => error.hint(),
            RestoreError::Local { full: true, .. } => Some(
                "make room on this file system, or restore to another one (--pgdata, --tablespace)"
                    .to_owned(),
            ),
            RestoreError::Local { .. } => None,
        }
    }
}
