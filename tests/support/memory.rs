//! How much memory a command needs.

use std::io::Read;
use std::process::{Command, Stdio};

/// What pushing or fetching may take beyond what the program takes to reach a store and look around there. The promise of 32 MiB is
/// for release builds, which take up to 12 for that; an unoptimised one with its debug information takes several more, and
/// they say nothing about the promise.
const WORK: u64 = 20 << 10;

/// How often the shorter command is run.
const LOOKS: u32 = 5;

/// Asserts that the command stays within the promise; `looking_around` is a command of the same repository that only lists.
#[track_caller]
pub fn assert_bounded(command: &mut Command, looking_around: &mut Command) {
    // It is over soon: on a busy machine its peak is not seen each time.
    let base = (0..LOOKS).map(|_| peak_kilobytes(looking_around)).max().unwrap_or(0);
    let peak = peak_kilobytes(command);
    assert!(peak > 0 && base > 0, "{command:?} ended before its memory could be seen");
    assert!(peak <= base + WORK, "{command:?} took {peak} kB, {base} kB of them just to start");
}

/// Runs the command, which must succeed; the most resident memory that it had, by `VmHWM` of its last look at
/// `/proc/<pid>/status`, which the system keeps until the process is waited for only while it lives: so it is asked often.
fn peak_kilobytes(command: &mut Command) -> u64 {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("start the command");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let value = line.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = peak.max(value.unwrap_or(0));
        }
        if let Some(ended) = child.try_wait().expect("ask for the command's status") {
            let mut errors = String::new();
            child.stderr.take().expect("it was piped").read_to_string(&mut errors).expect("read its errors");
            assert!(ended.success(), "{command:?}: {ended}: {errors}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}
