//! Transactions of every kind, some of which are made to span segments.

use walhold::format::wal_index::{CheckpointKind, Outcome, SegmentFacts, SpanningRecord};

use crate::Scanned;
use crate::support::postgres::{Cluster, StopMode, query};

const SEGMENT: u64 = 1 << 20;

pub fn run(cluster: &mut Cluster) {
    cluster.execute("CREATE TABLE numbers (n int PRIMARY KEY, body text)");
    pgbench(cluster, &["-i", "-s", "1", "-q"]);
    pgbench(cluster, &["-c", "2", "-j", "1", "-t", "300"]);
    ordinary_transactions(cluster);
    prepared_transactions(cluster);
    set_wal_level(cluster, "logical");
    spanning_transactions(cluster);
    huge_records(cluster);
    // A crash and its recovery.
    cluster.execute("INSERT INTO numbers SELECT i, 'crash' FROM generate_series(500001, 501000) i");
    cluster.kill9();
    cluster.start();
    set_wal_level(cluster, "replica");
    pgbench(cluster, &["-c", "2", "-j", "1", "-t", "200"]);
    cluster.execute("CHECKPOINT");
    cluster.value("SELECT pg_create_restore_point('the end')");
    cluster.switch_wal();
}

fn pgbench(cluster: &Cluster, arguments: &[&str]) {
    let output = cluster.client_program("pgbench").args(arguments).output().expect("run pgbench");
    assert!(output.status.success(), "pgbench: {}", crate::support::program::describe(&output));
}

fn set_wal_level(cluster: &mut Cluster, level: &str) {
    cluster.configure("wal_level", level);
    cluster.stop(StopMode::Fast);
    cluster.start();
}

fn ordinary_transactions(cluster: &Cluster) {
    let statements = [
        "INSERT INTO numbers SELECT i, repeat('a', 50) FROM generate_series(1, 5000) i",
        "BEGIN; DELETE FROM numbers WHERE n < 100; ROLLBACK",
        "BEGIN; INSERT INTO numbers VALUES (-1); SAVEPOINT s; INSERT INTO numbers VALUES (-2); ROLLBACK TO s; \
         SAVEPOINT t; INSERT INTO numbers VALUES (-3); RELEASE t; COMMIT",
        "CREATE TABLE dropped (a int PRIMARY KEY, b text); INSERT INTO dropped VALUES (1, 'x'); DROP TABLE dropped",
        "BEGIN; CREATE TABLE undone (a int PRIMARY KEY); ROLLBACK",
        "TRUNCATE pgbench_history",
        "VACUUM numbers",
        "CREATE DATABASE other",
        "CHECKPOINT",
        "SELECT pg_create_restore_point('before')",
        "SELECT pg_create_restore_point('twice')",
        "SELECT pg_switch_wal()",
        "SELECT pg_create_restore_point('twice')",
        "SELECT pg_create_restore_point(repeat('n', 63))",
        "SELECT pg_create_restore_point('Grüße')",
    ];
    for statement in statements {
        // One session each, because a multi-statement string would be one transaction.
        let mut session = cluster.connect("postgres");
        for part in statement.split("; ") {
            query(&mut session, part).unwrap_or_else(|e| panic!("{part}: {e:?}"));
        }
    }
}

/// With subtransactions, dropped relations, invalidations and dropped statistics in front of the xid.
fn prepared_transactions(cluster: &Cluster) {
    let mut session = cluster.connect("postgres");
    for (gid, end) in [("plain", "COMMIT"), ("undone", "ROLLBACK"), ("again", "COMMIT"), ("lost", "ROLLBACK")]
    {
        let table = format!("of_{gid}");
        run_all(
            &mut session,
            &[
                &format!("CREATE TABLE {table} (a int PRIMARY KEY, b text)"),
                &format!("INSERT INTO {table} VALUES (1, 'x')"),
                "BEGIN",
                "INSERT INTO numbers SELECT coalesce(max(n), 0) + 1 FROM numbers",
                "SAVEPOINT s",
                "INSERT INTO numbers SELECT max(n) + 1 FROM numbers",
                "SAVEPOINT t",
                &format!("DROP TABLE {table}"),
                &format!("CREATE TABLE {table}_new (a int PRIMARY KEY, b text)"),
                &format!("PREPARE TRANSACTION '{gid}'"),
                "INSERT INTO pgbench_history DEFAULT VALUES",
                &format!("{end} PREPARED '{gid}'"),
            ],
        );
    }
}

