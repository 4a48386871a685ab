//! Random work on files and pages: tables that grow, shrink, go and come again, databases, tablespaces, indexes of every kind.

use crate::support::postgres::{Cluster, query};

/// From `WALHOLD_TEST_SEED`, else from the clock.
pub fn seed() -> u64 {
    let given = std::env::var("WALHOLD_TEST_SEED").ok();
    given.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        u64::from(now.subsec_nanos()) + now.as_secs() % 1000
    })
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Work that always happens, in an order of its own, and as much random work between.
pub fn run_random(cluster: &mut Cluster, seed: u64) {
    let mut random = Random(seed | 1);
    let place = cluster.directory("outside").display().to_string();
    let mut certain = certain_work(cluster.major(), &place);
    for step in 0..120 {
        let next =
            if step % 3 == 0 && !certain.is_empty() { certain.remove(0) } else { random_work(&mut random) };
        let mut session = cluster.connect("postgres");
        for statement in next {
            // Tables may be absent at the moment: that is part of it.
            let _ = query(&mut session, &statement);
        }
        if step == 60 {
            cluster.kill9();
            cluster.start();
        }
    }
    assert!(certain.is_empty(), "{} pieces of work were left", certain.len());
    for (sql, expected) in [
        ("SELECT count(*) >= 1000 FROM kept", "t"),
        ("SELECT count(*) FROM pg_tablespace WHERE spcname IN ('outside', 'again')", "1"),
        ("SELECT count(*) FROM pg_database WHERE datname LIKE 'db%'", "2"),
    ] {
        assert_eq!(&cluster.value(sql)[..1], expected, "{sql}");
    }
}

fn certain_work(major: u32, place: &str) -> Vec<Vec<String>> {
    let strategy = |name: &str| if major >= 15 { format!(" STRATEGY {name}") } else { String::new() };
    let work: Vec<Vec<String>> = [
        vec!["CREATE TABLE kept AS SELECT i AS id, repeat('k', 100) AS body FROM generate_series(1, 20000) i"],
        vec!["CREATE INDEX ON kept (id)", "VACUUM kept"],
        vec!["DELETE FROM kept WHERE id > 2000", "VACUUM kept"],
        vec!["BEGIN", "CREATE TABLE undone (a int PRIMARY KEY, b text)", "INSERT INTO undone VALUES (1, 'x')", "ROLLBACK"],
        vec!["CREATE UNLOGGED TABLE unlogged AS SELECT i FROM generate_series(1, 500) i", "CREATE INDEX ON unlogged (i)"],
        vec!["CREATE TABLE many (id int, body text) PARTITION BY HASH (id)"],
        vec!["DROP TABLE unlogged"],
        vec!["CREATE TABLE rewritten AS SELECT i AS id FROM generate_series(1, 3000) i", "VACUUM FULL rewritten", "TRUNCATE rewritten"],
        vec!["CREATE TABLE points (p point, t text, v tsvector)"],
        vec!["CREATE INDEX ON points USING gist (p)", "CREATE INDEX ON points USING gin (v)", "CREATE INDEX ON points USING hash (t)", "CREATE INDEX ON points USING spgist (p)", "CREATE INDEX ON points USING brin (t)"],
        vec!["INSERT INTO points SELECT point(i, -i), md5(i::text), to_tsvector('simple', md5(i::text)) FROM generate_series(1, 800) i", "VACUUM points"],
        vec!["CREATE TABLE long (body text)", "INSERT INTO long SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 30) i, generate_series(1, 800) j GROUP BY i"],
        vec!["SELECT lo_from_bytea(0, decode(repeat('ab', 100000), 'hex'))"],
        vec!["BEGIN", "CREATE TABLE prepared (a int)", "DROP TABLE long", "PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'"],
        vec!["CHECKPOINT"],
        vec!["UPDATE kept SET body = body || 'x' WHERE id % 7 = 0"],
    ]
    .into_iter()
    .map(|statements| statements.into_iter().map(str::to_owned).collect())
    .collect();
    let mut all = work;
    all.push(vec![format!("CREATE TABLESPACE outside LOCATION '{place}'")]);
    all.push(vec![
        "CREATE TABLE spaced TABLESPACE outside AS SELECT i FROM generate_series(1, 3000) i".to_owned(),
        "ALTER TABLE kept SET TABLESPACE outside".to_owned(),
    ]);
    all.push(vec![format!("CREATE DATABASE db1{}", strategy("file_copy"))]);
    all.push(vec![format!("CREATE DATABASE db2 TABLESPACE outside{}", strategy("wal_log"))]);
    all.push(vec!["DROP DATABASE db1".to_owned(), format!("CREATE DATABASE db3{}", strategy("wal_log"))]);
    all.push(vec!["ALTER DATABASE db3 SET TABLESPACE outside".to_owned()]);
    all.push(vec![
        "SET allow_in_place_tablespaces = on".to_owned(),
        "CREATE TABLESPACE passing LOCATION ''".to_owned(),
        "DROP TABLESPACE passing".to_owned(),
    ]);
    all
}

fn random_work(random: &mut Random) -> Vec<String> {
    let table = format!("t{}", random.below(5));
    let rows = 10 + random.below(2000);
    let one = |statement: String| vec![statement];
    match random.below(14) {
        0 | 1 => one(format!(
            "CREATE TABLE {table} AS SELECT i AS id, repeat('r', 80) AS body FROM generate_series(1, {rows}) i"
        )),
        2 => one(format!("DROP TABLE {table}")),
        3 => one(format!("TRUNCATE {table}")),
        4 => vec![format!("DELETE FROM {table} WHERE id > {}", rows / 2), format!("VACUUM {table}")],
        5 => one(format!("CREATE INDEX ON {table} (id)")),
        6 => one(format!("VACUUM FULL {table}")),
        7 => one(format!("REINDEX TABLE {table}")),
        8 => vec!["BEGIN".to_owned(), format!("TRUNCATE {table}"), "ROLLBACK".to_owned()],
        9 => one(format!("UPDATE {table} SET body = body || 'u' WHERE id % 5 = {}", random.below(5))),
        10 => one(format!("SELECT pg_logical_emit_message(true, '', repeat('m', {}))", rows * 50)),
        11 => one("CHECKPOINT".to_owned()),
        12 => one(format!("ALTER TABLE {table} SET UNLOGGED")),
        _ => one(format!("INSERT INTO {table} SELECT i, repeat('i', 60) FROM generate_series(1, {rows}) i")),
    }
}
