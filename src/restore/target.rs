//! What the operator asks for: a moment, a line of history, what to do there.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::error::RestoreError;
use super::time_text::{TargetTime, parse_target_time};
use crate::format::BackupId;
use crate::pg::recovery::{RESTORE_POINT_NAME_MAX, RecoveryTarget, TargetTimeline};
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

/// Reads `latest`, `current`, or a number as `recovery_target_timeline` takes it (decimal, or hexadecimal after `0x`).
pub fn parse_timeline(text: &str) -> Result<TargetTimeline, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match (text, number.and_then(TimelineId::new)) {
        ("latest", _) => Ok(TargetTimeline::Latest),
        ("current", _) => Ok(TargetTimeline::Current),
        (_, Some(timeline)) => Ok(TargetTimeline::Id(timeline)),
        _ => Err(format!("{text:?} is not a timeline; expected latest, current or a number from 1")),
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
            TargetRequest::Name(name) if (1..=RESTORE_POINT_NAME_MAX).contains(&name.len()) => {
                Target::Name(name.clone())
            }
            TargetRequest::Name(name) => {
                return Err(RestoreError::refused(
                    format!("{name:?} cannot be a restore point's name"),
                    format!("names have 1 to {RESTORE_POINT_NAME_MAX} bytes"),
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

impl Target {
    /// As the server is told.
    pub fn to_recovery_target(&self) -> RecoveryTarget {
        match self {
            Target::EndOfWal => RecoveryTarget::Latest,
            Target::Immediate => RecoveryTarget::Immediate,
            Target::Time(time) => RecoveryTarget::Time(time.moment),
            Target::Lsn(lsn) => RecoveryTarget::Lsn(*lsn),
            Target::Xid(xid) => RecoveryTarget::Xid(*xid),
            Target::Name(name) => RecoveryTarget::Name(name.clone()),
        }
    }

    /// `time`, `lsn`, …, for JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Target::EndOfWal => "end-of-wal",
            Target::Immediate => "immediate",
            Target::Time(_) => "time",
            Target::Lsn(_) => "lsn",
            Target::Xid(_) => "xid",
            Target::Name(_) => "name",
        }
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
        let number = |n| TargetTimeline::Id(TimelineId::new(n).unwrap());
        assert_eq!(parse_timeline("latest"), Ok(TargetTimeline::Latest));
        assert_eq!(parse_timeline("12"), Ok(number(12)));
        assert_eq!(parse_timeline("0xC"), Ok(number(12)));
        for text in ["", "0", "-1", "Latest", "0x", "x"] {
            assert!(parse_timeline(text).is_err(), "{text:?} was accepted");
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
