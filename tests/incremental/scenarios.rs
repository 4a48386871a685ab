//! What happens to relations between two backups, for each source of changes.

use std::fs;

use crate::clone::{Case, assert_restores};
use crate::site::Site;

/// One test per scenario and source.
macro_rules! for_source {
    ($name:ident, $major:literal, $source:literal: $($scenario:ident)*) => {
        mod $name {
            $(#[test] fn $scenario() {
                super::$scenario(crate::clone::Case { major: $major, source: $source });
            })*
        }
    };
}

macro_rules! every_scenario {
    ($name:ident, $major:literal, $source:literal) => {
        for_source!($name, $major, $source:
            rows_that_vacuum_cut_off_do_not_come_back
            the_visibility_map_is_never_stale
            every_kind_of_relation_comes_back
            databases_come_and_go
            a_quiet_cluster_costs_nothing
            a_chain_of_incrementals_is_as_good_as_a_full_backup
        );
    };
}

every_scenario!(compare, 15, "compare");
every_scenario!(scan, 16, "scan");
every_scenario!(index, 15, "index");
every_scenario!(summaries, 17, "summaries");
for_source!(index_14, 14, "index": databases_come_and_go the_visibility_map_is_never_stale);
for_source!(index_18, 18, "index": every_kind_of_relation_comes_back);
for_source!(summaries_18, 18, "summaries": databases_come_and_go);

/// Other tools class a file that shrank as unchanged and bring back what was cut off.
fn rows_that_vacuum_cut_off_do_not_come_back(case: Case) {
    let site = case.start();
    site.cluster.execute("CREATE TABLE t AS SELECT i AS id, repeat('x', 400) AS x FROM generate_series(1, 20000) i; CREATE INDEX ON t (id)");
    site.cluster.execute("VACUUM t");
    site.back_up();
    site.cluster.execute("DELETE FROM t WHERE id > 100");
    site.cluster.execute("VACUUM (TRUNCATE) t");
    assert_eq!(site.cluster.value("SELECT pg_relation_size('t') < 100000"), "t");
    let copy = assert_restores(&site, &case.back_up(&site), "cut");
    assert_eq!(copy.value("SELECT count(*) FROM t"), "100");
    drop(copy);
    // Cut off and grown again, beyond what it was.
    site.cluster.execute("INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(30000, 60000) i");
    site.cluster.execute("DELETE FROM t WHERE id > 40000");
    site.cluster.execute("VACUUM (TRUNCATE) t");
    site.cluster.execute("INSERT INTO t SELECT i, repeat('z', 500) FROM generate_series(70000, 75000) i");
    assert_restores(&site, &case.back_up(&site), "grown");
}

/// A bit of the visibility map is cleared without a block reference in WAL and without a new LSN on its page.
fn the_visibility_map_is_never_stale(case: Case) {
    let site = case.start();
    let cluster = &site.cluster;
    cluster.execute("CREATE EXTENSION pg_visibility; CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS x FROM generate_series(1, 50000) i; CREATE INDEX ON t (id)");
    cluster.execute("VACUUM (FREEZE) t");
    cluster.execute("CHECKPOINT");
    site.back_up();
    cluster.execute("UPDATE t SET x = 'new' WHERE id % 1000 = 0; DELETE FROM t WHERE id % 1000 = 1");
    assert_ne!(
        cluster.value("SELECT count(*) FILTER (WHERE NOT all_visible) FROM pg_visibility_map('t')"),
        "0"
    );
    let copy = assert_restores(&site, &case.back_up(&site), "updated");
    for check in ["pg_check_visible", "pg_check_frozen"] {
        assert_eq!(copy.value(&format!("SELECT count(*) FROM {check}('t')")), "0", "{check}");
    }
    copy.execute("VACUUM ANALYZE pg_class");
    let mut session = copy.connect("postgres");
    session
        .batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_indexscan = off")
        .unwrap();
    let plan: String = session
        .query_one("EXPLAIN SELECT count(id) FROM t WHERE id > 0", &[])
        .map(|_| String::new())
        .unwrap_or_default();
    assert_eq!(plan, "");
    let counted: i64 = session.query_one("SELECT count(id) FROM t WHERE id > 0", &[]).unwrap().get(0);
    assert_eq!(counted, 49_950);
    drop((session, copy));
    // And the other way round: bits that vacuum sets, on pages that it changes no further.
    cluster.execute("VACUUM t");
    let copy = assert_restores(&site, &case.back_up(&site), "vacuumed");
    for check in ["pg_check_visible", "pg_check_frozen"] {
        assert_eq!(copy.value(&format!("SELECT count(*) FROM {check}('t')")), "0", "{check}");
    }
    // A page whose bit is set in the map but not in its header would lose the bit's clearing.
    copy.execute("UPDATE t SET x = 'newer' WHERE id % 500 = 3");
    assert_eq!(copy.value("SELECT count(*) FROM pg_check_visible('t')"), "0");
}

