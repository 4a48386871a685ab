//! The repository's marker and the clusters' identity records: small JSON objects, never encrypted, never
//! rewritten.

use serde::{Deserialize, Serialize};

use crate::pg::SystemIdentifier;

/// The newest repository format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Whether the store refuses a second object under one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CreateOnly {
    /// The store refuses: keys are plain.
    Enforced,
    /// The store replaces silently: keys of objects that could conflict carry `.<short digest>`.
    Suffixed,
}

/// `walhold.json`: says that this is a walhold repository, which one, and what its store can be relied on for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Marker {
    /// [`FORMAT_VERSION`] of the build that created the repository.
    pub format_version: u32,
    /// 32 random hexadecimal digits.
    pub repository_id: String,
    /// When `init` ran, by the clock of its machine.
    pub created: jiff::Timestamp,
    /// What `init` found, fixed for the repository's life.
    pub create_only: CreateOnly,
}

/// `<cluster>/identity/<system-identifier>.json`: a cluster of this identity archives under this name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// PostgreSQL's major version when it was first seen.
    pub postgresql_major: u32,
    /// When it was first seen, by the clock of the pushing machine.
    pub first_seen: jiff::Timestamp,
}
