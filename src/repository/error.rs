//! Why the repository could not do something, what the operator can do about it, and the exit status it has.

use std::time::Duration;

use crate::error::Explain;
use crate::exit_status::Cause;

/// Why the repository could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The URL or an option cannot be used.
    #[error("repository {url}: {problem}")]
    Address {
        /// Without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The marker is not there.
    #[error("no walhold repository at {url}: walhold.json is not there")]
    NoMarker {
        /// Without secrets.
        url: String,
    },
    /// The marker is there but cannot be used.
    #[error("the marker of repository {url} cannot be used: {problem}")]
    BadMarker {
        /// Without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// `init` was pointed at a directory that holds something else.
    #[error("init repository {url}: {problem}")]
    NotEmpty {
        /// Without secrets.
        url: String,
        /// What lies there.
        problem: String,
    },
    /// An object that was there is gone.
    #[error("{verb} {key}: it is not there")]
    Missing {
        /// "read", "list", …
        verb: &'static str,
        /// The object.
        key: String,
    },
    /// Permissions or credentials.
    #[error("{verb} {key}: the store refuses: {problem}")]
    Denied {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The store's words.
        problem: String,
    },
    /// No space.
    #[error("{verb} {key}: the store is full: {problem}")]
    Full {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The store's words.
        problem: String,
    },
    /// Could not be had before the deadline.
    #[error("{verb} {key}: gave up after {attempts} attempts in {elapsed:.1?}: {problem}")]
    Unreachable {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// The last failure.
        problem: String,
        /// How often.
        attempts: u32,
        /// For how long.
        elapsed: Duration,
    },
    /// A signal asked us to end while the store was asked again.
    #[error("{verb} {key}: interrupted by a signal")]
    Interrupted {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
    },
    /// The object is shorter than what was asked for, or the store lies about it.
    #[error("{verb} {key}: {problem}")]
    Damaged {
        /// What was tried.
        verb: &'static str,
        /// The object.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Two objects claim one key.
    #[error("two different objects are stored as {key}: {first} and {second}")]
    TwoObjects {
        /// The key.
        key: String,
        /// One path.
        first: String,
        /// The other.
        second: String,
    },
}

impl Explain for RepositoryError {
    fn exit_cause(&self) -> Cause {
        match self {
            RepositoryError::Address { .. } => Cause::Configuration,
            RepositoryError::NoMarker { .. } => Cause::NoRepository,
            RepositoryError::NotEmpty { .. } => Cause::Refused,
            RepositoryError::BadMarker { .. }
            | RepositoryError::Damaged { .. }
            | RepositoryError::Missing { .. } => Cause::Damaged,
            RepositoryError::Denied { .. } => Cause::Denied,
            RepositoryError::Full { .. } => Cause::RepositoryFull,
            RepositoryError::Unreachable { .. } => Cause::Unreachable,
            RepositoryError::TwoObjects { .. } => Cause::Conflict,
            RepositoryError::Interrupted { .. } => Cause::Interrupted,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            RepositoryError::Address { .. } => {
                "WALHOLD_REPOSITORY is file:///directory, s3://bucket/prefix, gs://bucket/prefix or \
                 az://container/prefix; docs/configuration.md lists the options of each"
            }
            RepositoryError::NoMarker { .. } => {
                "is the address right and the disk mounted? for a new repository run: walhold init"
            }
            RepositoryError::BadMarker { .. } => {
                "restore walhold.json from a copy of the repository, or upgrade walhold if a newer one made it"
            }
            RepositoryError::NotEmpty { .. } => "choose an empty or a new directory",
            RepositoryError::Missing { .. } => {
                "it was deleted meanwhile, or the repository is incomplete: run the command again"
            }
            // S3 and what is compatible with it: more than 15 minutes.
            RepositoryError::Denied { problem, .. } if problem.contains("RequestTimeTooSkewed") => {
                "this machine's clock and the store's differ too much: set it (timedatectl)"
            }
            RepositoryError::Denied { .. } => {
                "check the credentials and their permissions (S3: s3:GetObject, s3:PutObject, s3:DeleteObject, and \
                 s3:ListBucket on the bucket, without which S3 answers 403 for objects that are not there), or the \
                 owner and mode of the directory"
            }
            RepositoryError::Full { .. } => {
                "free space, or raise the quota; nothing incomplete was left behind"
            }
            RepositoryError::Unreachable { .. } => {
                "check the network and the store; the request may be repeated"
            }
            RepositoryError::Interrupted { .. } => return None,
            RepositoryError::Damaged { .. } => {
                "restore this object from a copy of the repository, or recover to a moment that does not need it"
            }
            RepositoryError::TwoObjects { .. } => {
                "two servers wrote under one name: find out which one belongs to this cluster's history, move the \
                 other object away"
            }
        };
        Some(hint.to_owned())
    }
}
