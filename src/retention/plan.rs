//! The plan of `expire`: everything that goes, everything that stays and why, and what that does to the recovery windows.
//!
//! Made by reads only; what is printed, `--json` and the real run are this one value. Refused as a whole if anything could not
//! be read: an unreadable manifest may point to any pack.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use serde::Serialize;

use super::inventory::{Inventory, StoredBackup, SystemWal};
use super::keep_wal::KeepWal;
use super::policy::{Candidate, Policy, Reason, Reasons};
use super::windows::{self, RecoveryWindow};
use crate::backup::tombstone::{DoomedWal, Tombstone};
use crate::error::{Explain, Failure};
use crate::exit_status::Cause;
use crate::format::manifest::BackupSummary;
use crate::format::{BackupId, ClusterName};
use crate::pg::{
    ArchiveFileName, Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentNumber,
};
use crate::repository::StoredObject;
use crate::restore::choose::on_line;

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
struct Unfinished {
    plans: Vec<UnfinishedPlan>,
    /// Those at work, with what they build on.
    at_work: Vec<(BackupId, Option<BackupId>)>,
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
        systems.push((*system, of_this.decide(&unfinished, &mut reasons)?));
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
    for (system, decided) in systems {
        let Some(wal) = inventory.systems.get(&system) else { continue };
        plans.push(system_plan(inventory, system, wal, &decided, &reasons, &mut going)?);
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

/// What becomes of backups without a manifest.
fn find_unfinished(inventory: &Inventory<'_>, grace: Duration) -> Result<Unfinished, Failure> {
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
            let base = inventory.intent(id)?.and_then(|intent| intent.base);
            unfinished.at_work.push((id.clone(), base));
        }
        let stored_bytes = objects.iter().map(|object| object.size).sum();
        unfinished.plans.push(UnfinishedPlan { id: id.clone(), fate, last_sign, stored_bytes });
    }
    Ok(unfinished)
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
    let at_work = unfinished.at_work.iter();
    let protected: HashSet<&BackupId> =
        at_work.flat_map(|(id, base)| std::iter::once(id).chain(base)).collect();
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
    let oldest_at_work = unfinished.at_work.iter().map(|(id, _)| id.started()).min();
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

/// What is decided about one cluster.
struct Decided {
    keep_wal: KeepWal,
}

/// What decisions about one cluster are made from.
struct Deciding<'a> {
    inventory: &'a Inventory<'a>,
    system: SystemIdentifier,
    wal: &'a SystemWal<'a>,
    policy: &'a Policy,
    request: &'a ExpireRequest,
    now: PgTimestamp,
}

