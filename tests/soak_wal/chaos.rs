//! A primary that works while faults come and go and processes die.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::processes;
use crate::site::{Site, Tally};
use crate::support::postgres::StopMode;
use crate::support::random::Random;

/// pgbench until it is dropped or its server goes away.
struct Pgbench(Child);

impl Pgbench {
    fn start(site: &Site) -> Pgbench {
        let mut command = site.primary.client_program("pgbench");
        command.args(["--client=2", "--rate=30", "--time=3600", "--no-vacuum", "postgres"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Pgbench(child.expect("start pgbench"))
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets the primary write and archive for so long.
pub fn archive(site: &mut Site, random: &mut Random, how_long: Duration, tally: &mut Tally) {
    let begun = Instant::now();
    let mut pgbench = Some(Pgbench::start(site));
    let mut step = 0;
    site.change_weather(random);
    site.start_agent();
    while begun.elapsed() < how_long {
        step += 1;
        match random.below(16) {
            0..=2 => site.change_weather(random),
            3..=6 => burst(site, random, step),
            7 => drop(site.primary.switch_wal()),
            8 | 9 => kill_client(site, random, tally),
            10 => kill_agent(site, random, tally),
            11 | 12 => site.start_agent(),
            13 => forget(site, random),
            14 => {
                drop(pgbench.take());
                crash(site, random, tally);
                pgbench = Some(Pgbench::start(site));
            }
            _ => site.primary.execute("CHECKPOINT"),
        }
        std::thread::sleep(Duration::from_millis(random.between(50, 600)));
    }
}

/// One to about six segments of the smallest size.
fn burst(site: &Site, random: &mut Random, step: u32) {
    let rows = random.between(1, 12) * 2_000;
    site.primary.execute(&format!(
        "INSERT INTO bursts SELECT {step}, i, repeat(md5(i::text || '{step}'), 3) FROM generate_series(1, {rows}) i"
    ));
}

/// A wal-push, or whatever else of walhold's runs beside the agent.
fn kill_client(site: &mut Site, random: &mut Random, tally: &mut Tally) {
    let agent = site.agent_pid();
    let signal = *random.pick(&[Signal::SIGKILL, Signal::SIGTERM]);
    // They live for moments: one is waited for.
    for _ in 0..50 {
        let running = processes::running(&site.program);
        if let Some((pid, arguments)) = running.into_iter().find(|(pid, _)| Some(*pid) != agent) {
            std::thread::sleep(Duration::from_millis(random.below(30)));
            processes::signal(pid, signal);
            return tally.killed(&format!("{} {signal}", processes::verb(&arguments)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn kill_agent(site: &mut Site, random: &mut Random, tally: &mut Tally) {
    let signal = *random.pick(&[Signal::SIGKILL, Signal::SIGTERM]);
    if let Some(pid) = site.agent_pid() {
        processes::signal(pid, signal);
        site.reap_agent();
        tally.killed(&format!("agent {signal}"));
    }
}

/// Local state may be lost at any moment, or half of a file of it.
fn forget(site: &Site, random: &mut Random) {
    let state = site.place("state");
    let all = random.chance(40);
    remove_some(&state, all, random);
}

fn remove_some(directory: &std::path::Path, all: bool, random: &mut Random) {
    // Notes come and go meanwhile.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            remove_some(&path, all, random);
        } else if all || random.chance(30) {
            let _ = fs::remove_file(&path);
        } else if random.chance(30) && path.extension().is_none_or(|e| e != "socket" && e != "lock") {
            let length = fs::metadata(&path).map_or(0, |facts| facts.len());
            let _ = fs::File::options().write(true).open(&path).and_then(|file| file.set_len(length / 2));
        }
    }
}

fn crash(site: &mut Site, random: &mut Random, tally: &mut Tally) {
    match random.below(4) {
        0 => {
            // Ends the archiver, and what it called.
            site.primary.stop(StopMode::Immediate);
            tally.killed("PostgreSQL SIGQUIT");
        }
        1 => {
            // The archiver gets its last chance, with whatever store there is.
            site.primary.stop(StopMode::Fast);
            tally.killed("PostgreSQL SIGINT");
        }
        _ => {
            site.primary.kill9();
            tally.killed("PostgreSQL SIGKILL");
        }
    }
    site.primary.start();
}
