//! `wal-show`: what the archive holds.
//!
//! 1. Open the repository; no server is needed.
//! 2. List the archive, or read one segment's index.
//! 3. Print it, for people or as JSON.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Show what the archive holds
#[derive(Debug, clap::Args)]
pub struct WalShowArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Read every segment's index: exact commit times, and segments that were archived damaged
    #[arg(long)]
    pub all: bool,
    /// Print the index of one segment as JSON
    #[arg(long, value_name = "SEGMENT", conflicts_with_all = ["json", "all"])]
    pub index: Option<crate::pg::WalSegmentName>,
}

/// Runs the command.
pub fn run(_args: WalShowArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
