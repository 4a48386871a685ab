//! `wal-push`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Archive one file (archive_command)
#[derive(Debug, clap::Args)]
pub struct WalPushArgs {}

/// Runs the command.
pub fn run(_args: WalPushArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
