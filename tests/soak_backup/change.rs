//! Random changes of a cluster's contents.

use crate::support::postgres::Cluster;
use crate::support::random::Random;

/// Everything that later changes expect.
pub fn prepare(cluster: &Cluster, spaces: &[String]) {
    for space in spaces {
        let place = cluster.directory(space);
        cluster.execute(&format!("CREATE TABLESPACE {space} LOCATION '{}'", place.display()));
    }
    cluster.execute("CREATE EXTENSION pg_visibility");
    cluster.execute(
        "CREATE SEQUENCE numbers; CREATE TABLE given (number bigint); CREATE TABLE ticks (at timestamptz DEFAULT clock_timestamp()); CREATE TABLE promised (gid text)",
    );
    cluster.execute(
        "CREATE UNLOGGED TABLE unlogged AS SELECT i FROM generate_series(1, 1000) i; CREATE INDEX ON unlogged (i)",
    );
    for table in 0..4usize {
        // The last table in the first tablespace, the one before in the second, if there is one.
        let place = spaces.get(3 - table).map(|space| format!("TABLESPACE {space}")).unwrap_or_default();
        cluster.execute(&format!(
            "CREATE TABLE t{table} (id bigint, x text) {place}; CREATE INDEX ON t{table} (id);
             INSERT INTO t{table} SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 6000) i"
        ));
    }
}

/// Whether a backup is being taken.
#[derive(Clone, Copy, PartialEq)]
pub enum During {
    Peace,
    Backup,
}

/// One random change. Statements that cannot run in a transaction come alone.
pub fn change(cluster: &Cluster, random: &mut Random, step: u64, during: During) {
    let table = format!("t{}", random.below(4));
    let (a, b) = (random.below(12_000), random.below(900) + 2);
    let sql = match random.below(25) {
        0..=2 => format!(
            "INSERT INTO {table} SELECT i, repeat(md5(i::text), {}) FROM generate_series({a}, {}) i",
            b % 9 + 1,
            a + b * 3
        ),
        3..=5 => format!("UPDATE {table} SET x = 'step {step}' WHERE id % {b} = 0"),
        6 => format!("DELETE FROM {table} WHERE id > {a}"),
        7 => format!("DELETE FROM {table} WHERE id % {b} = 1"),
        8 => format!("VACUUM (TRUNCATE) {table}"),
        9 => format!("VACUUM (FREEZE) {table}"),
        10 => format!("VACUUM FULL {table}"),
        11 => format!("TRUNCATE {table}"),
        12 => format!("REINDEX TABLE {table}"),
        13 => format!(
            "DROP TABLE {table}; CREATE TABLE {table} (id bigint, x text); CREATE INDEX ON {table} (id);
             INSERT INTO {table} SELECT i, 'new' FROM generate_series(1, {a}) i"
        ),
        14 => format!("SELECT lo_from_bytea(0, convert_to(repeat('{step}', {a}), 'UTF8'))"),
        15 => "SELECT lo_unlink(oid) FROM pg_largeobject_metadata ORDER BY oid LIMIT 1".to_owned(),
        16 => format!(
            "INSERT INTO given SELECT max(number) FROM (SELECT nextval('numbers') AS number FROM generate_series(1, {b})) s"
        ),
        17 => format!("ALTER TABLE {table} SET TABLESPACE {}", any_space(cluster, random)),
        18 => format!("BEGIN; INSERT INTO promised VALUES ('{step}-{a}'); PREPARE TRANSACTION '{step}-{a}'"),
        19 => return finish_prepared(cluster, random),
        20 | 21 => return change_database(cluster, random, step, during),
        // Two lockers of one row, one of them rolled back.
        22 => format!(
            "BEGIN; SELECT id FROM {table} WHERE id % {b} = 3 FOR KEY SHARE; SAVEPOINT s;
             UPDATE {table} SET x = 'locked' WHERE id % {b} = 3; ROLLBACK TO s; UPDATE {table} SET x = 'twice' WHERE id % {b} = 5; COMMIT"
        ),
        23 => format!(
            "ALTER TABLE {table} ADD COLUMN c{step} int DEFAULT {step}; ALTER TABLE {table} ALTER COLUMN id TYPE numeric;
             ALTER TABLE {table} DROP COLUMN c{step}; ALTER TABLE {table} ALTER COLUMN id TYPE bigint"
        ),
        _ => "CHECKPOINT".to_owned(),
    };
    cluster.execute(&sql);
}

fn any_space(cluster: &Cluster, random: &mut Random) -> String {
    let known = cluster.query("SELECT spcname FROM pg_tablespace WHERE spcname <> 'pg_global' ORDER BY 1");
    random.pick(&known.concat()).clone()
}

fn finish_prepared(cluster: &Cluster, random: &mut Random) {
    let how = *random.pick(&["COMMIT", "ROLLBACK"]);
    if let Some(gid) = cluster.query("SELECT gid FROM pg_prepared_xacts LIMIT 1").into_iter().flatten().next()
    {
        cluster.execute(&format!("{how} PREPARED '{gid}'"));
    }
}

/// Databases come, change, move and go. During a backup none is made by copying files: that its template may not change then is
/// PostgreSQL's own limit ("Caveats" of continuous archiving in its manual).
fn change_database(cluster: &Cluster, random: &mut Random, step: u64, during: During) {
    let database = (*random.pick(&["one", "two"])).to_owned();
    if !cluster.databases().contains(&database) {
        let strategy = match (cluster.major(), during) {
            (15.., During::Peace) => *random.pick(&["STRATEGY wal_log", "STRATEGY file_copy"]),
            (15.., During::Backup) => "STRATEGY wal_log",
            (_, During::Peace) => "",
            (_, During::Backup) => return,
        };
        let others = cluster.databases();
        let template = others.iter().find(|name| *name != "postgres").map_or("template1", String::as_str);
        cluster.execute(&format!("CREATE DATABASE {database} TEMPLATE {template} {strategy}"));
        return cluster.execute_in(
            &database,
            &format!("CREATE TABLE IF NOT EXISTS inner_rows (i int, x text); INSERT INTO inner_rows SELECT i, 'step {step}' FROM generate_series(1, 2000) i"),
        );
    }
    match random.below(4) {
        0 => cluster.execute(&format!("DROP DATABASE {database}")),
        1 => cluster.execute(&format!(
            "ALTER DATABASE {database} SET TABLESPACE {}",
            any_space(cluster, random)
        )),
        _ => cluster.execute_in(
            &database,
            &format!("UPDATE inner_rows SET x = 'step {step}' WHERE i % 7 = 0; DELETE FROM inner_rows WHERE i % 50 = {}", step % 50),
        ),
    }
}
