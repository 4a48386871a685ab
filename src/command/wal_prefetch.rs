//! `wal-prefetch`: keeps the next segments ready for a server that recovers, or ends that. wal-fetch and `recovery_end_command` call it; people need not.
//!
//! 1. `--clear`: end whoever keeps the window, and remove it.
//! 2. Else leave everything of the process that started this one.
//! 3. Keep the window until it is not needed any more.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::{Cause, Outcome};
use crate::pg::WalSegmentName;
use crate::wal::prefetch::worker::WindowOrder;
use crate::wal::prefetch::{client, worker};

/// Keep the next WAL segments ready for a recovering server (wal-fetch starts this by itself)
#[derive(Debug, clap::Args)]
pub struct WalPrefetchArgs {
    /// The server's directory of WAL
    #[arg(long, value_name = "DIR", default_value = "pg_wal")]
    pub wal_directory: PathBuf,
    /// The segment that the server got last
    #[arg(long, value_name = "SEGMENT", required_unless_present = "clear")]
    pub after: Option<String>,
    /// End the prefetch in this directory and remove what it holds (recovery_end_command)
    #[arg(long, conflicts_with = "after")]
    pub clear: bool,
}

/// Runs the command.
pub fn run(args: WalPrefetchArgs, config: &Config) -> Result<Outcome, Failure> {
    let Some(after) = args.after.as_deref().filter(|_| !args.clear) else {
        return match client::clear(&args.wal_directory) {
            true => Ok(Outcome::Done),
            false => {
                let message = format!("clear {}: somebody still keeps it", args.wal_directory.display());
                Err(Failure::new(Cause::FileUnusable, message)
                    .with_hint("it goes by itself a minute after the last request"))
            }
        };
    };
    let after: WalSegmentName = after
        .parse()
        .map_err(|problem| Failure::new(Cause::Usage, format!("prefetch after {after}: {problem}")))?;
    worker::detach();
    let order = WindowOrder {
        pgdata: config.data_directory()?,
        wal_directory: args.wal_directory,
        after,
        binding: None,
    };
    worker::run(config, &order, &AtomicBool::new(false))?;
    Ok(Outcome::Done)
}
