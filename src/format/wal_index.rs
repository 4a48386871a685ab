//! The WAL index: what a segment holds, in its object's index area, so that nobody has to download WAL to know.
//!
//! Written at push in the one pass that also checks records. Tagged sections: a reader skips the ones it does not know, so
//! that later versions add sections without a new format, as changed blocks and files were added.
//!
//! An index describes its segment alone. A record that spans segments is in neither index; [`IndexChain`] is fed the
//! indexes of consecutive segments and puts it back, in the segment where it begins.
//!
//! **What a recovery plan may conclude.** PostgreSQL stops at the first commit *or abort* record in LSN order (prepared
//! transactions and rolled back subtransactions with an xid included) whose time is after the target time, or at or after
//! it if the target is exclusive (`recoveryStopsBefore`, `src/backend/access/transam/xlogrecovery.c`). Times are not
//! monotonic, so [`TransactionSpan::has_stop`] looks at the greatest. For an xid it stops at the record that ends exactly
//! this transaction: [`WalIndex::committed`] and [`WalIndex::aborted`] have each xid that a record names. Where
//! [`WalIndex::abridged`] is set, or a segment must be split (consistency is reached inside it), scan the segment itself.

use serde::Serialize;

use crate::pg::recovery::TargetInclusion;
pub use crate::pg::wal_event::{CheckpointKind, Outcome};
use crate::pg::wal_event::{Event, decode_event, is_of_interest};
use crate::pg::wal_record::{DecodedRecord, RMGR_DATABASE, RecordHeader, decode_record, visit_blocks};
use crate::pg::wal_storage::{DatabaseDirectory, StorageChange, changes_storage, decode_storage_change};
use crate::pg::{Lsn, PgTimestamp, TimelineId};

mod block_changes;
mod block_set;
mod chain;
mod encoding;
mod file_events;
mod xid_set;

pub use block_changes::{BlockChanges, ForkChanges, NamedFork, fork_name};
pub use chain::{IndexChain, SegmentFacts, SpanningRecord};
pub use encoding::ParseWalIndexError;
pub use file_events::{
    DatabaseMaking, DatabaseRemoval, FileEvents, Removal, TablespaceEvent, TablespaceEventKind,
};
pub use xid_set::XidSet;

/// What one segment holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct WalIndex {
    /// Major version that the page magic stands for; 0 if unknown.
    pub postgresql_major: u32,
    /// The segment's first byte.
    pub start: Lsn,
    /// The first byte behind the segment.
    pub end: Lsn,
    /// Where the first record that *begins* in this segment begins; `None` if none does.
    pub first_record: Option<Lsn>,
    /// Where the record before that one begins, as the first record says (`xl_prev`): in an earlier segment. `None` if
    /// that is not in this segment.
    pub previous_record: Option<Lsn>,
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
    /// segments is added by [`IndexChain`].
    pub transactions: Option<TransactionSpan>,
    /// Transactions whose commit (prepared ones included; top-level xids only) begins and ends here.
    pub committed: XidSet,
    /// The same for aborts; rolled back subtransactions that had an xid are here with their own.
    pub aborted: XidSet,
    /// Restore points.
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoint and end-of-recovery records; of unknown major versions only the latter.
    pub checkpoints: Vec<CheckpointRecord>,
    /// `XLOG_PARAMETER_CHANGE` records: wal_level as number (0 minimal, 1 replica, 2 logical) and where.
    pub wal_levels: Vec<(Lsn, u8)>,
    /// Where a record begins that a crash left unfinished and that the server gave up here (often in the segment before):
    /// it is no record, and what follows replaces its end.
    pub abandoned: Option<Lsn>,
    /// Lists are cut at [`LIST_LIMIT`], xid sets hold ids that did not end here, or a record was too long to understand:
    /// only the segment itself can tell everything. Never so for ordinary WAL.
    pub abridged: bool,
    /// Bytes at the segment's beginning that continue a record of the previous one, page headers taken out (at most
    /// [`FRAGMENT_LIMIT`]; empty if there are none).
    pub head: Fragment,
    /// The beginning of a record that goes on in the next segment, likewise.
    pub tail: Fragment,
    /// Blocks that records changed that begin here and are complete here; [`IndexChain`] adds the one that spans segments.
    /// `None`: this index says nothing about blocks. It is older than them, or the segment is damaged, or a record was
    /// not understood.
    pub blocks: Option<BlockChanges>,
    /// Relations, databases and tablespaces that came and went, likewise; `None` in an index older than them.
    pub files: Option<FileEvents>,
    /// Directories of databases that were made, in LSN order, likewise. `None`: not known, because the index is older than them, one of
    /// the records was not understood, or there were more than [`LIST_LIMIT`].
    pub databases_made: Option<Vec<DatabaseMaking>>,
}

