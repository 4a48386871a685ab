//! Databases that are copied from a directory that goes while a backup is taken: replay would copy what the backup does not have.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clone::assert_restores;
use crate::site::Site;
use crate::support::postgres::installation::ServerUser;
use crate::support::postgres::{Cluster, PATIENCE};
use crate::support::program::walhold;

const ROWS: &str =
    "CREATE TABLE t AS SELECT md5(i::text) || md5((i * 3)::text) AS x FROM generate_series(1, 20000) i";

/// A cluster with the databases `one` and `two`.
fn site(major: u32) -> Site {
    let site = Site::start(Cluster::builder(major).checksums(true).setting("autovacuum", "off"));
    for database in ["one", "two"] {
        site.cluster.execute(&format!("CREATE DATABASE {database}"));
        site.cluster.execute_in(database, ROWS);
    }
    site
}

/// A backup that has begun and stands still.
struct Stopped(Child);

impl Stopped {
    fn begin(site: &Site) -> Stopped {
        let announced = || site.objects("backups").iter().filter(|o| o.path.contains("/intent/")).count();
        let before = announced();
        let mut command = site.command(&["backup-push", "--rate-limit", "1MB"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start walhold");
        let begun = Instant::now();
        while announced() == before {
            assert!(begun.elapsed() < PATIENCE, "the backup does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut stopped = Stopped(child);
        stopped.send(Signal::SIGSTOP);
        assert!(stopped.0.try_wait().expect("look after it").is_none(), "it has ended");
        stopped
    }

    fn send(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("send a signal");
    }

    fn finish(mut self) -> Output {
        self.send(Signal::SIGCONT);
        self.0.wait_with_output().expect("wait for walhold")
    }
}

/// What is done during a backup, and what its refusal says; then another backup is taken, and restores.
#[track_caller]
fn refused(major: u32, work: &[&str], problem: &str) {
    let site = site(major);
    let space = site.cluster.directory("space");
    site.cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    let backup = Stopped::begin(&site);
    work.iter().for_each(|statement| site.cluster.execute(statement));
    let output = backup.finish();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{log}");
    let line = format!("ERROR: {problem}, which PostgreSQL cannot recover  HINT: take the backup again");
    assert!(log.contains(&line), "{log}");
    assert!(site.list().is_empty());
    assert_restores(&site, &site.back_up(), "again");
}

#[track_caller]
fn accepted(major: u32, work: &[&str]) {
    let site = site(major);
    let space = site.cluster.directory("space");
    site.cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    let backup = Stopped::begin(&site);
    work.iter().for_each(|statement| site.cluster.execute(statement));
    let output = backup.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_restores(&site, &site.list().remove(0), "copy");
}

/// What the refusal spares: a plain copy of the directory, taken as the manual says. If PostgreSQL mends this one day, this tells.
#[test]
fn postgresql_recovers_an_empty_copy_of_a_template_that_is_dropped() {
    let site = site(15);
    let target = site.cluster.directory("copied").join("data");
    site.cluster.copy_while_running(&target, || {
        site.cluster.execute("CREATE DATABASE copy TEMPLATE one STRATEGY file_copy");
        site.cluster.execute("DROP DATABASE one");
    });
    site.cluster.archive_now();
    let mut copy = Cluster::from_data_directory(15, &target);
    copy.configure("archive_mode", "off");
    copy.restore_with(walhold(), &site.variables());
    std::fs::write(target.join("recovery.signal"), "").expect("ask for recovery");
    ServerUser::get().own(&target);
    copy.start();
    copy.wait_promoted();
    assert!(copy.databases().contains(&"copy".to_owned()));
    assert!(copy.try_connect("copy").is_none());
    let log = copy.log_tail();
    assert!(log.contains("is not a valid data directory"), "{log}");
}

const MOVED: &str = "database one was moved to another tablespace while it was backed up";
const COPIED: &str =
    "database copy was made as a copy of one that was dropped or moved while the backup was taken";

#[test]
fn a_database_that_moves() {
    refused(14, &["ALTER DATABASE one SET TABLESPACE space"], MOVED);
}

#[test]
fn a_database_that_moves_and_comes_back() {
    let work = ["ALTER DATABASE one SET TABLESPACE space", "ALTER DATABASE one SET TABLESPACE pg_default"];
    refused(17, &work, MOVED);
}

#[test]
fn a_copy_of_a_template_that_is_dropped_before_15() {
    refused(14, &["CREATE DATABASE copy TEMPLATE one", "DROP DATABASE one"], COPIED);
}

#[test]
fn a_copy_of_files_of_a_template_that_is_dropped() {
    refused(15, &["CREATE DATABASE copy TEMPLATE one STRATEGY file_copy", "DROP DATABASE one"], COPIED);
}

#[test]
fn a_copy_of_a_copy_whose_template_is_dropped() {
    let work = [
        "CREATE DATABASE passing TEMPLATE one STRATEGY file_copy",
        "DROP DATABASE one",
        "CREATE DATABASE copy TEMPLATE passing STRATEGY file_copy",
        "DROP DATABASE passing",
    ];
    refused(17, &work, COPIED);
}

/// Its pages are logged, or its template is there to the end, or was made meanwhile: nothing is missing.
#[test]
fn other_copies_are_recovered() {
    let work = [
        "CREATE DATABASE logged TEMPLATE one STRATEGY wal_log",
        "DROP DATABASE one",
        "CREATE DATABASE copy TEMPLATE two STRATEGY file_copy",
        "CREATE DATABASE again TEMPLATE logged STRATEGY file_copy",
        "DROP DATABASE logged",
        "ALTER DATABASE copy SET TABLESPACE space",
        "REVOKE CONNECT ON DATABASE two FROM public",
    ];
    accepted(17, &work);
    accepted(14, &["CREATE DATABASE copy TEMPLATE two", "DROP DATABASE one"]);
}
