//! What askers and the agent say to each other: one JSON object per line, a question and then answers.
//!
//! The first member of a question is the protocol's version; an agent that does not know it, or is another version of walhold, answers `other`. While the work takes time the agent says `wait` twice a second, so that
//! an asker can tell work from a hang.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exit_status::Cause;
use crate::format::Digest;
use crate::pg::{PgTimestamp, SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::wal::archive_file::FileStamp;

/// The protocol that this build speaks.
pub const VERSION: u32 = 2;
/// Longer lines are somebody else's.
pub const LONGEST_LINE: usize = 256 << 10;

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// walhold's version.
    pub walhold: String,
    /// What is wanted.
    pub ask: Ask,
}

/// What is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Archive a file.
    Push(PushAsk),
    /// Fetch a file into the open one that comes with the question.
    Fetch(FetchAsk),
    /// Keep the next segments ready for a server that recovers.
    Window(WindowAsk),
    /// Tell how things are.
    Status {},
}

/// The asker's settings, as far as both must have the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// [`crate::config::Config::settings_fingerprint`].
    pub fingerprint: Digest,
    /// [`crate::config::fingerprint::store_variables`]: the agent may have more, but no other values.
    pub variables: Vec<(String, String)>,
    /// The name under which the cluster archives.
    pub cluster: String,
}

/// A file that is to be archived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushAsk {
    /// See [`Settings`].
    pub settings: Settings,
    /// Absolute.
    pub path: PathBuf,
    /// The data directory that the asker found it to belong to, absolute.
    pub pgdata: Option<PathBuf>,
    /// The file as the asker has it open.
    pub stamp: FileStamp,
    /// How long a failing store is asked again.
    pub patience_milliseconds: u64,
}

/// A file that is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchAsk {
    /// See [`Settings`].
    pub settings: Settings,
    /// What is wanted.
    pub name: String,
    /// Where the asker will put it, for messages.
    pub destination: PathBuf,
    /// The server's cluster.
    pub system: SystemIdentifier,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
    /// How long a failing store is asked again, and a gap is waited for.
    pub patience_milliseconds: u64,
    /// Whether a gap is the end of WAL.
    pub allow_gap: bool,
}

/// A window that is to be kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowAsk {
    /// See [`Settings`].
    pub settings: Settings,
    /// Absolute.
    pub pgdata: PathBuf,
    /// Absolute.
    pub wal_directory: PathBuf,
    /// The segment that the server got last.
    pub after: WalSegmentName,
    /// Who asks the window has this.
    pub binding: Digest,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Work is under way; another answer follows.
    Wait,
    /// The file is durable in the repository.
    Archived {
        /// Its name, for the asker to compare.
        name: String,
        /// How that came to be, for the log.
        how: String,
    },
    /// The file was checked and is in the one that came with the question.
    Fetched {
        /// Its name, for the asker to compare.
        name: String,
        /// Its bytes.
        length: u64,
        /// Bytes of its object.
        stored_length: u64,
    },
    /// The archive was asked and does not have the file.
    Absent {
        /// Its name, for the asker to compare.
        name: String,
        /// The later segment that makes it a gap, where the asker allows gaps.
        later: Option<WalSegmentName>,
    },
    /// The window is or will be kept.
    Kept,
    /// It could not be done.
    Failed {
        /// [`Cause::name`].
        cause: String,
        /// One line.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// The asker has to do it: another version, other settings, another file.
    Other {
        /// Why.
        why: String,
    },
    /// How things are.
    Status(Box<AgentStatus>),
}

/// How an agent is: docs/json.md.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// walhold's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub since: jiff::Timestamp,
    /// Without secrets.
    pub repository: String,
    /// Resident memory now, in bytes.
    pub memory_bytes: u64,
    /// Questions of askers with other settings or of another version.
    pub refused: u64,
    /// The last of these.
    pub last_refusal: Option<Refusal>,
    /// One per directory of WAL that was archived from.
    pub archives: Vec<ArchiveStatus>,
    /// Files fetched for wal-fetch, windows apart.
    pub fetched: u64,
    /// Directories of WAL with a window.
    pub windows: Vec<PathBuf>,
}

/// Why an asker went on alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// When.
    pub time: jiff::Timestamp,
    /// As the asker was told.
    pub why: String,
}

/// One directory of WAL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// The name under which it archives.
    pub cluster: String,
    /// The cluster.
    pub system_identifier: String,
    /// The directory.
    pub directory: PathBuf,
    /// The file that PostgreSQL asked for last.
    pub last_asked: Option<String>,
    /// Files acknowledged.
    pub acknowledged: u64,
    /// Files archived before PostgreSQL asked for them.
    pub ahead: u64,
    /// Files that are archived and not asked for yet, or under way.
    pub waiting: u64,
    /// Failures told to PostgreSQL.
    pub failures: u64,
    /// The last of them.
    pub last_failure: Option<String>,
    /// The time of the newest commit in what this agent archived, by the server's clock.
    pub newest_commit: Option<PgTimestamp>,
    /// How long ago that was, by the agent's clock: what would be lost with the host now.
    pub newest_commit_age_seconds: Option<u64>,
}

/// The cause of this name.
pub fn cause_of(name: &str) -> Option<Cause> {
    Cause::ALL.into_iter().find(|cause| cause.name() == name)
}
