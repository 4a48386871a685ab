//! `verify`: is the repository still what was written?
//!
//! 1. Open the repository; no server is needed.
//! 2. Compare listings with what the manifests say.
//! 3. With `--deep` read every object whole, with `--sample` a part of them; what the last run found, always.
//! 4. Work out what is lost and what to copy back; leave the result in the repository; status 4 if anything is wrong.

use std::collections::BTreeSet;

use super::backup_list::PATIENCE;
use crate::backup::rate_limit::RateLimit;
use crate::codec::KeyRing;
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::output;
use crate::repository::{Patience, Repository, StoredObject};
use crate::retention::inventory::{Depth, Inventory};
use crate::verify::check::{self, DeepCheck, DeepResult, Found, Item};
use crate::verify::journal::Journal;
use crate::verify::record::{self, FINDINGS_KEPT, RecordedFinding, VerifyDepth, VerifyRecord};
use crate::verify::report::{VerifyReport, costs, text};

/// Check the repository: listings against manifests, and with --deep every object
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Read every object whole: decrypt, decompress, compare digests
    #[arg(long, conflicts_with = "sample")]
    pub deep: bool,
    /// Read this part of all objects whole, others each time, such as 5%
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub sample: Option<f64>,
    /// Leave no result in the repository
    #[arg(long)]
    pub no_record: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>().ok();
    number
        .filter(|number| *number > 0.0 && *number <= 100.0)
        .ok_or_else(|| "expected a percentage above 0 and up to 100, such as 5%".to_owned())
}

/// Runs the command.
pub fn run(args: VerifyArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let inventory = Inventory::take(&repository, &config.cluster, &keys, Depth::Packs)?;
    let before = record::newest(&repository, &config.cluster)?;
    let items = check::items(&inventory);
    let mut found: BTreeSet<Found> = check::quick(&inventory).into_iter().collect();
    let depth = match (args.deep, args.sample) {
        (true, _) => VerifyDepth::Deep,
        (_, Some(_)) => VerifyDepth::Sample,
        _ => VerifyDepth::Quick,
    };
    let chosen = choose(&items, depth, args.sample, before.as_ref());
    let read = read_objects(&inventory, config, &keys, depth, &chosen)?;
    let known: BTreeSet<String> = found.iter().map(|found| found.path.clone()).collect();
    found.extend(read.found.into_iter().filter(|found| !known.contains(&found.path)));
    let (findings, systems) = costs(&inventory, found.into_iter().collect())?;
    let report = VerifyReport {
        repository: repository.url().to_owned(),
        cluster: config.cluster.clone(),
        depth,
        started: inventory.taken_at,
        finished: jiff::Timestamp::now(),
        listed_objects: items.len() as u64,
        read_objects: read.objects,
        read_bytes: read.bytes,
        findings,
        systems,
        strangers: inventory.strangers.len() as u64,
    };
    if !args.no_record {
        leave_record(&repository, config, &report);
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    match report.findings.as_slice() {
        [] => Ok(Outcome::Done),
        [first, rest @ ..] => Err(Failure::new(
            Cause::Unhealthy,
            match rest.len() {
                0 => format!("{}: {}", first.path, first.problem),
                more => format!("{}: {}; and {more} more objects", first.path, first.problem),
            },
        )
        .with_hint("copy these objects back from a copy of the repository; if there is none, take a backup now (walhold backup-push)")),
    }
}

/// What is read whole: everything, a random part, and always what was found bad before.
fn choose(
    items: &[(Item, StoredObject)],
    depth: VerifyDepth,
    sample: Option<f64>,
    before: Option<&VerifyRecord>,
) -> Vec<(Item, StoredObject)> {
    if depth == VerifyDepth::Deep {
        return items.to_vec();
    }
    let bad: BTreeSet<&str> =
        before.iter().flat_map(|record| &record.objects).map(|object| object.path.as_str()).collect();
    let share = sample.unwrap_or(0.0) / 100.0;
    // Without randomness everything is read.
    let drawn = || getrandom::u32().map_or(0.0, |random| f64::from(random) / f64::from(u32::MAX));
    let wanted =
        |object: &StoredObject| bad.contains(object.path.as_str()) || (share > 0.0 && drawn() < share);
    items.iter().filter(|(_, object)| wanted(object)).cloned().collect()
}

fn read_objects(
    inventory: &Inventory<'_>,
    config: &Config,
    keys: &KeyRing,
    depth: VerifyDepth,
    chosen: &[(Item, StoredObject)],
) -> Result<DeepResult, Failure> {
    let name = format!("{}-{}", inventory.repository.marker().repository_id, config.cluster);
    let journal = (depth == VerifyDepth::Deep).then(|| Journal::open(&config.state_dir, &name));
    if let Some(journal) = journal.as_ref().filter(|journal| journal.known() > 0) {
        tracing::info!(
            "going on with a run that was interrupted: {} objects are read already",
            journal.known()
        );
    }
    let check = DeepCheck {
        inventory,
        keys,
        jobs: config.jobs,
        limit: config.rate_limit.map(RateLimit::new),
        journal: journal.as_ref(),
    };
    let read = check.run(chosen)?;
    if let Some(journal) = journal {
        journal.remove();
    }
    Ok(read)
}

/// Whoever may only read still gets the report.
fn leave_record(repository: &Repository, config: &Config, report: &VerifyReport) {
    let kept = report.findings.iter().take(FINDINGS_KEPT);
    let record = VerifyRecord {
        depth: report.depth,
        started: report.started,
        finished: report.finished,
        listed_objects: report.listed_objects,
        read_objects: report.read_objects,
        read_bytes: report.read_bytes,
        findings: report.findings.len() as u64,
        objects: kept
            .map(|finding| RecordedFinding { path: finding.path.clone(), problem: finding.problem.clone() })
            .collect(),
    };
    if let Err(error) = record.publish(repository, &config.cluster) {
        tracing::warn!("the result is not recorded, and status will not know it: {error}");
    }
}
