//! Where replay would stop: found in the archived WAL, or shown to be out of reach, before a byte is written.
//!
//! In: the stored segments from a backup's start along a line, their indexes, and the target. Out: the very record at which
//! PostgreSQL stops. The rules are those of `recoveryStopsBefore` and `recoveryStopsAfter`
//! (`src/backend/access/transam/xlogrecovery.c`): transactions in LSN order, commits and aborts alike, prepared ones by their own
//! xid; a time stops *before* the first record that is later, so there must be one (PostgreSQL 13+ ends with FATAL otherwise);
//! a stop before the backup is consistent is FATAL as well.

use std::sync::Arc;

use super::error::RestoreError;
use super::target::Target;
use super::wal_path::{PathEnd, WalPath};
use crate::format::wal_index::{
    RecordVerdict, RestorePoint, SegmentFacts, SpanningRecord, TransactionEnd, WalIndex,
};
use crate::pg::recovery::TargetInclusion;
use crate::pg::wal_record::RecordHeader;
use crate::pg::{Lsn, PgTimestamp, WalSegmentName};

/// What archived segments hold.
pub trait WalContents {
    /// The indexes of all segments of the path, with the records that span two of them put back.
    fn facts(&self, path: &WalPath) -> Result<Vec<SegmentFacts>, RestoreError>;

    /// Every commit and abort that begins and ends in this segment, in LSN order.
    fn transactions(&self, segment: WalSegmentName) -> Result<Arc<Vec<TransactionEnd>>, RestoreError>;
}

/// The WAL that replay of one backup would read.
pub struct Evidence<'a> {
    path: &'a WalPath,
    facts: Vec<SegmentFacts>,
    contents: &'a dyn WalContents,
    /// How many of the path's segments can be read, the last one perhaps in part.
    readable: usize,
    /// The position up to which records can be read.
    pub reach: Lsn,
    /// Why not further.
    pub limit: Limit,
}

/// What ends the readable WAL of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The names end it.
    Path(PathEnd),
    /// A record or page is not valid: PostgreSQL would take it for the end of WAL.
    Damage {
        /// The segment.
        segment: WalSegmentName,
        /// Where.
        at: Lsn,
        /// What is wrong.
        problem: String,
    },
    /// From here WAL was written with `wal_level=minimal`: PostgreSQL refuses to replay it.
    MinimalWal {
        /// Where the level changed.
        at: Lsn,
    },
}

/// The point at which replay ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    /// Where the first record that is not replayed begins.
    pub lsn: Lsn,
    /// What makes PostgreSQL stop.
    pub at: StopAt,
    /// The last commit or abort that is replayed, if one was archived since the backup's start.
    pub last_kept: Option<TransactionEnd>,
    /// The first that is not, if one is archived.
    pub first_left_out: Option<TransactionEnd>,
}

/// What makes replay end.
#[derive(Clone, Debug, PartialEq)]
pub enum StopAt {
    /// The archive ends.
    EndOfArchive,
    /// The backup is consistent.
    Consistency,
    /// Before this commit or abort.
    Before(TransactionEnd),
    /// After this commit or abort.
    After(TransactionEnd),
    /// Before the first record that begins at or after the target.
    BeforeLsn(Lsn),
    /// After the first record that begins at or after the target.
    AfterLsn(Lsn),
    /// After this restore point.
    RestorePoint(RestorePoint),
}

/// Why a target is not proven for one backup.
#[derive(Debug)]
pub enum Unproven {
    /// Replay would stop before this backup is consistent, or the target lies before its start: an older one may do.
    TooLate(String),
    /// The target is nowhere in the WAL that replay of this backup reads: an older backup may reach it.
    NotSeen,
    /// No backup on this line can reach it.
    Refused(RestoreError),
}

impl From<RestoreError> for Unproven {
    fn from(error: RestoreError) -> Unproven {
        Unproven::Refused(error)
    }
}