fn every_kind_of_relation_comes_back(case: Case) {
    let site = case.start();
    let cluster = &site.cluster;
    let space = cluster.directory("space");
    cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.execute(
        "CREATE TABLE kept AS SELECT i AS id, md5(i::text) AS a, repeat(md5(i::text), 10) AS b FROM generate_series(1, 20000) i;
         CREATE INDEX ON kept (id); CREATE INDEX ON kept USING hash (a); CREATE INDEX ON kept USING brin (id);
         CREATE TABLE dropped AS SELECT * FROM kept; CREATE TABLE truncated AS SELECT * FROM kept; CREATE TABLE rewritten AS SELECT * FROM kept;
         CREATE TABLE clustered AS SELECT * FROM kept; CREATE INDEX clustered_a ON clustered (a); CREATE TABLE moved AS SELECT * FROM kept;
         CREATE UNLOGGED TABLE unlogged AS SELECT * FROM kept; CREATE UNLOGGED TABLE logged AS SELECT * FROM kept;
         CREATE TABLE spaced TABLESPACE space AS SELECT * FROM kept; CREATE SEQUENCE numbers; CREATE SEQUENCE unused;
         CREATE TABLE documents (id int, words int[]); INSERT INTO documents SELECT i, ARRAY[i % 7, i % 11, i] FROM generate_series(1, 5000) i;
         CREATE INDEX documents_gin ON documents USING gin (words);
         CREATE TABLE points AS SELECT point(i % 100, i / 100) AS p FROM generate_series(1, 5000) i; CREATE INDEX points_gist ON points USING gist (p);
         CREATE INDEX points_spgist ON points USING spgist (p);
         SELECT lo_from_bytea(0, convert_to(repeat('large', 50000), 'UTF8'))",
    );
    site.back_up();
    let other = cluster.directory("other_space");
    cluster.execute(&format!("CREATE TABLESPACE other LOCATION '{}'", other.display()));
    cluster.execute(
        "UPDATE kept SET b = 'short' WHERE id % 200 = 0; DELETE FROM kept WHERE id BETWEEN 5000 AND 5100; INSERT INTO kept SELECT i, 'n', 'n' FROM generate_series(30000, 31000) i;
         DROP TABLE dropped; CREATE TABLE dropped AS SELECT 1 AS one; TRUNCATE truncated; INSERT INTO truncated SELECT 1, 'a', 'b';
         ALTER TABLE rewritten ADD COLUMN c int DEFAULT 7; ALTER TABLE rewritten ALTER COLUMN id TYPE bigint; CLUSTER clustered USING clustered_a;
         ALTER TABLE moved SET TABLESPACE space; ALTER TABLE spaced SET TABLESPACE other; ALTER TABLE logged SET LOGGED;
         INSERT INTO unlogged SELECT * FROM kept; SELECT nextval('numbers') FROM generate_series(1, 100);
         CREATE TABLE fresh TABLESPACE other AS SELECT * FROM kept; CREATE MATERIALIZED VIEW view AS SELECT count(*) FROM kept;
         INSERT INTO documents SELECT i, ARRAY[i % 5, 99] FROM generate_series(9000, 9900) i; DELETE FROM points WHERE p[0] = 7;
         SELECT lo_from_bytea(0, convert_to('small', 'UTF8')); SELECT lo_put((SELECT min(oid) FROM pg_largeobject_metadata), 100000, 'changed')",
    );
    cluster.execute("REINDEX INDEX documents_gin");
    cluster.execute("VACUUM");
    assert_restores(&site, &case.back_up(&site), "first");
    cluster.execute(
        "REFRESH MATERIALIZED VIEW view; UPDATE kept SET a = 'changed' WHERE id % 100 = 3; DROP TABLE fresh",
    );
    let copy = assert_restores(&site, &case.back_up(&site), "second");
    assert_eq!(copy.value("SELECT count(*) FROM unlogged"), "0");
}

