//! Random changes and random backups; each one restored must be the live cluster. The seed is printed: set
//! `WALHOLD_ORACLE_SEED` to repeat a run and `WALHOLD_ORACLE_STEPS` for a long one.

use serde_json::Value;

use crate::clone::assert_restores;
use crate::site::Site;
use crate::support::postgres::Cluster;
use crate::support::random::{Random, number};

/// One random change. Statements that cannot run in a transaction come alone.
fn change(site: &mut Site, random: &mut Random, step: u64) {
    let table = format!("t{}", random.below(4));
    let (a, b) = (random.below(20_000), random.below(900) + 2);
    let sql = match random.below(15) {
        0 | 1 => format!(
            "INSERT INTO {table} SELECT i, repeat(md5(i::text), {}) FROM generate_series({a}, {}) i",
            b % 9 + 1,
            a + b * 5
        ),
        2 | 3 => format!("UPDATE {table} SET x = 'step {step}' WHERE id % {b} = 0"),
        4 => format!("DELETE FROM {table} WHERE id > {a}"),
        5 => format!("DELETE FROM {table} WHERE id % {b} = 1"),
        6 => format!("VACUUM (TRUNCATE) {table}"),
        7 => format!("VACUUM (FREEZE) {table}"),
        8 => format!("VACUUM FULL {table}"),
        9 => format!("TRUNCATE {table}"),
        10 => format!("REINDEX TABLE {table}"),
        11 => format!(
            "DROP TABLE {table}; CREATE TABLE {table} (id bigint, x text); CREATE INDEX ON {table} (id); INSERT INTO {table} SELECT i, 'new' FROM generate_series(1, {a}) i"
        ),
        12 => format!("SELECT lo_from_bytea(0, convert_to(repeat('{step}', {a}), 'UTF8'))"),
        13 => format!("SELECT nextval('numbers') FROM generate_series(1, {b})"),
        _ => {
            site.cluster.kill9();
            return site.cluster.start();
        }
    };
    site.cluster.execute(&sql);
}

fn run(major: u32, source: &str) {
    let seed = number("WALHOLD_ORACLE_SEED")
        .unwrap_or_else(|| u64::from(std::process::id()) * 7919 + u64::from(major));
    let steps = number("WALHOLD_ORACLE_STEPS").unwrap_or(3);
    println!("WALHOLD_ORACLE_SEED={seed} (PostgreSQL {major}, {source})");
    let mut random = Random::new(seed);
    let mut builder = Cluster::builder(major).checksums(true);
    if major >= 17 {
        builder = builder.setting("summarize_wal", "on");
    }
    let mut site = Site::start(builder);
    site.cluster.execute("CREATE SEQUENCE numbers");
    for table in 0..4 {
        site.cluster.execute(&format!("CREATE TABLE t{table} (id bigint, x text); CREATE INDEX ON t{table} (id); INSERT INTO t{table} SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 10000) i"));
    }
    site.back_up();
    for step in 1..=steps {
        for _ in 0..random.below(8) + 2 {
            change(&mut site, &mut random, step);
        }
        let extent: &[&str] = if random.below(6) == 0 { &["--full"] } else { &["--changes-from", source] };
        let text = site.ok(&[&["backup-push", "--json"], extent].concat());
        let summary: Value = serde_json::from_str(&text).expect("JSON");
        assert_restores(&site, &summary, &format!("step{step}"));
    }
}

#[test]
fn random_changes_with_the_index() {
    run(15, "index");
}

#[test]
fn random_changes_with_summaries() {
    run(18, "summaries");
}

#[test]
fn random_changes_with_whatever_is_best() {
    run(16, "auto");
}

#[test]
fn random_changes_compared() {
    run(14, "compare");
}
