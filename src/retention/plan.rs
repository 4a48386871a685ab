//! The plan of `expire`: everything that goes, everything that stays and why, and what that does to the recovery windows.
//!
//! Made by reads only; what is printed, `--json` and the real run are this one value. Refused as a whole if anything could not
//! be read: an unreadable manifest may point to any pack.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;

use super::decide::Deciding;
use super::inventory::{Inventory, SystemWal};
use super::keep_wal::KeepWal;
use super::policy::{Policy, Reason, Reasons};
use super::unfinished::{Unfinished, find_unfinished};
pub use super::unfinished::{UnfinishedFate, UnfinishedPlan};
use super::windows::{self, RecoveryWindow};
use crate::backup::tombstone::{DoomedWal, Tombstone};
use crate::error::{Explain, Failure};
use crate::exit_status::Cause;
use crate::format::manifest::BackupSummary;
use crate::format::{BackupId, ClusterName};
use crate::pg::{ArchiveFileName, Lsn, PgTimestamp, SystemIdentifier, WalSegmentName};
use crate::repository::StoredObject;

/// What the operator asks for beside the policies.
#[derive(Clone, Debug, Default)]
pub struct ExpireRequest {
    /// Backups that go although they cannot be read or restored.
    pub drop_damaged: Vec<BackupId>,
    /// Clusters that are no more (before a `pg_upgrade`): all of theirs goes but permanent backups.
    pub drop_system: Vec<SystemIdentifier>,
}

/// What expire will do.
#[derive(Debug, Serialize)]
pub struct ExpirePlan {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The policies, in words.
    pub policy: String,
    /// When it was made, by this machine's clock.
    pub made_at: jiff::Timestamp,
    /// One entry per cluster that archives under the name.
    pub systems: Vec<SystemPlan>,
    /// Backups that have no manifest.
    pub unfinished: Vec<UnfinishedPlan>,
    /// Damaged backups that go because they were named.
    pub dropped: Vec<BackupId>,
    /// Stored bytes that become free.
    pub freed_bytes: u64,
    /// Objects that go.
    pub objects: u64,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// What goes, in the order in which it is deleted.
    #[serde(skip)]
    pub going: Going,
    /// Which packs each backup points to, for deletions that fail.
    #[serde(skip)]
    pub points_to: BTreeMap<BackupId, HashSet<(BackupId, u32)>>,
}

/// The objects that go.
#[derive(Debug, Default)]
pub struct Going {
    /// Manifests, by backup.
    pub manifests: Vec<(BackupId, StoredObject)>,
    /// Packs, by the backup that wrote them.
    pub packs: Vec<(BackupId, u32, StoredObject)>,
    /// Announcements of backups that go.
    pub intents: Vec<(BackupId, StoredObject)>,
    /// WAL, by cluster.
    pub wal: Vec<(SystemIdentifier, ArchiveFileName, StoredObject)>,
    /// Old leftovers of interrupted publications.
    pub leftovers: Vec<StoredObject>,
    /// Tombstones that nobody needs any more.
    pub tombstones: Vec<StoredObject>,
}

/// One cluster.
#[derive(Debug, Serialize)]
pub struct SystemPlan {
    /// Which.
    pub system_identifier: SystemIdentifier,
    /// Its backups, oldest first.
    pub backups: Vec<BackupPlan>,
    /// Where WAL is kept from without a hole; `null` if only older backups' own WAL is, or everything.
    pub wal_kept_from: Option<Lsn>,
    /// WAL that goes, as ranges.
    pub wal: Vec<DoomedWal>,
    /// Its stored bytes.
    pub wal_bytes: u64,
    /// What can be recovered now.
    pub windows_before: Vec<RecoveryWindow>,
    /// What can be recovered afterwards.
    pub windows_after: Vec<RecoveryWindow>,
}

/// One backup.
#[derive(Debug, Serialize)]
pub struct BackupPlan {
    /// Its name.
    pub id: BackupId,
    /// When it was complete.
    pub stop_time: PgTimestamp,
    /// The server's `TimeZone`.
    #[serde(skip)]
    pub time_zone: String,
    /// Why it stays; empty: it goes.
    pub keep: Vec<Reason>,
    /// Stored bytes that become free with it: its manifest and packs that nothing else points to.
    pub frees_bytes: u64,
}