/// The most bytes of a spanning record that an index keeps on either side.
pub const FRAGMENT_LIMIT: usize = 64 << 10;

/// The most restore points, checkpoints and wal_level changes (of each) that an index lists.
pub const LIST_LIMIT: usize = 4096;

/// A piece of a record that spans segments.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Fragment {
    /// Where the record begins (for a tail); [`Lsn::INVALID`] for a head, whose beginning is in an earlier segment.
    pub record: Lsn,
    /// Of a tail the record's `xl_tot_len`; of a head the bytes that were missing when this segment began, which may
    /// exceed `length` if the record does not end here either. 0 for no fragment.
    pub total_length: u32,
    /// Bytes of the record that lie in this segment (may exceed `bytes.len()`).
    pub length: u32,
    /// CRC-32C of these bytes, so that the whole record's can be checked without them.
    pub crc: u32,
    /// The kept bytes, without page headers: of a tail that recovery targets have no interest in, only the record's
    /// header.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

impl Fragment {
    /// Whether there is a fragment.
    pub fn exists(&self) -> bool {
        self.total_length != 0
    }
}

/// Whether records are intact.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordVerdict {
    /// Every record that begins and ends here has the right CRC.
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

impl TransactionSpan {
    fn of(end: TransactionEnd) -> TransactionSpan {
        TransactionSpan {
            count: 0,
            least_time: end.time,
            greatest_time: end.time,
            first: end,
            last: end,
            last_commit: None,
        }
    }

    fn add(&mut self, end: TransactionEnd) {
        self.count = self.count.saturating_add(1);
        self.least_time = self.least_time.min(end.time);
        self.greatest_time = self.greatest_time.max(end.time);
        self.last = end;
        if end.outcome == Outcome::Committed {
            self.last_commit = Some(end);
        }
    }

    /// Whether recovery to the time `target` stops at one of these records, if it reads them all in a consistent state.
    pub fn has_stop(&self, target: PgTimestamp, inclusion: TargetInclusion) -> bool {
        match inclusion {
            TargetInclusion::Inclusive => self.greatest_time > target,
            TargetInclusion::Exclusive => self.greatest_time >= target,
        }
    }
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
    /// When, by the server's clock (a checkpoint's in seconds only).
    pub time: PgTimestamp,
}

impl WalIndex {
    /// Takes in what the record from `lsn` to `end` means. Records must come in LSN order.
    pub fn add_event(&mut self, lsn: Lsn, end: Lsn, event: Event) {
        match event {
            Event::TransactionEnd { xid, time, outcome } => {
                self.add_transaction_end(TransactionEnd { lsn, end, xid, time, outcome });
            }
            Event::RestorePoint { time, name } => {
                let point = RestorePoint { lsn, end, time, name };
                self.abridged |= !push_limited(&mut self.restore_points, point);
            }
            Event::Checkpoint { kind, redo, timeline, previous_timeline, time } => {
                let redo = redo.unwrap_or(lsn);
                let checkpoint = CheckpointRecord { lsn, redo, kind, timeline, previous_timeline, time };
                self.abridged |= !push_limited(&mut self.checkpoints, checkpoint);
            }
            Event::WalLevel(level) => self.abridged |= !push_limited(&mut self.wal_levels, (lsn, level)),
            Event::Abandoned(record) => self.abandoned = Some(record),
            Event::Switch => {}
        }
    }

    /// Takes in a record from its header and its bytes, which may be only its beginning: what it means, what it does to files, which
    /// blocks it changes. Records must come in LSN order.
    ///
    /// The record's CRC fits, so the server meant it: what is not understood has a layout that is not known, or is too long to have been
    /// kept.
    pub(crate) fn add_record(
        &mut self,
        lsn: Lsn,
        end: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
    ) -> Result<RecordMeaning, RecordNotUnderstood> {
        if is_of_interest(header) || changes_storage(header) {
            return self.add_meaning(lsn, end, header, bytes);
        }
        let major = self.major();
        if let Some(blocks) = &mut self.blocks
            && visit_blocks(bytes, major, |block| blocks.add_block(block)).is_err()
        {
            self.blocks = None;
        }
        Ok(RecordMeaning::Nothing)
    }

