//! Very many small files: a cluster of 1,000 tenants with 100 tables each. What a backup, what follows from it, and the peers take of it: time and memory.
//!
//! `BENCH_ONLY=files`, `BENCH_TENANTS` (default 1,000).

use crate::cluster::{Cluster, directory_of_postgres};
use crate::measure::{Cost, bytes_below, measure, summary};
use crate::tools::{Bench, Tool};

/// Tables in each tenant's schema.
const TABLES: usize = 100;

/// Builds the cluster and measures every command that goes through its files.
pub fn many_files(bench: &Bench, cluster: &Cluster, tenants: usize) {
    build(cluster, tenants);
    let files = cluster.sql("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace::regnamespace::text LIKE 'tenant%'");
    let size = bytes_below(&cluster.data.join("base"));
    println!("\n## {files} tables of one page each, {:.2} GB\n", size as f64 / 1e9);
    let bench = bench.fresh("files", cluster);
    let data = cluster.data.display().to_string();
    // walhold last: it goes on archiving, and its archive has no hole for verify to find.
    for tool in Tool::ALL.into_iter().rev() {
        cluster.archive_with(&bench.archive_command(tool, cluster));
        cluster.sql("CHECKPOINT");
        let words: &[&str] = match tool {
            Tool::Walhold => &["backup-push", "--full"],
            Tool::WalRus => &["backup-push", "--fast", "--full", &data],
            Tool::PgBackRest => &["--type=full", "backup"],
        };
        tell("full backup", tool, measure(&bench.invocation(tool, cluster, words)));
    }
    let own = |words: &[&str]| measure(&bench.invocation(Tool::Walhold, cluster, words));
    cluster.sql("UPDATE tenant1.t1 SET id = id + 1");
    tell("incremental", Tool::Walhold, own(&["backup-push"]));
    for tool in Tool::ALL {
        let target = bench.root.join(format!("files-{}", tool.name()));
        directory_of_postgres(&target);
        let path = target.display().to_string();
        let pg1 = format!("--pg1-path={path}");
        let words: &[&str] = match tool {
            Tool::Walhold => &["restore", "--target-immediate", "--pgdata", &path],
            Tool::WalRus => &["backup-fetch", &path, "LATEST"],
            Tool::PgBackRest => &[&pg1, "restore"],
        };
        tell("restore", tool, measure(&bench.invocation(tool, cluster, words)));
    }
    let path = bench.root.join("files-walhold").display().to_string();
    tell(
        "restore --delta",
        Tool::Walhold,
        own(&["restore", "--delta", "--target-immediate", "--pgdata", &path]),
    );
    tell("verify", Tool::Walhold, own(&["verify"]));
    tell("verify --deep", Tool::Walhold, own(&["verify", "--deep"]));
    tell("expire", Tool::Walhold, own(&["expire", "--keep-last", "1", "--grace", "0s", "--confirm"]));
    let manifests = bytes_below(&bench.repository(Tool::Walhold).join("main/backups"));
    println!("manifest: {:.2} MB stored", manifests as f64 / 1e6);
}

fn tell(what: &str, tool: Tool, cost: Cost) {
    println!("{what:<16}{:<11}{}", tool.name(), summary(&[cost]));
}

fn build(cluster: &Cluster, tenants: usize) {
    cluster.sql("ALTER SYSTEM SET fsync = off");
    cluster.sql("SELECT pg_reload_conf()");
    for tenant in 1..=tenants {
        let table = |number: usize| format!("CREATE TABLE t{number} AS SELECT {number} AS id;");
        let tables: String = (1..=TABLES).map(table).collect();
        cluster.sql(&format!("CREATE SCHEMA tenant{tenant}; SET search_path = tenant{tenant}; {tables}"));
    }
    cluster.sql("ALTER SYSTEM RESET fsync");
    cluster.sql("SELECT pg_reload_conf()");
    cluster.sql("CHECKPOINT");
    nix::unistd::sync();
}
