//! `keygen`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Print a new encryption key
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {}

/// Runs the command.
pub fn run(_args: KeygenArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
