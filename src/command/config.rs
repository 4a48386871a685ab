//! `config`: to be written.

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;

/// Print the effective settings with their origins
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {}

/// Runs the command.
pub fn run(_args: ConfigArgs, _config: &Config) -> Result<Outcome, Failure> {
    todo!()
}
