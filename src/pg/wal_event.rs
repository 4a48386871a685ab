//! What a WAL record means for recovery: ends of transactions, restore points, checkpoints.
//!
//! A decoded record goes in, an [`Event`] comes out, or `None` for the many records that recovery targets and plans do
//! not look at. Layouts follow `src/include/access/xact.h`, `src/backend/access/rmgrdesc/xactdesc.c`,
//! `src/include/catalog/pg_control.h` and `src/include/access/xlog_internal.h` of PostgreSQL 13 to 18.

use serde::Serialize;

use super::wal_page::{read_u32, read_u64};
use super::wal_record::{DecodedRecord, RMGR_TRANSACTION, RMGR_XLOG, RecordHeader};
use super::{Lsn, PgTimestamp, TimelineId};

/// `pg_time_t` counts from 1970, `TimestampTz` from 2000.
const SECONDS_FROM_1970_TO_2000: i64 = 946_684_800;

/// Something that recovery or its plan looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A commit or abort, of a prepared transaction too.
    TransactionEnd {
        /// The transaction: of a prepared one its own, not that of the command that finished it. A rolled back
        /// subtransaction that had an xid ends by a record of its own, with its own xid.
        xid: u32,
        /// `xact_time`.
        time: PgTimestamp,
        /// How it ended.
        outcome: Outcome,
    },
    /// `XLOG_RESTORE_POINT`.
    RestorePoint {
        /// `rp_time`.
        time: PgTimestamp,
        /// `rp_name`, at most 63 bytes, in the database's encoding; what is not UTF-8 is replaced.
        name: String,
    },
    /// A checkpoint or end-of-recovery record.
    Checkpoint {
        /// Which of the three.
        kind: CheckpointKind,
        /// Where redo starts; `None` for an end of recovery, which is no place to start from.
        redo: Option<Lsn>,
        /// `ThisTimeLineID`.
        timeline: TimelineId,
        /// `PrevTimeLineID`.
        previous_timeline: TimelineId,
        /// `time`, `end_time`.
        time: PgTimestamp,
    },
    /// `XLOG_PARAMETER_CHANGE`: `wal_level` from here on.
    WalLevel(u8),
    /// `XLOG_SWITCH`: the segment ends here, whatever bytes follow.
    Switch,
    /// `XLOG_OVERWRITE_CONTRECORD`: the record that begins there was never finished.
    Abandoned(Lsn),
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `COMMIT`, `COMMIT PREPARED`.
    Committed,
    /// `ROLLBACK`, `ROLLBACK PREPARED`.
    Aborted,
}

/// Kinds of checkpoint-like records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// While the server runs.
    Online,
    /// At a clean shutdown, and at the end of crash recovery.
    Shutdown,
    /// `XLOG_END_OF_RECOVERY`.
    EndOfRecovery,
}

/// Whether records with this header can mean anything to [`decode_event`]: decided before their bytes are gathered.
pub fn is_of_interest(header: &RecordHeader) -> bool {
    match header.rmgr {
        RMGR_TRANSACTION => matches!(header.info & 0x70, 0x00 | 0x20 | 0x30 | 0x40),
        RMGR_XLOG => matches!(header.info & 0xF0, 0x00 | 0x10 | 0x40 | 0x60 | 0x70 | 0x90 | 0xD0),
        _ => false,
    }
}

/// A record of interest whose main data cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeEventError(pub &'static str);

/// What the record means; `None` for records that are not of interest.
///
/// Of an unknown major version (`None`) checkpoints are passed over, because their layout changes between versions; the
/// rest has been stable since 9.5. Records may be cut short, as [`super::wal_record::decode_record`] says: that is an
/// error only if what is needed was cut off.
pub fn decode_event(
    record: &DecodedRecord<'_>,
    major: Option<u32>,
) -> Result<Option<Event>, DecodeEventError> {
    let header = &record.header;
    if !is_of_interest(header) {
        return Ok(None);
    }
    if header.rmgr == RMGR_TRANSACTION {
        let event = decode_transaction_end(header, record.main_data, major);
        return event.map(Some).ok_or(DecodeEventError("commit or abort record is too short"));
    }
    let data = record.main_data;
    let event = match header.info & 0xF0 {
        0x00 | 0x10 if major.is_none() => return Ok(None),
        0x00 => decode_checkpoint(CheckpointKind::Shutdown, data),
        0x10 => decode_checkpoint(CheckpointKind::Online, data),
        0x40 => Some(Event::Switch),
        0x60 => decode_wal_level(data),
        0x70 => decode_restore_point(data),
        0x90 => decode_end_of_recovery(data),
        0xD0 => read_u64(data, 0).map(|lsn| Event::Abandoned(Lsn::new(lsn))),
        _ => return Ok(None),
    };
    event.map(Some).ok_or(DecodeEventError("record of the XLOG resource manager is too short"))
}

