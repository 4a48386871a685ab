//! How much memory a command needs.

use std::io::Read;
use std::process::{Command, Stdio};

/// Runs the command, which must succeed; the most resident memory that it had, by `VmHWM` of its last look at
/// `/proc/<pid>/status`, which the system keeps until the process is waited for only while it lives: so it is asked often.
pub fn peak_kilobytes(command: &mut Command) -> u64 {
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
            assert!(peak > 0, "the command ended before its memory could be seen");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
