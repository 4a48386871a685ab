//! Backups without a manifest: which may be at work or be resumed, and which are given up.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use serde::Serialize;

use super::inventory::Inventory;
use crate::error::Failure;
use crate::format::BackupId;
use crate::repository::StoredObject;

/// A backup without a manifest.
#[derive(Debug, Serialize)]
pub struct UnfinishedPlan {
    /// Its name.
    pub id: BackupId,
    /// What becomes of it.
    pub fate: UnfinishedFate,
    /// The last time that it stored something, by the store's clock.
    pub last_sign: Option<jiff::Timestamp>,
    /// Its stored bytes.
    pub stored_bytes: u64,
}

/// What becomes of a backup without a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnfinishedFate {
    /// It may be at work, or may be resumed: it stays.
    AtWork,
    /// Another backup's manifest points to its packs: those stay.
    Used,
    /// It gave no sign of life for longer than `retention.attempt_grace`: it goes.
    Dead,
    /// An earlier expire deleted its manifest and did not finish: the rest goes.
    HalfDeleted,
}

/// What is known about unfinished backups.
pub(super) struct Unfinished {
    pub(super) plans: Vec<UnfinishedPlan>,
    pub(super) at_work: Vec<AtWork>,
}

/// An unfinished backup that is at work, or may be.
pub(super) struct AtWork {
    pub(super) id: BackupId,
    /// The backup that it builds on.
    pub(super) base: Option<BackupId>,
    /// Attempts that ended early and whose packs it uses.
    pub(super) resumes: Vec<BackupId>,
}

impl AtWork {
    /// Whose packs its manifest may point to.
    pub(super) fn relies_on(&self) -> impl Iterator<Item = &BackupId> {
        std::iter::once(&self.id).chain(&self.base).chain(&self.resumes)
    }
}

/// What becomes of backups without a manifest.
pub(super) fn find_unfinished(inventory: &Inventory<'_>, grace: Duration) -> Result<Unfinished, Failure> {
    let ids: BTreeSet<&BackupId> = inventory.intents.keys().chain(inventory.packs.keys()).collect();
    let half_deleted: HashSet<&BackupId> =
        inventory.tombstones.iter().flat_map(|(_, tombstone)| &tombstone.backups).collect();
    let mut unfinished = Unfinished { plans: Vec::new(), at_work: Vec::new() };
    for id in ids {
        if inventory.backups.contains_key(id) {
            continue;
        }
        let packs = inventory.packs.get(id).into_iter().flat_map(|packs| packs.values());
        let objects: Vec<&StoredObject> =
            inventory.intents.get(id).into_iter().flatten().chain(packs).collect();
        let last_sign = objects.iter().map(|object| object.modified).max();
        let silent = |sign: jiff::Timestamp| {
            let age = inventory.taken_at.duration_since(sign);
            // A sign from the future is a sign.
            Duration::try_from(age).is_ok_and(|age| age > grace)
        };
        let fate = match last_sign {
            _ if half_deleted.contains(id) => UnfinishedFate::HalfDeleted,
            Some(sign) if silent(sign) => UnfinishedFate::Dead,
            _ => UnfinishedFate::AtWork,
        };
        if fate == UnfinishedFate::AtWork {
            let (base, resumes) =
                inventory.intent(id)?.map(|intent| (intent.base, intent.resumes)).unwrap_or_default();
            unfinished.at_work.push(AtWork { id: id.clone(), base, resumes });
        }
        let stored_bytes = objects.iter().map(|object| object.size).sum();
        unfinished.plans.push(UnfinishedPlan { id: id.clone(), fate, last_sign, stored_bytes });
    }
    Ok(unfinished)
}
