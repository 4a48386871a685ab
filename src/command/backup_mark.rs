//! `backup-mark`: pins a backup or unpins it.
//!
//! 1. Open the repository; no server is needed.
//! 2. See that the backup exists.
//! 3. Add a mark: the newest one counts, none is ever changed.

use super::backup_list::PATIENCE;
use super::backup_show::parse_name;
use crate::backup::list::Catalogue;
use crate::backup::marks::{self, Mark};
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;
use crate::output;
use crate::repository::{Patience, Repository};

/// Pin a backup so that it is kept, or unpin it
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("mark").required(true).args(["permanent", "impermanent"]))]
pub struct BackupMarkArgs {
    /// The backup's id, or latest
    #[arg(value_name = "ID")]
    pub id: String,
    /// Keep the backup until it is marked otherwise
    #[arg(long)]
    pub permanent: bool,
    /// Let retention decide about the backup again
    #[arg(long)]
    pub impermanent: bool,
}

/// Runs the command.
pub fn run(args: BackupMarkArgs, config: &Config) -> Result<Outcome, Failure> {
    let name = parse_name(&args.id)?;
    let mark = if args.permanent { Mark::Permanent } else { Mark::Impermanent };
    let keys = config.key_ring()?;
    let repository = Repository::open(&config.repository, Patience::PerRequest(PATIENCE))?;
    let catalogue = Catalogue { repository: &repository, cluster: &config.cluster, keys: &keys };
    let (id, _) = catalogue.find(&name)?;
    marks::put(&repository, &config.cluster, &id, mark)?;
    output::print_line(&format!("backup {id} is {} now", mark.word()))?;
    Ok(Outcome::Done)
}