/// Makes the plan.
pub fn make_plan(
    inventory: &Inventory<'_>,
    policy: &Policy,
    request: &ExpireRequest,
) -> Result<ExpirePlan, Failure> {
    refuse_the_unreadable(inventory, request)?;
    let mut unfinished = find_unfinished(inventory, policy.settings.attempt_grace)?;
    let mut reasons = Reasons::new();
    let mut systems = Vec::new();
    let now = PgTimestamp::from_jiff(inventory.taken_at);
    for (system, wal) in &inventory.systems {
        let of_this = Deciding { inventory, system: *system, wal, policy, request, now };
        systems.push((*system, of_this.decide(&unfinished, &mut reasons)));
    }
    let goes = |id: &BackupId| reasons.get(id).is_none_or(Vec::is_empty);
    let mut going = Going::default();
    for (id, backup) in &inventory.backups {
        if goes(id) {
            going.manifests.push((id.clone(), backup.manifest.clone()));
        }
    }
    packs_that_go(inventory, &goes, &mut unfinished, &mut going);
    let mut plans = Vec::new();
    for (system, keep_wal) in systems {
        let Some(wal) = inventory.systems.get(&system) else { continue };
        plans.push(system_plan(inventory, system, wal, &keep_wal, &reasons, &mut going)?);
    }
    tidy(inventory, &unfinished, policy.settings.attempt_grace, &mut going)?;
    let points_to = inventory.backups.iter().filter_map(|(id, backup)| {
        let packs = backup.packs.as_ref()?.iter();
        Some((id.clone(), packs.map(|pack| (pack.backup.clone(), pack.number)).collect()))
    });
    let dropped = request.drop_damaged.iter().filter(|id| inventory.backups.contains_key(*id));
    Ok(ExpirePlan {
        repository: inventory.repository.url().to_owned(),
        cluster: inventory.cluster.clone(),
        policy: policy.to_string(),
        made_at: inventory.taken_at,
        systems: plans,
        unfinished: unfinished.plans,
        dropped: dropped.cloned().collect(),
        freed_bytes: going.all().map(|object| object.size).sum(),
        objects: going.all().count() as u64,
        notes: notes(inventory),
        points_to: points_to.collect(),
        going,
    })
}

impl Going {
    /// Everything that goes.
    pub fn all(&self) -> impl Iterator<Item = &StoredObject> {
        let manifests = self.manifests.iter().map(|(_, object)| object);
        let packs = self.packs.iter().map(|(.., object)| object);
        let intents = self.intents.iter().map(|(_, object)| object);
        let wal = self.wal.iter().map(|(.., object)| object);
        manifests.chain(packs).chain(intents).chain(wal).chain(&self.leftovers).chain(&self.tombstones)
    }

    /// Whether there is something that must be announced before it goes.
    pub fn needs_announcement(&self) -> bool {
        !(self.manifests.is_empty()
            && self.packs.is_empty()
            && self.intents.is_empty()
            && self.wal.is_empty())
    }
}

impl ExpirePlan {
    /// The announcement of this plan.
    pub fn tombstone(&self) -> Tombstone {
        let mut tombstone = Tombstone::new();
        tombstone.backups = self.going.manifests.iter().map(|(id, _)| id.clone()).collect();
        let dead =
            |plan: &&UnfinishedPlan| matches!(plan.fate, UnfinishedFate::Dead | UnfinishedFate::HalfDeleted);
        tombstone.attempts = self.unfinished.iter().filter(dead).map(|plan| plan.id.clone()).collect();
        for (id, number, _) in &self.going.packs {
            tombstone.packs.entry(id.clone()).or_default().push(*number);
        }
        tombstone.wal = self.systems.iter().flat_map(|system| system.wal.clone()).collect();
        tombstone
    }
}

fn refuse_the_unreadable(inventory: &Inventory<'_>, request: &ExpireRequest) -> Result<(), Failure> {
    for id in &request.drop_damaged {
        let Some(backup) = inventory.backups.get(id) else {
            return Err(Failure::new(Cause::NotFound, format!("there is no backup {id} to drop"))
                .with_hint("walhold backup-list shows what there is"));
        };
        let damaged = match &backup.summary {
            Err(_) => true,
            Ok(summary) => inventory.defect(backup, summary).is_some(),
        };
        if !damaged {
            return Err(Failure::new(
                Cause::Refused,
                format!("backup {id} is not damaged, as far as listings tell: it is not dropped"),
            )
            .with_hint("walhold verify --deep finds damage inside objects; the retention settings decide about good backups"));
        }
    }
    for system in &request.drop_system {
        let newest = inventory.readable().max_by_key(|(_, _, summary)| summary.stop_time);
        if newest.is_none_or(|(_, _, summary)| summary.system_identifier == *system) {
            return Err(Failure::new(
                Cause::Refused,
                format!("the newest backup is of system {system}: it is not dropped"),
            )
            .with_hint("--drop-system is for a cluster that another one took the place of"));
        }
    }
    for (id, backup) in &inventory.backups {
        if let Err(error) = &backup.summary
            && !request.drop_damaged.contains(id)
        {
            return Err(Failure::new(
                match error.exit_cause() {
                    Cause::Damaged => Cause::Refused,
                    other => other,
                },
                format!("nothing is deleted, because the manifest of backup {id} cannot be read: {error}"),
            )
            .with_hint(format!(
                "it may point to packs of other backups; restore it from a copy of the repository, or give the backup up with --drop-damaged {id}"
            )));
        }
    }
    for (system, wal) in &inventory.systems {
        if let Some((timeline, problem)) = wal.stored.view().unusable_histories.iter().next() {
            return Err(Failure::new(
                Cause::Refused,
                format!(
                    "nothing is deleted, because the history of timeline {} of system {system} cannot be read: {problem}",
                    timeline.get()
                ),
            )
            .with_hint("restore that object from a copy of the repository: without it nobody knows which backups lead where"));
        }
    }
    Ok(())
}

