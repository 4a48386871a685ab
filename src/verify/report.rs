//! What damage costs: which backups cannot be restored, which moments cannot be recovered, and what to copy back.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::check::{Found, Item};
use super::record::VerifyDepth;
use crate::error::Failure;
use crate::format::manifest::BackupSummary;
use crate::format::{BackupId, ClusterName};
use crate::output::{human_duration, human_size};
use crate::pg::{SystemIdentifier, WalSegmentName};
use crate::retention::inventory::Inventory;
use crate::retention::keep_wal::ConsistencyRange;
use crate::retention::plan::timed_windows;
use crate::retention::render::{show, windows_text};
use crate::retention::windows::{LostSpan, RecoveryWindow, lost};

/// Of so many segments the cost is worked out one by one; the cost of all together is always told.
const SEGMENTS_COSTED: usize = 50;

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// How much was read.
    pub depth: VerifyDepth,
    /// When the run began.
    pub started: jiff::Timestamp,
    /// When it ended.
    pub finished: jiff::Timestamp,
    /// Objects that were listed.
    pub listed_objects: u64,
    /// Objects that were read whole.
    pub read_objects: u64,
    /// Their stored bytes.
    pub read_bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What all findings together cost, by cluster.
    pub systems: Vec<SystemCost>,
    /// Objects that are none of walhold's.
    pub strangers: u64,
}

/// Something that is wrong, and its price.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The object to copy back.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub item: Item,
    /// What is wrong with it.
    pub problem: String,
    /// Backups that cannot be restored because of it.
    pub backups: Vec<BackupId>,
    /// Moments that cannot be recovered because of it alone.
    pub lost: Vec<LostSpan>,
}

/// What all findings together cost one cluster.
#[derive(Debug, Serialize)]
pub struct SystemCost {
    /// Which.
    pub system_identifier: SystemIdentifier,
    /// The server's `TimeZone`.
    #[serde(skip)]
    pub time_zone: String,
    /// What can be recovered all the same.
    pub windows: Vec<RecoveryWindow>,
    /// What cannot because of damage to what is stored.
    pub lost: Vec<LostSpan>,
}

/// Works out what the findings cost.
pub fn costs(
    inventory: &Inventory<'_>,
    found: Vec<Found>,
) -> Result<(Vec<Finding>, Vec<SystemCost>), Failure> {
    let mut users: BTreeMap<(&BackupId, u32), Vec<&BackupId>> = BTreeMap::new();
    for (id, backup) in &inventory.backups {
        for pack in backup.packs.iter().flatten() {
            users.entry((&pack.backup, pack.number)).or_default().push(id);
        }
    }
    let mut findings: Vec<Finding> = Vec::new();
    for found in found {
        let backups = match &found.item {
            Item::Manifest { id } => vec![id.clone()],
            Item::Pack { id, number } => {
                users.get(&(id, *number)).into_iter().flatten().map(|id| (*id).clone()).collect()
            }
            Item::Wal { system_identifier, name } => backups_that_need(inventory, *system_identifier, name),
        };
        findings.push(Finding {
            path: found.path,
            item: found.item,
            problem: found.problem,
            backups,
            lost: Vec::new(),
        });
    }
    let mut systems = Vec::new();
    for (system, wal) in &inventory.systems {
        let summaries: Vec<&BackupSummary> = inventory
            .readable()
            .filter(|(_, _, summary)| summary.system_identifier == *system)
            .map(|(_, _, summary)| summary)
            .collect();
        let before = timed_windows(wal, wal.stored.view(), &summaries)?;
        let mut all_gone = wal.stored.view().clone();
        let mut costed = 0;
        let mut unusable: BTreeSet<BackupId> = BTreeSet::new();
        for finding in &mut findings {
            unusable.extend(finding.backups.iter().cloned());
            let usable: Vec<&BackupSummary> =
                summaries.iter().filter(|summary| !finding.backups.contains(&summary.id)).copied().collect();
            let mut without = wal.stored.view().clone();
            match segment_of(&finding.item, *system) {
                Some(segment) => {
                    all_gone.remove_segment(segment);
                    without.remove_segment(segment);
                }
                None if usable.len() == summaries.len() => continue,
                None => {}
            }
            costed += 1;
            if costed <= SEGMENTS_COSTED {
                finding.lost = lost(&before, &timed_windows(wal, &without, &usable)?);
            }
        }
        let usable: Vec<&BackupSummary> =
            summaries.iter().filter(|summary| !unusable.contains(&summary.id)).copied().collect();
        let windows = timed_windows(wal, &all_gone, &usable)?;
        systems.push(SystemCost {
            system_identifier: *system,
            time_zone: summaries.last().map_or_else(|| "UTC".to_owned(), |summary| summary.time_zone.clone()),
            lost: lost(&before, &windows),
            windows,
        });
    }
    Ok((findings, systems))
}

fn segment_of(item: &Item, system: SystemIdentifier) -> Option<WalSegmentName> {
    match item {
        Item::Wal { system_identifier, name } if *system_identifier == system => name.parse().ok(),
        _ => None,
    }
}

/// Backups that cannot become consistent without this file.
fn backups_that_need(inventory: &Inventory<'_>, system: SystemIdentifier, name: &str) -> Vec<BackupId> {
    let Ok(segment) = name.parse::<WalSegmentName>() else { return Vec::new() };
    let of_this = inventory.readable().filter(|(_, _, summary)| summary.system_identifier == system);
    let needs = of_this.filter(|(_, _, summary)| {
        let range = ConsistencyRange::of(summary);
        range.covers_file(crate::pg::ArchiveFileName::Segment(segment), summary.wal_segment_size)
    });
    needs.map(|(id, ..)| id.clone()).collect()
}

/// The report for people.
pub fn text(report: &VerifyReport) -> String {
    let took = report.finished.duration_since(report.started).unsigned_abs();
    let mut text = format!(
        "Verified cluster {} in {} ({}): {} objects listed, {} read ({}), {}\n",
        report.cluster,
        report.repository,
        report.depth.word(),
        report.listed_objects,
        report.read_objects,
        human_size(report.read_bytes),
        human_duration(took)
    );
    let zone = report.systems.first().map_or("UTC", |system| system.time_zone.as_str());
    for finding in &report.findings {
        text += &format!("\nBAD {}: {}\n", finding.path, finding.problem);
        for id in &finding.backups {
            text += &format!("    backup {id} cannot be restored\n");
        }
        text += &lost_text(&finding.lost, zone, "    ");
        if finding.backups.is_empty() && finding.lost.is_empty() {
            text += "    costs no backup and no moment\n";
        }
    }
    if report.findings.is_empty() {
        text += "nothing is wrong\n";
        return text;
    }
    text += "\nto copy back from a copy of the repository:\n";
    for finding in &report.findings {
        text += &format!("    {}\n", finding.path);
    }
    for system in &report.systems {
        text += "\n";
        text += &lost_text(&system.lost, &system.time_zone, "");
        text += &windows_text("can be recovered all the same", &system.windows, &system.time_zone);
    }
    text
}

fn lost_text(lost: &[LostSpan], zone: &str, indent: &str) -> String {
    let line = |span: &LostSpan| {
        format!(
            "{indent}cannot be recovered: moments from {} to {}\n",
            show(span.from, zone),
            show(span.to, zone)
        )
    };
    lost.iter().map(line).collect()
}
