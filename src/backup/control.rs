//! Reading `global/pg_control` of a server at work.

use std::path::Path;
use std::time::Duration;

use super::BackupError;
use crate::local::pgdata_walk::CONTROL_FILE;
use crate::pg::control::ControlFile;

/// The server may be writing the file while it is read; then the CRC does not fit.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The file's bytes and what they say.
#[derive(Clone, Debug)]
pub struct ReadControl {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// What it says.
    pub file: ControlFile,
}

/// Reads the file until it is whole.
pub fn read(pgdata: &Path) -> Result<ReadControl, BackupError> {
    let path = pgdata.join(CONTROL_FILE);
    let mut attempt = 1;
    loop {
        let bytes = std::fs::read(&path).map_err(|error| BackupError::Read { path: path.clone(), error })?;
        match ControlFile::parse(&bytes) {
            Ok(file) => return Ok(ReadControl { bytes, file }),
            Err(error) if attempt >= ATTEMPTS => return Err(unreadable(error.to_string())),
            Err(_) => {}
        }
        attempt += 1;
        std::thread::sleep(PAUSE);
    }
}

/// The error for a control file that cannot be used.
pub fn unreadable(problem: impl Into<String>) -> BackupError {
    BackupError::Unusable { what: format!("read {CONTROL_FILE}"), problem: problem.into() }
}
