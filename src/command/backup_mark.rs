//! `backup-mark`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Pin a backup or unpin it
#[derive(Debug, clap::Args)]
pub struct BackupMarkArgs {}

/// Runs the command.
pub fn run(_args: BackupMarkArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
