//! `wal-show`: what the archive holds.
//!
//! 1. Open the repository; no server is needed.
//! 2. List the archive, or read one segment's index.
//! 3. Print it, for people or as JSON.

use std::time::Duration;

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;
use crate::format::wal_index::{RecordVerdict, TablespaceEventKind, WalIndex, fork_name};
use crate::output::{Align, Table, human_size, print, print_json, print_line};
use crate::pg::WalSegmentName;
use crate::pg::wal_storage::DatabaseDirectory;
use crate::repository::{Patience, Repository};
use crate::wal::show::{
    ArchiveListing, CommitTimes, IndexCoverage, SystemListing, TimelineListing, list_archive, segment_index,
};

/// How long each request is repeated.
const PATIENCE: Duration = Duration::from_secs(60);

/// Show what the archive holds: timelines, segments, gaps, sizes, commit times
#[derive(Debug, clap::Args)]
pub struct WalShowArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Read every segment's index, not only those of each run's ends: exact commit times, and segments that were archived damaged
    #[arg(long)]
    pub all: bool,
    /// Print the index of one segment
    #[arg(long, value_name = "SEGMENT", conflicts_with = "all")]
    pub index: Option<WalSegmentName>,
}

/// Runs the command.
pub fn run(args: WalShowArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    if let Some(segment) = args.index {
        let index = segment_index(&repository, &config.cluster, &keys, segment)?;
        match args.json {
            true => print_json(&index)?,
            false => print(&render_index(segment, &index))?,
        }
        return Ok(Outcome::Done);
    }
    let coverage = if args.all { IndexCoverage::All } else { IndexCoverage::Ends };
    let listing = list_archive(&repository, &config.cluster, &keys, coverage)?;
    match args.json {
        true => print_json(&listing)?,
        false => print_listing(&listing)?,
    }
    Ok(Outcome::Done)
}

/// One segment's index for people.
fn render_index(segment: WalSegmentName, index: &WalIndex) -> String {
    let mut text = format!(
        "segment {segment}: {} to {}, PostgreSQL {}, {} records end in it\n",
        index.start, index.end, index.postgresql_major, index.record_count
    );
    let mut line = |label: &str, value: String| text.push_str(&format!("{label:<16}{value}\n"));
    if let RecordVerdict::Damaged { at, problem } = &index.verdict {
        line("DAMAGED", format!("at {at}: {problem}"));
    }
    if let Some(span) = &index.transactions {
        line("commits, aborts", format!("{}, {} - {}", span.count, span.least_time, span.greatest_time));
    }
    for point in &index.restore_points {
        line("restore point", format!("{:?} at {}, {}", point.name, point.lsn, point.time));
    }
    for checkpoint in &index.checkpoints {
        line(
            "checkpoint",
            format!("{:?} at {}, redo from {}", checkpoint.kind, checkpoint.lsn, checkpoint.redo),
        );
    }
    for (lsn, level) in &index.wal_levels {
        let level = ["minimal", "replica", "logical"].get(usize::from(*level)).copied().unwrap_or("unknown");
        line("wal_level", format!("{level} from {lsn}"));
    }
    text.push_str(&render_files(index));
    text.push_str(&render_blocks(index));
    text
}

fn render_files(index: &WalIndex) -> String {
    let mut text = String::new();
    for making in index.databases_made.iter().flatten() {
        let DatabaseDirectory { database, tablespace } = making.directory;
        let how = match making.copied_from {
            Some(from) => format!("copied from database {} in tablespace {}", from.database, from.tablespace),
            None => "its pages follow".to_owned(),
        };
        let what = format!("database {database} in tablespace {tablespace} at {}: {how}", making.lsn);
        text.push_str(&format!("{:<16}{what}\n", "made"));
    }
    let Some(files) = &index.files else { return text };
    for removal in &files.removals {
        let what = format!(
            "{} relations by transaction {} at {}, {}",
            removal.count, removal.xid, removal.lsn, removal.time
        );
        text.push_str(&format!("{:<16}{what}\n", "removed"));
    }
    for removal in &files.databases {
        let what = format!("database {} by transaction {} at {}", removal.database, removal.xid, removal.lsn);
        text.push_str(&format!("{:<16}{what}\n", "removed"));
    }
    for event in &files.tablespaces {
        let what = match &event.kind {
            TablespaceEventKind::Created { path } => {
                format!("{} made at {}: {path}", event.tablespace, event.lsn)
            }
            TablespaceEventKind::Dropped => format!("{} dropped at {}", event.tablespace, event.lsn),
        };
        text.push_str(&format!("{:<16}{what}\n", "tablespace"));
    }
    text
}

