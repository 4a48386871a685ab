//! `global/pg_control`: the cluster's identity and state.

use super::{Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentSize};

/// What walhold needs of `ControlFileData` (`src/include/catalog/pg_control.h`), PostgreSQL 13 to 18.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// `pg_control_version`: 1300 for 13 to 16, 1700 for 17, 1800 for 18.
    pub control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// The major version that the catalog version belongs to, as far as known.
    pub postgresql_major: Option<u32>,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// When the file was last written (seconds).
    pub time: PgTimestamp,
    /// The last checkpoint record.
    pub checkpoint: Lsn,
    /// Where redo starts from it.
    pub checkpoint_redo: Lsn,
    /// Its timeline.
    pub checkpoint_timeline: TimelineId,
    /// `minRecoveryPoint`: on a standby, replay is consistent from here.
    pub min_recovery_point: Lsn,
    /// Its timeline; `None` while not in recovery.
    pub min_recovery_timeline: Option<TimelineId>,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    /// `max_connections`, `max_worker_processes`, `max_wal_senders`, `max_prepared_xacts`, `max_locks_per_xact`, in this order.
    pub standby_limits: [u32; 5],
    /// Bytes in a page.
    pub block_size: u32,
    /// Pages in a relation segment file.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL segment.
    pub wal_segment_size: WalSegmentSize,
    /// 0 if pages carry no checksums.
    pub data_checksum_version: u32,
}

/// `DBState`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// `DB_STARTUP`.
    StartingUp,
    /// `DB_SHUTDOWNED`.
    ShutDown,
    /// `DB_SHUTDOWNED_IN_RECOVERY`.
    ShutDownInRecovery,
    /// `DB_SHUTDOWNING`.
    ShuttingDown,
    /// `DB_IN_CRASH_RECOVERY`.
    InCrashRecovery,
    /// `DB_IN_ARCHIVE_RECOVERY`.
    InArchiveRecovery,
    /// `DB_IN_PRODUCTION`.
    InProduction,
}

/// A control file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pg_control cannot be used: {0}")]
pub struct ParseControlError(pub String);

impl ControlFile {
    /// Parses the file; the CRC must fit (a torn read shows here: read again).
    pub fn parse(_bytes: &[u8]) -> Result<ControlFile, ParseControlError> {
        todo!()
    }
}
