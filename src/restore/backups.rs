//! The complete backups of a cluster, and the manifest of one.

use std::collections::BTreeSet;

use super::error::RestoreError;
use crate::codec::KeyRing;
use crate::codec::decode::{DecodeError, Expected, decode_object, read_tail};
use crate::format::envelope::{ObjectFacts, ObjectKind};
use crate::format::manifest::{BackupSummary, Manifest};
use crate::format::{BackupId, ClusterName, keys};
use crate::pg::SystemIdentifier;
use crate::repository::{Repository, RepositoryObject, StoredObject};

/// What the listing of backups found.
pub struct FoundBackups {
    /// Readable manifests' summaries.
    pub complete: Vec<BackupSummary>,
    /// Manifests that are there but cannot be read.
    pub unreadable: Vec<(BackupId, DecodeError)>,
}

/// Finds the backups whose manifests are stored, and reads their summaries.
pub fn find_backups(
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
) -> Result<FoundBackups, RestoreError> {
    let systems = known_systems(repository, cluster)?;
    let mut found = FoundBackups { complete: Vec::new(), unreadable: Vec::new() };
    for object in repository.list(&keys::backups(cluster))? {
        let Some(id) = manifest_of(&object) else { continue };
        match read_summary(repository, keys, &object, &id, &systems) {
            Ok(summary) => found.complete.push(summary),
            Err(error @ DecodeError::Source(_)) => return Err(error.into()),
            Err(error) => found.unreadable.push((id, error)),
        }
    }
    Ok(found)
}

/// The backup whose manifest this is.
fn manifest_of(object: &StoredObject) -> Option<BackupId> {
    let mut segments = object.key.as_str().rsplit('/');
    if segments.next() != Some("manifest") {
        return None;
    }
    segments.next()?.parse().ok()
}

/// The clusters that archived under this name.
fn known_systems(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<BTreeSet<SystemIdentifier>, RestoreError> {
    let identities = repository.list(&keys::identities(cluster))?;
    let of_identities =
        identities.iter().filter_map(|object| object.key.name().strip_suffix(".json")?.parse().ok());
    Ok(of_identities.collect())
}

fn read_summary(
    repository: &Repository,
    keys: &KeyRing,
    object: &StoredObject,
    id: &BackupId,
    systems: &BTreeSet<SystemIdentifier>,
) -> Result<BackupSummary, DecodeError> {
    let source = RepositoryObject { repository, object };
    let damaged = |problem: String| DecodeError::Damaged { key: object.key.to_string(), problem };
    let mut last = None;
    for system in systems {
        let facts = manifest_facts(*system);
        match read_tail(&source, &Expected { facts: &facts, key: &object.key }, keys) {
            Err(error @ DecodeError::OtherCluster { .. }) => last = Some(error),
            Err(error) => return Err(error),
            Ok(tail) => {
                let summary = BackupSummary::from_json(&tail.index)
                    .map_err(|error| damaged(format!("its summary cannot be read: {error}")))?;
                if summary.id != *id || summary.system_identifier != *system {
                    return Err(damaged(format!("it describes backup {}", summary.id)));
                }
                return Ok(summary);
            }
        }
    }
    Err(last.unwrap_or_else(|| damaged("no cluster's identity is stored".to_owned())))
}

fn manifest_facts(system_identifier: SystemIdentifier) -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::Manifest,
        name: "manifest".to_owned(),
        system_identifier,
        segment_size: None,
    }
}

/// Reads a backup's whole manifest.
pub fn read_manifest(
    repository: &Repository,
    cluster: &ClusterName,
    keys: &KeyRing,
    summary: &BackupSummary,
) -> Result<Manifest, RestoreError> {
    let key = keys::manifest(cluster, &summary.id);
    let object = repository.find(&key, crate::repository::Naming::ByStore)?;
    let object = object
        .ok_or_else(|| crate::repository::RepositoryError::Missing { verb: "read", key: key.to_string() })?;
    let facts = manifest_facts(summary.system_identifier);
    let source = RepositoryObject { repository, object: &object };
    let mut body = Vec::new();
    decode_object(&source, &Expected { facts: &facts, key: &key }, keys, &mut |bytes| {
        body.extend_from_slice(bytes);
        Ok(())
    })?;
    let damaged = |problem: String| RestoreError::Damaged {
        object: format!("the manifest of backup {}", summary.id),
        problem,
    };
    let manifest = Manifest::decode(&body).map_err(|error| damaged(error.to_string()))?;
    if manifest.summary != *summary {
        return Err(damaged("its body and its summary differ".to_owned()));
    }
    Ok(manifest)
}

/// The newest of them.
pub fn newest(backups: &[BackupSummary]) -> Option<&BackupSummary> {
    backups.iter().max_by_key(|backup| (backup.stop_time, backup.id.clone()))
}
