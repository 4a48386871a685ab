//! What PostgreSQL says about its own WAL.

use walhold::format::wal_index::{CheckpointKind, Outcome, SegmentFacts};
use walhold::pg::{Lsn, PgTimestamp};

use crate::support::postgres::Cluster;
use crate::support::postgres::installation::ServerUser;
use crate::{Scanned, start_of};

/// A record as PostgreSQL describes it.
#[derive(Debug)]
pub struct Record {
    lsn: Lsn,
    /// Not said by pg_waldump.
    end: Option<Lsn>,
    previous: Lsn,
    xid: u32,
    manager: String,
    kind: String,
    description: String,
}

impl Record {
    /// Where it begins.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

/// By pg_walinspect, which is in every package from 15 on.
pub fn walinspect(cluster: &Cluster, segments: &[Scanned]) -> Vec<Record> {
    cluster.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect");
    let (first, last) = (&segments[0].index, &segments[segments.len() - 1].index);
    let begin = first.first_record.expect("a record");
    let end = last.end;
    let rows = cluster.query(&format!(
        "SELECT start_lsn, end_lsn, prev_lsn, xid, resource_manager, record_type, description
         FROM pg_get_wal_records_info('{begin}', '{end}') WHERE start_lsn < '{end}' ORDER BY start_lsn"
    ));
    let record = |row: Vec<String>| Record {
        lsn: row[0].parse().expect("an LSN"),
        end: Some(row[1].parse().expect("an LSN")),
        previous: row[2].parse().expect("an LSN"),
        xid: row[3].parse().expect("an xid"),
        manager: row[4].clone(),
        kind: row[5].clone(),
        description: row[6].clone(),
    };
    rows.into_iter().map(record).collect()
}

/// By pg_waldump.
pub fn waldump(cluster: &Cluster, segments: &[Scanned]) -> Vec<Record> {
    let (first, last) = (&segments[0].index, &segments[segments.len() - 1].index);
    let output = ServerUser::get()
        .command(cluster.installation.program("pg_waldump"))
        .env("TZ", "UTC")
        .arg("-p")
        .arg(cluster.data_directory().join("pg_wal"))
        .arg(format!("--start={}", first.first_record.expect("a record")))
        .arg(format!("--end={}", last.end))
        .output()
        .expect("run pg_waldump");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.starts_with("rmgr: ")).map(parse_line).collect()
}

/// `rmgr: Heap  len (rec/tot): 54/ 54, tx: 735, lsn: 0/01523A10, prev 0/015239D8, desc: INSERT off 3 …`
fn parse_line(line: &str) -> Record {
    let between = |from: &str, to: &str| {
        let rest = line.split_once(from).unwrap_or_else(|| panic!("{from} in {line}")).1;
        rest.split_once(to).unwrap_or_else(|| panic!("{to} in {line}")).0.trim().to_owned()
    };
    let description = line.split_once("desc: ").expect("a description").1;
    let (kind, description) = description.split_once(' ').unwrap_or((description, ""));
    Record {
        lsn: between("lsn: ", ",").parse().expect("an LSN"),
        end: None,
        previous: between("prev ", ",").parse().expect("an LSN"),
        xid: between("tx: ", ",").parse().expect("an xid"),
        manager: between("rmgr: ", " "),
        kind: kind.to_owned(),
        description: description.to_owned(),
    }
}

/// Record by record, in each segment and across them.
pub fn compare_with_records(records: &[Record], segments: &[Scanned], facts: &[SegmentFacts]) {
    assert!(records.len() > 10_000, "{} records", records.len());
    let scanned: u64 = segments.iter().map(|segment| segment.index.record_count).sum();
    let open_at_the_end = u64::from(segments[segments.len() - 1].index.tail.exists());
    // initdb's own segments are gone: the first one left may begin inside a record, which ends in it.
    let begun_before = u64::from(segments[0].index.head.exists());
    assert_eq!(scanned - begun_before, records.len() as u64 - open_at_the_end);
    for (segment, facts) in segments.iter().zip(facts) {
        let inside = |record: &&Record| start_of(segment) <= record.lsn && record.lsn < segment.index.end;
        let records: Vec<&Record> = records.iter().filter(inside).collect();
        compare_segment(&records, segment, facts);
    }
}

