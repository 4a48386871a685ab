//! walhold against WAL-RUS, pgBackRest and the physical floor: the same machine, the same files, one run, the tools in
//! turn. Prints medians and ratios; docs/performance.md keeps them.
//!
//! `make bench-peers` runs it as root (servers and tools run as `postgres`). `BENCH_GB` (default 1.75) sizes the cluster,
//! `BENCH_DIR` (default /var/tmp/walhold-bench) holds it, `BENCH_SEGMENTS` (default 35) is how many
//! segments of each kind are pushed and fetched, `BENCH_ROUNDS` (default 5) how many backups and restores, `BENCH_BACKLOG` (default
//! 200) how many segments wait in a backlog, `BENCH_WAYS` picks some of the ways through it (`walhold+agent,WAL-RUS daemon`), `BENCH_ONLY` picks one of `wal`, `backlog`, `backup`,
//! `incremental`, `delta` (these two with at most 3 rounds of everything, for ten incrementals are taken), `files` (by name only: 100,000 files).

mod backlog;
mod cluster;
mod files;
mod floor;
mod incremental;
mod measure;
mod object_server;
mod replay;
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backlog::Backlog;
use cluster::{Cluster, directory_of_postgres};
use measure::{Cost, bytes_below, measure, median_wall, summary, warm};
use object_server::ObjectServer;
use replay::Replay;
use tools::{Bench, Store, Tool};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--measure", command)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        measure::measure_here(command);
    }
    if let [mode, milliseconds] = words.as_slice()
        && mode == "--serve-objects"
    {
        object_server::serve(Duration::from_millis(milliseconds.parse().expect("milliseconds")));
    }
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let root = PathBuf::from(variable("BENCH_DIR", "/var/tmp/walhold-bench"));
    let gigabytes: f64 = variable("BENCH_GB", "1.75").parse().expect("BENCH_GB is a number");
    let only = variable("BENCH_ONLY", "");
    let rounds: usize = variable("BENCH_ROUNDS", "5").parse().expect("BENCH_ROUNDS is a number");
    let walrus = install_walrus(&root);
    let _ = std::fs::remove_dir_all(root.join("run"));
    let run = root.join("run");
    directory_of_postgres(&root);
    directory_of_postgres(&run);
    measure::install_own_copy(&run);
    let cluster = Cluster::create(&run);
    let bench = Bench::prepare(&run, Path::new(env!("CARGO_BIN_EXE_walhold")), &walrus, &cluster);
    if only.is_empty() || only == "wal" {
        let count: usize = variable("BENCH_SEGMENTS", "35").parse().expect("BENCH_SEGMENTS is a number");
        let pgbench = cluster.pgbench_segments(count, &run.join("pgbench"));
        let random = cluster.random_text_segments(count, &run.join("random"));
        let server = ObjectServer::start(Duration::ZERO);
        let s3 = bench.elsewhere(Store::S3(server.endpoint.clone()), &cluster);
        for bench in [&bench, &s3] {
            wal(bench, &cluster, "pgbench", &pgbench);
            wal(bench, &cluster, "random text", &random);
        }
    }
    if only.is_empty() || only == "backlog" {
        let count: usize = variable("BENCH_BACKLOG", "200").parse().expect("BENCH_BACKLOG is a number");
        let mut base = PathBuf::new();
        let backlog =
            Backlog::build(&cluster, count, || base = Replay::base_backup(&cluster, &run.join("base")));
        let replay = Replay::new(base, &cluster, &backlog);
        let server = ObjectServer::start(Duration::from_millis(40));
        let s3 = bench.elsewhere(Store::S3(server.endpoint.clone()), &cluster);
        for bench in [&bench, &s3] {
            backlog.drain(bench, &cluster);
            replay.run(bench, &cluster, &backlog);
        }
    }
    if only.is_empty() || only == "backup" {
        cluster.fill(gigabytes);
        backups(&bench, &cluster, rounds);
    }
    if only == "files" {
        let tenants = variable("BENCH_TENANTS", "1000").parse().expect("BENCH_TENANTS is a number");
        files::many_files(&bench, &cluster, tenants);
    }
    let few = rounds.min(3);
    for (name, run) in [
        ("incremental", incremental::incremental as fn(&Bench, &Cluster, usize)),
        ("delta", incremental::delta),
    ] {
        if only.is_empty() || only == name {
            if only == name {
                cluster.fill(gigabytes);
            }
            run(&bench, &cluster, few);
        }
    }
}

/// Finds or builds the peer; its build takes minutes, so it is kept.
fn install_walrus(root: &Path) -> PathBuf {
    if let Some(given) = std::env::var_os("BENCH_WALRUS") {
        return given.into();
    }
    let program = root.join("peers/bin/walrus");
    if !program.exists() {
        let status =
            Command::new("cargo").args(["install", "wal-rus", "--root"]).arg(root.join("peers")).status();
        assert!(status.expect("start cargo").success(), "cargo install wal-rus failed");
    }
    program
}