/// The packs and announcements that go with the manifests; unfinished backups whose packs others point to become `Used`.
fn packs_that_go(
    inventory: &Inventory<'_>,
    goes: &dyn Fn(&BackupId) -> bool,
    unfinished: &mut Unfinished,
    going: &mut Going,
) {
    let mut used: HashSet<(&BackupId, u32)> = HashSet::new();
    for (id, backup) in &inventory.backups {
        if !goes(id) {
            used.extend(backup.packs.iter().flatten().map(|pack| (&pack.backup, pack.number)));
        }
    }
    // A backup at work may reuse all of its own packs, and all of what it builds on: a dead attempt has no manifest.
    let protected: HashSet<&BackupId> = unfinished.at_work.iter().flat_map(|work| work.relies_on()).collect();
    for plan in &mut unfinished.plans {
        let has_used = used.iter().any(|(id, _)| **id == plan.id);
        if plan.fate != UnfinishedFate::AtWork && protected.contains(&plan.id) {
            plan.fate = UnfinishedFate::AtWork;
        } else if plan.fate == UnfinishedFate::Dead && has_used {
            plan.fate = UnfinishedFate::Used;
        }
    }
    let fate_of: BTreeMap<&BackupId, UnfinishedFate> =
        unfinished.plans.iter().map(|plan| (&plan.id, plan.fate)).collect();
    for (id, packs) in &inventory.packs {
        let may_go = match fate_of.get(id) {
            Some(UnfinishedFate::AtWork) => false,
            Some(_) => true,
            // Packs of a backup that stays and does not point to them are nobody's, but rare and not worth a risk.
            None => goes(id) && !protected.contains(id),
        };
        if may_go {
            let free = packs.iter().filter(|(number, _)| !used.contains(&(id, **number)));
            going.packs.extend(free.map(|(number, object)| (id.clone(), *number, object.clone())));
        }
    }
    // Packs of backups that were deleted earlier, kept until now because others pointed to them.
    for (id, intents) in &inventory.intents {
        let gone = match fate_of.get(id) {
            Some(fate) => matches!(fate, UnfinishedFate::Dead | UnfinishedFate::HalfDeleted),
            None => goes(id),
        };
        if gone {
            going.intents.extend(intents.iter().map(|object| (id.clone(), object.clone())));
        }
    }
}

/// Old leftovers and tombstones.
fn tidy(
    inventory: &Inventory<'_>,
    unfinished: &Unfinished,
    grace: Duration,
    going: &mut Going,
) -> Result<(), Failure> {
    let old = |moment: jiff::Timestamp| {
        Duration::try_from(inventory.taken_at.duration_since(moment)).is_ok_and(|age| age > grace)
    };
    let leftovers = inventory.repository.leftovers(inventory.cluster.as_str())?;
    going.leftovers = leftovers.into_iter().filter(|object| old(object.modified)).collect();
    let leases = inventory.leases.values().flatten().filter(|lease| old(lease.modified));
    going.leftovers.extend(leases.cloned());
    let oldest_at_work = unfinished.at_work.iter().map(|work| work.id.started()).min();
    for (object, tombstone) in &inventory.tombstones {
        let may_matter = oldest_at_work.is_some_and(|started| started <= object.modified);
        // What it names and is still there, an expire that was interrupted left: it is needed to finish that.
        let unfinished_work = tombstone.packs.iter().any(|(id, numbers)| {
            let stored = inventory.packs.get(id);
            stored.is_some_and(|stored| numbers.iter().any(|number| stored.contains_key(number)))
        });
        if old(object.modified) && !may_matter && !unfinished_work {
            going.tombstones.push(object.clone());
        }
    }
    Ok(())
}

fn notes(inventory: &Inventory<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(first) = inventory.strangers.first() {
        let count = inventory.strangers.len();
        notes.push(format!("{count} objects are none of walhold's and are left alone, the first is {first}"));
    }
    if inventory.systems.len() > 1 {
        notes.push(
            "several clusters archive under this name (see wal-show): policies are applied to each by itself; --drop-system gives up one that another took the place of"
                .to_owned(),
        );
    }
    notes
}

