//! `backup_label` and `tablespace_map`.

use super::{Lsn, TimelineId, WalSegmentName};

/// What a `backup_label` file says (`src/backend/access/transam/xlogbackup.c`, `build_backup_content`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// `START WAL LOCATION`.
    pub start_lsn: Lsn,
    /// The segment that it names.
    pub start_segment: WalSegmentName,
    /// `CHECKPOINT LOCATION`.
    pub checkpoint_lsn: Lsn,
    /// `BACKUP FROM: standby`.
    pub from_standby: bool,
    /// `START TIMELINE`.
    pub start_timeline: TimelineId,
    /// `LABEL`.
    pub label: String,
}

/// A backup_label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backup_label cannot be used: {0}")]
pub struct ParseBackupLabelError(pub String);

impl BackupLabel {
    /// Parses the file's text.
    pub fn parse(_text: &str) -> Result<BackupLabel, ParseBackupLabelError> {
        todo!()
    }
}

/// `tablespace_map`: link name (oid) and directory per line, with PostgreSQL's escapes for newlines and
/// backslashes (`src/backend/access/transam/xlogrecovery.c`, `read_tablespace_map`).
pub fn parse_tablespace_map(_text: &str) -> Result<Vec<(u32, String)>, ParseBackupLabelError> {
    todo!()
}

/// The inverse of [`parse_tablespace_map`].
pub fn format_tablespace_map(_entries: &[(u32, String)]) -> String {
    todo!()
}
