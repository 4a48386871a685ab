//! The state of a cluster's backups as an operator reads it.

use std::time::Duration;

use super::{StatusReport, SystemStatus};
use crate::format::manifest::BackupKind;
use crate::format::marker::CreateOnly;
use crate::output::{human_duration, human_size, moment};
use crate::retention::render::{show, windows_text};

/// The whole report.
pub fn text(report: &StatusReport) -> String {
    let mut text = format!("Cluster {} in {}\n", report.cluster, report.repository);
    for (place, system) in report.systems.iter().enumerate() {
        if report.systems.len() > 1 {
            text += &format!(
                "\nsystem {}{}\n",
                system.system_identifier,
                if place == 0 { "" } else { " (older)" }
            );
        }
        text += &system_text(system);
    }
    for id in &report.unfinished {
        text += &line("unfinished", &format!("backup {id}: at work, or interrupted"));
    }
    text += &line("retention", report.retention.as_deref().unwrap_or("none"));
    text += &line("encryption", if report.encrypts { "on" } else { "off" });
    text += &line(
        "store",
        match report.create_only {
            CreateOnly::Enforced => "refuses to replace an object",
            CreateOnly::Suffixed => "would replace objects; names carry digests",
        },
    );
    text += &line(
        "verified",
        &match &report.verified {
            None => "never".to_owned(),
            Some(verified) => format!(
                "{} ({}), {} findings",
                moment(verified.finished, None),
                verified.depth.word(),
                verified.findings
            ),
        },
    );
    for note in &report.notes {
        text += &line("note", note);
    }
    for problem in &report.problems {
        text += &line("PROBLEM", &problem.text);
    }
    text += if report.healthy { "healthy\n" } else { "UNHEALTHY\n" };
    text
}

fn line(key: &str, value: &str) -> String {
    format!("{key:<14} {value}\n")
}

fn system_text(system: &SystemStatus) -> String {
    let zone = system.time_zone.as_str();
    let ago = |seconds: u64| format!("{} ago", human_duration(Duration::from_secs(seconds)));
    let mut text = windows_text("can be recovered", &system.windows, zone);
    if let Some(commit) = system.last_commit {
        let age = system.last_commit_age_seconds.unwrap_or(0);
        text += &line("last commit", &format!("{}, {}", show(commit, zone), ago(age)));
    }
    text += &line(
        "last backup",
        &match &system.last_backup {
            None => "none".to_owned(),
            Some(backup) => format!(
                "{} ({}), complete {}, {}",
                backup.id,
                match backup.kind {
                    BackupKind::Full => "full",
                    BackupKind::Incremental => "incremental",
                },
                show(backup.stop_time, zone),
                ago(backup.age_seconds)
            ),
        },
    );
    if let Some(due) = system.next_backup_due {
        text += &line("next due by", &show(due, zone));
    }
    text += &line(
        "last archived",
        &match &system.newest_segment {
            None => "nothing".to_owned(),
            Some(newest) => format!("{}, {}", newest.name, ago(newest.age_seconds)),
        },
    );
    text += &line(
        "stored",
        &format!(
            "{} backups; {} segments, {}",
            system.backups,
            system.wal_segments,
            human_size(system.wal_bytes)
        ),
    );
    text
}
