//! What the operator asks for: a moment, a line of history, what to do there.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::error::RestoreError;
use super::time_text::{TargetTime, parse_target_time};
use crate::format::BackupId;
use crate::pg::{Lsn, TimelineId};

/// The moment as it was asked for; a time is still text, because the zone it is read in comes from a backup.
#[derive(Clone, PartialEq, Debug)]
pub enum TargetRequest {
    /// Everything that is archived.
    EndOfWal,
    /// As soon as the backup is consistent.
    Immediate,
    /// `--target-time`.
    Time(String),
    /// `--target-lsn`.
    Lsn(Lsn),
    /// `--target-xid`.
    Xid(u32),
    /// `--target-name`.
    Name(String),
}

/// The moment, understood.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// Everything that is archived.
    EndOfWal,
    /// As soon as the backup is consistent.
    Immediate,
    /// Transactions that ended up to then.
    Time(TargetTime),
    /// Records that begin up to there.
    Lsn(Lsn),
    /// Everything up to this transaction's end.
    Xid(u32),
    /// Everything up to this restore point.
    Name(String),
}

/// Whether the target itself is replayed (`recovery_target_inclusive`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// It is.
    Inclusive,
    /// Replay stops just before it.
    Exclusive,
}

/// What the server does at the target (`recovery_target_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TargetAction {
    /// Stays read-only until told to go on
    Pause,
    /// Becomes a primary on a new timeline
    Promote,
    /// Shuts down
    Shutdown,
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        })
    }
}

/// Which line of history is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimelineRequest {
    /// The newest one that the backup can reach.
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(TimelineId),
}

impl std::str::FromStr for TimelineRequest {
    type Err = String;

    /// `latest`, `current`, or a number as `recovery_target_timeline` takes it (decimal, or hexadecimal after `0x`).
    fn from_str(text: &str) -> Result<TimelineRequest, String> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        match (text, number.and_then(TimelineId::new)) {
            ("latest", _) => Ok(TimelineRequest::Latest),
            ("current", _) => Ok(TimelineRequest::Current),
            (_, Some(timeline)) => Ok(TimelineRequest::Number(timeline)),
            _ => Err(format!("{text:?} is not a timeline; expected latest, current or a number from 1")),
        }
    }
}

/// Which backup is restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupRequest {
    /// The newest one that can reach the target.
    Auto,
    /// This one.
    Id(BackupId),
}

impl std::str::FromStr for BackupRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<BackupRequest, String> {
        match text {
            "auto" | "latest" | "LATEST" => Ok(BackupRequest::Auto),
            id => id
                .parse()
                .map(BackupRequest::Id)
                .map_err(|error: crate::format::backup_id::ParseBackupIdError| error.to_string()),
        }
    }
}

/// What the restored server will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It takes the original's place and archives on, on its new timeline.
    Replacement,
    /// A second copy beside the living original: it archives nothing.
    Clone,
    /// It follows the original (`standby.signal`).
    Standby,
}

/// One `--tablespace OLD=NEW`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceMapping {
    /// A tablespace's directory, name or oid.
    pub old: String,
    /// Where it goes: an absolute directory.
    pub new: PathBuf,
}

impl std::str::FromStr for TablespaceMapping {
    type Err = String;

    /// `=` in a directory is written `\=`, as for pg_basebackup.
    fn from_str(text: &str) -> Result<TablespaceMapping, String> {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if characters.peek() == Some(&'=') => {
                    characters.next();
                    parts.last_mut().into_iter().for_each(|part| part.push('='));
                }
                '=' => parts.push(String::new()),
                other => parts.last_mut().into_iter().for_each(|part| part.push(other)),
            }
        }
        match parts.as_slice() {
            [old, new] if !old.is_empty() && new.starts_with('/') => {
                Ok(TablespaceMapping { old: old.clone(), new: PathBuf::from(new) })
            }
            _ => Err(format!("{text:?} is not OLD=NEW with an absolute directory as NEW")),
        }
    }
}

/// The most bytes in a restore point's name (`MAXFNAMELEN - 1`).
const LONGEST_NAME: usize = 63;

impl TargetRequest {
    /// A transaction's number as `pg_current_xact_id()` shows it: the upper half counts wrap-arounds and is not in the WAL.
    pub fn xid(number: u64) -> Result<TargetRequest, RestoreError> {
        match number as u32 {
            0..=2 => Err(RestoreError::refused(
                format!("{number} is not the number of a transaction that can commit"),
                "numbers of transactions begin at 3",
            )),
            xid => Ok(TargetRequest::Xid(xid)),
        }
    }

    /// Understands the request; a time without zone is read in `server_zone`.
    pub fn resolve(&self, server_zone: &str) -> Result<Target, RestoreError> {
        Ok(match self {
            TargetRequest::EndOfWal => Target::EndOfWal,
            TargetRequest::Immediate => Target::Immediate,
            TargetRequest::Lsn(lsn) => Target::Lsn(*lsn),
            TargetRequest::Xid(xid) => Target::Xid(*xid),
            TargetRequest::Name(name) if (1..=LONGEST_NAME).contains(&name.len()) => {
                Target::Name(name.clone())
            }
            TargetRequest::Name(name) => {
                return Err(RestoreError::refused(
                    format!("{name:?} cannot be a restore point's name"),
                    format!("names have 1 to {LONGEST_NAME} bytes"),
                ));
            }
            TargetRequest::Time(text) => {
                parse_target_time(text, server_zone).map(Target::Time).map_err(|problem| {
                    RestoreError::refused(format!("--target-time: {}", problem.problem), problem.hint)
                })?
            }
        })
    }
}

impl fmt::Display for TargetTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.moment.to_jiff().map(|moment| self.zone.to_offset(moment).seconds());
        match offset {
            None | Some(0) => write!(f, "{}", self.moment),
            Some(_) => write!(f, "{} ({})", self.local(), self.moment),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::EndOfWal => f.write_str("the end of the archive"),
            Target::Immediate => f.write_str("the backup's own end"),
            Target::Time(time) => write!(f, "time {time}"),
            Target::Lsn(lsn) => write!(f, "position {lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_are_read_as_postgresql_reads_them() {
        let number = |n| TimelineRequest::Number(TimelineId::new(n).unwrap());
        assert_eq!("latest".parse(), Ok(TimelineRequest::Latest));
        assert_eq!("12".parse(), Ok(number(12)));
        assert_eq!("0xC".parse(), Ok(number(12)));
        for text in ["", "0", "-1", "Latest", "0x", "x"] {
            assert!(text.parse::<TimelineRequest>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn tablespaces_are_mapped_like_pg_basebackup_does() {
        let mapping: TablespaceMapping = "/old\\=1=/new\\=2".parse().unwrap();
        assert_eq!((mapping.old.as_str(), mapping.new.to_str()), ("/old=1", Some("/new=2")));
        for text in ["", "/a", "=/b", "/a=b", "/a=/b=/c"] {
            assert!(text.parse::<TablespaceMapping>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_full_transaction_id_names_its_lower_half() {
        assert_eq!(TargetRequest::xid((3 << 32) + 745).unwrap(), TargetRequest::Xid(745));
        assert!(TargetRequest::xid(2).is_err());
    }
}
