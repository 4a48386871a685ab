//! `man`: the manual pages, made from the command line's definition.
//!
//! 1. Render one page for walhold and one per command.
//! 2. Print the one that was asked for, or write all of them into a directory.

use std::path::{Path, PathBuf};

use crate::cli;
use crate::error::{Failure, system_words};
use crate::exit_status::{Cause, Outcome};
use crate::output;

/// Print a manual page, or write all of them into a directory
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The command whose page is printed [default: walhold itself]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write all pages into this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out_dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ManArgs) -> Result<Outcome, Failure> {
    let pages = pages()?;
    if let Some(directory) = &args.out_dir {
        write_all(&pages, directory)?;
        return Ok(Outcome::Done);
    }
    let wanted = match &args.command {
        Some(command) => format!("walhold-{command}.1"),
        None => "walhold.1".to_owned(),
    };
    match pages.iter().find(|(name, _)| *name == wanted) {
        Some((_, text)) => output::print(text)?,
        None => return Err(Failure::new(Cause::Usage, format!("there is no manual page {wanted}"))),
    }
    Ok(Outcome::Done)
}

fn write_all(pages: &[(String, String)], directory: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(Cause::FileUnusable, format!("write {}: {}", path.display(), system_words(&error)))
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (name, text) in pages {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// File name and text of every page.
fn pages() -> Result<Vec<(String, String)>, Failure> {
    let mut whole = cli::definition();
    whole.build();
    let mut pages = vec![("walhold.1".to_owned(), page(whole.clone())?)];
    for command in whole.get_subcommands().filter(|command| !command.is_hide_set()) {
        if command.get_name() != "help" {
            let name = format!("walhold-{}.1", command.get_name());
            pages.push((name, page(command.clone().version(env!("CARGO_PKG_VERSION")))?));
        }
    }
    Ok(pages)
}

fn page(command: clap::Command) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut bytes);
    rendered.map_err(|error| Failure::new(Cause::Internal, format!("render a manual page: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
