//! Carries a plan out: announce, wait, look again, delete what both looks agree on.
//!
//! 1. Publish the tombstone: from now on no backup begins to rely on what it names.
//! 2. Wait the grace period.
//! 3. Read everything again and plan again; what only one of the plans names stays. If less goes than was announced, announce
//!    that, and take the first announcement back.
//! 4. Delete manifests, so that no backup is listed that is not whole; then packs, then WAL, then what is only litter.
//!
//! After a crash at any point the next run finds packs without a manifest whose backup a tombstone names, and WAL that nobody
//! needs, and goes on. An object that the store will not delete is told and passed over, with all that it still needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::inventory::{Depth, Inventory};
use super::keep_wal::ConsistencyRange;
use super::plan::{ExpirePlan, ExpireRequest, Going, make_plan};
use super::policy::Policy;
use crate::backup::tombstone::Tombstone;
use crate::codec::KeyRing;
use crate::error::{Explain, Failure};
use crate::exit_status::Cause;
use crate::format::{BackupId, ClusterName};
use crate::interrupt;
use crate::local::kill_point::kill_point;
use crate::output::{duration_exact, human_duration};
use crate::pg::{SystemIdentifier, WalSegmentSize};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError, StoredObject};

/// Clocks that differ by more make "older than" meaningless.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// So many objects that would not go are named; all are counted.
const FAILURES_NAMED: usize = 20;

/// What a run did.
#[derive(Debug, Default, Serialize)]
pub struct ExpireOutcome {
    /// Objects that are gone.
    pub deleted_objects: u64,
    /// Their stored bytes.
    pub freed_bytes: u64,
    /// Complete backups that are gone.
    pub deleted_backups: Vec<BackupId>,
    /// Objects that were announced but stayed, because the second look found them needed.
    pub spared_objects: u64,
    /// Objects that the store would not delete.
    pub failed_objects: u64,
    /// The first of those, and why.
    pub failures: Vec<FailedDeletion>,
}

/// An object that would not go.
#[derive(Debug, Serialize)]
pub struct FailedDeletion {
    /// Where it lies.
    pub path: String,
    /// The store's words.
    pub problem: String,
}

/// What a run needs beside the plan.
pub struct Expiring<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a ClusterName,
    /// What opens manifests.
    pub keys: &'a KeyRing,
    /// What stays.
    pub policy: &'a Policy,
    /// What the operator asked for.
    pub request: &'a ExpireRequest,
}

/// What an object that stays against the plan still needs.
struct Needs {
    packs: BTreeMap<BackupId, HashSet<(BackupId, u32)>>,
    wal: BTreeMap<BackupId, (SystemIdentifier, WalSegmentSize, ConsistencyRange)>,
}

