//! `status`: can this cluster be recovered, to which moments, and is anything wrong?
//!
//! 1. Open the repository; no server is needed.
//! 2. Read listings, the ends of manifests and a few indexes.
//! 3. Judge by the thresholds of the configuration.
//! 4. Print; status 4 if something is unhealthy.

use super::backup_list::PATIENCE;
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::output;
use crate::repository::{Patience, Repository};
use crate::retention::inventory::{Depth, Inventory};
use crate::status::{StatusReport, render};
use crate::verify::record;

/// Say which moments can be recovered, how old the last backup and the last commit are, and what is wrong
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: StatusArgs, config: &Config) -> Result<Outcome, Failure> {
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let (inventory, verified) = std::thread::scope(|scope| {
        let verified = scope.spawn(|| record::newest(&repository, &config.cluster));
        let inventory = Inventory::take(&repository, &config.cluster, &keys, Depth::Summaries);
        let lost = || Err(Failure::new(Cause::Internal, "a thread ended unexpectedly"));
        (inventory, verified.join().unwrap_or_else(|_| lost()))
    });
    let inventory = inventory?;
    let report = StatusReport::of(&inventory, verified?, config)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&render::text(&report))?;
    }
    match report.problems.as_slice() {
        [] => Ok(Outcome::Done),
        [first, rest @ ..] => {
            let message = match rest.len() {
                0 => format!("unhealthy: {}", first.text),
                more => format!("unhealthy: {}; and {more} more", first.text),
            };
            Err(Failure::new(Cause::Unhealthy, message).with_hint(first.hint.clone()))
        }
    }
}
