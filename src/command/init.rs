//! `init`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Create the repository and probe its store
#[derive(Debug, clap::Args)]
pub struct InitArgs {}

/// Runs the command.
pub fn run(_args: InitArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