    fn add_meaning(
        &mut self,
        lsn: Lsn,
        end: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
    ) -> Result<RecordMeaning, RecordNotUnderstood> {
        let major = self.major();
        let Ok(record) = decode_record(bytes, major) else {
            let problem = self.not_understood(header);
            // What files it touches is not known; what it means for recovery is: nothing.
            return if is_of_interest(header) { Err(problem) } else { Ok(RecordMeaning::Nothing) };
        };
        let meaning = match decode_event(&record, major) {
            Ok(Some(Event::TransactionEnd { xid, time, outcome })) => {
                let ended = TransactionEnd { lsn, end, xid, time, outcome };
                self.add_transaction_end(ended);
                Ok(RecordMeaning::TransactionEnd(ended))
            }
            Ok(Some(Event::Switch)) => Ok(RecordMeaning::Switch),
            Ok(event) => {
                event.into_iter().for_each(|event| self.add_event(lsn, end, event));
                Ok(RecordMeaning::Nothing)
            }
            Err(_) => Err(self.not_understood(header)),
        };
        if changes_storage(header) {
            self.add_storage_changes(lsn, &record, meaning.ok());
        }
        if let Some(blocks) = &mut self.blocks {
            record.blocks.iter().for_each(|block| blocks.add_block(block));
        }
        meaning
    }

    fn add_storage_changes(&mut self, lsn: Lsn, record: &DecodedRecord<'_>, meaning: Option<RecordMeaning>) {
        let Ok(changes) = decode_storage_change(record, self.major()) else {
            self.not_understood(&record.header);
            return;
        };
        let ended = match &meaning {
            Some(RecordMeaning::TransactionEnd(ended)) => Some(ended),
            _ => None,
        };
        for change in changes {
            self.blocks.iter_mut().for_each(|blocks| blocks.add_storage_change(&change));
            self.add_making(lsn, &change);
            let files = self.files.get_or_insert_default();
            self.abridged |= !files.add(lsn, record.header.xid, ended, change);
        }
    }

    fn add_making(&mut self, lsn: Lsn, change: &StorageChange) {
        if let StorageChange::DatabaseCreated { database, tablespace, copied_from } = *change
            && let Some(made) = &mut self.databases_made
        {
            let directory = DatabaseDirectory { database, tablespace };
            if !push_limited(made, DatabaseMaking { lsn, directory, copied_from }) {
                self.databases_made = None;
            }
        }
    }

    /// Something in this segment is not known: what a record with this header does.
    fn not_understood(&mut self, header: &RecordHeader) -> RecordNotUnderstood {
        self.abridged = true;
        self.blocks = None;
        if header.rmgr == RMGR_DATABASE {
            self.databases_made = None;
        }
        RecordNotUnderstood
    }

    fn add_transaction_end(&mut self, end: TransactionEnd) {
        if let Some(files) = &mut self.files {
            files.note_end(&end);
        }
        self.transactions.get_or_insert_with(|| TransactionSpan::of(end)).add(end);
        let set = match end.outcome {
            Outcome::Committed => &mut self.committed,
            Outcome::Aborted => &mut self.aborted,
        };
        self.abridged |= !set.insert(end.xid);
    }

    /// The commit or abort that begins here and ends in a later segment, once [`IndexChain`] has added it: the one that
    /// a scan of this segment alone cannot see.
    pub fn spanning_transaction(&self) -> Option<TransactionEnd> {
        self.transactions.map(|span| span.last).filter(|last| last.end > self.end)
    }

    /// The major version as decoders want it.
    pub(crate) fn major(&self) -> Option<u32> {
        Some(self.postgresql_major).filter(|major| *major != 0)
    }
}

/// What a record means to those who read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordMeaning {
    /// Nothing that changes how WAL goes on.
    Nothing,
    /// The segment ends here, whatever bytes follow.
    Switch,
    /// A transaction ended.
    TransactionEnd(TransactionEnd),
}

/// A record of interest whose meaning could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordNotUnderstood;

/// False if the list is full.
fn push_limited<T>(list: &mut Vec<T>, item: T) -> bool {
    let room = list.len() < LIST_LIMIT;
    if room {
        list.push(item);
    }
    room
}
