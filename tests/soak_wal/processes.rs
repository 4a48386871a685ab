//! walhold's processes, and only this round's: they run a copy of the program that nobody else has.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Those that run this very file, with their arguments.
pub fn running(program: &Path) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if fs::read_link(entry.path().join("exe")).is_ok_and(|target| target == program) {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((Pid::from_raw(pid), String::from_utf8_lossy(&arguments).replace('\0', " ")));
        }
    }
    found
}

/// The command among a process's arguments.
pub fn verb(arguments: &str) -> &str {
    arguments.split(' ').skip(1).find(|word| word.starts_with("wal-")).unwrap_or("walhold")
}

/// One that has just ended is no failure.
pub fn signal(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

/// Waits until none is left.
#[track_caller]
pub fn none_remain(program: &Path, patience: Duration) {
    let begun = Instant::now();
    loop {
        let left = running(program);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < patience, "still running: {left:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
