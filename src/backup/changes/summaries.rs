//! Changed blocks from the server's own WAL summaries (`summarize_wal`, PostgreSQL 17 and later), asked for by SQL.
//!
//! In: a history of timelines and two positions. Out: every block that WAL between them changes, or why the summaries cannot tell.
//! What must hold: on each timeline of the history the summaries cover its share of the stretch without a hole. A summary that reaches
//! beyond names too much, which does no harm. Follows `PrepareForIncrementalBackup`
//! (`src/backend/backup/basebackup_incremental.c`), which waits for the summarizer too.

use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;

use crate::backup::BackupError;
use crate::format::wal_index::BlockChanges;
use crate::interrupt;
use crate::pg::client::{ClientError, Session};
use crate::pg::wal_record::{BlockReference, ForkNumber, RelFileLocator};
use crate::pg::wal_storage::StorageChange;
use crate::pg::{Lsn, TimelineHistory, TimelineId};

/// The summarizer may stand still for so long before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// One that has failed tries again every 10 seconds, mostly in vain: after a recovery it may look for a segment that only the archive has.
const PATIENCE_WITH_FAILURE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// A timeline's share of the stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Share {
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
}

/// A summary file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Summary {
    start: Lsn,
    end: Lsn,
}

/// Why the summaries cannot be used.
pub type Unusable = String;

/// Reads what changed between `start` and `stop`, the last of which lies on the history's own timeline.
pub fn read(
    session: &mut Session,
    history: &TimelineHistory,
    start: Lsn,
    stop: Lsn,
) -> Result<Result<BlockChanges, Unusable>, BackupError> {
    if session.server_major() < 17 {
        return Ok(Err(format!("PostgreSQL {} has no WAL summaries", session.server_major())));
    }
    match session.show("summarize_wal") {
        Ok(on) if on == "on" => {}
        Ok(_) => return Ok(Err("summarize_wal is off".to_owned())),
        Err(error) => return Ok(Err(error.to_string())),
    }
    let mut changes = BlockChanges::default();
    for share in shares(history, start, stop) {
        let summaries = match wait_for_cover(session, share)? {
            Ok(summaries) => summaries,
            Err(reason) => return Ok(Err(reason)),
        };
        for summary in summaries {
            if let Err(error) = add_contents(session, share.timeline, summary, &mut changes) {
                return Ok(Err(error.to_string()));
            }
        }
    }
    Ok(Ok(changes))
}

/// The timelines that wrote the stretch, and their parts of it.
fn shares(history: &TimelineHistory, start: Lsn, stop: Lsn) -> Vec<Share> {
    let share = |timeline| {
        let begins = history.begins_at(timeline)?;
        let left = history.left_at(timeline)?;
        Some(Share { timeline, start: start.max(begins), stop: stop.min(left) })
    };
    history.timelines().filter_map(share).filter(|share| share.start < share.stop).collect()
}

