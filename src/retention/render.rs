//! The plan of `expire` as an operator reads it.

use super::plan::{ExpirePlan, SystemPlan, UnfinishedFate};
use super::windows::{RecoveryWindow, WindowEnd};
use crate::output::{Align, Table, human_size, moment};
use crate::pg::PgTimestamp;

/// So many ranges of WAL are shown.
const RANGES_SHOWN: usize = 10;

/// The whole plan.
pub fn plan_text(plan: &ExpirePlan) -> String {
    let mut text = format!("Retention of cluster {} in {}\n", plan.cluster, plan.repository);
    text += &format!("policy: {}\n", plan.policy);
    for system in &plan.systems {
        text += &system_text(system, plan.systems.len() > 1);
    }
    for unfinished in &plan.unfinished {
        let fate = match unfinished.fate {
            UnfinishedFate::AtWork => "stays: it is at work, or may be resumed",
            UnfinishedFate::Used => "stays as far as others point to it",
            UnfinishedFate::Dead => "goes: no sign of life for longer than retention.attempt_grace",
            UnfinishedFate::HalfDeleted => {
                "goes, unless others point to it: an earlier expire deleted its manifest"
            }
        };
        text += &format!(
            "unfinished backup {} ({}) {fate}\n",
            unfinished.id,
            human_size(unfinished.stored_bytes)
        );
    }
    for id in &plan.dropped {
        text += &format!("damaged backup {id} goes: it was named\n");
    }
    for note in &plan.notes {
        text += &format!("note: {note}\n");
    }
    text += &match plan.objects {
        0 => "nothing goes\n".to_owned(),
        objects => format!("{objects} objects go, {} become free\n", human_size(plan.freed_bytes)),
    };
    text
}

fn system_text(system: &SystemPlan, several: bool) -> String {
    let mut text = String::new();
    if several {
        text += &format!("\nsystem {}\n", system.system_identifier);
    }
    let mut table = Table::new([
        ("", Align::Left),
        ("backup", Align::Left),
        ("complete", Align::Left),
        ("why", Align::Left),
    ]);
    for backup in &system.backups {
        let complete = show(backup.stop_time, &backup.time_zone);
        let (fate, why) = match backup.keep.as_slice() {
            [] => ("goes", format!("nothing keeps it; frees {}", human_size(backup.frees_bytes))),
            reasons => ("stays", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        };
        table.add([fate.to_owned(), backup.id.to_string(), complete, why]);
    }
    if !table.is_empty() {
        text += "\n";
        text += &table.render();
        text += "\n";
    }
    if let Some(lsn) = system.wal_kept_from {
        text += &format!("WAL stays from {lsn} on, and before that what older backups need themselves\n");
    }
    for range in system.wal.iter().take(RANGES_SHOWN) {
        text += &format!("WAL goes: {} to {} ({} objects)\n", range.first, range.last, range.objects);
    }
    if system.wal.len() > RANGES_SHOWN {
        text += &format!("WAL goes: {} more ranges\n", system.wal.len() - RANGES_SHOWN);
    }
    if system.wal_bytes > 0 {
        text += &format!("WAL frees {}\n", human_size(system.wal_bytes));
    }
    let zone = system.backups.last().map(|backup| backup.time_zone.as_str()).unwrap_or("UTC");
    if system.windows_before == system.windows_after {
        text += &windows_text("can be recovered, before and after", &system.windows_after, zone);
    } else {
        text += &windows_text("can be recovered now", &system.windows_before, zone);
        text += &windows_text("can be recovered afterwards", &system.windows_after, zone);
    }
    text
}

/// A heading and a line per window.
pub fn windows_text(heading: &str, windows: &[RecoveryWindow], zone: &str) -> String {
    if windows.is_empty() {
        return format!("{heading}: nothing\n");
    }
    let mut text = format!("{heading}:\n");
    for window in windows {
        text += &format!("  {}\n", window_text(window, zone));
    }
    text
}

/// One window: `any moment from … to …`.
pub fn window_text(window: &RecoveryWindow, zone: &str) -> String {
    let beside = if window.current {
        String::new()
    } else {
        format!(" (timeline {}, beside the current line)", window.timeline.get())
    };
    let from = show(window.from, zone);
    if window.end == WindowEnd::Backup {
        return format!("the moment {from}: the end of backup {}{beside}", window.first_backup);
    }
    let to = window.to.map_or_else(|| from.clone(), |to| show(to, zone));
    let why = match &window.end {
        WindowEnd::Archive | WindowEnd::Backup => String::new(),
        WindowEnd::Gap { missing, later } => {
            format!("; then WAL is missing from {missing} to before {later}")
        }
        WindowEnd::TimelineMissing { missing } => format!("; then WAL is missing from {missing} on"),
    };
    format!("any moment from {from} to {to}{beside}{why}")
}

/// A moment in the server's zone and UTC.
pub fn show(at: PgTimestamp, zone: &str) -> String {
    at.to_jiff().map_or_else(|| at.to_string(), |at| moment(at, Some(zone)))
}
