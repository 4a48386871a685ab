//! What stays of one cluster: its backups, by the policies and by what relies on them, and the WAL that those need.

use std::collections::BTreeSet;

use super::inventory::{Inventory, StoredBackup, SystemWal};
use super::keep_wal::KeepWal;
use super::plan::ExpireRequest;
use super::policy::{Candidate, Policy, Reason, Reasons};
use super::unfinished::Unfinished;
use super::windows;
use crate::format::BackupId;
use crate::format::manifest::BackupSummary;
use crate::pg::{
    PgTimestamp, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentNumber, WalSegmentSize,
};
use crate::restore::choose::on_line;

/// What decisions about one cluster are made from.
pub(super) struct Deciding<'a> {
    pub(super) inventory: &'a Inventory<'a>,
    pub(super) system: SystemIdentifier,
    pub(super) wal: &'a SystemWal<'a>,
    pub(super) policy: &'a Policy,
    pub(super) request: &'a ExpireRequest,
    pub(super) now: PgTimestamp,
}

impl Deciding<'_> {
    fn backups(&self) -> impl Iterator<Item = (&BackupId, &StoredBackup, &BackupSummary)> {
        let dropped = |id: &BackupId| self.request.drop_damaged.contains(id);
        self.inventory
            .readable()
            .filter(move |(id, _, summary)| summary.system_identifier == self.system && !dropped(id))
    }

    /// Adds the reasons why its backups stay, and says which WAL does.
    pub(super) fn decide(&self, unfinished: &Unfinished, reasons: &mut Reasons) -> KeepWal {
        let view = self.wal.stored.view();
        let size = self.wal.segment_size;
        let retired = self.request.drop_system.contains(&self.system);
        let mut candidates = Vec::new();
        let lines = self.followed_lines();
        let mut kept = Reasons::new();
        for (id, backup, summary) in self.backups() {
            if self.inventory.is_leased(id) {
                kept.entry(id.clone()).or_default().push(Reason::Restored);
            }
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
        let bases = unfinished.at_work.iter().filter_map(|work| Some((&work.id, work.base.as_ref()?)));
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
        let at_work = unfinished.at_work.iter().flat_map(|work| std::iter::once(&work.id).chain(&work.base));
        let at_work = at_work.filter_map(|id| first_segment(id, size));
        let keep_wal = if !retired && continuous.is_empty() {
            // No good backup yet, or none any more: what this WAL may be good for is not known.
            KeepWal::everything(size)
        } else {
            let stays = |id: &BackupId| kept.contains_key(id);
            KeepWal::new(
                size,
                self.backups()
                    .filter(|(id, ..)| continuous.contains(id) || self.inventory.is_leased(id))
                    .map(|(_, _, summary)| summary),
                at_work.filter(|_| !retired),
                self.backups().filter(|(id, ..)| stays(id)).map(|(_, _, summary)| summary),
            )
        };
        reasons.extend(kept);
        keep_wal
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
            // The WAL that its recovery reads is looked after below.
            Reason::Restored | Reason::Permanent | Reason::Incomplete(_) => false,
        };
        let needed = by_policy.iter().filter(|(_, why)| why.iter().any(needs_wal)).map(|(id, _)| id);
        needed.chain(bases.iter().map(|(_, base)| *base)).cloned().collect()
    }
}

/// The segment that an unfinished backup began in: its name says it.
fn first_segment(id: &BackupId, size: WalSegmentSize) -> Option<WalSegmentNumber> {
    let (_, position) = id.as_str().split_once('-')?;
    let (timeline, position) = position.split_once('-')?;
    format!("{timeline}{position}").parse::<WalSegmentName>().ok()?.number(size)
}