/// One process per segment, each tool in turn on each segment.
fn wal(bench: &Bench, cluster: &Cluster, what: &str, segments: &[PathBuf]) {
    let tools = bench.store.tools();
    println!("\n## {} segments of {what} WAL, one process each, {:?}\n", segments.len(), bench.store);
    let mut push: Vec<Vec<Cost>> = vec![Vec::new(); tools.len()];
    let mut fetch = push.clone();
    let mut floor = Vec::new();
    let floor_directory = bench.root.join("floor");
    directory_of_postgres(&floor_directory);
    for segment in segments {
        warm(segment);
        floor.push(floor::push_floor(segment, &floor_directory));
        for (tool, costs) in tools.iter().zip(&mut push) {
            let path = segment.display().to_string();
            let verb = if *tool == Tool::PgBackRest { "archive-push" } else { "wal-push" };
            costs.push(measure(&bench.invocation(*tool, cluster, &[verb, &path])));
        }
    }
    let target = cluster.data.join("pg_wal/RECOVERYXLOG").display().to_string();
    for segment in segments {
        let name = segment.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (tool, costs) in tools.iter().zip(&mut fetch) {
            costs.push(measure(&bench.fetch_alone(*tool, cluster, &name, &target)));
            let same = std::fs::read(&target).ok() == std::fs::read(segment).ok();
            assert!(same, "{} delivered another {name}", tool.name());
            let _ = std::fs::remove_file(&target);
        }
    }
    floor.sort_by(f64::total_cmp);
    println!("push floor (one thread, no process, to a file): {:.1} ms", floor[floor.len() / 2] * 1e3);
    report("push", tools, &push);
    report("fetch", tools, &fetch);
    if bench.store == Store::Directory {
        for tool in tools {
            let size = bytes_below(&bench.repository(*tool)) as f64 / 1e6;
            println!("{:<11} repository {size:>8.1} MB", tool.name());
        }
    }
}

fn report(what: &str, tools: &[Tool], costs: &[Vec<Cost>]) {
    let own = costs.first().map_or(f64::NAN, |costs| median_wall(costs));
    for (tool, costs) in tools.iter().zip(costs) {
        println!(
            "{what:<8}{:<11}{}  walhold/this {:.2}",
            tool.name(),
            summary(costs),
            own / median_wall(costs)
        );
    }
}

/// Full backups and restores, the tools in turn, and the floor in every round.
fn backups(bench: &Bench, cluster: &Cluster, rounds: usize) {
    let size = bytes_below(&cluster.data.join("base"));
    println!("\n## Full backup and restore of {:.2} GB\n", size as f64 / 1e9);
    let mut push: Vec<Vec<Cost>> = vec![Vec::new(); Tool::ALL.len()];
    let mut restore = push.clone();
    let (mut floors, mut grown) = (Vec::new(), vec![0; Tool::ALL.len()]);
    let data = cluster.data.display().to_string();
    for round in 0..rounds {
        floors.push(floor::backup_floor(&cluster.data, &bench.root.join("floor/packs")));
        for (index, tool) in Tool::ALL.into_iter().enumerate() {
            cluster.archive_with(&bench.archive_command(tool, cluster));
            cluster.sql("CHECKPOINT");
            let before = bytes_below(&bench.repository(tool));
            let words: &[&str] = match tool {
                Tool::Walhold => &["backup-push", "--full"],
                Tool::WalRus => &["backup-push", "--full", &data],
                Tool::PgBackRest => &["--type=full", "backup"],
            };
            push[index].push(measure(&bench.invocation(tool, cluster, words)));
            grown[index] = bytes_below(&bench.repository(tool)) - before;
        }
        // Another one first in each round: what came before, the backups, is still with the disk.
        for turn in 0..Tool::ALL.len() {
            let index = (round + turn) % Tool::ALL.len();
            let cost = restore_once(bench, cluster, Tool::ALL[index], round);
            restore[index].push(cost);
        }
    }
    floors.sort_by(f64::total_cmp);
    let floor = floors[floors.len() / 2];
    println!(
        "floor: read, page checksums, zstd 1, digest, write and sync of the packs: {:.0} ms",
        floor * 1e3
    );
    report("backup", &Tool::ALL, &push);
    println!("walhold/floor {:.2}", median_wall(&push[0]) / floor);
    for (tool, bytes) in Tool::ALL.into_iter().zip(&grown) {
        println!("{:<11} repository grew by {:>8.1} MB", tool.name(), *bytes as f64 / 1e6);
    }
    report("restore", &Tool::ALL, &restore);
    println!("(restores of peers are followed by `sync`, walhold syncs what it writes)");
}

fn restore_once(bench: &Bench, cluster: &Cluster, tool: Tool, round: usize) -> Cost {
    let target = bench.root.join(format!("restored-{}-{round}", tool.name()));
    directory_of_postgres(&target);
    nix::unistd::sync();
    let path = target.display().to_string();
    let words: Vec<String> = match tool {
        Tool::Walhold => ["restore", "--target-immediate", "--pgdata", &path].map(str::to_owned).to_vec(),
        Tool::WalRus => ["backup-fetch", &path, "LATEST"].map(str::to_owned).to_vec(),
        Tool::PgBackRest => vec![format!("--pg1-path={path}"), "restore".to_owned()],
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut call = bench.invocation(tool, cluster, &words);
    if tool != Tool::Walhold {
        let quoted: Vec<String> = call.words.iter().map(|word| format!("'{word}'")).collect();
        call.words = vec!["sh".to_owned(), "-c".to_owned(), format!("{} && sync", quoted.join(" "))];
    }
    // The copy stays until the run's directory goes: ext4 without a journal looks long for inodes right after many were deleted, and
    // whichever tool came next would pay for it.
    measure(&call)
}
