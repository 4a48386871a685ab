//! `global/pg_control`: the cluster's identity and state.

use std::fmt;

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
    /// Whether `char` is signed where the cluster was made; `None` before 18.
    pub default_char_signedness: Option<bool>,
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

/// The part of `pg_control` that has the same place in every version, so that it can be read of versions to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlIdentity {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// `pg_control_version`.
    pub control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
}

impl ControlIdentity {
    /// Reads the first 16 bytes. No checksum stands over them alone: prefer [`ControlFile::parse`] where it knows the version.
    pub fn parse(bytes: &[u8]) -> Result<ControlIdentity, ParseControlError> {
        let fields = Fields(bytes);
        let identity = ControlIdentity {
            system_identifier: SystemIdentifier::new(fields.u64(0)?),
            control_version: fields.u32(8)?,
            catalog_version: fields.u32(12)?,
        };
        // As PostgreSQL's own test (`ReadControlFile`): a version in the upper half is one of the other byte order.
        if identity.control_version.is_multiple_of(65536) && identity.control_version != 0 {
            return Err(problem("it was written by a machine of the other byte order"));
        }
        if identity.system_identifier.get() == 0 || identity.control_version == 0 {
            return Err(problem("it is empty"));
        }
        Ok(identity)
    }
}

/// Where the fields lie that moved between versions; all others lie where they lay in 13.
struct Layout {
    char_signedness: Option<usize>,
    /// `offsetof(ControlFileData, crc)`: the checksum covers everything before it.
    crc: usize,
}

/// `offsetof` values of `ControlFileData` on 64-bit machines; `checkPointCopy` lies at 40.
mod offset {
    pub const STATE: usize = 16;
    pub const TIME: usize = 24;
    pub const CHECKPOINT: usize = 32;
    pub const CHECKPOINT_REDO: usize = 40;
    pub const CHECKPOINT_TIMELINE: usize = 48;
    pub const MIN_RECOVERY_POINT: usize = 136;
    pub const MIN_RECOVERY_TIMELINE: usize = 144;
    pub const WAL_LEVEL: usize = 172;
    pub const STANDBY_LIMITS: [usize; 5] = [180, 184, 188, 192, 196];
    pub const MAXIMUM_ALIGNMENT: usize = 204;
    pub const FLOAT_FORMAT: usize = 208;
    pub const BLOCK_SIZE: usize = 216;
    pub const RELATION_SEGMENT_BLOCKS: usize = 220;
    pub const WAL_PAGE_SIZE: usize = 224;
    pub const WAL_SEGMENT_SIZE: usize = 228;
    pub const DATA_CHECKSUM_VERSION: usize = 252;
}

/// `FLOATFORMAT_VALUE`.
const FLOAT_FORMAT: f64 = 1_234_567.0;

fn layout(control_version: u32) -> Result<Layout, ParseControlError> {
    match control_version {
        // 17 put a wal_level into the padding of the checkpoint's copy: nothing else moved.
        1300 | 1700 => Ok(Layout { char_signedness: None, crc: 288 }),
        1800 => Ok(Layout { char_signedness: Some(256), crc: 292 }),
        other => Err(problem(format!("its version {other} is not one of PostgreSQL 13 to 18"))),
    }
}

/// The major version whose releases have this `catalog_version_no` (`src/include/catalog/catversion.h`).
const fn major_of_catalog(catalog_version: u32) -> Option<u32> {
    match catalog_version {
        202007201 => Some(13),
        202107181 => Some(14),
        202209061 => Some(15),
        202307071 => Some(16),
        202406281 => Some(17),
        202506291 => Some(18),
        _ => None,
    }
}

