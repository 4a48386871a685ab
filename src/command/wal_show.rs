//! `wal-show`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Show what the archive holds
#[derive(Debug, clap::Args)]
pub struct WalShowArgs {}

/// Runs the command.
pub fn run(_args: WalShowArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
