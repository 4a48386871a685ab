//! `wal-fetch` and the segments that follow: fetched while a server recovers, delivered by rename, never wrong, and gone when recovery is.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::archive::{Archive, Run};
use support::cloud::Cloud;
use support::fake_server::FakeServer;
use support::fault_proxy::Fault;
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, StopMode};
use support::site::Site;
use support::stores::Conditions;
use support::wal_files::small_files;

const PATIENCE: Duration = Duration::from_secs(20);

/// An archive with many segments of 1 MiB, and a data directory in recovery.
struct Recovery {
    archive: Archive,
    segments: Vec<(String, Vec<u8>)>,
}

impl Recovery {
    fn start(count: u64) -> Recovery {
        Recovery::fill(Archive::new(small_files()), count)
    }

    fn fill(archive: Archive, count: u64) -> Recovery {
        let segments = small_files().synthetic(count, 0);
        let status = archive.path("data/pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        ServerUser::get().own(&status);
        for (name, bytes) in &segments {
            fs::write(status.join(format!("{name}.ready")), "").unwrap();
            archive.offer(name, bytes);
        }
        for (name, _) in &segments {
            archive.walhold(["wal-push", &format!("pg_wal/{name}")]).expect_success();
            fs::remove_file(archive.path("data/pg_wal").join(name)).unwrap();
        }
        fs::remove_dir_all(&status).unwrap();
        let this = Recovery { archive, segments };
        this.set_recovering(true);
        this
    }

    fn set_recovering(&self, recovering: bool) {
        let signal = self.archive.path("data/recovery.signal");
        if recovering {
            fs::write(signal, "").unwrap();
        } else {
            fs::remove_file(signal).unwrap();
        }
    }

    fn window(&self) -> PathBuf {
        self.archive.path("data/pg_wal/.walhold")
    }

    fn name(&self, n: usize) -> &str {
        &self.segments[n].0
    }

    /// Segments that lie in the window.
    fn ready(&self) -> Vec<String> {
        let entries = fs::read_dir(self.window()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 24)
            .collect();
        names.sort();
        names
    }

    /// Fetches as PostgreSQL does, which removes what it got last.
    fn fetch(&self, n: usize) -> Run {
        let _ = fs::remove_file(self.archive.path("data/pg_wal/RECOVERYXLOG"));
        self.archive.fetch(self.name(n))
    }

    #[track_caller]
    fn fetch_right(&self, n: usize) -> Run {
        let run = self.fetch(n);
        run.expect_success();
        assert!(self.archive.fetched() == self.segments[n].1, "segment {n} came back different");
        run
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what} did not come: {:?}", self.ready());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_ready(&self, n: usize) {
        let name = self.name(n).to_owned();
        self.wait_until(&name.clone(), || self.ready().contains(&name));
        // It has its name a moment before its keeper knows that.
        std::thread::sleep(Duration::from_millis(100));
    }

    fn wait_gone(&self) {
        self.wait_until("the end of the window", || {
            !self.window().exists() && workers(self.archive.path("data")).is_empty()
        });
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.archive.path("data/recovery.signal"));
        for worker in workers(self.archive.path("data")) {
            let _ = kill(worker, Signal::SIGKILL);
        }
    }
}

fn was_ready(run: &Run) -> bool {
    run.stderr.contains("which was ready")
}

/// The processes that keep a window below this data directory.
fn workers(data: PathBuf) -> Vec<Pid> {
    let wanted = format!("{}/pg_wal", data.display());
    let is_worker = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&b"wal-prefetch".as_slice()) && words.contains(&wanted.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_worker(&line)))
        .map(Pid::from_raw)
        .collect()
}