impl Deciding<'_> {
    fn backups(&self) -> impl Iterator<Item = (&BackupId, &StoredBackup, &BackupSummary)> {
        let dropped = |id: &BackupId| self.request.drop_damaged.contains(id);
        self.inventory
            .readable()
            .filter(move |(id, _, summary)| summary.system_identifier == self.system && !dropped(id))
    }

    fn decide(&self, unfinished: &Unfinished, reasons: &mut Reasons) -> Result<Decided, Failure> {
        let view = self.wal.stored.view();
        let size = self.wal.segment_size;
        let retired = self.request.drop_system.contains(&self.system);
        let mut candidates = Vec::new();
        let lines = self.followed_lines();
        let mut kept = Reasons::new();
        for (id, backup, summary) in self.backups() {
            if backup.permanent {
                kept.entry(id.clone()).or_default().push(Reason::Permanent);
            }
            if let Some(defect) = self.inventory.defect(backup, summary) {
                kept.entry(id.clone()).or_default().push(Reason::Incomplete(defect));
                continue;
            }
            let leads = |line: &&TimelineId| on_line(summary, &view.history(**line)).is_ok();
            candidates.push(Candidate {
                id: id.clone(),
                stopped: summary.stop_time,
                leads_to: lines.iter().filter(leads).copied().collect(),
            });
        }
        let by_policy =
            if retired { Reasons::new() } else { self.policy.keep(&candidates, &lines, self.now) };
        let bases = unfinished.at_work.iter().filter_map(|(id, base)| Some((id, base.as_ref()?)));
        let bases: Vec<(&BackupId, &BackupId)> = bases.collect();
        let continuous = self.continuous(&by_policy, &bases);
        for (id, mut why) in by_policy {
            kept.entry(id).or_default().append(&mut why);
        }
        for (id, base) in bases {
            if self.backups().any(|(backup, ..)| backup == base) {
                kept.entry(base.clone()).or_default().push(Reason::BaseOf(id.clone()));
            }
        }
        let at_work = unfinished.at_work.iter().flat_map(|(id, base)| std::iter::once(id).chain(base));
        let at_work = at_work.filter_map(|id| first_segment(id, size));
        let keep_wal = if !retired && continuous.is_empty() {
            // No good backup yet, or none any more: what this WAL may be good for is not known.
            KeepWal::everything(size)
        } else {
            let stays = |id: &BackupId| kept.contains_key(id);
            KeepWal::new(
                size,
                self.backups().filter(|(id, ..)| continuous.contains(id)).map(|(_, _, summary)| summary),
                at_work.filter(|_| !retired),
                self.backups().filter(|(id, ..)| stays(id)).map(|(_, _, summary)| summary),
            )
        };
        reasons.extend(kept);
        Ok(Decided { keep_wal })
    }

    /// The timelines that are still followed: the newest that a backup leads to, the newest of all, and those that
    /// archived something or were backed up within the window.
    fn followed_lines(&self) -> BTreeSet<TimelineId> {
        let view = self.wal.stored.view();
        let summaries: Vec<&BackupSummary> = self.backups().map(|(_, _, summary)| summary).collect();
        let mut lines: BTreeSet<TimelineId> = windows::newest_line(view, &summaries).into_iter().collect();
        lines.extend(view.timelines().last());
        let newest = summaries.iter().max_by_key(|summary| (summary.stop_time, &summary.id));
        lines.extend(newest.map(|summary| summary.stop_timeline));
        if let Some(start) = self.policy.window_start(self.now) {
            for summary in summaries.iter().filter(|summary| summary.stop_time > start) {
                lines.insert(summary.stop_timeline);
            }
            for (name, objects) in self.wal.stored.objects() {
                if objects.iter().any(|object| PgTimestamp::from_jiff(object.modified) > start) {
                    lines.insert(name.timeline);
                }
            }
        }
        lines
    }

    /// The backups from which on WAL is kept without a hole. With a window: those that it needs. Without: all that a
    /// policy keeps.
    fn continuous(&self, by_policy: &Reasons, bases: &[(&BackupId, &BackupId)]) -> BTreeSet<BackupId> {
        let windowed = self.policy.settings.keep_within.is_some();
        let needs_wal = |reason: &Reason| match reason {
            Reason::Within | Reason::WindowStart(_) | Reason::LastGood(_) | Reason::BaseOf(_) => true,
            Reason::Last(_)
            | Reason::Daily(_)
            | Reason::Weekly(_)
            | Reason::Monthly(_)
            | Reason::Yearly(_) => !windowed,
            Reason::Permanent | Reason::Incomplete(_) => false,
        };
        let needed = by_policy.iter().filter(|(_, why)| why.iter().any(needs_wal)).map(|(id, _)| id);
        needed.chain(bases.iter().map(|(_, base)| *base)).cloned().collect()
    }
}

/// The segment that an unfinished backup began in: its name says it.
fn first_segment(id: &BackupId, size: crate::pg::WalSegmentSize) -> Option<WalSegmentNumber> {
    let (_, position) = id.as_str().split_once('-')?;
    let (timeline, position) = position.split_once('-')?;
    format!("{timeline}{position}").parse::<WalSegmentName>().ok()?.number(size)
}

fn system_plan(
    inventory: &Inventory<'_>,
    system: SystemIdentifier,
    wal: &SystemWal<'_>,
    decided: &Decided,
    reasons: &Reasons,
    going: &mut Going,
) -> Result<SystemPlan, Failure> {
    let doomed = wal_that_goes(wal, &decided.keep_wal);
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
    let floor = decided.keep_wal.floor;
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
        window.find_end(view, |name| -> Result<Option<PgTimestamp>, Failure> {
            let index = wal.stored.load_index(name)?.index;
            Ok(index.transactions.as_ref().map(|span| span.greatest_time))
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
