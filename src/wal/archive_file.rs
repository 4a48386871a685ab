//! A file that PostgreSQL offers for archiving: what it is, whether it is what its name says, and its bytes.
//!
//! In: a path. Out: [`ArchiveFile`], checked, and from it the chunks of one read pass. What must hold: a file that is
//! wrong, cut, recycled, foreign, or that changes while it is read is refused, never archived.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::PgdataOrigin;
use crate::error::{Explain, system_words};
use crate::exit_status::Cause;
use crate::format::digest::ShortDigest;
use crate::format::envelope::ObjectFacts;
use crate::pg::wal_page::LongPageHeader;
use crate::pg::wal_segment::ParseArchiveFileNameError;
use crate::pg::{ArchiveFileName, SystemIdentifier, TimelineHistory, WalSegmentName};

use super::first_page::{FirstPageProblem, check_first_page, read_first_page};
use super::server_directory::{ServerDirectory, ServerDirectoryError};

/// History and backup files have a few lines; what is longer is something else.
const TEXT_FILE_LIMIT: u64 = 16 << 20;

/// An open file that was found to be what its name says.
#[derive(Debug)]
pub struct ArchiveFile {
    path: PathBuf,
    file: File,
    state: FileState,
    changed: (i64, i64),
    /// What it is called.
    pub name: ArchiveFileName,
    /// What its object will say.
    pub facts: ObjectFacts,
    /// The major version that wrote it, if known.
    pub postgresql_major: Option<u32>,
    /// A segment's or partial segment's first page header.
    pub header: Option<LongPageHeader>,
}

/// What tells, later and to another process, whether a path still leads to the very same file with the very same bytes. Whatever
/// writes to a file, replaces it or restores it changes one of these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// ctime, which no tool can set.
    changed: (i64, i64),
    /// What the first page says: position, timeline, cluster.
    beginning: ShortDigest,
}

/// What tells whether a file was touched. Not ctime: another process may set a link to the file meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileState {
    fn of(found: &Metadata) -> FileState {
        FileState {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

impl ArchiveFile {
    /// Opens the file and checks everything that can be known before it is read whole. `pgdata` is the configured
    /// data directory: see [`ServerDirectory::locate`].
    pub fn open(
        path: &Path,
        pgdata: Option<&Path>,
        origin: PgdataOrigin,
    ) -> Result<ArchiveFile, ArchiveFileError> {
        let name = archive_file_name(path)?;
        let (file, state, changed) = open_regular(path)?;
        let server = ServerDirectory::locate(path, pgdata, origin)?;
        let opened = match name {
            ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment) => {
                open_segment(path, name, segment, file, state, server.as_ref())
            }
            ArchiveFileName::TimelineHistory(_) | ArchiveFileName::BackupHistory { .. } => {
                open_text(path, name, file, state, server)
            }
        };
        opened.map(|file| ArchiveFile { changed, ..file })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it was when it was opened.
    pub fn stamp(&self) -> FileStamp {
        FileStamp {
            device: self.state.device,
            inode: self.state.inode,
            length: self.state.length,
            modified: self.state.modified,
            changed: self.changed,
            beginning: ShortDigest::of(format!("{:?}", self.header).as_bytes()),
        }
    }

    /// The file's length in bytes.
    pub fn length(&self) -> u64 {
        self.state.length
    }

    /// The cluster that wrote it.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.facts.system_identifier
    }

    /// Fills `chunk` with the bytes from `offset` on.
    pub fn read_at(&self, offset: u64, chunk: &mut [u8]) -> Result<(), ArchiveFileError> {
        self.file.read_exact_at(chunk, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveFileError::Changed { path: self.path.clone() },
            _ => ArchiveFileError::Read { path: self.path.clone(), source: error },
        })
    }

    /// Fails if the file is no longer the one that was opened, or was written to since.
    pub fn check_unchanged(&self) -> Result<(), ArchiveFileError> {
        let read = |source| ArchiveFileError::Read { path: self.path.clone(), source };
        let opened = FileState::of(&self.file.metadata().map_err(read)?);
        let named = self.path.metadata().ok().map(|found| FileState::of(&found));
        if opened == self.state && named == Some(self.state) {
            Ok(())
        } else {
            Err(ArchiveFileError::Changed { path: self.path.clone() })
        }
    }
}

