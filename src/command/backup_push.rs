//! `backup-push`: takes a base backup.
//!
//! 1. Open the repository.
//! 2. Take the backup: connect and check, begin, choose a base, announce and find what has changed, copy, stop, encode its manifest,
//!    wait for its WAL, publish the manifest.
//! 3. Print what was stored.
//! 4. Fail if pages were damaged, although the backup is stored.

use std::ffi::OsStr;
use std::time::Duration;

use super::backup_list::kind_word;
use crate::backup::changes::{ChangeSource, ChangesFrom};
use crate::backup::{BackupReport, BackupRequest, Extent, take_backup};
use crate::codec::Sealing;
use crate::config::Config;
use crate::config::schema::Kind;
use crate::config::value::Value;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::format::BackupId;
use crate::format::manifest::{BackupKind, Resumed};
use crate::output::{self, human_duration, human_size};
use crate::pg::client::StartCheckpoint;
use crate::repository::{Patience, Repository};

/// How long each request to the store is repeated: a backup has no deadline of its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// Take a base backup of the server on this machine: all of it the first time, then what has changed
#[derive(Debug, clap::Args)]
pub struct BackupPushArgs {
    /// Store everything, whatever earlier backups hold
    #[arg(long)]
    pub full: bool,
    /// How to find what has changed since the base
    #[arg(long, value_enum, value_name = "SOURCE", default_value_t = ChangesFromWord::Auto, conflicts_with = "full")]
    pub changes_from: ChangesFromWord,
    /// The label that the server records
    #[arg(long, value_name = "TEXT", default_value = "walhold")]
    pub label: String,
    /// The checkpoint that the backup begins with: at once, or spread over checkpoint_completion_target
    #[arg(long, value_enum, default_value_t = CheckpointWord::Fast)]
    pub checkpoint: CheckpointWord,
    /// How long to wait while none of the backup's WAL arrives in the repository
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = wal_timeout)]
    pub wal_timeout: Duration,
    /// Print the stored backup as JSON
    #[arg(long)]
    pub json: bool,
}

/// `--checkpoint`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum CheckpointWord {
    /// At once
    Fast,
    /// Gently
    Spread,
}

/// `--changes-from`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum ChangesFromWord {
    /// The best of these that can be trusted
    Auto,
    /// The server's WAL summaries (PostgreSQL 17 and later, summarize_wal = on)
    Summaries,
    /// The WAL index in the repository
    Index,
    /// The pages' LSNs: every page is read
    Scan,
    /// The base's digests: everything is read
    Compare,
}

impl From<ChangesFromWord> for ChangesFrom {
    fn from(word: ChangesFromWord) -> ChangesFrom {
        match word {
            ChangesFromWord::Auto => ChangesFrom::Auto,
            ChangesFromWord::Summaries => ChangesFrom::Only(ChangeSource::Summaries),
            ChangesFromWord::Index => ChangesFrom::Only(ChangeSource::Index),
            ChangesFromWord::Scan => ChangesFrom::Only(ChangeSource::Scan),
            ChangesFromWord::Compare => ChangesFrom::Only(ChangeSource::Compare),
        }
    }
}

fn wal_timeout(text: &str) -> Result<Duration, String> {
    let kind = Kind::Duration(100, 7 * 24 * 60 * 60 * 1000);
    match kind.read_text(OsStr::new(text)) {
        Ok(Value::Duration(length)) => Ok(length),
        _ => Err(format!("allowed is {}", kind.allowed())),
    }
}

/// Runs the command.
pub fn run(args: BackupPushArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let report = take_backup(&BackupRequest {
        repository: &repository,
        cluster: &config.cluster,
        connection: &config.connection,
        pgdata: config.pgdata.as_deref(),
        keys: &keys,
        extent: if args.full { Extent::Full } else { Extent::Incremental(args.changes_from.into()) },
        sealing: Sealing { compression: config.compression, key: keys.writing_key().cloned(), workers: None },
        jobs: config.jobs,
        rate_limit: config.rate_limit,
        label: &args.label,
        checkpoint: match args.checkpoint {
            CheckpointWord::Fast => StartCheckpoint::Fast,
            CheckpointWord::Spread => StartCheckpoint::Spread,
        },
        wal_patience: args.wal_timeout,
    })?;
    if args.json {
        output::print_json(&report.summary)?
    } else {
        output::print_line(&line(&report))?
    }
    fail_if_damaged(&report)
}

fn line(report: &BackupReport) -> String {
    let summary = &report.summary;
    let reused = match summary.kind {
        BackupKind::Full => String::new(),
        BackupKind::Incremental => {
            format!(", {} reused", human_size(summary.reused_bytes()))
        }
    };
    let resumed = summary.resumed.as_ref().map_or(String::new(), resumed);
    format!(
        "{} backup {}: {} in {} files, {} stored{}{resumed}, WAL {} to {} on timeline {}, {}",
        kind_word(summary.kind),
        summary.id,
        human_size(summary.cluster_bytes),
        summary.file_count,
        human_size(summary.new_bytes),
        reused,
        summary.start_lsn,
        summary.stop_lsn,
        summary.stop_timeline.get(),
        human_duration(report.elapsed),
    )
}

/// What attempts that ended early have spared.
fn resumed(resumed: &Resumed) -> String {
    let attempts: Vec<&str> = resumed.attempts.iter().map(BackupId::as_str).collect();
    let attempts = attempts.join(", ");
    format!(", resumed: {} reused from the attempt of {attempts}", human_size(resumed.bytes))
}

fn fail_if_damaged(report: &BackupReport) -> Result<Outcome, Failure> {
    let Some((file, block)) = report.damaged_blocks.first() else { return Ok(Outcome::Done) };
    let id = &report.summary.id;
    let message = match report.summary.damaged_pages {
        1 => format!("backup {id} is stored, but a page of the cluster is damaged: block {block} of {file}"),
        count => format!(
            "backup {id} is stored, but {count} pages of the cluster are damaged, the first is block {block} of {file}"
        ),
    };
    Err(Failure::new(Cause::Damaged, message).with_hint(format!(
        "walhold backup-show {id} lists them; restore an earlier backup beside the server to get the pages back, and look at the disk"
    )))
}