impl Expiring<'_> {
    /// Carries the plan out.
    pub fn run(&self, plan: &ExpirePlan) -> Result<ExpireOutcome, Failure> {
        let mut outcome = ExpireOutcome::default();
        if plan.going.needs_announcement() {
            let mut tombstone = plan.tombstone();
            let announced = tombstone.publish(self.repository, self.cluster)?;
            kill_point("expire: announced");
            let agreed = self.look_again(plan, &tombstone, &announced);
            let (agreed, needs) = agreed.inspect_err(|_| {
                // Nothing was deleted: the announcement would only be in the way of backups.
                let _ = self.repository.delete(&announced);
            })?;
            outcome.spared_objects = (plan.going.all().count() - agreed.all().count()) as u64;
            if outcome.spared_objects > 0 {
                self.announce_less(plan, &agreed, &announced)?;
            }
            kill_point("expire: agreed");
            self.delete(agreed, &needs, &mut outcome)?;
        }
        let litter: Vec<&StoredObject> = plan.going.leftovers.iter().chain(&plan.going.tombstones).collect();
        self.delete_objects(&litter, "expire: mid-litter", &mut outcome)?;
        Ok(outcome)
    }

    fn look_again(
        &self,
        plan: &ExpirePlan,
        tombstone: &Tombstone,
        announced: &StoredObject,
    ) -> Result<(Going, Needs), Failure> {
        check_clocks(tombstone, announced)?;
        self.wait()?;
        let inventory = Inventory::take(self.repository, self.cluster, self.keys, Depth::Packs)?;
        let second = make_plan(&inventory, self.policy, self.request)?;
        let wal = inventory.readable().map(|(id, _, summary)| {
            let range = ConsistencyRange::of(summary);
            (id.clone(), (summary.system_identifier, summary.wal_segment_size, range))
        });
        let needs = Needs { wal: wal.collect(), packs: second.points_to };
        let first: HashSet<&str> = plan.going.all().map(|object| object.path.as_str()).collect();
        let both = |object: &StoredObject| first.contains(object.path.as_str());
        let mut agreed = second.going;
        agreed.manifests.retain(|(_, object)| both(object));
        agreed.packs.retain(|(.., object)| both(object));
        agreed.intents.retain(|(_, object)| both(object));
        agreed.wal.retain(|(.., object)| both(object));
        // Litter is not announced; it goes by the first plan.
        (agreed.leftovers, agreed.tombstones) = (plan.going.leftovers.clone(), plan.going.tombstones.clone());
        Ok((agreed, needs))
    }

    fn wait(&self) -> Result<(), Failure> {
        let grace = self.policy.settings.grace;
        if grace.is_zero() {
            return Ok(());
        }
        tracing::info!("announced; waiting {} before looking again", duration_exact(grace));
        let began = Instant::now();
        let progress = Progress::new("waiting", None);
        while let Some(left) = grace.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            progress.set_message(format!("{} left before anything is deleted", human_duration(left)));
            if !interrupt::sleep(left.min(Duration::from_secs(1))) {
                return Err(interrupted());
            }
        }
        progress.finish();
        Ok(())
    }

    /// A backup that began meanwhile must be able to rely on what stays after all.
    fn announce_less(
        &self,
        plan: &ExpirePlan,
        agreed: &Going,
        announced: &StoredObject,
    ) -> Result<(), Failure> {
        let mut less = plan.tombstone();
        let manifests: BTreeSet<&BackupId> = agreed.manifests.iter().map(|(id, _)| id).collect();
        less.backups.retain(|id| manifests.contains(id));
        let owners: BTreeSet<&BackupId> =
            agreed.packs.iter().map(|(id, ..)| id).chain(agreed.intents.iter().map(|(id, _)| id)).collect();
        less.attempts.retain(|id| owners.contains(id));
        less.packs.clear();
        for (id, number, _) in &agreed.packs {
            less.packs.entry(id.clone()).or_default().push(*number);
        }
        if agreed.needs_announcement() {
            less.publish(self.repository, self.cluster)?;
        }
        if let Err(error) = self.repository.delete(announced) {
            tracing::warn!(
                "{} names more than goes and cannot be taken back: {error}; backups that build on what it names will be refused",
                announced.path
            );
        }
        Ok(())
    }

    fn delete(&self, going: Going, needs: &Needs, outcome: &mut ExpireOutcome) -> Result<(), Failure> {
        let manifests: Vec<&StoredObject> = going.manifests.iter().map(|(_, object)| object).collect();
        let failed = self.delete_objects(&manifests, "expire: mid-manifests", outcome)?;
        let stayed: BTreeSet<&BackupId> = going
            .manifests
            .iter()
            .filter(|(_, object)| failed.contains(&object.path))
            .map(|(id, _)| id)
            .collect();
        let gone = going.manifests.iter().filter(|(id, _)| !stayed.contains(id));
        outcome.deleted_backups = gone.map(|(id, _)| id.clone()).collect();
        kill_point("expire: manifests deleted");
        let needed: HashSet<&(BackupId, u32)> =
            stayed.iter().filter_map(|id| needs.packs.get(*id)).flatten().collect();
        let packs: Vec<&StoredObject> = going
            .packs
            .iter()
            .filter(|(id, number, _)| !stayed.contains(id) && !needed.contains(&(id.clone(), *number)))
            .map(|(.., object)| object)
            .collect();
        self.delete_objects(&packs, "expire: mid-packs", outcome)?;
        kill_point("expire: packs deleted");
        let intents = going.intents.iter().filter(|(id, _)| !stayed.contains(id));
        let intents: Vec<&StoredObject> = intents.map(|(_, object)| object).collect();
        self.delete_objects(&intents, "expire: mid-intents", outcome)?;
        let still_needed = |system: &SystemIdentifier, name| {
            stayed
                .iter()
                .filter_map(|id| needs.wal.get(*id))
                .any(|(of, size, range)| of == system && range.covers_file(name, *size))
        };
        let wal = going.wal.iter().filter(|(system, name, _)| !still_needed(system, *name));
        let wal: Vec<&StoredObject> = wal.map(|(.., object)| object).collect();
        self.delete_objects(&wal, "expire: mid-wal", outcome)?;
        self.remove_empty_folders(&going);
        Ok(())
    }

    /// Deletes in parallel, and in lists where the store takes them; the paths of those that the store would not delete. Anything else that fails ends the run.
    fn delete_objects(
        &self,
        objects: &[&StoredObject],
        place: &str,
        outcome: &mut ExpireOutcome,
    ) -> Result<HashSet<String>, Failure> {
        let results = self.repository.delete_all(objects, &|result| match result {
            None => interrupt::requested().is_none(),
            Some(result) => {
                kill_point(place);
                !matches!(result, Err(error) if !is_refusal(error))
            }
        });
        let mut refused = HashSet::new();
        let mut fatal = None;
        for (object, result) in objects.iter().zip(results) {
            match result {
                None => {}
                Some(Ok(())) => {
                    outcome.deleted_objects += 1;
                    outcome.freed_bytes += object.size;
                }
                Some(Err(error)) if is_refusal(&error) => {
                    outcome.failed_objects += 1;
                    if outcome.failures.len() < FAILURES_NAMED {
                        tracing::error!("{error}");
                        let problem = error.to_string();
                        outcome.failures.push(FailedDeletion { path: object.path.clone(), problem });
                    }
                    refused.insert(object.path.clone());
                }
                Some(Err(error)) => fatal = Some(error),
            }
        }
        match fatal {
            Some(error) => Err(error.into()),
            None if interrupt::requested().is_some() => Err(interrupted()),
            None => Ok(refused),
        }
    }

    /// Folders of backups that are gone, and of WAL that is: nobody creates anything in them any more.
    fn remove_empty_folders(&self, going: &Going) {
        let parent =
            |object: &StoredObject| object.path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        let folders: BTreeSet<String> = going.all().filter_map(parent).collect();
        for folder in folders.iter().rev() {
            self.repository.remove_empty_folder(folder);
        }
        // `backups/<id>` after `backups/<id>/intent`.
        let above = folders.iter().filter_map(|folder| folder.strip_suffix("/intent"));
        above.for_each(|folder| self.repository.remove_empty_folder(folder));
    }
}

