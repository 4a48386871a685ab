//! `completions`: what shells need to complete walhold's command line.
//!
//! 1. Generate the script for one shell and print it, or write it into a directory under the name that the shell
//!    expects.

use std::path::PathBuf;

use clap_complete::Shell;

use crate::cli;
use crate::error::{Failure, system_words};
use crate::exit_status::{Cause, Outcome};
use crate::output;

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// Write the script into this directory instead, under the name that the shell expects
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs) -> Result<Outcome, Failure> {
    let mut definition = cli::definition();
    if let Some(directory) = &args.out_dir {
        let written = clap_complete::generate_to(args.shell, &mut definition, "walhold", directory);
        written.map_err(|error| {
            let problem = system_words(&error);
            Failure::new(
                Cause::FileUnusable,
                format!("write a script into {}: {problem}", directory.display()),
            )
        })?;
        return Ok(Outcome::Done);
    }
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, "walhold", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
