//! `backup-show`: one backup in detail.
//!
//! 1. Open the repository; no server is needed.
//! 2. Read the backup's manifest.
//! 3. Print what it says, with `--files` every file too.

use std::fmt::Write;

use serde::Serialize;

use super::backup_list::{PATIENCE, kind_word, version};
use crate::backup::list::{BackupName, Catalogue};
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::format::BackupId;
use crate::format::manifest::{BackupSummary, FileEntry, Manifest, Root, ServerFacts, Tablespace};
use crate::output::{self, human_size, moment};
use crate::pg::PgTimestamp;
use crate::repository::{Patience, Repository};

/// Show one backup in detail
#[derive(Debug, clap::Args)]
pub struct BackupShowArgs {
    /// The backup's id, or latest
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show every file
    #[arg(long)]
    pub files: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    permanent: bool,
    #[serde(flatten)]
    summary: &'a BackupSummary,
    server: &'a ServerFacts,
    backup_label: &'a str,
    tablespace_map: Option<&'a str>,
    tablespaces: &'a [Tablespace],
    databases: Vec<ShownDatabase<'a>>,
    pack_count: usize,
    range_count: usize,
    /// Stored bytes of earlier backups' packs that this one uses.
    reused_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<ShownFile>>,
}

#[derive(Serialize)]
struct ShownDatabase<'a> {
    name: &'a str,
    oid: u32,
    relation_count: usize,
}

#[derive(Serialize)]
struct ShownFile {
    /// Relative to PGDATA; absolute for a configuration file outside it.
    path: String,
    size: u64,
    /// Octal digits.
    mode: String,
}

/// Runs the command.
pub fn run(args: BackupShowArgs, config: &Config) -> Result<Outcome, Failure> {
    let name = parse_name(&args.id)?;
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let catalogue = Catalogue { repository: &repository, cluster: &config.cluster, keys: &keys };
    let manifest = catalogue.manifest(&name)?;
    let permanent = catalogue.is_permanent(&manifest.summary.id)?;
    let shown = shown(&manifest, permanent, args.files);
    if args.json {
        output::print_json(&shown)?
    } else {
        output::print(&text(&shown))?
    }
    Ok(Outcome::Done)
}

/// A backup's name on the command line.
pub(super) fn parse_name(text: &str) -> Result<BackupName, Failure> {
    let name = text.parse();
    name.map_err(|error: crate::format::backup_id::ParseBackupIdError| {
        Failure::new(Cause::NotFound, error.to_string()).with_hint("walhold backup-list shows what there is")
    })
}

fn shown(manifest: &Manifest, permanent: bool, with_files: bool) -> Shown<'_> {
    let relations_of = |oid| {
        let is_relation = |entry: &&crate::format::manifest::CatalogueEntry| entry.oid != 0;
        manifest.catalogue.iter().filter(|entry| entry.database_oid == oid).filter(is_relation).count()
    };
    let databases = manifest.catalogue.iter().filter(|entry| entry.oid == 0).map(|entry| ShownDatabase {
        name: &entry.database,
        oid: entry.database_oid,
        relation_count: relations_of(entry.database_oid),
    });
    Shown {
        permanent,
        summary: &manifest.summary,
        server: &manifest.server,
        backup_label: &manifest.backup_label,
        tablespace_map: manifest.tablespace_map.as_deref(),
        tablespaces: &manifest.tablespaces,
        databases: databases.collect(),
        pack_count: manifest.packs.len(),
        range_count: manifest.files.iter().map(|file| file.ranges.len()).sum(),
        reused_bytes: manifest.summary.reused_bytes(),
        files: with_files.then(|| manifest.files.iter().map(shown_file).collect()),
    }
}

fn shown_file(file: &FileEntry) -> ShownFile {
    let path = String::from_utf8_lossy(&file.path);
    ShownFile {
        path: match file.root {
            Root::DataDirectory => path.into_owned(),
            Root::External => format!("/{path}"),
        },
        size: file.size,
        mode: format!("{:04o}", file.mode),
    }
}

/// The same for people. Writing into a `String` cannot fail.
fn text(shown: &Shown<'_>) -> String {
    let summary = shown.summary;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18} {value}");
    };
    let at = |time: PgTimestamp| match time.to_jiff() {
        Some(time) => moment(time, Some(&summary.time_zone)),
        None => time.to_string(),
    };
    line("backup", summary.id.to_string());
    line("kind", kind_word(summary.kind).to_owned());
    if let Some(base) = &summary.base {
        line("base", base.to_string());
    }
    line("permanent", if shown.permanent { "yes" } else { "no" }.to_owned());
    line("taken from", if summary.from_standby { "a standby" } else { "the primary" }.to_owned());
    line("server", format!("PostgreSQL {}", version(summary.server_version)));
    line("system identifier", summary.system_identifier.to_string());
    line("began", at(summary.start_time));
    line("finished", at(summary.stop_time));
    line("WAL", wal(summary));
    line("cluster size", format!("{} in {} files", human_size(summary.cluster_bytes), summary.file_count));
    line("stored anew", human_size(summary.new_bytes));
    line("reused", format!("{} of earlier backups", human_size(shown.reused_bytes)));
    if let Some(resumed) = &summary.resumed {
        let attempts: Vec<&str> = resumed.attempts.iter().map(BackupId::as_str).collect();
        line("resumed", format!("{} of the attempt of {}", human_size(resumed.bytes), attempts.join(", ")));
    }
    line("packs", shown.pack_count.to_string());
    line("changes from", changes_from(&summary.changes_from).to_owned());
    line(
        "page checksums",
        if summary.data_checksums { "verified" } else { "the cluster has none" }.to_owned(),
    );
    line("damaged pages", summary.damaged_pages.to_string());
    line("encrypted", if summary.encrypted { "yes" } else { "no" }.to_owned());
    line("data directory", shown.server.data_directory.clone());
    for file in &shown.server.external_configuration {
        line("configuration", file.clone());
    }
    for tablespace in shown.tablespaces {
        line("tablespace", format!("{} ({}) at {}", tablespace.name, tablespace.oid, tablespace.location));
    }
    for database in &shown.databases {
        line(
            "database",
            format!("{} ({}), {} relations", database.name, database.oid, database.relation_count),
        );
    }
    for (file, block) in &shown.server.damaged_blocks {
        line("damaged page", format!("block {block} of {file}"));
    }
    for file in shown.files.iter().flatten() {
        line("file", format!("{} {:>12} {}", file.mode, file.size, file.path));
    }
    text
}

/// How "changed" was found, in a few words.
fn changes_from(word: &str) -> &str {
    match word {
        "full" => "nothing: everything was stored",
        "summaries" => "the server's WAL summaries",
        "index" => "the WAL index in the repository",
        "scan" => "the pages' LSNs",
        "compare" => "everything, read and compared",
        other => other,
    }
}

fn wal(summary: &BackupSummary) -> String {
    let (start, stop) = (summary.start_timeline.get(), summary.stop_timeline.get());
    let timeline = if start == stop { format!("{start}") } else { format!("{start} to {stop}") };
    format!("{} to {} on timeline {timeline}", summary.start_lsn, summary.stop_lsn)
}