fn system_plan(
    inventory: &Inventory<'_>,
    system: SystemIdentifier,
    wal: &SystemWal<'_>,
    keep_wal: &KeepWal,
    reasons: &Reasons,
    going: &mut Going,
) -> Result<SystemPlan, Failure> {
    let doomed = wal_that_goes(wal, keep_wal);
    let wal_bytes = doomed.iter().map(|(_, object)| object.size).sum();
    let ranges = ranges_of(system, wal, &doomed);
    let mut after = wal.stored.view().clone();
    for (name, _) in &doomed {
        if let ArchiveFileName::Segment(name) = name {
            after.remove_segment(*name);
        }
    }
    going.wal.extend(doomed.into_iter().map(|(name, object)| (system, name, object)));
    let of_this: Vec<_> =
        inventory.readable().filter(|(_, _, summary)| summary.system_identifier == system).collect();
    let good: Vec<&BackupSummary> = of_this
        .iter()
        .filter(|(_, backup, summary)| inventory.defect(backup, summary).is_none())
        .map(|(_, _, summary)| *summary)
        .collect();
    let stays = |summary: &&&BackupSummary| reasons.get(&summary.id).is_some_and(|why| !why.is_empty());
    let remaining: Vec<&BackupSummary> = good.iter().filter(stays).copied().collect();
    let backups = of_this.iter().map(|(id, backup, summary)| {
        let keep = reasons.get(*id).cloned().unwrap_or_default();
        let packs = going.packs.iter().filter(|(owner, ..)| owner == *id);
        let packs: u64 = packs.map(|(.., object)| object.size).sum();
        BackupPlan {
            id: (*id).clone(),
            stop_time: summary.stop_time,
            time_zone: summary.time_zone.clone(),
            frees_bytes: if keep.is_empty() { backup.manifest.size + packs } else { 0 },
            keep,
        }
    });
    let floor = keep_wal.floor;
    Ok(SystemPlan {
        system_identifier: system,
        backups: backups.collect(),
        wal_kept_from: floor.filter(|floor| floor.get() > 0).map(|floor| floor.start_lsn(wal.segment_size)),
        wal: ranges,
        wal_bytes,
        windows_before: timed_windows(wal, wal.stored.view(), &good)?,
        windows_after: timed_windows(wal, &after, &remaining)?,
    })
}

/// Windows with the time of their last transaction.
pub fn timed_windows(
    wal: &SystemWal<'_>,
    view: &crate::wal::archive_view::ArchiveView,
    backups: &[&BackupSummary],
) -> Result<Vec<RecoveryWindow>, Failure> {
    let mut windows = windows::find(view, backups);
    for window in &mut windows {
        window.find_end(view, |names| -> Result<Option<PgTimestamp>, Failure> {
            let mut loaded = wal.stored.load_indexes(names)?.into_iter();
            Ok(loaded.find_map(|loaded| Some(loaded.index.transactions?.greatest_time)))
        })?;
    }
    Ok(windows)
}

fn wal_that_goes(wal: &SystemWal<'_>, keep: &KeepWal) -> Vec<(ArchiveFileName, StoredObject)> {
    let segments = wal.stored.objects().iter();
    let segments = segments
        .flat_map(|(name, objects)| objects.iter().map(|object| (ArchiveFileName::Segment(*name), object)));
    let others = wal.others.iter().map(|(name, object)| (*name, object));
    let doomed = segments.chain(others).filter(|(name, _)| !keep.keeps(*name));
    doomed.map(|(name, object)| (name, object.clone())).collect()
}

/// Runs of doomed files, by what segment they belong to; a kept segment in between ends a run.
fn ranges_of(
    system: SystemIdentifier,
    wal: &SystemWal<'_>,
    doomed: &[(ArchiveFileName, StoredObject)],
) -> Vec<DoomedWal> {
    let mut names: Vec<WalSegmentName> = doomed
        .iter()
        .filter_map(|(name, _)| match name {
            ArchiveFileName::Segment(segment)
            | ArchiveFileName::Partial(segment)
            | ArchiveFileName::BackupHistory { segment, .. } => Some(*segment),
            ArchiveFileName::TimelineHistory(_) => None,
        })
        .collect();
    names.sort_unstable();
    let gone: HashSet<WalSegmentName> = names.iter().copied().collect();
    let mut ranges: Vec<DoomedWal> = Vec::new();
    for name in names {
        let kept_between = |first: WalSegmentName| {
            wal.stored.objects().range(first..name).any(|(between, _)| !gone.contains(between))
        };
        match ranges.last_mut() {
            Some(range) if range.last.timeline == name.timeline && !kept_between(range.last) => {
                range.last = name;
                range.objects += 1;
            }
            _ => ranges.push(DoomedWal { system_identifier: system, first: name, last: name, objects: 1 }),
        }
    }
    ranges
}
