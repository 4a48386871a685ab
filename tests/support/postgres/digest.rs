//! What two clusters must have in common to hold the same data.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::installation::run;
use super::{Cluster, query};

impl Cluster {
    /// Databases that people connect to.
    pub fn databases(&self) -> Vec<String> {
        let rows =
            self.query("SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1");
        rows.into_iter().flatten().collect()
    }

    /// One line per permanent table, materialized view and sequence of `database`, and one for its large objects; the lines of tables
    /// hold the number of rows and a sum over hashes of their text, read from the heap in whatever order.
    ///
    /// Sequences are listed without their values: PostgreSQL logs them ahead, so a recovered one may have skipped up to 32
    /// ([`Cluster::sequences`]). Unlogged tables are left out: recovery empties them.
    pub fn row_digest(&self, database: &str) -> String {
        let mut session = self.connect(database);
        let mut ask = |sql: &str| {
            query(&mut session, sql).unwrap_or_else(|e| panic!("{sql}: {e:?}\n{}", self.log_tail()))
        };
        ask("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET timezone = 'UTC'; SET extra_float_digits = 3;
             SET synchronize_seqscans = off; SET statement_timeout = 0");
        let tables = ask("SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
             WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relispopulated AND nspname <> 'information_schema'
               AND nspname !~ '^pg_' ORDER BY 1");
        let mut digest = String::new();
        for table in tables.into_iter().flatten() {
            let sum = ask(&format!(
                "SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM ONLY {table} t"
            ));
            writeln!(digest, "{table}: {}", sum[0].join(" ")).expect("write to a string");
        }
        for sequence in ask("SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences ORDER BY 1")
            .into_iter()
            .flatten()
        {
            writeln!(digest, "{sequence}").expect("write to a string");
        }
        let objects = ask("SELECT count(*), sum(hashtextextended(concat_ws(',', loid, pageno, encode(data, 'hex')), 0)::numeric)
             FROM pg_largeobject");
        writeln!(digest, "large objects: {}", objects[0].join(" ")).expect("write to a string");
        digest
    }

    /// [`Cluster::row_digest`] of every database.
    pub fn digest(&self) -> BTreeMap<String, String> {
        self.databases().into_iter().map(|database| (database.clone(), self.row_digest(&database))).collect()
    }

    /// Sequences and their last values.
    pub fn sequences(&self, database: &str) -> BTreeMap<String, i64> {
        let rows = self.query_in(
            database,
            "SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, 0) FROM pg_sequences",
        );
        rows.into_iter().map(|row| (row[0].clone(), row[1].parse().expect("a number"))).collect()
    }

    /// pg_amcheck over every database, heaps against their indexes included.
    pub fn amcheck(&self) {
        run(self.client_program("pg_amcheck").args([
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--parent-check",
        ]));
    }
}
