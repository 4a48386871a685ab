//! `restore`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Plan and run a recovery
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {}

/// Runs the command.
pub fn run(_args: RestoreArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
