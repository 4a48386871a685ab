//! `wal-fetch`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Fetch one archived file (restore_command)
#[derive(Debug, clap::Args)]
pub struct WalFetchArgs {}

/// Runs the command.
pub fn run(_args: WalFetchArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
