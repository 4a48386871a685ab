//! A running backup's sign of life: small objects that say which backup is being made, where, and that it still is.
//!
//! The first is published before anything else; further ones follow while the backup runs. Expire reads them: packs
//! without a manifest belong to a backup at work if its newest intent is fresh, and are leftovers if it is not.

use std::thread::Scope;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::format::{BackupId, ClusterName, keys};
use crate::repeating::Repeating;
use crate::repository::{Naming, Published, Repository};

/// How often a running backup says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(60);

/// What an intent says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The backup that is being made.
    pub id: BackupId,
    /// The backup whose packs it reuses.
    pub base: Option<BackupId>,
    /// Attempts that ended early and whose packs it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumes: Vec<BackupId>,
    /// The machine that makes it.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// When it began, by that machine's clock.
    pub started: jiff::Timestamp,
    /// When this object was written, by that machine's clock.
    pub alive: jiff::Timestamp,
}

impl Intent {
    /// The intent of a backup that this process begins now.
    pub fn new(id: BackupId, base: Option<BackupId>, resumes: Vec<BackupId>) -> Intent {
        let now = jiff::Timestamp::now();
        Intent { id, base, resumes, host: host_name(), pid: std::process::id(), started: now, alive: now }
    }

    /// Publishes it. Something that lies there already belongs to another backup of the same second.
    pub fn announce(&self, repository: &Repository, cluster: &ClusterName) -> Result<(), BackupError> {
        let key = keys::intent(cluster, &self.id, self.alive);
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        match repository.put(&key, Naming::Unique, &text)? {
            Published::Created => Ok(()),
            Published::Exists(_) => Err(BackupError::Taken(key.to_string())),
        }
    }
}

/// This machine's name, for records.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Publishes further intents beside the backup. One that cannot be published is told, and tried again with the next: what counts is
/// whether the manifest can be published in the end.
pub fn keep_announcing<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    repository: &'env Repository,
    cluster: &'env ClusterName,
    mut intent: Intent,
) -> Repeating {
    Repeating::start(scope, HEARTBEAT, move || {
        intent.alive = jiff::Timestamp::now();
        if let Err(error) = intent.announce(repository, cluster) {
            tracing::warn!("announce that backup {} is at work: {error}", intent.id);
        }
    })
}

/// Removes all signs of life of a backup that ended before it stored anything: there is nothing to resume, and what it would have built on
/// need not be kept for it. What cannot be removed counts until its time is over.
pub fn withdraw(repository: &Repository, cluster: &ClusterName, id: &BackupId) {
    let folder = format!("{}/{id}/intent", keys::backups(cluster));
    for intent in repository.list(&folder).unwrap_or_default() {
        if repository.delete(&intent).is_err() {
            return;
        }
    }
}

/// Removes a finished backup's further signs of life, which tell nobody anything any more; the first one stays. What
/// cannot be removed (a store under object lock) does no harm.
pub fn clean_up(repository: &Repository, cluster: &ClusterName, id: &BackupId) {
    let folder = format!("{}/{id}/intent", keys::backups(cluster));
    let Ok(intents) = repository.list(&folder) else { return };
    for intent in intents.iter().skip(1) {
        if repository.delete(intent).is_err() {
            return;
        }
    }
}