fn compare_segment(records: &[&Record], segment: &Scanned, facts: &SegmentFacts) {
    let name = segment.name;
    let index = &facts.index;
    assert_eq!(index.first_record, records.first().map(|record| record.lsn), "{name}");
    assert_eq!(index.last_record, records.last().map(|record| record.lsn), "{name}");
    let previous = records.first().map(|record| record.previous).filter(|previous| previous.is_valid());
    assert_eq!(index.previous_record, previous, "{name}");

    let ends: Vec<_> = records.iter().filter_map(|record| transaction_end(record)).collect();
    let found = segment.ends.iter().copied().chain(index.spanning_transaction());
    let found: Vec<_> = found.map(|end| (end.lsn, end.xid, end.outcome, end.time)).collect();
    assert_eq!(found, ends, "{name}");
    assert_eq!(index.transactions.map_or(0, |span| span.count), ends.len() as u64, "{name}");
    if let Some(span) = index.transactions {
        let times = || ends.iter().map(|(_, _, _, time)| *time);
        assert_eq!(
            (Some(span.least_time), Some(span.greatest_time)),
            (times().min(), times().max()),
            "{name}"
        );
        let commits = ends.iter().filter(|(_, _, outcome, _)| *outcome == Outcome::Committed);
        assert_eq!(span.last_commit.map(|end| end.lsn), commits.map(|end| end.0).next_back(), "{name}");
        assert_eq!((span.first.lsn, span.last.lsn), (ends[0].0, ends[ends.len() - 1].0), "{name}");
    }
    for (_, xid, outcome, _) in &ends {
        let (set, other) = match outcome {
            Outcome::Committed => (&index.committed, &index.aborted),
            Outcome::Aborted => (&index.aborted, &index.committed),
        };
        assert!(set.contains(*xid) && !other.contains(*xid), "{name}: {xid}");
    }
    let ids = |set: &walhold::format::wal_index::XidSet| -> usize {
        set.runs().iter().map(|(start, end)| (end - start + 1) as usize).sum()
    };
    assert_eq!(ids(&index.committed) + ids(&index.aborted), ends.len(), "{name}");

    let ends_of_records = |lsn| records.iter().find(|record| record.lsn == lsn).and_then(|record| record.end);
    for end in segment.ends.iter().copied().chain(index.spanning_transaction()) {
        assert!(ends_of_records(end.lsn).is_none_or(|known| known == end.end), "{name}: {end:?}");
    }
    let points: Vec<_> =
        of_kind(records, "XLOG", "RESTORE_POINT").map(|r| (r.lsn, r.description.as_str())).collect();
    let found: Vec<_> = index.restore_points.iter().map(|point| (point.lsn, point.name.as_str())).collect();
    assert_eq!(found, points, "{name}");
    let levels: Vec<_> =
        of_kind(records, "XLOG", "PARAMETER_CHANGE").map(|r| (r.lsn, wal_level(r))).collect();
    assert_eq!(index.wal_levels, levels, "{name}");
    compare_checkpoints(records, facts);
}

fn compare_checkpoints(records: &[&Record], facts: &SegmentFacts) {
    let kind_of = |record: &Record| match (record.manager.as_str(), record.kind.as_str()) {
        ("XLOG", "CHECKPOINT_ONLINE") => Some(CheckpointKind::Online),
        ("XLOG", "CHECKPOINT_SHUTDOWN") => Some(CheckpointKind::Shutdown),
        ("XLOG", "END_OF_RECOVERY") => Some(CheckpointKind::EndOfRecovery),
        _ => None,
    };
    let expected: Vec<_> =
        records.iter().filter_map(|r| Some((r.lsn, kind_of(r)?, &r.description))).collect();
    assert_eq!(facts.index.checkpoints.len(), expected.len());
    for (found, (lsn, kind, description)) in facts.index.checkpoints.iter().zip(expected) {
        assert_eq!((found.lsn, found.kind), (lsn, kind));
        let timelines = format!("tli {}; prev tli {};", found.timeline.get(), found.previous_timeline.get());
        assert!(description.contains(&timelines), "{found:?}: {description}");
        if kind != CheckpointKind::EndOfRecovery {
            let redo: Lsn = description
                .split_once("redo ")
                .and_then(|(_, rest)| rest.split_once(';'))
                .and_then(|(lsn, _)| lsn.parse().ok())
                .expect("a redo position");
            assert_eq!(found.redo, redo);
        }
    }
}

fn of_kind<'a>(records: &'a [&Record], manager: &'a str, kind: &'a str) -> impl Iterator<Item = &'a Record> {
    records.iter().copied().filter(move |record| record.manager == manager && record.kind == kind)
}

fn wal_level(record: &Record) -> u8 {
    let level = record.description.split_once("wal_level=").expect("wal_level").1;
    match level.split([' ', ';']).next() {
        Some("minimal") => 0,
        Some("replica") => 1,
        Some("logical") => 2,
        other => panic!("wal_level {other:?}"),
    }
}