impl ControlFile {
    /// Parses the file; the CRC must fit (a torn read shows here: read again).
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ParseControlError> {
        let identity = ControlIdentity::parse(bytes)?;
        let layout = layout(identity.control_version)?;
        let fields = Fields(bytes);
        let covered = bytes.get(..layout.crc).ok_or_else(too_short)?;
        if crc32c::crc32c(covered) != fields.u32(layout.crc)? {
            return Err(problem("its checksum does not fit"));
        }
        check_architecture(fields)?;
        let wal_segment_size = fields.u32(offset::WAL_SEGMENT_SIZE)?;
        let [max_connections, worker_processes, wal_senders, prepared_transactions, locks] =
            offset::STANDBY_LIMITS;
        Ok(ControlFile {
            system_identifier: identity.system_identifier,
            control_version: identity.control_version,
            catalog_version: identity.catalog_version,
            postgresql_major: major_of_catalog(identity.catalog_version),
            state: ClusterState::from_number(fields.u32(offset::STATE)?)?,
            time: fields.time(offset::TIME)?,
            checkpoint: fields.lsn(offset::CHECKPOINT)?,
            checkpoint_redo: fields.lsn(offset::CHECKPOINT_REDO)?,
            checkpoint_timeline: TimelineId::new(fields.u32(offset::CHECKPOINT_TIMELINE)?)
                .ok_or_else(|| problem("its checkpoint has timeline 0"))?,
            min_recovery_point: fields.lsn(offset::MIN_RECOVERY_POINT)?,
            min_recovery_timeline: TimelineId::new(fields.u32(offset::MIN_RECOVERY_TIMELINE)?),
            wal_level: fields.u32(offset::WAL_LEVEL)?,
            standby_limits: [
                fields.u32(max_connections)?,
                fields.u32(worker_processes)?,
                fields.u32(wal_senders)?,
                fields.u32(prepared_transactions)?,
                fields.u32(locks)?,
            ],
            block_size: page_size("block size", fields.u32(offset::BLOCK_SIZE)?)?,
            relation_segment_blocks: match fields.u32(offset::RELATION_SEGMENT_BLOCKS)? {
                0 => return Err(problem("its relation segments have no blocks")),
                blocks => blocks,
            },
            wal_segment_size: WalSegmentSize::new(u64::from(wal_segment_size))
                .ok_or_else(|| problem(format!("its WAL segment size is {wal_segment_size}")))?,
            data_checksum_version: fields.u32(offset::DATA_CHECKSUM_VERSION)?,
            default_char_signedness: match layout.char_signedness {
                Some(offset) => Some(fields.u8(offset)? != 0),
                None => None,
            },
        })
    }
}

/// The offsets above hold only where PostgreSQL was built as every 64-bit package is.
fn check_architecture(fields: Fields) -> Result<(), ParseControlError> {
    let float_format = f64::from_bits(fields.u64(offset::FLOAT_FORMAT)?);
    if fields.u32(offset::MAXIMUM_ALIGNMENT)? != 8 || float_format != FLOAT_FORMAT {
        return Err(problem("it was written by a machine of another architecture"));
    }
    match fields.u32(offset::WAL_PAGE_SIZE)? as usize {
        super::wal_page::WAL_PAGE_SIZE => Ok(()),
        other => Err(problem(format!(
            "its WAL page size is {other}, only {} is supported",
            super::wal_page::WAL_PAGE_SIZE
        ))),
    }
}

fn page_size(name: &str, bytes: u32) -> Result<u32, ParseControlError> {
    match bytes.is_power_of_two() && (1024..=32768).contains(&bytes) {
        true => Ok(bytes),
        false => Err(problem(format!("its {name} is {bytes}"))),
    }
}

impl ClusterState {
    fn from_number(number: u32) -> Result<ClusterState, ParseControlError> {
        Ok(match number {
            0 => ClusterState::StartingUp,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            other => return Err(problem(format!("its state {other} is none that PostgreSQL knows"))),
        })
    }
}

impl fmt::Display for ClusterState {
    /// As `pg_controldata` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClusterState::StartingUp => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::InCrashRecovery => "in crash recovery",
            ClusterState::InArchiveRecovery => "in archive recovery",
            ClusterState::InProduction => "in production",
        })
    }
}

fn problem(text: impl Into<String>) -> ParseControlError {
    ParseControlError(text.into())
}

fn too_short() -> ParseControlError {
    problem("it is too short")
}