/// The summaries that cover a share, as soon as the summarizer has got so far.
fn wait_for_cover(
    session: &mut Session,
    share: Share,
) -> Result<Result<Vec<Summary>, Unusable>, BackupError> {
    let mut seen = Lsn::INVALID;
    let mut progressed = Instant::now();
    loop {
        // Asked before the list: what it says is summarized is in the list.
        let State { summarized, pending, fails } = match state(session) {
            Ok(state) => state,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let reach = match available(session, share) {
            Ok(summaries) => match covered_until(&summaries, share) {
                reach if reach >= share.stop => return Ok(Ok(summaries)),
                reach => reach,
            },
            Err(error) => return Ok(Err(error.to_string())),
        };
        if summarized >= share.stop {
            let timeline = share.timeline.get();
            return Ok(Err(format!("there is no summary of WAL from {reach} on, on timeline {timeline}")));
        }
        if pending.max(summarized) > seen {
            (seen, progressed) = (pending.max(summarized), Instant::now());
        }
        if fails && progressed.elapsed() > PATIENCE_WITH_FAILURE {
            return Ok(Err(format!("the summarizer fails at {seen}: the server's log says why")));
        }
        if progressed.elapsed() > PATIENCE {
            return Ok(Err(format!("the summarizer stands still at {seen}, before {}", share.stop)));
        }
        if !interrupt::sleep(PAUSE) {
            return Err(BackupError::Interrupted);
        }
    }
}

/// How far summaries reach from the share's start without a hole.
fn covered_until(summaries: &[Summary], share: Share) -> Lsn {
    let mut reach = share.start;
    for summary in summaries {
        if summary.start > reach {
            break;
        }
        reach = reach.max(summary.end);
    }
    reach
}

/// How far the summarizer is.
struct State {
    /// On disk.
    summarized: Lsn,
    /// In memory.
    pending: Lsn,
    /// Whether it waits to try again. Not seen without the right to read other sessions' activity.
    fails: bool,
}

fn state(session: &mut Session) -> Result<State, ClientError> {
    let what = "ask how far WAL is summarized";
    let sql = "SELECT coalesce(summarized_lsn, '0/0')::text, coalesce(pending_lsn, '0/0')::text, \
                      EXISTS (SELECT FROM pg_stat_activity \
                              WHERE backend_type = 'walsummarizer' AND wait_event = 'WalSummarizerError') \
               FROM pg_get_wal_summarizer_state()";
    let row = session.client().query_one(sql, &[]).map_err(|error| ClientError::query(what, &error))?;
    let fails = row.try_get(2).map_err(|error| ClientError::query(what, &error))?;
    Ok(State { summarized: position(what, &row, 0)?, pending: position(what, &row, 1)?, fails })
}

/// The summaries that overlap a share, in order.
fn available(session: &mut Session, share: Share) -> Result<Vec<Summary>, ClientError> {
    let what = "list WAL summaries";
    let sql = "SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries() \
               WHERE tli = $1 AND start_lsn < $2::text::pg_lsn AND end_lsn > $3::text::pg_lsn ORDER BY start_lsn, end_lsn";
    let (stop, start) = (share.stop.to_string(), share.start.to_string());
    let rows = session.client().query(sql, &[&i64::from(share.timeline.get()), &stop, &start]);
    let rows = rows.map_err(|error| ClientError::query(what, &error))?;
    rows.iter()
        .map(|row| Ok(Summary { start: position(what, row, 0)?, end: position(what, row, 1)? }))
        .collect()
}

fn position(what: &str, row: &postgres::Row, column: usize) -> Result<Lsn, ClientError> {
    let text: String = row.try_get(column).map_err(|error| ClientError::query(what, &error))?;
    text.parse().map_err(|_| ClientError::unexpected(what, &text))
}

/// Adds what one summary says of main forks. Rows come one by one: a busy day has millions.
fn add_contents(
    session: &mut Session,
    timeline: TimelineId,
    summary: Summary,
    changes: &mut BlockChanges,
) -> Result<(), ClientError> {
    let what = "read a WAL summary";
    let failed = |error| ClientError::query(what, &error);
    let sql = "SELECT reltablespace, reldatabase, relfilenode, relblocknumber, is_limit_block \
               FROM pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) WHERE relforknumber = 0";
    let arguments: [&(dyn postgres::types::ToSql + Sync); 3] =
        [&i64::from(timeline.get()), &summary.start.to_string(), &summary.end.to_string()];
    let mut rows = session.client().query_raw(sql, arguments).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let relation = RelFileLocator {
            tablespace: row.try_get(0).map_err(failed)?,
            database: row.try_get(1).map_err(failed)?,
            relation: row.try_get(2).map_err(failed)?,
        };
        let block: i64 = row.try_get(3).map_err(failed)?;
        let block = u32::try_from(block).map_err(|_| ClientError::unexpected(what, block))?;
        let fork = ForkNumber::MAIN;
        if row.try_get(4).map_err(failed)? {
            changes.add_storage_change(&StorageChange::Truncated { relation, fork, from: block });
        } else {
            let (id, will_init, data_length, image) = (0, false, 0, None);
            changes.add_block(&BlockReference { id, relation, fork, block, will_init, data_length, image });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(position: u64) -> Lsn {
        Lsn::new(position)
    }

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn each_timeline_has_its_share() {
        let history = TimelineHistory::parse(timeline(3), "1 0/1000 x\n2 0/2000 x\n").unwrap();
        let share =
            |number, start, stop| Share { timeline: timeline(number), start: lsn(start), stop: lsn(stop) };
        assert_eq!(
            shares(&history, lsn(0x800), lsn(0x3000)),
            [share(1, 0x800, 0x1000), share(2, 0x1000, 0x2000), share(3, 0x2000, 0x3000)]
        );
        assert_eq!(shares(&history, lsn(0x2000), lsn(0x2100)), [share(3, 0x2000, 0x2100)]);
        assert_eq!(shares(&history, lsn(0x1800), lsn(0x1900)), [share(2, 0x1800, 0x1900)]);
    }

    #[test]
    fn a_hole_ends_what_is_covered() {
        let share = Share { timeline: timeline(1), start: lsn(100), stop: lsn(200) };
        let covered = |summaries: &[(u64, u64)]| {
            let summaries: Vec<Summary> =
                summaries.iter().map(|(start, end)| Summary { start: lsn(*start), end: lsn(*end) }).collect();
            covered_until(&summaries, share).get()
        };
        assert_eq!(covered(&[]), 100);
        assert_eq!(covered(&[(101, 200)]), 100);
        assert_eq!(covered(&[(50, 150), (150, 200)]), 200);
        assert_eq!(covered(&[(50, 150), (151, 200)]), 150);
        assert_eq!(covered(&[(50, 250), (150, 170)]), 250);
    }
}
