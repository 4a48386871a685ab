//! Timing whole processes: wall clock, CPU and peak memory of one command, and medians over many.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

/// What one run of a command cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Seconds from start to exit.
    pub wall: f64,
    /// Seconds of CPU, user and system, all its processes.
    pub cpu: f64,
    /// MiB at the peak, of its largest process.
    pub peak_mib: f64,
}

static OWN_COPY: OnceLock<PathBuf> = OnceLock::new();

/// Copies this program where `postgres` can run it: a target directory may lie below /root.
pub fn install_own_copy(directory: &Path) {
    let copy = directory.join("measure");
    std::fs::copy(std::env::current_exe().expect("own path"), &copy).expect("copy own program");
    OWN_COPY.set(copy).expect("installed once");
}

/// Runs a command through this program's own `--measure` mode, so that the children's usage is this command's alone.
/// Panics with the command's output if it fails: a benchmark of a failing command is worth nothing.
pub fn measure(command: &Invocation) -> Cost {
    let own = OWN_COPY.get().expect("install_own_copy was called");
    let mut process = Command::new("setpriv");
    process.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(own).arg("--measure");
    process.args(&command.words).current_dir(&command.directory).env_clear();
    process
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(command.environment.iter().cloned());
    let output = process.output().expect("start the measuring process");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().rev().find(|line| line.starts_with("measured ")).unwrap_or_default().to_owned();
    let figures: Vec<f64> = line.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
    match figures.as_slice() {
        [wall, cpu, peak_mib] if output.status.success() => {
            Cost { wall: *wall, cpu: *cpu, peak_mib: *peak_mib }
        }
        _ => panic!("{:?} failed: {text}{}", command.words, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The `--measure` mode: runs the command, prints what it cost.
pub fn measure_here(words: &[String]) -> ! {
    let Some((program, arguments)) = words.split_first() else { std::process::exit(2) };
    let started = Instant::now();
    let status =
        Command::new(program).args(arguments).stdin(Stdio::null()).status().expect("start the command");
    let wall = started.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    println!("measured {wall} {cpu} {}", usage.max_rss() as f64 / 1024.0);
    std::process::exit(status.code().unwrap_or(1))
}

/// A command with all it needs.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Working directory.
    pub directory: std::path::PathBuf,
    /// The whole environment, `PATH` apart.
    pub environment: Vec<(String, String)>,
}

/// Medians and spread of several runs.
pub fn summary(costs: &[Cost]) -> String {
    let of = |pick: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (wall, cpu, peak) = (of(|c| c.wall), of(|c| c.cpu), of(|c| c.peak_mib));
    format!(
        "{:>9.1} ms (min {:.1}, max {:.1})  cpu {:>8.1} ms  peak {:>6.1} MiB",
        median(&wall) * 1e3,
        wall.first().unwrap_or(&0.0) * 1e3,
        wall.last().unwrap_or(&0.0) * 1e3,
        median(&cpu) * 1e3,
        peak.last().unwrap_or(&0.0),
    )
}

/// The median wall time in seconds.
pub fn median_wall(costs: &[Cost]) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(|cost| cost.wall).collect();
    values.sort_by(f64::total_cmp);
    median(&values)
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes of all files below a directory.
pub fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Reads a file into the page cache, so that every tool finds it there.
pub fn warm(path: &Path) {
    let mut file = std::fs::File::open(path).expect("open a file to warm");
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).expect("read a file to warm") > 0 {}
}
