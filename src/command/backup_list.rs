//! `backup-list`: the backups of a cluster.
//!
//! 1. Open the repository; no server is needed.
//! 2. Read the end of every manifest.
//! 3. Print one line per backup, oldest first; fail if a manifest could not be read.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::backup::BackupError;
use crate::backup::list::{Catalogue, ListedBackup};
use crate::config::Config;
use crate::error::{Explain, Failure};
use crate::exit_status::{Cause, Outcome};
use crate::format::BackupId;
use crate::format::manifest::{BackupKind, BackupSummary};
use crate::output::{self, Align, Table, human_size};
use crate::pg::PgTimestamp;
use crate::repository::{Patience, Repository};

/// How long each request to the store is repeated.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// List backups, oldest first
#[derive(Debug, clap::Args)]
pub struct BackupListArgs {
    /// Print JSON: an array of objects with the key `id`
    #[arg(long)]
    pub json: bool,
}

/// One backup in `--json`; docs/json.md describes every key.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Readable(Box<ReadableLine<'a>>),
    Damaged { id: &'a BackupId, status: &'static str, permanent: bool, problem: String },
}

#[derive(Serialize)]
struct ReadableLine<'a> {
    status: &'static str,
    permanent: bool,
    manifest_bytes: u64,
    #[serde(flatten)]
    summary: &'a BackupSummary,
}

/// Runs the command.
pub fn run(args: BackupListArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let catalogue = Catalogue { repository: &repository, cluster: &config.cluster, keys: &keys };
    let backups = catalogue.list()?;
    if args.json {
        output::print_json(&backups.iter().map(json_line).collect::<Vec<_>>())?;
    } else if backups.is_empty() {
        let place = repository.url();
        output::print_line(&format!("no backups of cluster {} in {place}", config.cluster))?;
    } else {
        table(&backups).print()?;
    }
    fail_if_damaged(backups)
}

fn json_line(backup: &ListedBackup) -> Line<'_> {
    match &backup.summary {
        Ok(summary) => Line::Readable(Box::new(ReadableLine {
            status: "complete",
            permanent: backup.permanent,
            manifest_bytes: backup.manifest_bytes,
            summary,
        })),
        Err(error) => Line::Damaged {
            id: &backup.id,
            status: state_of(error),
            permanent: backup.permanent,
            problem: error.to_string(),
        },
    }
}

/// A backup without its key is whole, as far as one can tell.
fn state_of(error: &BackupError) -> &'static str {
    if error.exit_cause() == Cause::Damaged { "damaged" } else { "unreadable" }
}

fn table(backups: &[ListedBackup]) -> Table {
    let mut table = Table::new([
        ("id", Align::Left),
        ("kind", Align::Left),
        ("finished", Align::Left),
        ("cluster size", Align::Right),
        ("stored", Align::Right),
        ("WAL from", Align::Left),
        ("WAL to", Align::Left),
        ("server", Align::Right),
        ("notes", Align::Left),
    ]);
    for backup in backups {
        match &backup.summary {
            Ok(summary) => table.add(row(backup, summary)),
            Err(error) => table.add([
                backup.id.to_string(),
                state_of(error).to_owned(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                notes(backup, None),
            ]),
        }
    }
    table
}

fn row(backup: &ListedBackup, summary: &BackupSummary) -> [String; 9] {
    [
        backup.id.to_string(),
        kind_word(summary.kind).to_owned(),
        short_moment(summary.stop_time, &summary.time_zone),
        human_size(summary.cluster_bytes),
        human_size(summary.new_bytes),
        summary.start_lsn.to_string(),
        summary.stop_lsn.to_string(),
        version(summary.server_version),
        notes(backup, Some(summary)),
    ]
}

pub(super) fn kind_word(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
    }
}

/// `15.18` for 150018.
pub(super) fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

/// To the second, with the offset that the server's zone had then.
fn short_moment(at: PgTimestamp, zone: &str) -> String {
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    match at.to_jiff() {
        Some(moment) => moment.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%:::z").to_string(),
        None => at.to_string(),
    }
}

fn notes(backup: &ListedBackup, summary: Option<&BackupSummary>) -> String {
    let mut notes = Vec::new();
    if backup.permanent {
        notes.push("permanent".to_owned());
    }
    if let Some(summary) = summary {
        if summary.from_standby {
            notes.push("from a standby".to_owned());
        }
        if summary.encrypted {
            notes.push("encrypted".to_owned());
        }
        if summary.damaged_pages > 0 {
            notes.push(format!("{} damaged pages", summary.damaged_pages));
        }
    }
    notes.join(", ")
}

fn fail_if_damaged(backups: Vec<ListedBackup>) -> Result<Outcome, Failure> {
    let failures: Vec<_> = backups.into_iter().filter_map(|backup| backup.summary.err()).collect();
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(Outcome::Done),
        Some(first) => {
            let first = Failure::from(first);
            let message = match count {
                1 => format!("a backup cannot be used: {}", first.message),
                _ => format!("{count} backups cannot be used, the first because: {}", first.message),
            };
            Err(Failure { cause: Cause::Damaged, message, ..first })
        }
    }
}
