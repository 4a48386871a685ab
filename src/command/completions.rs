//! `completions`: what shells need to complete walhold's command line.
//!
//! 1. Generate the script for one shell and print it, or write the scripts for all of them into a directory, each
//!    under the name that its shell expects.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap_complete::Shell;

use crate::cli;
use crate::error::{Failure, system_words};
use crate::exit_status::{Cause, Outcome};
use crate::output;

/// Print a shell's completion script, or write those of all shells into a directory
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", required_unless_present = "out_dir")]
    shell: Option<Shell>,
    /// Write the scripts into this directory instead, each under the name that its shell expects
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs) -> Result<Outcome, Failure> {
    let shells = match args.shell {
        Some(shell) => vec![shell],
        None => Shell::value_variants().to_vec(),
    };
    for shell in shells {
        match &args.out_dir {
            Some(directory) => write_script(shell, directory)?,
            None => print_script(shell)?,
        }
    }
    Ok(Outcome::Done)
}

fn print_script(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::definition(), "walhold", &mut script);
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}

fn write_script(shell: Shell, directory: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_complete::generate_to(shell, &mut cli::definition(), "walhold", directory));
    match written {
        Ok(_) => Ok(()),
        Err(error) => {
            let problem = system_words(&error);
            Err(Failure::new(
                Cause::FileUnusable,
                format!("write a script into {}: {problem}", directory.display()),
            ))
        }
    }
}
