//! The server that a file or a request belongs to: its data directory and what `global/pg_control` says.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::PgdataOrigin;
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::local::durable::parent_of;
use crate::pg::control::ControlFile;

/// A data directory whose control file was read.
#[derive(Clone, Debug)]
pub struct ServerDirectory {
    /// The data directory, as it was named.
    pub path: PathBuf,
    /// Its `global/pg_control`.
    pub control: ControlFile,
}

impl ServerDirectory {
    /// Finds the server that `file` belongs to, a path like `pg_wal/000000010000000A000000FE`.
    ///
    /// A `--pgdata` flag is the answer, or an error. Without it: PostgreSQL runs its commands in the data directory, so the working
    /// directory comes first if it is one: `PGDATA` in the environment may be left over from elsewhere, and `pg_ctl -D
    /// data` leaves a relative one that no longer leads anywhere. Then come the setting, and the directory above
    /// the file's own, by name: pg_wal may be a symbolic link that leads out of the data directory. `Ok(None)` if
    /// none of them is a data directory.
    pub fn locate(
        file: &Path,
        pgdata: Option<&Path>,
        origin: PgdataOrigin,
    ) -> Result<Option<ServerDirectory>, ServerDirectoryError> {
        let beside = parent_of(&parent_of(file));
        let candidates = match (origin, pgdata) {
            (PgdataOrigin::Flag, Some(named)) => [Some(named), None, None],
            _ => [Some(Path::new(".")), pgdata, Some(&*beside)],
        };
        for directory in candidates.into_iter().flatten() {
            if let Some(control) = read_control(directory)? {
                return Ok(Some(ServerDirectory { path: directory.to_owned(), control }));
            }
        }
        match (origin, pgdata) {
            (PgdataOrigin::Flag, Some(named)) => {
                Err(ServerDirectoryError::NotDataDirectory { path: named.to_owned() })
            }
            _ => Ok(None),
        }
    }

    /// Whether the server asks again by itself when a segment can't be had.
    pub fn is_standby(&self) -> bool {
        self.path.join("standby.signal").exists()
    }

    /// Whether `directory` is this server's own `pg_wal`, however either is spelt.
    pub fn owns_wal_directory(&self, directory: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let own = identity(&self.path.join("pg_wal"));
        own.is_some() && own == identity(directory)
    }
}

/// Reads and checks a data directory's control file; `None` if it has none.
///
/// The server writes the file in place: a torn read fails its CRC and is repeated.
fn read_control(directory: &Path) -> Result<Option<ControlFile>, ServerDirectoryError> {
    const ATTEMPTS: u32 = 5;
    let path = directory.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(ServerDirectoryError::Read { path, source }),
        };
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(Some(control)),
            Err(_) if attempt < ATTEMPTS => std::thread::sleep(Duration::from_millis(20)),
            Err(problem) => {
                return Err(ServerDirectoryError::Unusable { path, problem: problem.to_string() });
            }
        }
        attempt += 1;
    }
}

/// Why a data directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerDirectoryError {
    /// Reading failed.
    #[error("read {}: {}", path.display(), system_words(source))]
    Read {
        /// The control file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The contents make no sense.
    #[error("read {}: {problem}", path.display())]
    Unusable {
        /// The control file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What `--pgdata` names is something else.
    #[error("--pgdata {} is not a data directory: it has no global/pg_control", path.display())]
    NotDataDirectory {
        /// As it was given.
        path: PathBuf,
    },
    /// There is no data directory to tell the cluster from.
    #[error(
        "cannot tell which cluster {what} belongs to: neither the working directory nor PGDATA is a data directory"
    )]
    NotFound {
        /// A file or a request.
        what: String,
    },
}

impl Explain for ServerDirectoryError {
    fn exit_cause(&self) -> Cause {
        match self {
            ServerDirectoryError::Read { .. } | ServerDirectoryError::Unusable { .. } => Cause::FileUnusable,
            ServerDirectoryError::NotDataDirectory { .. } | ServerDirectoryError::NotFound { .. } => {
                Cause::FileMissing
            }
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            ServerDirectoryError::Read { .. } => {
                "run walhold as the user that owns the data directory".to_owned()
            }
            ServerDirectoryError::Unusable { .. } => {
                "this must be the control file of PostgreSQL 13 or later; check PGDATA".to_owned()
            }
            ServerDirectoryError::NotDataDirectory { .. } => {
                "name the directory that postgres -D names, or leave --pgdata out where PostgreSQL runs the command"
                    .to_owned()
            }
            ServerDirectoryError::NotFound { .. } => {
                "PostgreSQL runs its commands in the data directory; elsewhere set PGDATA or --pgdata"
                    .to_owned()
            }
        })
    }
}