fn archive_file_name(path: &Path) -> Result<ArchiveFileName, ArchiveFileError> {
    let text = path.file_name().unwrap_or_default().to_string_lossy();
    text.parse().map_err(|source| ArchiveFileError::Name { path: path.to_owned(), source })
}

fn open_regular(path: &Path) -> Result<(File, FileState, (i64, i64)), ArchiveFileError> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = |source| ArchiveFileError::Open { path: path.to_owned(), source };
    // Without O_NONBLOCK a FIFO of this name would hang here for ever.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(open)?;
    let found = file.metadata().map_err(open)?;
    if !found.is_file() {
        return Err(ArchiveFileError::NotRegular { path: path.to_owned() });
    }
    Ok((file, FileState::of(&found), (found.ctime(), found.ctime_nsec())))
}

fn open_segment(
    path: &Path,
    name: ArchiveFileName,
    segment: WalSegmentName,
    file: File,
    state: FileState,
    server: Option<&ServerDirectory>,
) -> Result<ArchiveFile, ArchiveFileError> {
    let page =
        read_first_page(&file).map_err(|source| ArchiveFileError::Read { path: path.to_owned(), source })?;
    let cluster = server.map(|server| server.control.system_identifier);
    let header = check_first_page(segment, &page, state.length, cluster)
        .map_err(|problem| ArchiveFileError::NotTheSegment { path: path.to_owned(), problem })?;
    if header.postgresql_major().is_none() {
        tracing::warn!(
            "{} is of a PostgreSQL newer than this walhold knows (WAL page magic {:04X}): archived without an index",
            path.display(),
            header.magic
        );
    }
    let facts = ObjectFacts::of_archive_file(name, header.system_identifier, Some(header.segment_size));
    let postgresql_major = header.postgresql_major();
    let path = path.to_owned();
    Ok(ArchiveFile {
        path,
        file,
        state,
        changed: (0, 0),
        name,
        facts,
        postgresql_major,
        header: Some(header),
    })
}

fn open_text(
    path: &Path,
    name: ArchiveFileName,
    file: File,
    state: FileState,
    server: Option<ServerDirectory>,
) -> Result<ArchiveFile, ArchiveFileError> {
    check_text(path, name, &file, state.length)?;
    // Nothing inside the file says whose it is.
    let server = server.ok_or_else(|| ServerDirectoryError::NotFound { what: path.display().to_string() })?;
    let control = &server.control;
    let facts = ObjectFacts::of_archive_file(name, control.system_identifier, Some(control.wal_segment_size));
    let postgresql_major = control.postgresql_major;
    let path = path.to_owned();
    Ok(ArchiveFile { path, file, state, changed: (0, 0), name, facts, postgresql_major, header: None })
}

/// A history that PostgreSQL could not read, or a backup file without a start, is not archived: it would be asked for when
/// nothing else is left.
fn check_text(path: &Path, name: ArchiveFileName, file: &File, length: u64) -> Result<(), ArchiveFileError> {
    let wrong = |problem: String| ArchiveFileError::NotTheFile { path: path.to_owned(), problem };
    if length > TEXT_FILE_LIMIT {
        return Err(wrong(format!("it has {length} bytes, too many for a text file")));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, TEXT_FILE_LIMIT), &mut bytes)
        .map_err(|source| ArchiveFileError::Read { path: path.to_owned(), source })?;
    // Reasons and labels are written in the server's encoding, which need not be UTF-8.
    let text = String::from_utf8_lossy(&bytes);
    match name {
        ArchiveFileName::TimelineHistory(timeline) => TimelineHistory::parse(timeline, &text)
            .map(|_| ())
            .map_err(|problem| wrong(format!("it is not a timeline history: {problem}"))),
        ArchiveFileName::BackupHistory { segment, .. } => {
            let names_segment = |line: &str| {
                line.starts_with("START WAL LOCATION: ") && line.ends_with(&format!("(file {segment})"))
            };
            if text.lines().any(names_segment) {
                Ok(())
            } else {
                Err(wrong(format!("it has no line START WAL LOCATION that names {segment}")))
            }
        }
        ArchiveFileName::Segment(_) | ArchiveFileName::Partial(_) => Ok(()),
    }
}