#[test]
fn what_follows_is_ready_when_it_is_asked_for_and_gone_at_the_end() {
    let recovery = Recovery::start(12);
    assert!(!was_ready(&recovery.fetch_right(0)));
    for n in 1..12 {
        recovery.wait_ready(n);
        assert!(was_ready(&recovery.fetch_right(n)), "segment {n}");
    }
    // The end of the archive is proven by the archive, not by the window.
    let run = recovery.archive.walhold(["wal-fetch", &later_name(&recovery, 12), "pg_wal/RECOVERYXLOG"]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert_eq!(workers(recovery.archive.path("data")).len(), 1);
    recovery.set_recovering(false);
    recovery.wait_gone();
    assert_eq!(recovery.archive.pg_wal(), ["RECOVERYXLOG"]);
}

fn later_name(recovery: &Recovery, n: u64) -> String {
    let first = recovery.name(0);
    format!("{}{:08X}", &first[..16], u64::from_str_radix(&first[16..], 16).unwrap() + n)
}

#[test]
fn without_waiting_every_segment_comes_right() {
    let recovery = Recovery::start(40);
    let ready = (0..40).filter(|n| was_ready(&recovery.fetch_right(*n))).count();
    println!("{ready} of 40 were ready");
    assert!(ready > 10, "only {ready} were ready");
}

#[test]
fn jumps_back_and_forth_are_followed() {
    let recovery = Recovery::start(30);
    for n in [5, 4, 5, 6, 7, 20, 21, 22, 0, 1, 2, 2, 2, 3, 29, 28] {
        recovery.fetch_right(n);
    }
    recovery.set_recovering(false);
    recovery.wait_gone();
}

#[test]
fn nothing_is_fetched_ahead_for_a_person_or_without_recovery_or_where_it_is_switched_off() {
    let mut recovery = Recovery::start(4);
    let name = recovery.name(0).to_owned();
    let destination = recovery.archive.path("out/here").display().to_string();
    recovery.archive.walhold(["wal-fetch", &name, &destination]).expect_success();
    recovery.set_recovering(false);
    recovery.fetch_right(0);
    recovery.set_recovering(true);
    recovery.archive.set("WALHOLD_WAL_PREFETCH", "0");
    recovery.fetch_right(1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!recovery.window().exists() && workers(recovery.archive.path("data")).is_empty());
    assert!(!recovery.archive.path("out/.walhold").exists());
    // What a killed worker left goes with the next fetch.
    fs::create_dir(recovery.window()).unwrap();
    fs::write(recovery.window().join(recovery.name(2)), "left").unwrap();
    ServerUser::get().own(&recovery.window());
    recovery.fetch_right(2);
    assert!(!recovery.window().exists());
}

#[test]
fn a_file_that_was_touched_or_replaced_is_not_delivered() {
    let recovery = Recovery::start(8);
    recovery.fetch_right(0);
    recovery.wait_ready(2);
    let path = |n: usize| recovery.window().join(recovery.name(n));
    // Other bytes in the same file; another file of that name; none at all.
    File::options().write(true).open(path(1)).unwrap().write_all_at(b"wrong", 500_000).unwrap();
    let other = recovery.archive.path("out/other");
    fs::write(&other, &recovery.segments[3].1).unwrap();
    fs::rename(&other, path(2)).unwrap();
    assert!(!was_ready(&recovery.fetch_right(1)));
    assert!(!was_ready(&recovery.fetch_right(2)));
    recovery.wait_ready(4);
    fs::remove_file(path(3)).unwrap();
    assert!(!was_ready(&recovery.fetch_right(3)));
    recovery.fetch_right(4);
}

#[test]
fn a_worker_that_was_killed_is_replaced_and_its_files_are_not_used() {
    let recovery = Recovery::start(20);
    recovery.fetch_right(0);
    for n in [1, 5, 9] {
        recovery.wait_ready(n);
        for worker in workers(recovery.archive.path("data")) {
            kill(worker, Signal::SIGKILL).unwrap();
        }
        recovery.wait_until("its death", || workers(recovery.archive.path("data")).is_empty());
        // Half of it, as a power loss might leave a file.
        let path = recovery.window().join(recovery.name(n));
        File::options().write(true).open(path).unwrap().set_len(300_000).unwrap();
        for next in n..n + 4 {
            let run = recovery.fetch_right(next);
            assert!(next > n || !was_ready(&run));
        }
    }
    recovery.set_recovering(false);
    recovery.wait_gone();
}

#[test]
fn a_worker_that_hangs_delays_a_fetch_for_a_bounded_time() {
    let recovery = Recovery::start(6);
    recovery.fetch_right(0);
    recovery.wait_ready(1);
    let hung = workers(recovery.archive.path("data"));
    kill(hung[0], Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    assert!(!was_ready(&recovery.fetch_right(1)));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    kill(hung[0], Signal::SIGCONT).unwrap();
    for n in 2..6 {
        recovery.fetch_right(n);
    }
}

#[test]
fn kills_at_named_places_lose_and_leave_nothing() {
    let mut recovery = Recovery::start(12);
    recovery.archive.set("WALHOLD_TEST_KILL_AT", "worker: started");
    recovery.fetch_right(0);
    std::thread::sleep(Duration::from_millis(300));
    recovery.archive.unset("WALHOLD_TEST_KILL_AT");
    recovery.fetch_right(1);
    for place in ["window: before delivery", "window: after delivery"] {
        recovery.wait_ready(2);
        recovery.archive.set("WALHOLD_TEST_KILL_AT", place);
        let run = recovery.fetch(2);
        assert_eq!(run.signal, Some(9), "{place}: {run:?}");
        recovery.archive.unset("WALHOLD_TEST_KILL_AT");
        recovery.fetch_right(2);
        recovery.fetch_right(3);
        recovery.fetch_right(1);
    }
    recovery.set_recovering(false);
    recovery.wait_gone();
    assert_eq!(recovery.archive.pg_wal(), ["RECOVERYXLOG"]);
}

/// The server's process dies when everything about the segment was found right, in the last moment before it is moved.
#[test]
fn a_ready_segment_is_not_delivered_after_its_server() {
    let mut recovery = Recovery::start(6);
    recovery.fetch_right(0);
    recovery.wait_ready(1);
    fs::remove_file(recovery.archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    let name = recovery.name(1).to_owned();
    let mut server = FakeServer::stopped_at(&mut recovery.archive, "window: before delivery", &name);
    server.die();
    server.signal(Signal::SIGCONT);
    let (_, said) = server.ended();
    let gone = "deliver pg_wal/RECOVERYXLOG: the PostgreSQL process that asked for it has ended";
    assert!(said.contains(gone), "{said}");
    assert!(!recovery.archive.path("data/pg_wal/RECOVERYXLOG").exists());
    assert!(recovery.ready().contains(&recovery.name(1).to_owned()), "it was thrown away");
    recovery.fetch_right(1);
    recovery.wait_ready(2);
    assert!(was_ready(&recovery.fetch_right(2)));
    recovery.set_recovering(false);
    recovery.wait_gone();
    assert_eq!(recovery.archive.pg_wal(), ["RECOVERYXLOG"]);
}

#[test]
fn it_ends_when_told_when_idle_and_when_its_settings_are_not_ours() {
    let mut recovery = Recovery::start(8);
    recovery.fetch_right(0);
    recovery.wait_ready(1);
    recovery.archive.walhold(["wal-prefetch", "--clear"]).expect_success();
    recovery.wait_gone();
    recovery.archive.walhold(["wal-prefetch", "--clear"]).expect_success();

    recovery.fetch_right(0);
    recovery.wait_ready(1);
    recovery.archive.set("WALHOLD_WAL_PREFETCH", "5MB");
    assert!(!was_ready(&recovery.fetch_right(1)));
    recovery.wait_gone();

    recovery.archive.set("WALHOLD_TEST_IDLE_SECONDS", "1");
    recovery.fetch_right(2);
    recovery.wait_until("a worker", || !workers(recovery.archive.path("data")).is_empty());
    recovery.wait_gone();
}

#[test]
fn it_ends_when_its_directory_or_the_whole_server_is_removed() {
    let recovery = Recovery::start(6);
    recovery.fetch_right(0);
    recovery.wait_ready(2);
    fs::remove_dir_all(recovery.window()).unwrap();
    recovery.wait_gone();
    recovery.fetch_right(1);
    recovery.wait_ready(3);
    fs::remove_dir_all(recovery.archive.path("data")).unwrap();
    recovery.wait_gone();
}

#[test]
fn the_disk_space_is_bounded() {
    let archive = Archive::new(small_files());
    let mut recovery = Recovery::fill(archive, 20);
    recovery.archive.set("WALHOLD_WAL_PREFETCH", "3MB");
    let mut most = 0;
    for n in 0..16 {
        recovery.fetch_right(n);
        most = most.max(recovery.ready().len());
    }
    recovery.wait_ready(17);
    std::thread::sleep(Duration::from_millis(500));
    assert!(most <= 3 && recovery.ready().len() <= 3, "{most}, then {:?}", recovery.ready());
}

/// As when the window was not there yet when it was asked for.
#[test]
fn a_segment_that_was_passed_over_is_not_left() {
    let recovery = Recovery::fill(Archive::new(small_files()), 6);
    recovery.fetch_right(0);
    recovery.wait_ready(1);
    recovery.wait_ready(2);
    assert!(was_ready(&recovery.fetch_right(2)));
    assert!(!recovery.ready().contains(&recovery.name(1).to_owned()), "{:?}", recovery.ready());
}

#[test]
fn an_outage_is_still_no_absence() {
    let deadline = [("WALHOLD_WAL_FETCH_DEADLINE", "3s")];
    let cloud = Cloud::start(small_files(), Conditions::Enforced, &deadline);
    // The server goes with it.
    let Cloud { server: _server, proxy, archive } = cloud;
    let recovery = Recovery::fill(archive, 10);
    recovery.fetch_right(0);
    recovery.wait_ready(2);
    proxy.set(Fault::Refuse);
    // What is here is delivered; what is not is not called absent.
    assert!(was_ready(&recovery.fetch_right(1)));
    assert!(was_ready(&recovery.fetch_right(2)));
    for n in [9, 5] {
        assert_eq!(recovery.fetch(n).status, Some(213));
    }
    proxy.set(Fault::None);
    for fault in [Fault::FlipBit, Fault::TruncateBody, Fault::ResetMidBody, Fault::Status(503)] {
        proxy.set_matching("GET ", 3, fault);
        let mut status = None;
        for n in 3..8 {
            let run = recovery.fetch(n);
            status = run.status;
            if run.status == Some(0) {
                assert!(recovery.archive.fetched() == recovery.segments[n].1, "{fault:?}: segment {n}");
            } else {
                assert!(run.status > Some(200), "{fault:?}: {run:?}");
            }
        }
        assert!(status.is_some());
    }
}

/// A server that archives, with a table and a backup.
fn server(major: u32, segment_mib: u32) -> Site {
    let server = Site::archiving(Cluster::builder(major).wal_segment_mib(segment_mib));
    server.cluster.execute("CREATE TABLE t (i int, word text)");
    server.back_up();
    server
}

fn write_segments(server: &Site, count: u32) {
    for _ in 0..count {
        server.cluster.execute(
            "INSERT INTO t SELECT i, md5(random()::text) FROM generate_series(1, 3000) i; SELECT pg_switch_wal()",
        );
    }
    server.cluster.archive_now();
}

#[track_caller]
fn left_nothing(copy: &Cluster, least_ready: usize) {
    let log = copy.log();
    let (ready, all) = (log.matches("which was ready").count(), log.matches("INFO: fetched 0").count());
    println!("{ready} of {all} were ready");
    assert!(ready >= least_ready, "{ready} of {all}\n{}", copy.log_tail());
    let window: &Path = &copy.data_directory().join("pg_wal/.walhold");
    assert!(
        !window.exists(),
        "{:?}",
        fs::read_dir(window).map(|entries| entries.flatten().map(|e| e.path()).collect::<Vec<_>>())
    );
    assert!(workers(copy.data_directory().to_owned()).is_empty());
}

fn recovery_across_timelines(major: u32, segment_mib: u32) {
    let mut server = server(major, segment_mib);
    write_segments(&server, 12);
    // In place, onto timeline 2.
    server.cluster.stop(StopMode::Fast);
    let data = server.cluster.data_directory().to_owned();
    fs::rename(&data, data.with_extension("broken")).unwrap();
    server.restore(&data, &[]).expect_success();
    server.cluster.start();
    server.cluster.wait_promoted();
    left_nothing(&server.cluster, 3);
    write_segments(&server, 12);
    let expected = server.cluster.row_digest("postgres");
    let copy = server.recover("copy", &[]);
    assert_eq!(copy.row_digest("postgres"), expected);
    left_nothing(&copy, 6);
}

#[test]
fn a_recovery_across_timelines_with_segments_of_1_mib() {
    recovery_across_timelines(15, 1);
}

#[test]
fn a_recovery_across_timelines_with_segments_of_16_mib() {
    recovery_across_timelines(18, 16);
}

#[test]
fn a_standby_follows_the_archive_and_its_restart() {
    let mut server = server(17, 1);
    write_segments(&server, 10);
    let data = server.target("standby");
    server.restore(&data, &["--standby"]).expect_success();
    let mut standby = Cluster::from_data_directory(17, &data);
    standby.configure("wal_retrieve_retry_interval", "200ms");
    standby.start();
    let caught_up = |standby: &Cluster, server: &Site| {
        let count = server.cluster.value("SELECT count(*) FROM t");
        standby.wait_for("the rows", &format!("SELECT count(*) >= {count} FROM t"));
    };
    caught_up(&standby, &server);
    write_segments(&server, 10);
    caught_up(&standby, &server);
    standby.kill9();
    write_segments(&server, 10);
    standby.start();
    caught_up(&standby, &server);
    standby.promote();
    let begun = Instant::now();
    while data.join("pg_wal/.walhold").exists() {
        assert!(begun.elapsed() < PATIENCE, "the window stayed");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.cluster.stop(StopMode::Fast);
}