/// `COMMIT 2026-11-20 22:46:13.123456 UTC; rels: …`, `COMMIT_PREPARED 750: 2026-…`
fn transaction_end(record: &Record) -> Option<(Lsn, u32, Outcome, PgTimestamp)> {
    if record.manager != "Transaction" {
        return None;
    }
    let (outcome, prepared) = match record.kind.as_str() {
        "COMMIT" => (Outcome::Committed, false),
        "ABORT" => (Outcome::Aborted, false),
        "COMMIT_PREPARED" => (Outcome::Committed, true),
        "ABORT_PREPARED" => (Outcome::Aborted, true),
        _ => return None,
    };
    let text = record.description.as_str();
    let (xid, text) = match text.split_once(": ").filter(|_| prepared) {
        Some((xid, text)) => (xid.parse().expect("an xid"), text),
        None => (record.xid, text),
    };
    // pg_waldump writes the zone, the server its offset.
    let time = text.split_once(" UTC").or_else(|| text.split_once("+00"));
    let (time, _) = time.unwrap_or_else(|| panic!("no time in UTC: {record:?}"));
    Some((record.lsn, xid, outcome, timestamp(time)))
}

fn timestamp(text: &str) -> PgTimestamp {
    let rfc = format!("{}Z", text.replacen(' ', "T", 1));
    PgTimestamp::from_jiff(rfc.parse().unwrap_or_else(|e| panic!("{text}: {e}")))
}

/// By what every version's SQL functions remember: outcomes, commit times, restore points, the last checkpoint.
pub fn compare_with_functions(cluster: &Cluster, facts: &[SegmentFacts]) {
    let rows = cluster.query(
        "SELECT xid, pg_xact_status(xid::text::xid8), pg_xact_commit_timestamp(xid::text::xid) AT TIME ZONE 'UTC'
         FROM generate_series(10, (pg_snapshot_xmax(pg_current_snapshot())::text)::int - 1) xid
         WHERE pg_xact_status(xid::text::xid8) IS NOT NULL",
    );
    assert!(rows.len() > 1000);
    let in_any = |set: &dyn Fn(&SegmentFacts) -> bool| facts.iter().any(set);
    let mut commits = 0;
    for row in rows {
        let xid: u32 = row[0].parse().expect("an xid");
        // Subtransactions share their parent's fate without a record of their own; commit times tell the top level from them
        // only together with the counts that pg_walinspect gives.
        let committed = in_any(&|facts| facts.index.committed.contains(xid));
        let aborted = in_any(&|facts| facts.index.aborted.contains(xid));
        assert!(!committed || row[1] == "committed", "{xid}: {row:?}");
        assert!(!aborted || row[1] == "aborted", "{xid}: {row:?}");
        commits += u32::from(committed);
    }
    assert!(commits > 500, "{commits} commits");

    // The one transaction at a time whose commit time is asked for by name.
    for facts in facts {
        let Some(span) = facts.index.transactions else { continue };
        for end in [Some(span.first), Some(span.last), span.last_commit].into_iter().flatten() {
            if end.outcome == Outcome::Committed && end.xid >= 1000 {
                let sql = format!("SELECT pg_xact_commit_timestamp('{}'::xid) AT TIME ZONE 'UTC'", end.xid);
                let known = cluster.value(&sql);
                assert!(known.is_empty() || timestamp(&known) == end.time, "{end:?}: {known}");
            }
        }
    }

    let checkpoint = cluster.query(
        "SELECT checkpoint_lsn, redo_lsn, checkpoint_time AT TIME ZONE 'UTC' FROM pg_control_checkpoint()",
    );
    let lsn: Lsn = checkpoint[0][0].parse().expect("an LSN");
    let found = facts.iter().flat_map(|facts| &facts.index.checkpoints).find(|found| found.lsn == lsn);
    let found = found.unwrap_or_else(|| panic!("no checkpoint at {lsn}"));
    assert_eq!(found.redo.to_string(), checkpoint[0][1]);
    assert_eq!(found.time, timestamp(&checkpoint[0][2]));

    let names: Vec<_> = facts.iter().flat_map(|f| &f.index.restore_points).map(|p| p.name.as_str()).collect();
    for name in ["before", "twice", "Grüße", "spanning 0", "spanning 5", "the end"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(names.iter().filter(|name| **name == "twice").count(), 2);
    assert!(names.contains(&"n".repeat(63).as_str()));
}