impl<'a> Evidence<'a> {
    /// Reads the indexes of the path's segments.
    pub fn gather(path: &'a WalPath, contents: &'a dyn WalContents) -> Result<Evidence<'a>, RestoreError> {
        let facts = contents.facts(path)?;
        let (readable, reach, limit) = readable_part(path, &facts);
        Ok(Evidence { path, facts, contents, readable, reach, limit })
    }

    fn readable_indexes(&self) -> impl DoubleEndedIterator<Item = (usize, &WalIndex)> {
        self.facts.iter().map(|facts| &facts.index).enumerate().take(self.readable)
    }

    /// Every commit and abort that begins in a segment of the path, the one that goes on in the next segment included.
    fn transactions(&self, position: usize) -> Result<Vec<TransactionEnd>, RestoreError> {
        let Some(segment) = self.path.segments.get(position) else { return Ok(Vec::new()) };
        let mut ends = self.contents.transactions(segment.name)?.to_vec();
        let last = self.facts.get(position).and_then(|facts| facts.index.transactions).map(|span| span.last);
        ends.extend(last.filter(|last| ends.last().is_none_or(|end| end.lsn < last.lsn)));
        Ok(ends)
    }

    /// The first commit or abort from the path's start on that fulfils `wanted`. `possible` says from a segment's index
    /// whether it may hold one, so that only segments with a hit are read.
    fn first_transaction(
        &self,
        possible: impl Fn(&WalIndex) -> bool,
        wanted: impl Fn(&TransactionEnd) -> bool,
    ) -> Result<Option<TransactionEnd>, RestoreError> {
        for (position, index) in self.readable_indexes() {
            if index.transactions.is_none() || !possible(index) {
                continue;
            }
            let transactions = self.transactions(position)?;
            let found = transactions.into_iter().find(|end| self.replayable(end) && wanted(end));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn replayable(&self, end: &TransactionEnd) -> bool {
        self.path.start <= end.lsn && end.end <= self.reach
    }

    /// The last commit or abort that begins before `lsn`.
    pub fn last_before(&self, lsn: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        for (position, index) in self.readable_indexes().rev() {
            let Some(span) = &index.transactions else { continue };
            if span.last.lsn < lsn && self.replayable(&span.last) {
                return Ok(Some(span.last));
            }
            if span.first.lsn < lsn {
                let transactions = self.transactions(position)?;
                let found = transactions.into_iter().rev().find(|end| end.lsn < lsn && self.replayable(end));
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The first commit or abort after `after` (any, if `None`) and up to `until`, by the server's clock.
    pub fn first_in_time(
        &self,
        after: Option<PgTimestamp>,
        until: PgTimestamp,
    ) -> Result<Option<TransactionEnd>, RestoreError> {
        let fits = |time: PgTimestamp| after.is_none_or(|after| time > after) && time <= until;
        let possible = |index: &WalIndex| {
            index.transactions.is_some_and(|span| {
                after.is_none_or(|after| span.greatest_time > after) && span.least_time <= until
            })
        };
        self.first_transaction(possible, |end| fits(end.time))
    }

    fn first_from(&self, lsn: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        let possible = |index: &WalIndex| index.transactions.is_some_and(|span| span.last.lsn >= lsn);
        self.first_transaction(possible, |end| end.lsn >= lsn)
    }

    /// Every restore point of this name that replay passes.
    pub fn restore_points(&self, name: &str) -> Vec<RestorePoint> {
        self.readable_indexes()
            .flat_map(|(_, index)| &index.restore_points)
            .filter(|point| point.name == name && self.path.start <= point.lsn && point.end <= self.reach)
            .cloned()
            .collect()
    }

    /// Proves that replay stops at `target`, and where. `consistent_at` is the backup's stop position.
    pub fn prove(
        &self,
        target: &Target,
        inclusion: TargetInclusion,
        consistent_at: Lsn,
    ) -> Result<Stop, Unproven> {
        let consistent = self.prove_consistent(consistent_at)?;
        match target {
            Target::EndOfWal => self.prove_end(),
            Target::Immediate if self.stops_at(consistent_at)? => Ok(consistent),
            Target::Immediate => Err(Unproven::Refused(self.nothing_follows(consistent_at))),
            Target::Time(time) => self.prove_time(time.moment, &time.to_string(), inclusion, consistent_at),
            Target::Lsn(lsn) => self.prove_lsn(*lsn, inclusion, consistent_at),
            Target::Xid(xid) => self.prove_xid(*xid, inclusion, consistent_at),
            Target::Name(name) => self.prove_name(name, consistent_at),
        }
    }

    /// Proves that the backup's own WAL is there.
    pub fn prove_consistent(&self, consistent_at: Lsn) -> Result<Stop, Unproven> {
        if self.reach < consistent_at {
            return Err(self.out_of_reach(&format!("the backup's stop at {consistent_at}"))?.into());
        }
        Ok(self.stop(consistent_at, StopAt::Consistency)?)
    }

    /// Whether PostgreSQL notices that it is consistent: it looks after a commit or abort, and before each record that it replays. A
    /// backup of a standby may end where its WAL does.
    fn stops_at(&self, consistent_at: Lsn) -> Result<bool, RestoreError> {
        let follows =
            self.facts.iter().take(self.readable).any(|facts| self.has_record_from(facts, consistent_at));
        Ok(follows || self.last_before(consistent_at)?.is_some_and(|end| end.end == consistent_at))
    }

    fn nothing_follows(&self, consistent_at: Lsn) -> RestoreError {
        let hint = match &self.limit {
            Limit::Path(PathEnd::Archive { .. }) => {
                "leave --target-immediate out: nothing later is archived on this line"
            }
            _ => {
                "leave --target-immediate out and set wal.allow_gap (WALHOLD_WAL_ALLOW_GAP=true): replay then ends where this WAL does"
            }
        };
        RestoreError::refused(
            format!(
                "recovery cannot stop at the backup's end at {consistent_at}: PostgreSQL stops before the record that follows, and none can be read"
            ),
            hint.to_owned(),
        )
    }

    /// The end of the archive, if nothing but the archive's end ends it.
    fn prove_end(&self) -> Result<Stop, Unproven> {
        match &self.limit {
            Limit::Path(PathEnd::Archive { .. }) => Ok(self.stop(self.reach, StopAt::EndOfArchive)?),
            _ => Err(self.out_of_reach("the end of the archive")?.into()),
        }
    }

    fn prove_time(
        &self,
        moment: PgTimestamp,
        shown: &str,
        inclusion: TargetInclusion,
        consistent_at: Lsn,
    ) -> Result<Stop, Unproven> {
        let stops = |time: PgTimestamp| match inclusion {
            TargetInclusion::Inclusive => time > moment,
            TargetInclusion::Exclusive => time >= moment,
        };
        let possible = |index: &WalIndex| index.transactions.is_some_and(|span| stops(span.greatest_time));
        match self.first_transaction(possible, |end| stops(end.time))? {
            None => Err(self.out_of_reach(&format!("the target time {shown}"))?.into()),
            Some(end) if end.lsn < consistent_at => Err(too_early(&end, consistent_at)),
            Some(end) => Ok(self.stop(end.lsn, StopAt::Before(end))?),
        }
    }

    fn prove_lsn(&self, lsn: Lsn, inclusion: TargetInclusion, consistent_at: Lsn) -> Result<Stop, Unproven> {
        if lsn < consistent_at {
            return Err(Unproven::TooLate(format!("it is consistent only from {consistent_at}")));
        }
        let reached = self.facts.iter().take(self.readable).any(|facts| self.has_record_from(facts, lsn));
        let reached = reached || self.first_from(lsn)?.is_some();
        match (reached, inclusion) {
            (false, _) => Err(self.out_of_reach(&format!("the target position {lsn}"))?.into()),
            (true, TargetInclusion::Inclusive) => Ok(self.stop(lsn.plus(1), StopAt::AfterLsn(lsn))?),
            (true, TargetInclusion::Exclusive) => Ok(self.stop(lsn, StopAt::BeforeLsn(lsn))?),
        }
    }

    /// Whether a record that can be replayed begins in this segment at or after `lsn`. A record that does not end in the archive is none, but
    /// names the one before it.
    fn has_record_from(&self, facts: &SegmentFacts, lsn: Lsn) -> bool {
        let last = match facts.spanning {
            SpanningRecord::Unfinished => {
                RecordHeader::read(&facts.index.tail.bytes).map(|header| header.previous)
            }
            _ => facts.index.last_record,
        };
        last.is_some_and(|last| lsn <= last && last < self.reach)
    }

    fn prove_xid(&self, xid: u32, inclusion: TargetInclusion, consistent_at: Lsn) -> Result<Stop, Unproven> {
        let possible = |index: &WalIndex| index.committed.contains(xid) || index.aborted.contains(xid);
        match self.first_transaction(possible, |end| end.xid == xid)? {
            None => Err(Unproven::NotSeen),
            Some(end) if end.lsn < consistent_at => Err(too_early(&end, consistent_at)),
            Some(end) if end.outcome == crate::format::wal_index::Outcome::Aborted => {
                Err(Unproven::Refused(RestoreError::refused(
                    format!(
                        "transaction {xid} was rolled back at {} ({}): there is nothing of it to recover",
                        end.time, end.lsn
                    ),
                    format!("to recover to that moment all the same, use --target-lsn {}", end.lsn),
                )))
            }
            Some(end) => Ok(match inclusion {
                TargetInclusion::Inclusive => self.stop(end.end, StopAt::After(end))?,
                TargetInclusion::Exclusive => self.stop(end.lsn, StopAt::Before(end))?,
            }),
        }
    }

    fn prove_name(&self, name: &str, consistent_at: Lsn) -> Result<Stop, Unproven> {
        let points = self.restore_points(name);
        match points.as_slice() {
            [] => Err(Unproven::NotSeen),
            [first, ..] if first.lsn < consistent_at => Err(Unproven::TooLate(format!(
                "restore point {name:?} at {} comes before it is consistent at {consistent_at}",
                first.lsn
            ))),
            [only] => Ok(self.stop(only.end, StopAt::RestorePoint(only.clone()))?),
            several => Err(Unproven::Refused(name_used_twice(name, several))),
        }
    }

    fn stop(&self, lsn: Lsn, at: StopAt) -> Result<Stop, RestoreError> {
        let last_kept = self.last_before(lsn)?;
        let first_left_out = self.first_from(lsn)?;
        Ok(Stop { lsn, at, last_kept, first_left_out })
    }

    /// The refusal of a target that lies beyond what can be read: names the cause and the last moment before it.
    pub fn out_of_reach(&self, target: &str) -> Result<RestoreError, RestoreError> {
        let last = self.last_before(self.reach)?;
        let moment = last.map_or("no transaction was archived before it".to_owned(), |end| {
            format!("the last transaction before it ended at {} ({})", end.time, end.lsn)
        });
        let upto = last.map_or("recover the backup alone with --target-immediate".to_owned(), |end| {
            format!("recover to just before it with --target-lsn {}", end.lsn)
        });
        Ok(match &self.limit {
            Limit::Path(PathEnd::Archive { .. }) => {
                let ended = last.map_or(format!("{}", self.reach), |end| {
                    format!("{}, where the last transaction ended at {}", self.reach, end.time)
                });
                RestoreError::refused(
                    format!("{target} is after the end of the archive: it reaches to {ended}"),
                    "leave the target out to recover to the end of the archive, or archive more WAL first (SELECT pg_switch_wal())",
                )
            }
            Limit::Path(PathEnd::Gap { missing, later }) => RestoreError::refused(
                format!(
                    "{target} cannot be reached: WAL segment {missing} is missing although {later} is stored; {moment}"
                ),
                format!("push the missing segment if a copy exists, or {upto}"),
            ),
            Limit::Path(PathEnd::TimelineMissing { timeline, begins_at, missing }) => RestoreError::refused(
                format!(
                    "{target} cannot be reached: timeline {} begins at {begins_at}, but its first segment {missing} is not stored; {moment}",
                    timeline.get()
                ),
                format!(
                    "let the server on timeline {0} archive it (SELECT pg_switch_wal()), name another line with --timeline, or {upto}",
                    timeline.get()
                ),
            ),
            Limit::Damage { segment, at, problem } => RestoreError::refused(
                format!(
                    "{target} cannot be reached: WAL segment {segment} is damaged at {at} ({problem}), PostgreSQL would take that for the end of WAL; {moment}"
                ),
                upto,
            ),
            Limit::MinimalWal { at } => RestoreError::refused(
                format!(
                    "{target} cannot be reached: from {at} on WAL was written with wal_level=minimal, which cannot be replayed; {moment}"
                ),
                format!("use a backup that was taken after wal_level was raised again, or {upto}"),
            ),
        })
    }
}

fn too_early(end: &TransactionEnd, consistent_at: Lsn) -> Unproven {
    Unproven::TooLate(format!(
        "replay would stop at transaction {} ({}), before it is consistent at {consistent_at}",
        end.xid, end.lsn
    ))
}

/// The refusal of a name that says two moments.
pub fn name_used_twice(name: &str, points: &[RestorePoint]) -> RestoreError {
    let moments: Vec<String> = points.iter().map(|point| format!("{} ({})", point.time, point.lsn)).collect();
    let commands: Vec<String> = points.iter().map(|point| format!("--target-lsn {}", point.lsn)).collect();
    RestoreError::refused(
        format!("restore point {name:?} was used {} times: at {}", points.len(), moments.join(", at ")),
        format!("say which one is meant: {}", commands.join(" or ")),
    )
}

/// How far records can be read, and why not further.
fn readable_part(path: &WalPath, facts: &[SegmentFacts]) -> (usize, Lsn, Limit) {
    for (position, (segment, facts)) in path.segments.iter().zip(facts).enumerate() {
        let (index, count) = (&facts.index, position + 1);
        let minimal = index.wal_levels.iter().find(|(at, level)| *level == 0 && path.start <= *at);
        if let Some((at, _)) = minimal.filter(|(at, _)| *at < segment.until) {
            return (count, *at, Limit::MinimalWal { at: *at });
        }
        let damage = |at, problem: &String| {
            let limit = Limit::Damage { segment: segment.name, at, problem: problem.clone() };
            (count, at, limit)
        };
        if let RecordVerdict::Damaged { at, problem } = &index.verdict
            && *at < segment.until
        {
            return damage(*at, problem);
        }
        if let Some(problem) = &facts.break_after
            && count < path.segments.len()
        {
            return damage(end_of_records(facts).min(segment.until), problem);
        }
    }
    let limit = Limit::Path(path.end.clone());
    match path.segments.last().zip(facts.last()) {
        None => (0, path.start, limit),
        Some((segment, last)) => (path.segments.len(), end_of_records(last).min(segment.until), limit),
    }
}

/// Where the last record that can be replayed ends: one that goes on in a segment that is not there cannot.
fn end_of_records(facts: &SegmentFacts) -> Lsn {
    match facts.spanning {
        SpanningRecord::Unfinished => facts.index.tail.record,
        _ => facts.index.valid_until,
    }
}
