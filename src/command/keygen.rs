//! `keygen`: a new encryption key.
//!
//! 1. Make 32 random bytes.
//! 2. Print them, or write them to a new file that its owner alone can read.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::codec::MasterKey;
use crate::config::Config;
use crate::error::{Failure, system_words};
use crate::exit_status::{Cause, Outcome};
use crate::local::durable;
use crate::output;

/// Make a new encryption key
///
/// Keep a copy away from this machine and away from the repository: without the key, nothing that was encrypted
/// with it can be restored.
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {
    /// Write the key to this new file, readable by its owner alone, instead of printing it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: KeygenArgs, _config: &Config) -> Result<Outcome, Failure> {
    let key = MasterKey::generate()?;
    let line = Zeroizing::new(format!("{}\n", *key.to_hex()));
    match args.output {
        None => output::print(&line)?,
        Some(path) => write_new_file(&path, line.as_bytes())?,
    }
    Ok(Outcome::Done)
}

/// Never replaces a file: it may hold the only copy of a key that backups need.
fn write_new_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let exists = error.kind() == ErrorKind::AlreadyExists;
        let hint = if exists {
            "a key file is never replaced: it may hold the only copy of a key that backups need; name another file"
        } else {
            "the directory must exist and be writable by this user"
        };
        let message = format!("write key file {}: {}", path.display(), system_words(&error));
        Failure::new(Cause::FileUnusable, message).with_hint(hint)
    };
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| durable::sync_directory(&durable::parent_of(path)));
    written.map_err(|error| {
        let _ = std::fs::remove_file(path);
        failed(error)
    })
}
