//! `backup-list`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// List backups
#[derive(Debug, clap::Args)]
pub struct BackupListArgs {}

/// Runs the command.
pub fn run(_args: BackupListArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
