//! What is about to be deleted: written by expire before it deletes anything, read by whoever relies on stored packs.
//!
//! The order makes it safe, without locks, from any number of hosts. A backup first publishes its intent and then reads the
//! tombstones; expire first writes its tombstone and then reads the intents. So at least one of the two sees the other:
//! either expire keeps what the backup builds on, or the backup does not build on it. Before a manifest is published the
//! tombstones are read again, because a backup whose host slept for a day was taken for dead.
//!
//! A tombstone stays after its objects are gone, for as long as a backup may run that began before; a later expire
//! removes it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::format::manifest::PackEntry;
use crate::format::{BackupId, ClusterName, keys};
use crate::interrupt;
use crate::pg::{SystemIdentifier, WalSegmentName};
use crate::repository::{Naming, Published, Repository, StoredObject};

/// What is about to be deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tombstone {
    /// The machine that expires.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// When this was written, by that machine's clock.
    pub written: jiff::Timestamp,
    /// Complete backups, whose manifests go.
    pub backups: Vec<BackupId>,
    /// Backups that never became complete and are taken for dead.
    pub attempts: Vec<BackupId>,
    /// Packs, by the backup that wrote them.
    pub packs: BTreeMap<BackupId, Vec<u32>>,
    /// WAL, as ranges of stored segments; there may be holes in them.
    pub wal: Vec<DoomedWal>,
}

/// Segments of one timeline that are about to be deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DoomedWal {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The first one.
    pub first: WalSegmentName,
    /// The last one.
    pub last: WalSegmentName,
    /// Stored objects among them, `.partial` and `.backup` files included.
    pub objects: u64,
}

impl Tombstone {
    /// One that names nothing yet.
    pub fn new() -> Tombstone {
        Tombstone {
            host: super::intent::host_name(),
            pid: std::process::id(),
            written: jiff::Timestamp::now(),
            backups: Vec::new(),
            attempts: Vec::new(),
            packs: BTreeMap::new(),
            wal: Vec::new(),
        }
    }

    /// Writes it down; returns where it lies. Two hosts that write in one microsecond get two names.
    pub fn publish(
        &mut self,
        repository: &Repository,
        cluster: &ClusterName,
    ) -> Result<StoredObject, BackupError> {
        for _ in 0..10 {
            self.written = jiff::Timestamp::now();
            let key = keys::tombstone(cluster, self.written);
            let text = serde_json::to_vec_pretty(self).unwrap_or_default();
            if let Published::Created = repository.put(&key, Naming::Unique, &text)? {
                let found = repository.find(&key, Naming::Unique)?;
                return found.ok_or_else(|| BackupError::Unusable {
                    what: format!("read {key} back"),
                    problem: "it is not there although the store took it".to_owned(),
                });
            }
            interrupt::sleep(Duration::from_millis(10));
        }
        Err(BackupError::Taken(keys::tombstones(cluster)))
    }

    /// Whether this backup, or attempt at one, is about to go.
    pub fn names(&self, id: &BackupId) -> bool {
        self.backups.contains(id) || self.attempts.contains(id)
    }

    /// Whether this pack is about to go.
    pub fn dooms(&self, pack: &PackEntry) -> bool {
        self.packs.get(&pack.backup).is_some_and(|numbers| numbers.contains(&pack.number))
    }
}

impl Default for Tombstone {
    fn default() -> Self {
        Tombstone::new()
    }
}

/// All of them, oldest first. One that cannot be read is an error: what it protects is not known then.
pub fn list(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<Vec<(StoredObject, Tombstone)>, BackupError> {
    let mut tombstones = Vec::new();
    for object in repository.list(&keys::tombstones(cluster))? {
        let parsed = match repository.read(&object) {
            Ok(text) => serde_json::from_slice::<Tombstone>(&text),
            // Another expire tidied it away between the listing and the reading.
            Err(crate::repository::RepositoryError::Missing { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let tombstone = parsed.map_err(|error| BackupError::Unusable {
            what: format!("read {}", object.path),
            problem: error.to_string(),
        })?;
        tombstones.push((object, tombstone));
    }
    Ok(tombstones)
}

/// The last thing before a manifest is published: nothing that it points to may be about to be deleted.
pub fn check_before_publish(
    repository: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    packs: &[PackEntry],
) -> Result<(), BackupError> {
    for (object, tombstone) in list(repository, cluster)? {
        if tombstone.names(id) || packs.iter().any(|pack| tombstone.dooms(pack)) {
            return Err(BackupError::Expiring { id: id.clone(), tombstone: object.path });
        }
    }
    Ok(())
}