fn render_blocks(index: &WalIndex) -> String {
    let Some(blocks) = &index.blocks else {
        return "changed blocks  not known\n".to_owned();
    };
    let mut text =
        format!("changed blocks  {} in {} relation forks\n", blocks.block_count(), blocks.fork_count());
    let mut table = Table::new([
        ("tablespace", Align::Right),
        ("database", Align::Right),
        ("relation", Align::Right),
        ("fork", Align::Left),
        ("new from", Align::Right),
        ("blocks", Align::Right),
    ]);
    for fork in blocks.forks() {
        let count: u64 = fork.runs.iter().map(|(first, last)| u64::from(last - first) + 1).sum();
        table.add([
            fork.relation.tablespace.to_string(),
            fork.relation.database.to_string(),
            fork.relation.relation.to_string(),
            fork_name(fork.fork).to_owned(),
            fork.limit.map(|limit| limit.to_string()).unwrap_or_default(),
            count.to_string(),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&table.render());
    }
    text
}

fn print_listing(listing: &ArchiveListing) -> Result<(), Failure> {
    if listing.systems.is_empty() {
        print_line(&format!(
            "nothing is archived under the name {} in {}",
            listing.cluster, listing.repository
        ))?;
    }
    for system in &listing.systems {
        print(&render_system(listing, system))?;
    }
    Ok(())
}

fn render_system(listing: &ArchiveListing, system: &SystemListing) -> String {
    let mut text = format!(
        "cluster {}, system identifier {}: {} stored\n",
        listing.cluster,
        system.system_identifier,
        human_size(system.stored_bytes)
    );
    for timeline in &system.timelines {
        text.push_str(&render_timeline(timeline));
    }
    let files = system.partials.iter().chain(&system.backup_histories);
    for file in files {
        text.push_str(&format!("\n{} ({})", file.name, human_size(file.stored_bytes)));
    }
    for problem in &system.problems {
        text.push_str(&format!("\nPROBLEM: {problem}"));
    }
    text.push('\n');
    text
}

fn render_timeline(timeline: &TimelineListing) -> String {
    let mut text = format!("\ntimeline {}", timeline.timeline.get());
    if let (Some(parent), Some(begins_at)) = (timeline.parent, timeline.begins_at) {
        text.push_str(&format!(", which left timeline {} at {begins_at}", parent.get()));
    } else if timeline.timeline.get() > 1 {
        text.push_str(", whose history is not in the archive");
    }
    text.push_str(&format!(": {} segments, {}\n", timeline.segments, human_size(timeline.stored_bytes)));
    let mut table = Table::new([
        ("from", Align::Left),
        ("to", Align::Left),
        ("segments", Align::Right),
        ("size", Align::Right),
        ("WAL", Align::Left),
        ("commits", Align::Left),
    ]);
    let mut gaps = timeline.gaps.iter();
    for (at, run) in timeline.runs.iter().enumerate() {
        if at > 0
            && let Some(gap) = gaps.next()
        {
            table.add([
                gap.first.to_string(),
                gap.last.to_string(),
                gap.segments.to_string(),
                "MISSING".to_owned(),
            ]);
        }
        table.add([
            run.first.to_string(),
            run.last.to_string(),
            run.segments.to_string(),
            human_size(run.stored_bytes),
            format!("{} - {}", run.start_lsn, run.end_lsn),
            run.commit_times.map(render_commit_times).unwrap_or_default(),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&table.render());
    }
    text
}

fn render_commit_times(times: CommitTimes) -> String {
    let second = |time: crate::pg::PgTimestamp| match time.to_jiff() {
        Some(moment) => moment.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => time.to_string(),
    };
    format!("{} - {} UTC", second(times.least), second(times.greatest))
}
