//! `backup-push`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Take a base backup
#[derive(Debug, clap::Args)]
pub struct BackupPushArgs {}

/// Runs the command.
pub fn run(_args: BackupPushArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
