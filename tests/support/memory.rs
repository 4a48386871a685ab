//! How much memory a command needs.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::postgres::PATIENCE;

/// What pushing or fetching may take beyond what the program takes to reach a store and look around there. The promise of 32 MiB is
/// for release builds, which take up to 12 for that; an unoptimised one with its debug information takes several more, and
/// they say nothing about the promise.
const WORK: u64 = 20 << 10;

/// Asserts that the command stays within the promise; `looking_around` is a command of the same repository that only lists.
#[track_caller]
pub fn assert_bounded(command: &mut Command, looking_around: &mut Command) {
    let base = kilobytes_at_its_answer(looking_around);
    let peak = peak_kilobytes(command);
    assert!(peak > 0 && base > 0, "{command:?} ended before its memory could be seen");
    assert!(peak <= base + WORK, "{command:?} took {peak} kB, {base} kB of them just to start");
}

/// Runs the command, which must succeed; the most resident memory that it had, by `VmHWM` of its last look at
/// `/proc/<pid>/status`, which the system keeps until the process is waited for only while it lives: so it is asked often.
fn peak_kilobytes(command: &mut Command) -> u64 {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("start the command");
    let mut peak = 0;
    loop {
        peak = peak.max(most_resident(&child));
        if let Some(ended) = child.try_wait().expect("ask for the command's status") {
            let mut errors = String::new();
            child.stderr.take().expect("it was piped").read_to_string(&mut errors).expect("read its errors");
            assert!(ended.success(), "{command:?}: {ended}: {errors}");
            return peak;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The same for a command that is over too soon to be looked at on a busy machine: it is held where it begins to print, by a pipe
/// that is full.
fn kilobytes_at_its_answer(command: &mut Command) -> u64 {
    let (mut answer, mut full) = std::io::pipe().expect("make a pipe");
    let capacity = fcntl(&full, FcntlArg::F_GETPIPE_SZ).expect("ask for the pipe's size") as usize;
    full.write_all(&vec![b' '; capacity]).expect("fill the pipe");
    let mut child = command.stdout(full).spawn().expect("start the command");
    // The writing end that the command holds for its next child would keep the answer from ending.
    command.stdout(Stdio::null());
    let call = format!("/proc/{}/syscall", child.id());
    let begun = Instant::now();
    // write(1, …), on x86-64 and on AArch64.
    while !std::fs::read_to_string(&call)
        .is_ok_and(|call| call.starts_with("1 0x1 ") || call.starts_with("64 0x1 "))
    {
        assert!(begun.elapsed() < PATIENCE, "{command:?} does not print");
        std::thread::sleep(Duration::from_millis(1));
    }
    let peak = most_resident(&child);
    answer.read_to_end(&mut Vec::new()).expect("read the answer");
    assert!(child.wait().expect("wait for the command").success(), "{command:?}");
    peak
}

/// `VmHWM`, 0 if the process has ended.
fn most_resident(child: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
