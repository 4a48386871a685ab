//! `check`: does everything fit together?
//!
//! 1. Look at server, settings, files, clocks, store; send WAL there and back.
//! 2. Print what was found, one line each.
//! 3. Status 4 if something is bad.

use crate::check::{self, Level, RoundTrip};
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::output;

/// Look for what is wrong with the set-up: server settings, permissions, clocks, the store, and WAL on its way there and back
///
/// On a primary it writes a restore point and ends the current WAL segment, waits until that segment is in the
/// repository, reads it back and compares. Run it on the server's machine, as the user that PostgreSQL runs as.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Send no WAL on its way: the server is only asked
    #[arg(long)]
    pub no_wal_round_trip: bool,
}

/// Runs the command.
pub fn run(args: CheckArgs, config: &Config) -> Result<Outcome, Failure> {
    let trip = if args.no_wal_round_trip { RoundTrip::LeaveOut } else { RoundTrip::Make };
    let report = check::check(config, trip);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&check::text(&report))?;
    }
    let mut bad = report.findings.iter().filter(|finding| finding.level == Level::Bad);
    let Some(first) = bad.next() else { return Ok(Outcome::Done) };
    let message = match bad.count() {
        0 => format!("unhealthy: {}", first.text),
        more => format!("unhealthy: {}; and {more} more", first.text),
    };
    let failure = Failure::new(Cause::Unhealthy, message);
    Err(match &first.hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    })
}