fn read_timestamp(data: &[u8], at: usize) -> Option<PgTimestamp> {
    Some(PgTimestamp::new(read_u64(data, at)?.cast_signed()))
}

/// `ParseCommitRecord` and `ParseAbortRecord`, as far as the time and the xid need it.
fn decode_transaction_end(header: &RecordHeader, data: &[u8], major: Option<u32>) -> Option<Event> {
    let (outcome, prepared) = match header.info & 0x70 {
        0x00 => (Outcome::Committed, false),
        0x20 => (Outcome::Aborted, false),
        0x30 => (Outcome::Committed, true),
        0x40 => (Outcome::Aborted, true),
        _ => return None,
    };
    let time = read_timestamp(data, 0)?;
    let xid = if prepared { prepared_xid(header.info, outcome, data, major)? } else { header.xid };
    Some(Event::TransactionEnd { xid, time, outcome })
}

/// `xl_xact_twophase`, which comes after arrays of any length.
fn prepared_xid(info: u8, outcome: Outcome, data: &[u8], major: Option<u32>) -> Option<u32> {
    // XLOG_XACT_HAS_INFO; a prepared transaction's end always has it, else there would be no xid.
    if info & 0x80 == 0 {
        return None;
    }
    let xinfo = read_u32(data, 8)?;
    // xl_xact_stats_item: kind, database and a 32-bit object id; 64-bit since 18.
    let stats_item = if major.is_none_or(|major| major >= 18) { 16 } else { 12 };
    let mut at = 12usize;
    if xinfo & 0x01 != 0 {
        at += 8; // xl_xact_dbinfo
    }
    // Counted arrays in the order in which they are written, each behind its 32-bit count.
    let arrays = [
        (0x02, 4),           // subtransactions
        (0x04, 12),          // relations to drop
        (0x100, stats_item), // statistics to drop
        (0x08, 16),          // invalidation messages
    ];
    for (flag, item) in arrays {
        // Aborts have no invalidation messages, whatever the flag says.
        if xinfo & flag != 0 && !(flag == 0x08 && outcome == Outcome::Aborted) {
            let count = usize::try_from(read_u32(data, at)?).ok()?;
            at = at.checked_add(4)?.checked_add(count.checked_mul(item)?)?;
        }
    }
    if xinfo & 0x10 == 0 {
        return None;
    }
    read_u32(data, at)
}

/// `CheckPoint`: offsets that 13 to 18 share; 17 filled a gap with `wal_level`.
fn decode_checkpoint(kind: CheckpointKind, data: &[u8]) -> Option<Event> {
    let seconds = read_u64(data, 64)?.cast_signed();
    let microseconds = seconds.checked_sub(SECONDS_FROM_1970_TO_2000)?.checked_mul(1_000_000)?;
    Some(Event::Checkpoint {
        kind,
        redo: Some(Lsn::new(read_u64(data, 0)?)),
        timeline: TimelineId::new(read_u32(data, 8)?)?,
        previous_timeline: TimelineId::new(read_u32(data, 12)?)?,
        time: PgTimestamp::new(microseconds),
    })
}

/// `xl_end_of_recovery`.
fn decode_end_of_recovery(data: &[u8]) -> Option<Event> {
    Some(Event::Checkpoint {
        kind: CheckpointKind::EndOfRecovery,
        redo: None,
        timeline: TimelineId::new(read_u32(data, 8)?)?,
        previous_timeline: TimelineId::new(read_u32(data, 12)?)?,
        time: read_timestamp(data, 0)?,
    })
}

