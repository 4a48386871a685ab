//! A backlog: PostgreSQL has many segments to archive, and calls the tool as fast as it returns.
//!
//! The segments are the server's own, in its own pg_wal; between tools only their state is set back to ready. CPU is what
//! a control group counts in which the server's archiver runs, so that whatever a tool leaves in the background is
//! counted too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::measure::Invocation;
use crate::tools::{Bench, Store, Tool};

/// Longer than any tool should take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a tool works its way through a backlog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// walhold with nothing beside it.
    WalholdAlone,
    /// walhold with its agent.
    WalholdAgent,
    /// WAL-RUS with its daemon.
    WalRusDaemon,
    /// pgBackRest with `archive-async`.
    PgBackRestAsync,
}

impl Way {
    /// Those that can be measured with this store, walhold first; `BENCH_WAYS` picks some by name.
    pub fn all(store: &Store) -> Vec<Way> {
        let all: &[Way] = match store {
            Store::Directory => {
                &[Way::WalholdAlone, Way::WalholdAgent, Way::WalRusDaemon, Way::PgBackRestAsync]
            }
            Store::S3(_) => &[Way::WalholdAlone, Way::WalholdAgent, Way::WalRusDaemon],
        };
        let picked = std::env::var("BENCH_WAYS").unwrap_or_default();
        let is_picked = |way: &&Way| picked.is_empty() || picked.split(',').any(|name| name == way.name());
        all.iter().filter(is_picked).copied().collect()
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Way::WalholdAlone => "walhold",
            Way::WalholdAgent => "walhold+agent",
            Way::WalRusDaemon => "WAL-RUS daemon",
            Way::PgBackRestAsync => "pgBackRest async",
        }
    }

    /// Whose it is.
    pub fn tool(self) -> Tool {
        match self {
            Way::WalholdAlone | Way::WalholdAgent => Tool::Walhold,
            Way::WalRusDaemon => Tool::WalRus,
            Way::PgBackRestAsync => Tool::PgBackRest,
        }
    }
}

/// A backlog of the server's own segments.
pub struct Backlog {
    /// Their names, in order.
    pub segments: Vec<String>,
}

impl Backlog {
    /// Lets the server write `count` segments that wait; `before` runs when the first of them has been begun.
    pub fn build(cluster: &Cluster, count: usize, before: impl FnOnce()) -> Backlog {
        cluster.archive_with("");
        let first = cluster.begin_pgbench();
        before();
        cluster.write_pgbench_segments(&first, count);
        let segments = cluster.complete_segments(&first).into_iter().take(count);
        let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Backlog { segments: segments.map(name).collect() }
    }

    /// Sets every segment back to waiting, and nothing else.
    fn make_ready(&self, cluster: &Cluster) {
        let status = cluster.data.join("pg_wal/archive_status");
        for entry in std::fs::read_dir(&status).expect("list archive_status").flatten() {
            std::fs::remove_file(entry.path()).expect("remove a status file");
        }
        for segment in &self.segments {
            let path = status.join(format!("{segment}.ready"));
            std::fs::write(&path, "").expect("write a status file");
            crate::cluster::give_to_postgres(&path);
        }
    }

    /// Drains it once with each tool, into repositories that have none of it.
    pub fn drain(&self, bench: &Bench, cluster: &Cluster) {
        println!("\n## Backlog of {} segments, {:?}\n", self.segments.len(), bench.store);
        let mut own = Vec::new();
        for way in Way::all(&bench.store) {
            let bench = bench.fresh(way.name(), cluster);
            self.make_ready(cluster);
            // What an earlier tool wrote is not this one's to wait for.
            nix::unistd::sync();
            let group = ControlGroup::of(cluster.archiver());
            let daemon = Daemon::start(way, &bench, cluster, &group);
            let started = Instant::now();
            cluster.set_archive_command(&command(way, &bench, cluster));
            self.wait_until_done(cluster);
            let wall = started.elapsed().as_secs_f64();
            let cpu = group.cpu_seconds();
            let peak = daemon.as_ref().map_or(String::new(), Daemon::peak);
            if way == Way::WalholdAgent {
                self.assert_agent_was_used(&bench, cluster);
            }
            drop(daemon);
            cluster.archive_with("");
            let gibibytes = self.segments.len() as f64 * 16.0 / 1024.0;
            println!(
                "{:<18}{wall:>7.2} s  cpu {:>6.2} s/GiB  {:>6.1} ms a segment{peak}",
                way.name(),
                cpu / gibibytes,
                wall * 1e3 / self.segments.len() as f64
            );
            own.push((way, wall, cpu));
        }
        for (way, wall, cpu) in &own {
            let (_, first_wall, first_cpu) = &own[0];
            println!("walhold/{}: wall {:.2}, cpu {:.2}", way.name(), first_wall / wall, first_cpu / cpu);
        }
    }