/// Whether the store refuses this one object, so that the others are worth trying.
fn is_refusal(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Denied { .. } | RepositoryError::Damaged { .. })
}

fn interrupted() -> Failure {
    Failure::new(Cause::Interrupted, "interrupted by a signal")
        .with_hint("what was not deleted yet goes with the next walhold expire --confirm")
}

/// Ages are told by this machine's clock from times by the store's.
fn check_clocks(tombstone: &Tombstone, announced: &StoredObject) -> Result<(), Failure> {
    let apart = tombstone.written.duration_since(announced.modified).unsigned_abs();
    if apart <= CLOCK_TOLERANCE {
        return Ok(());
    }
    Err(Failure::new(
        Cause::Refused,
        format!(
            "the clocks of this machine and of the store differ by {}: nothing is deleted, because what is old cannot be told",
            human_duration(apart)
        ),
    )
    .with_hint("set the clock (timedatectl); for a directory on a network file system also the file server's"))
}

impl ExpireOutcome {
    /// A run that left objects behind is a failed one.
    pub fn into_failure(self) -> Option<Failure> {
        let first = self.failures.first()?;
        let message = match self.failed_objects {
            1 => format!("1 object could not be deleted: {}", first.problem),
            count => format!("{count} objects could not be deleted, the first: {}", first.problem),
        };
        let denied = RepositoryError::Denied { verb: "delete", key: String::new(), problem: String::new() };
        Some(Failure::new(denied.exit_cause(), message).with_hint(
            "objects under a lock go with the next expire after it has passed; otherwise check the permission to delete",
        ))
    }
}