/// `xl_restore_point`: a time and 64 bytes of name.
fn decode_restore_point(data: &[u8]) -> Option<Event> {
    let name = data.get(8..72)?.split(|byte| *byte == 0).next()?;
    Some(Event::RestorePoint {
        time: read_timestamp(data, 0)?,
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

/// `xl_parameter_change`: five limits, then `wal_level`.
fn decode_wal_level(data: &[u8]) -> Option<Event> {
    u8::try_from(read_u32(data, 20)?).ok().map(Event::WalLevel)
}

#[cfg(test)]
mod tests {
    use super::super::wal_record::{decode_record, tests::record};
    use super::*;

    fn event(
        xid: u32,
        info: u8,
        rmgr: u8,
        data: &[u8],
        major: Option<u32>,
    ) -> Result<Option<Event>, &'static str> {
        let mut rest = vec![254];
        rest.extend_from_slice(&(data.len() as u32).to_le_bytes());
        rest.extend_from_slice(data);
        let bytes = record(xid, 0, info, rmgr, &rest);
        decode_event(&decode_record(&bytes, major).unwrap(), major).map_err(|error| error.0)
    }

    fn words(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn end(xid: u32, time: i64, outcome: Outcome) -> Result<Option<Event>, &'static str> {
        Ok(Some(Event::TransactionEnd { xid, time: PgTimestamp::new(time), outcome }))
    }

    #[test]
    fn plain_commits_and_aborts_carry_their_xid_in_the_header() {
        assert_eq!(event(9, 0x00, 1, &words(&[5, 0]), Some(15)), end(9, 5, Outcome::Committed));
        assert_eq!(event(9, 0xA0, 1, &words(&[5, 0, 0]), None), end(9, 5, Outcome::Aborted));
        assert_eq!(event(9, 0x00, 1, &[1], Some(15)), Err("commit or abort record is too short"));
    }

    #[test]
    fn prepared_transactions_carry_their_xid_behind_the_arrays() {
        let xinfo = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x80 | 0x100;
        let head = [5, 0, xinfo, 1, 2];
        let subxacts = [2, 71, 72];
        let relations = [1, 1663, 5, 16384];
        let stats_17 = [1, 3, 5, 16384];
        let stats_18 = [1, 3, 5, 16384, 0];
        let invalidations = [1, 0, 0, 0, 0];
        let tail = [70, 0x64_69_67];
        let commit =
            |stats: &[u32]| words(&[&head[..], &subxacts, &relations, stats, &invalidations, &tail].concat());
        let abort = words(&[&head[..], &subxacts, &relations, &stats_18, &tail].concat());
        assert_eq!(event(9, 0xB0, 1, &commit(&stats_17), Some(15)), end(70, 5, Outcome::Committed));
        assert_eq!(event(9, 0xB0, 1, &commit(&stats_18), Some(18)), end(70, 5, Outcome::Committed));
        assert_eq!(event(9, 0xC0, 1, &abort, Some(18)), end(70, 5, Outcome::Aborted));
        let short = commit(&stats_17);
        let cut = short.len() - 8;
        assert_eq!(event(9, 0xB0, 1, &short[..cut], Some(15)), Err("commit or abort record is too short"));
        let overflowing = words(&[5, 0, 0x12, u32::MAX]);
        assert!(event(9, 0xB0, 1, &overflowing, Some(15)).is_err());
    }

    #[test]
    fn reads_the_records_of_the_xlog_manager() {
        let mut point = words(&[1, 0]);
        point.extend_from_slice(b"before the upgrade");
        point.resize(72, 0);
        let expected =
            Event::RestorePoint { time: PgTimestamp::new(1), name: "before the upgrade".to_owned() };
        assert_eq!(event(0, 0x70, 0, &point, Some(15)), Ok(Some(expected)));
        assert_eq!(
            event(0, 0x60, 0, &words(&[100, 8, 10, 0, 64, 2, 0]), Some(15)),
            Ok(Some(Event::WalLevel(2)))
        );
        assert_eq!(event(0, 0x40, 0, &[], Some(15)), Ok(Some(Event::Switch)));
        assert_eq!(
            event(0, 0xD0, 0, &words(&[8, 1, 0, 0]), Some(15)),
            Ok(Some(Event::Abandoned(Lsn::new(0x1_0000_0008))))
        );
        assert_eq!(event(0, 0xB0, 0, &[], Some(15)), Ok(None));
        assert_eq!(
            event(0, 0x70, 0, &point[..71], Some(15)),
            Err("record of the XLOG resource manager is too short")
        );
    }

    #[test]
    fn reads_checkpoints_of_known_versions_only() {
        let mut data = words(&[0x28, 1, 2, 1]);
        data.resize(64, 0);
        data.extend_from_slice(&(SECONDS_FROM_1970_TO_2000 + 3).to_le_bytes());
        data.resize(88, 0);
        let expected = Event::Checkpoint {
            kind: CheckpointKind::Online,
            redo: Some(Lsn::new(0x1_0000_0028)),
            timeline: TimelineId::new(2).unwrap(),
            previous_timeline: TimelineId::FIRST,
            time: PgTimestamp::new(3_000_000),
        };
        assert_eq!(event(0, 0x10, 0, &data, Some(18)), Ok(Some(expected)));
        assert_eq!(event(0, 0x10, 0, &data, None), Ok(None));
        let ended = words(&[7, 0, 3, 2, 1]);
        let expected = Event::Checkpoint {
            kind: CheckpointKind::EndOfRecovery,
            redo: None,
            timeline: TimelineId::new(3).unwrap(),
            previous_timeline: TimelineId::new(2).unwrap(),
            time: PgTimestamp::new(7),
        };
        assert_eq!(event(0, 0x90, 0, &ended, None), Ok(Some(expected)));
    }
}