    /// Every command goes on alone where something keeps it from the agent: then this would measure something else.
    fn assert_agent_was_used(&self, bench: &Bench, cluster: &Cluster) {
        let call = bench.invocation(Tool::Walhold, cluster, &["agent", "status", "--json"]);
        let output = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .args(&call.words)
            .current_dir(&call.directory)
            .env_clear()
            .envs(call.environment.iter().cloned())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .expect("start walhold agent status");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let acknowledged = status["archives"][0]["acknowledged"].as_u64().unwrap_or(0);
        assert!(
            status["refused"] == 0 && acknowledged as usize >= self.segments.len(),
            "the agent was not used: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn wait_until_done(&self, cluster: &Cluster) {
        let started = Instant::now();
        let status = cluster.data.join("pg_wal/archive_status");
        let is_done = |segment: &String| status.join(format!("{segment}.done")).exists();
        // In order: the last one alone could be done by a tool that leaves holes.
        for segment in &self.segments {
            while !is_done(segment) {
                assert!(started.elapsed() < PATIENCE, "{segment} was not archived: see the server's log");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn command(way: Way, bench: &Bench, cluster: &Cluster) -> String {
    let mut call = bench.invocation(way.tool(), cluster, &[]);
    match way {
        Way::WalholdAlone | Way::WalholdAgent => call.words.push("wal-push".to_owned()),
        Way::WalRusDaemon => call.words.extend([
            "daemon-client".to_owned(),
            "--socket".to_owned(),
            socket(bench),
            "wal-push".to_owned(),
        ]),
        Way::PgBackRestAsync => {
            call.words.extend(["--archive-async", "archive-push"].map(str::to_owned));
        }
    }
    format!("{} %p", bench.as_command(&call))
}

fn socket(bench: &Bench) -> String {
    bench.root.join("socket/daemon").display().to_string()
}

/// The process that a way needs beside the server.
struct Daemon(Child);

impl Daemon {
    fn start(way: Way, bench: &Bench, cluster: &Cluster, group: &ControlGroup) -> Option<Daemon> {
        let words = match way {
            Way::WalholdAlone | Way::PgBackRestAsync => return None,
            Way::WalholdAgent => vec!["agent".to_owned()],
            Way::WalRusDaemon => vec!["daemon".to_owned(), "--socket".to_owned(), socket(bench)],
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let call: Invocation = bench.invocation(way.tool(), cluster, &words);
        let mut process = Command::new("setpriv");
        process.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).args(&call.words);
        process.current_dir(&call.directory).env_clear().envs(call.environment.iter().cloned());
        process.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let child = process.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the daemon");
        group.add(child.id());
        std::thread::sleep(Duration::from_millis(500));
        Some(Daemon(child))
    }

    fn peak(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.map_or(String::new(), |line| format!("  daemon's peak {}", line.trim()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control group that counts the CPU of a process and of all that it starts.
struct ControlGroup {
    path: PathBuf,
    before: f64,
}

impl ControlGroup {
    fn of(process: u32) -> ControlGroup {
        let root = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .expect("a control group file system");
        let path = root.join("walhold-bench");
        std::fs::create_dir_all(&path).expect("make a control group");
        let mut group = ControlGroup { path, before: 0.0 };
        group.add(process);
        group.before = group.total();
        group
    }

    fn add(&self, process: u32) {
        std::fs::write(self.path.join("cgroup.procs"), process.to_string()).expect("join the control group");
    }

    fn total(&self) -> f64 {
        if let Ok(text) = std::fs::read_to_string(self.path.join("cpuacct.usage")) {
            return text.trim().parse::<f64>().unwrap_or(f64::NAN) / 1e9;
        }
        let text = std::fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        line.and_then(|text| text.parse::<f64>().ok()).map_or(f64::NAN, |usage| usage / 1e6)
    }

    fn cpu_seconds(&self) -> f64 {
        self.total() - self.before
    }
}
