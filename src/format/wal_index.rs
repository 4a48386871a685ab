//! The WAL index: what a segment holds, in its object's index area, so that nobody has to download WAL to know.
//!
//! Written at push in the one pass that also checks records. Tagged sections: a reader skips the ones it does not know, so
//! that later versions (changed blocks, drops) add sections without a new format.

use serde::Serialize;

use crate::pg::{Lsn, PgTimestamp, TimelineId};

/// What one segment holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct WalIndex {
    /// Major version that the page magic stands for; 0 if unknown.
    pub postgresql_major: u32,
    /// Where the first record that *begins* in this segment begins; `None` if none does.
    pub first_record: Option<Lsn>,
    /// Where the last record that begins in this segment begins (it may end in a later one).
    pub last_record: Option<Lsn>,
    /// Where valid WAL ends: the segment's end if a record goes on there or the segment is complete (also after a
    /// switch record), less where reading stopped for another reason.
    pub valid_until: Lsn,
    /// Whether every record's CRC fits.
    pub verdict: RecordVerdict,
    /// Records that end in this segment.
    pub record_count: u64,
    /// Commit and abort records that begin here and are complete here; `None` if there are none. A record that spans
    /// segments is added by [`WalIndex::stitch`].
    pub transactions: Option<TransactionSpan>,
    /// Transactions whose commit (prepared ones included; top-level xids only) begins and ends here.
    pub committed: XidSet,
    /// The same for aborts.
    pub aborted: XidSet,
    /// Restore points.
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoint and end-of-recovery records.
    pub checkpoints: Vec<CheckpointRecord>,
    /// `XLOG_PARAMETER_CHANGE` records: wal_level as number (0 minimal, 1 replica, 2 logical) and where.
    pub wal_levels: Vec<(Lsn, u8)>,
    /// Bytes at the segment's beginning that continue a record of the previous one, page headers taken out (at most
    /// [`FRAGMENT_LIMIT`]; empty if there are none).
    pub head: Fragment,
    /// The beginning of a record that goes on in the next segment, likewise.
    pub tail: Fragment,
}

/// The most bytes of a spanning record that an index keeps on either side.
pub const FRAGMENT_LIMIT: usize = 64 << 10;

/// A piece of a record that spans segments.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Fragment {
    /// Where the record begins (for a tail); [`Lsn::INVALID`] for a head, whose beginning is in an earlier segment.
    pub record: Lsn,
    /// `xl_tot_len` as far as known; 0 for none.
    pub total_length: u32,
    /// Bytes of the record that lie in this segment (may exceed `bytes.len()`).
    pub length: u32,
    /// The kept bytes, without page headers.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// Whether records are intact.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordVerdict {
    /// Every record that ends here has the right CRC.
    #[default]
    Intact,
    /// Reading stopped at a record or page that is not valid.
    Damaged {
        /// Where.
        at: Lsn,
        /// What is wrong.
        problem: String,
    },
}

/// The commits and aborts of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct TransactionSpan {
    /// How many.
    pub count: u64,
    /// The least time of any commit or abort: times are not monotonic.
    pub least_time: PgTimestamp,
    /// The greatest time.
    pub greatest_time: PgTimestamp,
    /// The first in LSN order.
    pub first: TransactionEnd,
    /// The last in LSN order.
    pub last: TransactionEnd,
    /// The last *commit* in LSN order (`None` if only aborts).
    pub last_commit: Option<TransactionEnd>,
}

/// A commit or abort record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct TransactionEnd {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where it ends: the next record's position, as `pg_last_wal_replay_lsn` shows it.
    pub end: Lsn,
    /// The top-level transaction (of a prepared one: its own, not the one that finished it).
    pub xid: u32,
    /// `xact_time`.
    pub time: PgTimestamp,
    /// How it ended.
    pub outcome: Outcome,
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

/// A named restore point.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RestorePoint {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end: Lsn,
    /// When it was made, by the server's clock.
    pub time: PgTimestamp,
    /// Its name.
    pub name: String,
}

/// A checkpoint or end-of-recovery record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CheckpointRecord {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where redo starts from it; the record itself for a shutdown checkpoint or end of recovery.
    pub redo: Lsn,
    /// Which of the three.
    pub kind: CheckpointKind,
    /// The timeline that it was written on.
    pub timeline: TimelineId,
    /// The timeline before, different right after a switch.
    pub previous_timeline: TimelineId,
    /// When, by the server's clock (seconds only).
    pub time: PgTimestamp,
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

/// A set of transaction ids: sorted, disjoint, inclusive runs. Ids of one segment lie close together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct XidSet {
    runs: Vec<(u32, u32)>,
}

impl XidSet {
    /// Makes a set of ids in any order.
    pub fn from_ids(mut ids: Vec<u32>) -> XidSet {
        ids.sort_unstable();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for id in ids {
            match runs.last_mut() {
                Some((_, end)) if id <= end.saturating_add(1) => *end = id.max(*end),
                _ => runs.push((id, id)),
            }
        }
        XidSet { runs }
    }

    /// Whether `xid` is in the set.
    pub fn contains(&self, xid: u32) -> bool {
        let after = self.runs.partition_point(|(start, _)| *start <= xid);
        after.checked_sub(1).and_then(|at| self.runs.get(at)).is_some_and(|(_, end)| xid <= *end)
    }

    /// The runs, sorted, both ends inclusive.
    pub fn runs(&self) -> &[(u32, u32)] {
        &self.runs
    }
}