/// Why a file is not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveFileError {
    /// PostgreSQL archives no file of such a name.
    #[error("archive {}: {source}", path.display())]
    Name {
        /// As given.
        path: PathBuf,
        /// What is wrong with the name.
        source: ParseArchiveFileNameError,
    },
    /// Not there, or not readable.
    #[error("open {}: {}", path.display(), system_words(source))]
    Open {
        /// As given.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A directory, a pipe.
    #[error("archive {}: it is not a regular file", path.display())]
    NotRegular {
        /// As given.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("read {}: {}", path.display(), system_words(source))]
    Read {
        /// As given.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The first page tells another story than the name.
    #[error("archive {}: {problem}", path.display())]
    NotTheSegment {
        /// As given.
        path: PathBuf,
        /// What differs.
        problem: FirstPageProblem,
    },
    /// A history or backup file that is none.
    #[error("archive {}: {problem}", path.display())]
    NotTheFile {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Written to, cut or replaced while it was read.
    #[error("archive {}: it changed while it was read", path.display())]
    Changed {
        /// As given.
        path: PathBuf,
    },
    /// Whose file it is could not be told.
    #[error(transparent)]
    Server(#[from] ServerDirectoryError),
}

impl Explain for ArchiveFileError {
    fn exit_cause(&self) -> Cause {
        match self {
            ArchiveFileError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Cause::FileMissing
            }
            ArchiveFileError::Open { .. }
            | ArchiveFileError::Read { .. }
            | ArchiveFileError::Changed { .. } => Cause::FileUnusable,
            ArchiveFileError::NotTheSegment { problem: FirstPageProblem::OtherCluster { .. }, .. } => {
                Cause::OtherCluster
            }
            ArchiveFileError::Name { .. }
            | ArchiveFileError::NotRegular { .. }
            | ArchiveFileError::NotTheSegment { .. }
            | ArchiveFileError::NotTheFile { .. } => Cause::NotWal,
            ArchiveFileError::Server(error) => error.exit_cause(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            ArchiveFileError::Name { .. } => "archive_command is: walhold wal-push %p",
            ArchiveFileError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "archive_command is: walhold wal-push %p; a relative path starts at the data directory"
            }
            ArchiveFileError::Open { .. } => "run walhold as the user that owns the data directory",
            ArchiveFileError::Read { .. } => {
                "look for input/output errors in the system's log: the disk may be failing"
            }
            ArchiveFileError::NotTheSegment { problem, .. } => hint_for_segment(problem),
            ArchiveFileError::NotRegular { .. } | ArchiveFileError::NotTheFile { .. } => {
                "the file is damaged or not PostgreSQL's; find out what wrote it before removing it"
            }
            ArchiveFileError::Changed { .. } => {
                "PostgreSQL will try again; if this repeats, something else writes to pg_wal"
            }
            ArchiveFileError::Server(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }
}

fn hint_for_segment(problem: &FirstPageProblem) -> &'static str {
    match problem {
        FirstPageProblem::TooShort { .. } | FirstPageProblem::Length { .. } => {
            "the file was truncated or written by something else: restore it from another copy, for example a standby's pg_wal"
        }
        FirstPageProblem::NotAPage(_) => {
            "the file is damaged or not WAL: restore it from another copy, for example a standby's pg_wal"
        }
        FirstPageProblem::OtherCluster { .. } => {
            "a file of another cluster lies in this pg_wal, or PGDATA names another cluster than the one that archives"
        }
        FirstPageProblem::NoSuchName { .. }
        | FirstPageProblem::OtherPosition { .. }
        | FirstPageProblem::LaterTimeline { .. } => {
            "the file was recycled or renamed and holds other WAL than its name says; find out what put it there"
        }
    }
}
