//! `wal-push`: archives one file for PostgreSQL.
//!
//! 1. Open the file and check that it is what its name says.
//! 2. Open the repository.
//! 3. See that the cluster's identity is recorded.
//! 4. Encode and publish the file in one pass; if its name is taken, compare.
//!
//! Status 0 is said only when the object is durable: PostgreSQL removes the file then.

use std::path::PathBuf;
use std::time::Instant;

use crate::codec::Sealing;
use crate::config::Config;
use crate::error::Failure;
use crate::exit_status::Outcome;
use crate::repository::{Patience, Repository};
use crate::wal::archive_file::ArchiveFile;
use crate::wal::identity::ensure_recorded;
use crate::wal::push::{Pushed, Writing, push_file};

/// Archive one file (archive_command)
///
/// In postgresql.conf: archive_command = 'walhold wal-push %p'
#[derive(Debug, clap::Args)]
pub struct WalPushArgs {
    /// The file to archive, as PostgreSQL's %p names it: a segment, .partial, .history or .backup file
    pub path: PathBuf,
}

/// Runs the command.
pub fn run(args: WalPushArgs, config: &Config) -> Result<Outcome, Failure> {
    let deadline = Instant::now() + config.wal.push_deadline;
    let file = ArchiveFile::open(&args.path, config.pgdata.as_deref(), config.pgdata_origin)?;
    let writing = writing(config)?;
    let repository = Repository::open(&config.repository, Patience::Until(deadline))?;
    ensure_recorded(&repository, &config.cluster, file.system_identifier(), file.postgresql_major)?;
    match push_file(&file, &repository, &config.cluster, &writing)? {
        Pushed::Archived(encoded) => tracing::info!(
            "archived {}: {} bytes stored as {}",
            file.name,
            encoded.plaintext_length,
            encoded.stored_length
        ),
        Pushed::AlreadyArchived(stored) => {
            tracing::info!("{} is already archived with the same content: {}", file.name, stored.path);
        }
    }
    Ok(Outcome::Done)
}

fn writing(config: &Config) -> Result<Writing, Failure> {
    let keys = config.key_ring()?;
    let sealing =
        Sealing { compression: config.compression, key: keys.writing_key().cloned(), workers: None };
    Ok(Writing { sealing, keys })
}