/// Commits, aborts, prepared commits, restore points, checkpoints and switches that begin at many distances from the end of a segment.
fn spanning_transactions(cluster: &Cluster) {
    let mut session = cluster.connect("postgres");
    for (number, left) in [8, 16, 24, 32, 40, 64].into_iter().enumerate() {
        run_all(&mut session, &["BEGIN", &format!("INSERT INTO numbers VALUES ({})", 1_000_000 + number)]);
        fill_segment_to(&mut session, left);
        run_all(&mut session, &["COMMIT"]);
        run_all(&mut session, &["BEGIN", &format!("INSERT INTO numbers VALUES ({})", 2_000_000 + number)]);
        fill_segment_to(&mut session, left);
        run_all(&mut session, &["ROLLBACK"]);
        let gid = format!("spanning {number}");
        run_all(
            &mut session,
            &[
                "BEGIN",
                &format!("INSERT INTO numbers VALUES ({})", 3_000_000 + number),
                "SAVEPOINT s",
                &format!("CREATE TABLE spanning_{number} (a int PRIMARY KEY)"),
                &format!("PREPARE TRANSACTION '{gid}'"),
            ],
        );
        fill_segment_to(&mut session, left);
        run_all(&mut session, &[&format!("COMMIT PREPARED '{gid}'")]);
        fill_segment_to(&mut session, left);
        run_all(&mut session, &[&format!("SELECT pg_create_restore_point('spanning {number}')")]);
        fill_segment_to(&mut session, left);
        run_all(&mut session, &["SELECT pg_switch_wal()"]);
    }
    // A commit so long that it must span: 30,000 subtransactions and as many messages.
    run_all(&mut session, &["BEGIN", "INSERT INTO numbers VALUES (4000000)"]);
    let subtransactions = "DO $$ BEGIN FOR i IN 1..30000 LOOP BEGIN INSERT INTO numbers VALUES (4000000 + i); \
        EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$";
    run_all(&mut session, &[subtransactions]);
    fill_segment_to(&mut session, 60_000);
    run_all(&mut session, &["COMMIT"]);
}

/// Records that are longer than a segment.
fn huge_records(cluster: &Cluster) {
    for size in [1_000_000, 3_500_000] {
        cluster.value(&format!("SELECT pg_logical_emit_message(true, 'huge', repeat('h', {size}))"));
    }
}

fn run_all(session: &mut postgres::Client, statements: &[&str]) {
    for statement in statements {
        query(session, statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
}

/// Writes messages until exactly `left` bytes remain in the segment, as long as nobody else writes.
pub fn fill_segment_to(session: &mut postgres::Client, left: u64) {
    let position = |session: &mut postgres::Client| -> u64 {
        let rows = query(session, "SELECT pg_current_wal_insert_lsn() - '0/0'").expect("read the position");
        rows[0][0].parse().expect("a number")
    };
    let emit = |session: &mut postgres::Client, bytes: u64| {
        let statement = format!("SELECT pg_logical_emit_message(false, '', repeat('f', {bytes}))");
        query(session, &statement).expect("emit a message");
    };
    // The header of a record with a message, and of its long main data: measured below rather than believed.
    let mut overhead = 0;
    for _ in 0..200 {
        let at = position(session);
        let room = SEGMENT - at % SEGMENT;
        if room == left {
            return;
        }
        // Pages' headers lie between; they count where a message crosses them.
        let target = if room > left { room - left } else { room + SEGMENT - left };
        let crossed = (at + target - 1) / 8192 - at / 8192;
        let headers = 24 * crossed + if room < target { 16 } else { 0 };
        let wanted = target.saturating_sub(headers + overhead);
        if target > 20_000 {
            emit(session, target - 12_000);
        } else if overhead == 0 || wanted < 300 {
            let before = at;
            emit(session, 1000);
            let written = position(session) - before;
            if before / 8192 == (position(session) - 1) / 8192 {
                overhead = written - 1000;
            }
        } else {
            emit(session, wanted);
        }
    }
    panic!("the segment could not be filled to {left} bytes");
}

/// The workload did what it is there for: else the comparison would prove less than it says.
pub fn assert_reached_corners(segments: &[Scanned], facts: &[SegmentFacts]) {
    let spanning = facts.iter().filter_map(|facts| facts.index.spanning_transaction());
    let spanning: Vec<_> = spanning.collect();
    let of = |outcome| spanning.iter().filter(|end| end.outcome == outcome).count();
    assert!(of(Outcome::Committed) >= 10, "{spanning:?}");
    assert!(of(Outcome::Aborted) >= 3, "{spanning:?}");
    let points =
        facts.iter().flat_map(|facts| facts.index.restore_points.iter().map(|p| (p, facts.index.end)));
    assert!(points.filter(|(point, end)| point.end > *end).count() >= 5);
    assert!(segments.iter().any(|s| s.index.first_record.is_none()), "no segment inside a record");
    assert!(facts.iter().all(|facts| !matches!(facts.spanning, SpanningRecord::TooLong { .. })));
    let levels: Vec<u8> = facts.iter().flat_map(|f| &f.index.wal_levels).map(|(_, level)| *level).collect();
    assert!(levels.ends_with(&[2, 1]), "{levels:?}");
    let checkpoints = || facts.iter().flat_map(|facts| &facts.index.checkpoints);
    for kind in [CheckpointKind::Online, CheckpointKind::Shutdown] {
        assert!(checkpoints().any(|checkpoint| checkpoint.kind == kind), "no {kind:?} checkpoint");
    }
}