/// Little-endian fields by offset.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, offset: usize) -> Result<[u8; N], ParseControlError> {
        self.0.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(too_short)
    }

    fn u8(self, offset: usize) -> Result<u8, ParseControlError> {
        self.bytes::<1>(offset).map(|[byte]| byte)
    }

    fn u32(self, offset: usize) -> Result<u32, ParseControlError> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn u64(self, offset: usize) -> Result<u64, ParseControlError> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    fn lsn(self, offset: usize) -> Result<Lsn, ParseControlError> {
        self.u64(offset).map(Lsn::new)
    }

    /// `pg_time_t`: seconds since 1970.
    fn time(self, offset: usize) -> Result<PgTimestamp, ParseControlError> {
        let seconds = self.bytes(offset).map(i64::from_le_bytes)?;
        let moment =
            jiff::Timestamp::from_second(seconds).map_err(|_| problem(format!("its time is {seconds}")))?;
        Ok(PgTimestamp::from_jiff(moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first 512 bytes of what initdb of each major version made.
    const GOLDEN: [(u32, &[u8]); 5] = [
        (14, include_bytes!("../../tests/golden/pg_control/14")),
        (15, include_bytes!("../../tests/golden/pg_control/15")),
        (16, include_bytes!("../../tests/golden/pg_control/16")),
        (17, include_bytes!("../../tests/golden/pg_control/17")),
        (18, include_bytes!("../../tests/golden/pg_control/18")),
    ];

    #[test]
    fn reads_every_version() {
        for (major, bytes) in GOLDEN {
            let control = ControlFile::parse(bytes).unwrap();
            assert_eq!(control.postgresql_major, Some(major));
            assert_eq!(control.state, ClusterState::ShutDown);
            assert_eq!(control.wal_segment_size.bytes(), 4 << 20);
            assert_eq!(control.block_size, 8192);
            assert_eq!(control.relation_segment_blocks, 131_072);
            assert_eq!(control.data_checksum_version, 1);
            assert_eq!(control.standby_limits, [100, 8, 10, 0, 64]);
            assert_eq!(control.checkpoint_timeline, TimelineId::FIRST);
            assert_eq!(control.min_recovery_timeline, None);
            assert_eq!(control.default_char_signedness, (major == 18).then_some(true));
            assert_eq!(ControlIdentity::parse(bytes).unwrap().system_identifier, control.system_identifier);
        }
    }

    #[test]
    fn any_changed_byte_shows() {
        for (major, bytes) in GOLDEN {
            let end = layout(ControlFile::parse(bytes).unwrap().control_version).unwrap().crc + 4;
            for position in 0..end {
                let mut changed = bytes.to_vec();
                changed[position] ^= 1;
                assert!(ControlFile::parse(&changed).is_err(), "{major}: byte {position} was not missed");
            }
        }
    }

    #[test]
    fn any_missing_end_shows() {
        let (_, bytes) = GOLDEN[4];
        for length in 0..296 {
            assert!(ControlFile::parse(&bytes[..length]).is_err(), "{length} bytes were accepted");
        }
        assert!(ControlFile::parse(&bytes[..296]).is_ok());
    }

    #[test]
    fn a_newer_version_still_tells_its_identity() {
        let mut newer = GOLDEN[4].1.to_vec();
        newer[8..12].copy_from_slice(&1901u32.to_le_bytes());
        assert_eq!(
            ControlFile::parse(&newer).unwrap_err().to_string(),
            "pg_control cannot be used: its version 1901 is not one of PostgreSQL 13 to 18"
        );
        assert_eq!(ControlIdentity::parse(&newer).unwrap().control_version, 1901);
        assert!(ControlIdentity::parse(&[0; 512]).is_err());
        newer[8..12].copy_from_slice(&1800u32.to_be_bytes());
        assert!(ControlIdentity::parse(&newer).unwrap_err().0.contains("byte order"));
    }

    #[test]
    fn survives_any_bytes() {
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600))| {
            let _ = ControlFile::parse(&bytes);
        });
    }
}
