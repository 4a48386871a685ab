//! A postmaster as a child process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `pg_ctl stop -m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopMode {
    /// Waits for sessions to end.
    Smart,
    /// Ends sessions, shuts down cleanly.
    Fast,
    /// Crash recovery follows at the next start.
    Immediate,
}

#[derive(Debug)]
pub struct Server {
    child: Child,
    pid_file: PathBuf,
}

impl Server {
    pub fn spawn(mut command: Command, log: File, data: &Path) -> Server {
        let errors = log.try_clone().expect("duplicate the log's descriptor");
        // One that an earlier server left behind would look like this server's.
        let pid_file = data.join("postmaster.pid");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Server { child, pid_file }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask for the server's status").is_none()
    }

    /// The status line that pg_ctl looks at too (`LOCK_FILE_LINE_PM_STATUS`), if the file is this server's.
    fn status(&self) -> Option<String> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        self.noted_in(&text).then(|| text.lines().nth(7).unwrap_or_default().trim().to_owned())
    }

    pub fn wait_ready(&mut self, patience: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ask for the server's status") {
                return Err(format!("the server ended: {status}"));
            }
            match self.status().as_deref() {
                Some("ready") => return Ok(()),
                _ if begun.elapsed() > patience => return Err("the server accepts no connections".into()),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn wait_ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().expect("ask for the server's status") {
                Some(status) => return Some(status),
                None if begun.elapsed() > patience => return None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn signal(&self, mode: StopMode) {
        let signal = match mode {
            StopMode::Smart => Signal::SIGTERM,
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        };
        kill(self.pid(), signal).expect("signal the server");
    }

    /// Kills the postmaster first, so that it restarts nothing, then all that descend from it: a backend that survived would keep the
    /// next server from starting.
    pub fn kill(&mut self) {
        if !self.is_running() {
            return;
        }
        // Stopped, it starts nothing new while its descendants are looked up.
        let _ = kill(self.pid(), Signal::SIGSTOP);
        let descendants = descendants_of(self.pid());
        let _ = self.child.kill();
        for pid in &descendants {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        self.child.wait().expect("reap the server");
        let begun = Instant::now();
        while descendants.iter().any(|pid| is_alive(*pid)) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.release_shared_memory();
    }

    /// The next server of the directory would remove what a killed one leaves, but mostly there is none, and the system has few such
    /// segments (`kernel.shmmni`) for all that is killed here in a day.
    fn release_shared_memory(&self) {
        let Ok(text) = fs::read_to_string(&self.pid_file) else { return };
        // Key and number (`LOCK_FILE_LINE_SHMEM_KEY`).
        let segment = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(segment) = segment.filter(|_| self.noted_in(&text)) {
            let _ = Command::new("ipcrm").args(["-m", segment]).stderr(Stdio::null()).status();
        }
    }

    fn noted_in(&self, pid_file: &str) -> bool {
        pid_file.lines().next().is_some_and(|line| line.trim() == self.child.id().to_string())
    }
}

/// Children, their children, and so on, from /proc.
fn descendants_of(ancestor: Pid) -> Vec<Pid> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            parents.insert(pid, stat.parent);
        }
    }
    let mut found = vec![ancestor.as_raw()];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, p)| **p == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.into_iter().skip(1).map(Pid::from_raw).collect()
}

struct Stat {
    state: char,
    parent: i32,
}

/// `/proc/<pid>/stat`: the name in parentheses may hold anything, so fields count from the last one.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

/// A zombie is dead: whoever inherited it may never reap it.
fn is_alive(pid: Pid) -> bool {
    stat(pid.as_raw()).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}
