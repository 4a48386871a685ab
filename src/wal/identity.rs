//! The record that a cluster archives under its name: written before the first object, read to prove an absence.

use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::marker::Identity;
use crate::format::{ClusterName, keys};
use crate::pg::SystemIdentifier;
use crate::repository::{Naming, Repository, RepositoryError};

/// Sees to it that the identity record exists. It must before the first object does: without it no absence can be
/// proven, and recovery would never end.
pub fn ensure_recorded(
    repository: &Repository,
    cluster: &ClusterName,
    system: SystemIdentifier,
    postgresql_major: Option<u32>,
) -> Result<(), IdentityError> {
    if is_recorded(repository, cluster, system)? {
        return Ok(());
    }
    let key = keys::identity(cluster, system);
    let identity = Identity {
        system_identifier: system,
        postgresql_major: postgresql_major.unwrap_or(0),
        first_seen: jiff::Timestamp::now(),
    };
    let record = serde_json::to_vec_pretty(&identity)
        .map_err(|error| IdentityError::Unusable { key: key.to_string(), problem: error.to_string() })?;
    // `Exists` is as good: another process was quicker.
    repository.put(&key, Naming::Unique, &record)?;
    tracing::info!(
        "cluster {cluster} with system identifier {system} archives to {} from now on",
        repository.url()
    );
    Ok(())
}

/// Whether the record is there; changes nothing.
pub fn is_recorded(
    repository: &Repository,
    cluster: &ClusterName,
    system: SystemIdentifier,
) -> Result<bool, IdentityError> {
    Ok(repository.find(&keys::identity(cluster, system), Naming::Unique)?.is_some())
}

/// Sees that the repository still is the one that was opened, and that the cluster is recorded in it. Both are asked at once, because each answer takes a round trip to a far store; nothing is
/// written before the first is known.
pub fn prove_recorded_here(
    repository: &Repository,
    cluster: &ClusterName,
    system: SystemIdentifier,
    postgresql_major: Option<u32>,
) -> Result<(), IdentityError> {
    let recorded = std::thread::scope(|scope| {
        let asked = std::thread::Builder::new()
            .name("prove".to_owned())
            .spawn_scoped(scope, || is_recorded(repository, cluster, system));
        repository.prove_present()?;
        match asked.map(|asked| asked.join()) {
            Ok(Ok(recorded)) => recorded,
            // No thread could be started, or it died: asked below, and told if it fails.
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    })?;
    if recorded { Ok(()) } else { ensure_recorded(repository, cluster, system, postgresql_major) }
}

/// Reads the record and checks it; an error if it is not there.
pub fn prove_recorded(
    repository: &Repository,
    cluster: &ClusterName,
    system: SystemIdentifier,
) -> Result<(), IdentityError> {
    let key = keys::identity(cluster, system);
    let found = repository.find_and_read(&key, Naming::Unique, 64 << 10)?;
    let Some((_, record)) = found else {
        return Err(IdentityError::NotRecorded {
            cluster: cluster.clone(),
            system,
            url: repository.url().to_owned(),
        });
    };
    let unusable = |problem: String| IdentityError::Unusable { key: key.to_string(), problem };
    let identity: Identity = serde_json::from_slice(&record).map_err(|error| unusable(error.to_string()))?;
    if identity.system_identifier != system {
        return Err(unusable(format!("it names system identifier {}", identity.system_identifier)));
    }
    Ok(())
}

/// Why an identity could not be relied on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// This cluster never archived under this name.
    #[error(
        "nothing was ever archived under the name {cluster} by the cluster with system identifier {system} in {url}"
    )]
    NotRecorded {
        /// The name.
        cluster: ClusterName,
        /// The cluster.
        system: SystemIdentifier,
        /// Without secrets.
        url: String,
    },
    /// The record is damaged.
    #[error("read {key}: {problem}")]
    Unusable {
        /// The record.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

impl Explain for IdentityError {
    fn exit_cause(&self) -> Cause {
        match self {
            IdentityError::Repository(error) => error.exit_cause(),
            IdentityError::NotRecorded { .. } => Cause::NotFound,
            IdentityError::Unusable { .. } => Cause::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            IdentityError::Repository(error) => error.hint(),
            IdentityError::NotRecorded { .. } => Some(
                "check WALHOLD_CLUSTER, WALHOLD_REPOSITORY and PGDATA; where a cluster never archived, no absence can be proven"
                    .to_owned(),
            ),
            IdentityError::Unusable { .. } => {
                Some("restore this object from a copy of the repository".to_owned())
            }
        }
    }
}
