//! Start: the restored server, run by the owner of its files, with a log that [`super::watch`] can read.
//!
//! The server goes on when walhold ends. Until it is restarted by whatever service manages it, it logs to
//! [`RECOVERY_LOG`] in its data directory, whatever its configuration says.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::binaries::ServerBinaries;
use super::error::RestoreError;
use super::layout::ownership;
use super::plan::{RestorePlan, StartRequest};
use crate::local::pgdata_walk::RECOVERY_LOG;

/// A server that was started.
pub struct StartedServer {
    /// The postmaster.
    pub postmaster: Child,
    /// What it writes.
    pub log: PathBuf,
}

/// Settings that the log depends on: in English, complete, in one file.
const LOG_SETTINGS: [&str; 5] = [
    "logging_collector=off",
    "log_destination=stderr",
    "lc_messages=C",
    "log_min_messages=warning",
    "log_min_error_statement=error",
];

/// Starts the server of the plan.
pub fn start(plan: &RestorePlan, binaries: &ServerBinaries) -> Result<StartedServer, RestoreError> {
    let log = plan.place.pgdata.join(RECOVERY_LOG);
    let fail = |error: &std::io::Error| RestoreError::local("create", &log, error);
    // A server that was itself recovered so was backed up with its log: read as this one's, it would tell of another recovery's end.
    match std::fs::remove_file(&log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(RestoreError::local("remove", &log, &error));
        }
        _ => {}
    }
    let file = File::options().append(true).create_new(true).mode(0o600).open(&log).map_err(|e| fail(&e))?;
    let owner = ownership(&plan.place);
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(|e| fail(&e))?;
    }
    let program = binaries.directory.join("postgres");
    let mut command = Command::new(&program);
    command.arg("-D").arg(&plan.place.pgdata);
    for setting in LOG_SETTINGS {
        command.args(["-c", setting]);
    }
    if let StartRequest::Yes { options, .. } = &plan.request.start {
        command.args(options);
    }
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    let second = file.try_clone().map_err(|e| fail(&e))?;
    // A process group of its own: Ctrl-C at walhold must not stop the server.
    command.current_dir(&plan.place.pgdata).process_group(0);
    command.stdin(Stdio::null()).stdout(file).stderr(second);
    let postmaster = command.spawn().map_err(|error| RestoreError::local("start", &program, &error))?;
    Ok(StartedServer { postmaster, log })
}
