//! `backup-show`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Show one backup in detail
#[derive(Debug, clap::Args)]
pub struct BackupShowArgs {}

/// Runs the command.
pub fn run(_args: BackupShowArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
