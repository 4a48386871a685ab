//! A restore's sign of life: while it is there, expire keeps the backup that is being restored, and the WAL from its start on.
//!
//! In: a backup that is about to be read. Out: a small object, `<cluster>/leases/<backup-id>/<time>`, renewed while the restore runs and left behind
//! when it ends, because the server's recovery reads WAL after it. It counts for [`LENGTH`]. A restore never fails for it: with credentials
//! that may only read, it says that nothing protects the backup and goes on.
//!
//! As with backups, the order makes it safe: a restore publishes its lease and then reads the tombstones, expire publishes its tombstone and
//! then reads the leases. So expire keeps the backup, or the restore says that it may be going.

use std::thread::Scope;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backup::intent::host_name;
use crate::backup::tombstone;
use crate::format::{BackupId, ClusterName, keys};
use crate::repeating::Repeating;
use crate::repository::{Naming, Patience, Published, Repository, RepositoryError};

/// How long a lease counts after it was written, by the store's clock.
pub const LENGTH: Duration = Duration::from_secs(60 * 60);
/// How often a running restore renews it.
const RENEWAL: Duration = Duration::from_secs(10 * 60);

/// How long a store that does not take one is asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a lease says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The backup that is read.
    pub id: BackupId,
    /// The machine that restores.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// When this was written, by that machine's clock.
    pub written: jiff::Timestamp,
}

/// Takes a lease, and renews it until what this returns is dropped; `None` if the store takes none.
pub fn take<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    repository: &'env Repository,
    cluster: &'env ClusterName,
    id: &'env BackupId,
) -> Option<Repeating> {
    if let Err(error) = publish(repository, cluster, id) {
        tracing::warn!(
            "nothing keeps expire from deleting backup {id} while it is restored: {error}; if an expire may run meanwhile, pin the backup (walhold backup-mark {id} --permanent)"
        );
        return None;
    }
    match tombstone::list(repository, cluster) {
        Ok(tombstones) if tombstones.iter().any(|(_, tombstone)| tombstone.names(id)) => tracing::warn!(
            "an expire has announced that it deletes backup {id}: if it is doing so now, this restore will miss a pack and fail; --backup chooses another one"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!("whether backup {id} is being expired is not known: {error}"),
    }
    Some(Repeating::start(scope, RENEWAL, move || {
        if let Err(error) = publish(repository, cluster, id) {
            tracing::warn!("say that backup {id} is being restored: {error}");
        }
    }))
}

fn publish(repository: &Repository, cluster: &ClusterName, id: &BackupId) -> Result<(), RepositoryError> {
    let written = jiff::Timestamp::now();
    let lease = Lease { id: id.clone(), host: host_name(), pid: std::process::id(), written };
    // A restore has no time to lose for this.
    let repository = repository.with_patience(Patience::PerRequest(PATIENCE));
    let text = serde_json::to_vec_pretty(&lease).unwrap_or_default();
    match repository.put(&keys::lease(cluster, id, written), Naming::Unique, &text)? {
        // There already: another restore's of this microsecond, which protects as well.
        Published::Created | Published::Exists(_) => Ok(()),
    }
}
