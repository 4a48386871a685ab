//! A running agent, and what PostgreSQL does around it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::archive::{Archive, Run};
use super::cloud::Cloud;
use super::postgres::installation::ServerUser;
use super::stores::Conditions;
use super::wal_files::WalFiles;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent; killed when dropped.
pub struct Agent {
    pub child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Agent {
    pub fn start(archive: &Archive) -> Agent {
        Agent::start_with(archive, &[])
    }

    pub fn start_with(archive: &Archive, environment: &[(&str, &str)]) -> Agent {
        let mut command = archive.command(["agent"]);
        command.current_dir("/").envs(environment.iter().copied());
        Agent::run(archive, command)
    }

    /// The agent as this command starts it.
    pub fn run(archive: &Archive, mut command: Command) -> Agent {
        // A pipe that nobody reads would stop it when it is full.
        let said = fs::File::create(archive.path("agent.log")).expect("create its log");
        let child = command.stdout(Stdio::null()).stderr(said).spawn().expect("start the agent");
        let agent =
            Agent { child, socket: archive.path("state/agent.socket"), log: archive.path("agent.log") };
        // Its name is there a moment before it listens.
        agent.wait_for("the agent", || UnixStream::connect(&agent.socket).is_ok());
        agent
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what} did not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal the agent");
    }

    /// Waits until it has ended; its exit status and what it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while self.child.try_wait().expect("wait for the agent").is_none() {
            assert!(begun.elapsed() < PATIENCE, "the agent did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = fs::read_to_string(&self.log).expect("read its log");
        (self.child.wait().expect("its status").code(), said)
    }

    pub fn memory(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn mark_waiting(archive: &Archive, name: &str, bytes: &[u8]) {
    let status = archive.path("data/pg_wal/archive_status");
    fs::create_dir_all(&status).unwrap();
    fs::write(status.join(format!("{name}.ready")), "").unwrap();
    archive.offer(name, bytes);
    ServerUser::get().own(&status);
}

/// As PostgreSQL does when the file is archived.
pub fn mark_done(archive: &Archive, name: &str) {
    let status = archive.path("data/pg_wal/archive_status");
    fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).unwrap();
}

pub fn push(archive: &Archive, name: &str) -> Run {
    archive.walhold(["wal-push", &format!("pg_wal/{name}")])
}

pub fn was_by_agent(run: &Run, name: &str) -> bool {
    run.status == Some(0) && run.stderr.contains(&format!("INFO: archived {name} by the agent: "))
}

#[track_caller]
pub fn is_stored(archive: &Archive, name: &str, bytes: &[u8]) {
    archive.fetch(name).expect_success();
    assert!(archive.fetched() == bytes, "{name} came back different");
}

pub fn status(archive: &Archive) -> serde_json::Value {
    let run = archive.walhold(["agent", "status", "--json"]);
    run.expect_success();
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// A bucket behind a proxy; a push to it does not wait for long.
pub fn cloud(files: &WalFiles) -> Cloud {
    Cloud::start(files, Conditions::Enforced, &[("WALHOLD_WAL_PUSH_DEADLINE", "4s")])
}