/// The same oid and the same relation numbers with other contents, whose pages keep the LSNs that they had elsewhere.
fn databases_come_and_go(case: Case) {
    let site = case.start();
    let cluster = &site.cluster;
    let strategies: &[&str] =
        if case.major >= 15 { &["STRATEGY file_copy", "STRATEGY wal_log"] } else { &[""] };
    for template in ["one", "two"] {
        cluster.execute(&format!("CREATE DATABASE {template}"));
        cluster.execute_in(template, &format!("CREATE TABLE t AS SELECT i, '{template}' AS name FROM generate_series(1, 30000) i; CREATE INDEX ON t (i)"));
    }
    for (number, strategy) in strategies.iter().enumerate() {
        let oid = if case.major >= 15 { format!("OID {}", 40000 + number) } else { String::new() };
        cluster.execute(&format!("CREATE DATABASE again{number} TEMPLATE one {strategy} {oid}"));
        cluster.execute(&format!("CREATE DATABASE gone{number} TEMPLATE one {strategy}"));
    }
    cluster.execute("CHECKPOINT");
    site.back_up();
    for (number, strategy) in strategies.iter().enumerate() {
        let oid = if case.major >= 15 { format!("OID {}", 40000 + number) } else { String::new() };
        cluster.execute(&format!("DROP DATABASE again{number}"));
        cluster.execute(&format!("DROP DATABASE gone{number}"));
        cluster.execute(&format!("CREATE DATABASE again{number} TEMPLATE two {strategy} {oid}"));
        cluster.execute(&format!("CREATE DATABASE fresh{number} TEMPLATE two {strategy}"));
    }
    let space = cluster.directory("space");
    cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.execute("ALTER DATABASE one SET TABLESPACE space");
    let copy = assert_restores(&site, &case.back_up(&site), "made");
    for number in 0..strategies.len() {
        assert_eq!(copy.query_in(&format!("again{number}"), "SELECT DISTINCT name FROM t"), [["two"]]);
    }
    drop(copy);
    cluster.execute("ALTER DATABASE one SET TABLESPACE pg_default");
    cluster.execute_in("two", "UPDATE t SET name = 'three' WHERE i % 1000 = 0");
    assert_restores(&site, &case.back_up(&site), "moved");
}

fn a_quiet_cluster_costs_nothing(case: Case) {
    let site = case.start();
    site.cluster.execute("CREATE TABLE t AS SELECT i AS id, md5(i::text) AS x FROM generate_series(1, 200000) i; CREATE INDEX ON t (id)");
    site.cluster.execute("VACUUM (FREEZE, ANALYZE)");
    site.cluster.execute("CHECKPOINT");
    let full = site.back_up();
    let next = case.back_up(&site);
    assert_eq!(next["base"], full["id"]);
    let (whole, new) = (full["new_bytes"].as_u64().unwrap(), next["new_bytes"].as_u64().unwrap());
    assert!(new <= 100_000, "{new} of {whole} bytes were stored again");
    assert_eq!(next["cluster_bytes"], full["cluster_bytes"]);
    assert!(next["repository_bytes"].as_u64().unwrap() <= full["repository_bytes"].as_u64().unwrap() + new);
    // One row costs a page or two, or where digests are compared what was digested together.
    site.cluster.execute("UPDATE t SET x = 'changed' WHERE id = 100000");
    let last = case.back_up(&site);
    let new = last["new_bytes"].as_u64().unwrap();
    let limit = if case.source == "compare" { whole / 2 } else { 150_000 };
    assert!(new <= limit, "{new} of {whole} bytes were stored again for one row");
    assert_restores(&site, &last, "last");
}

/// Every backup describes the whole cluster: those before it may go, if its packs stay, and none needs another's manifest.
fn a_chain_of_incrementals_is_as_good_as_a_full_backup(case: Case) {
    let site = case.start();
    site.cluster.execute("CREATE TABLE t AS SELECT i AS id, repeat(md5(i::text), 8) AS x FROM generate_series(1, 40000) i; CREATE INDEX ON t (id)");
    let full = site.back_up();
    let mut last = full.clone();
    for round in 1..=6 {
        site.cluster.execute(&format!("UPDATE t SET x = repeat(md5((id * {round})::text), 7) WHERE id % 97 = {round} OR id BETWEEN {round}000 AND {round}100"));
        if round == 3 {
            site.cluster.execute("VACUUM t");
        }
        let next = case.back_up(&site);
        assert_eq!(next["base"], last["id"]);
        last = next;
    }
    let backups = site.repository.join("main/backups");
    for entry in fs::read_dir(backups).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with(last["id"].as_str().unwrap()) {
            fs::remove_file(path.join("manifest")).unwrap();
        }
    }
    // A restore decodes little more than the cluster's size.
    let decoded = decoded_bytes(&site);
    let cluster = last["cluster_bytes"].as_u64().unwrap();
    assert!(decoded * 100 <= cluster * 140, "{decoded} bytes are decoded for {cluster}");
    assert_restores(&site, &last, "chain");
}

/// Plaintext bytes of all chunks that the latest backup points to.
fn decoded_bytes(site: &Site) -> u64 {
    use walhold::format::manifest::RangeSource;
    let contents = site.contents();
    let mut chunks = std::collections::BTreeMap::new();
    for range in contents.manifest.files.iter().flat_map(|file| &file.ranges) {
        if let RangeSource::Chunk { pack, number, plaintext_length, .. } = range.source {
            chunks.insert((pack, number), u64::from(plaintext_length));
        }
    }
    chunks.values().sum()
}
