//! A recovery from the repository over the same store, and what it delivers.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::chaos::kill_agent;
use crate::processes;
use crate::site::{Mode, Site, Tally, short_faults};
use crate::support::archive::run;
use crate::support::postgres::{Cluster, PATIENCE, StopMode, query};
use crate::support::random::Random;

/// Restores the backup, recovers through faults and kills, and compares the rows.
pub fn check(site: &mut Site, random: &mut Random, how_long: Duration, tally: &mut Tally) {
    let mode = site.setup.mode;
    let expected = site.primary.digest();
    let last = site.primary.value("SELECT pg_current_wal_insert_lsn()");
    site.primary.stop(StopMode::Fast);
    let mut copy = restored(site, random, mode);
    site.change_weather(random);
    copy.launch();
    let begun = Instant::now();
    while !has_arrived(&mut copy, mode, &last) {
        // Later faults would only make the round long.
        let is_late = begun.elapsed() > how_long;
        if is_late {
            site.calm();
        }
        assert!(begun.elapsed() < how_long + PATIENCE, "recovery does not end\n{}", copy.log_tail());
        if !copy.is_running() {
            copy.wait_ended();
            tally.restarts += 1;
            copy.launch();
        } else if !is_late {
            disturb(site, &mut copy, random, tally);
        }
        std::thread::sleep(Duration::from_millis(random.between(50, 500)));
    }
    site.calm();
    if mode == Mode::Standby {
        copy.promote();
    }
    copy.wait_promoted();
    for problem in ["wrong", "denied", "litter", "unknown"] {
        assert_eq!(site.noted(problem), Vec::<String>::new(), "{mode:?}: {problem}\n{}", copy.log_tail());
    }
    assert_eq!(copy.digest(), expected, "{mode:?}: rows\n{}", copy.log_tail());
    let fetches = site.noted("fetches");
    let delivered = fetches.iter().filter(|line| line.starts_with("0 ")).count();
    tally.fetched += delivered;
    tally.failed += fetches.len() - delivered;
    println!(
        "  {mode:?}: {delivered} deliveries, {} others, {} restarts so far",
        fetches.len() - delivered,
        tally.restarts
    );
    nothing_remains(site, copy);
}

fn restored(site: &mut Site, random: &mut Random, mode: Mode) -> Cluster {
    let mut data = PathBuf::new();
    for attempt in 0..3 {
        match attempt {
            2 => site.calm(),
            _ => site.proxy.set_weather(random.next(), 80, &short_faults()),
        }
        data = site.primary.directory(&format!("copy{attempt}")).join("data");
        let place = data.display().to_string();
        // A standby that is promoted archives on, into the same repository.
        let kind = if mode == Mode::Standby { "--standby" } else { "--clone" };
        let arguments = ["restore", kind, "--pgdata", &place];
        let run = site.walhold(&arguments);
        match run.status {
            Some(0) => break,
            _ => assert!(attempt < 2, "{run:?}"),
        }
    }
    let script = site.script("fetch", &fetch_command(mode));
    let mut copy = Cluster::from_data_directory(site.primary.major(), &data);
    copy.option("restore_command", &format!("{} %f %p", script.display()));
    // How long a standby waits before it asks again.
    copy.option("wal_retrieve_retry_interval", "200ms");
    copy
}

/// What is delivered, or lies there after a failure, is compared with what PostgreSQL archived.
fn fetch_command(mode: Mode) -> String {
    let denied = match mode {
        Mode::Recovery => {
            r#"[ $status = 1 ] && [ -e "$copies/$1" ] && { echo "$1" >> "$notes/denied"; exit 250; }"#
        }
        Mode::Standby => "",
    };
    format!(
        r#"
"$walhold" wal-fetch "$1" "$2"
status=$?
echo "$status $1" >> "$notes/fetches"
# A call that outlives its server sees what the next one's calls deliver.
outlived() {{ read -r _ _ _ caller _ < /proc/$$/stat; [ "$caller" != "$PPID" ]; }}
outlived && exit 250
if [ -e "$2" ]; then
    [ -e "$copies/$1" ] || {{ outlived || echo "$status $1" >> "$notes/unknown"; exit 250; }}
    cmp "$2" "$copies/$1" || {{ outlived || echo "$status $1" >> "$notes/wrong"; exit 250; }}
fi
{denied}
exit $status
"#
    )
}

fn has_arrived(copy: &mut Cluster, mode: Mode, last: &str) -> bool {
    let asked = match mode {
        Mode::Recovery => "SELECT NOT pg_is_in_recovery()".to_owned(),
        Mode::Standby => format!("SELECT pg_last_wal_replay_lsn() >= '{last}'"),
    };
    // It may be starting, or have ended.
    let Some(mut session) = copy.try_connect("postgres") else { return false };
    query(&mut session, &asked).is_ok_and(|rows| rows.first().is_some_and(|row| row[0] == "t"))
}

fn disturb(site: &mut Site, copy: &mut Cluster, random: &mut Random, tally: &mut Tally) {
    match random.below(10) {
        0 | 1 => site.change_weather(random),
        2..=5 => {
            let agent = site.agent_pid();
            let signal = *random.pick(&[Signal::SIGKILL, Signal::SIGTERM]);
            let running = processes::running(&site.program);
            let others: Vec<_> = running.into_iter().filter(|(pid, _)| Some(*pid) != agent).collect();
            if !others.is_empty() {
                let (pid, arguments) = random.pick(&others);
                processes::signal(*pid, signal);
                site.clearing_was_killed |= arguments.contains("--clear");
                tally.killed(&format!("{} {signal}", processes::verb(arguments)));
            }
        }
        6 => kill_agent(site, random, tally),
        7 => site.start_agent(),
        8 => {
            copy.kill9();
            tally.killed("recovering PostgreSQL SIGKILL");
            copy.launch();
        }
        _ => {}
    }
}

/// Of walhold nothing stays, neither running nor in pg_wal.
fn nothing_remains(site: &mut Site, mut copy: Cluster) {
    if let Some(pid) = site.agent_pid() {
        processes::signal(pid, Signal::SIGTERM);
        site.reap_agent();
    }
    processes::none_remain(&site.program, Duration::from_secs(30));
    let window = copy.data_directory().join("pg_wal/.walhold");
    if site.clearing_was_killed {
        let mut clear = site.command(&["wal-prefetch", "--clear"]);
        run(clear.current_dir(copy.data_directory())).expect_success();
    }
    assert!(!window.exists(), "{} is left", window.display());
    copy.amcheck();
    copy.stop(StopMode::Immediate);
    let _ = fs::remove_dir_all(copy.data_directory());
}
