//! Databases that are copied from a directory that goes while a backup is taken: replay would copy what the backup does not have.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use walhold::codec::decode::{Expected, decode_object, read_tail};
use walhold::codec::encode::ObjectWriter;
use walhold::codec::{Compression, Effort, Sealing};
use walhold::format::envelope::{ObjectFacts, ObjectKind};
use walhold::format::wal_index::WalIndex;
use walhold::pg::SystemIdentifier;
use walhold::repository::RepositoryObject;

use crate::clone::assert_restores;
use crate::site::Site;
use crate::support::postgres::installation::ServerUser;
use crate::support::postgres::{Cluster, PATIENCE};
use crate::support::program::{wait_stopped, walhold};

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
        Stopped::begin_and_stop_at(site, "")
    }

    /// The same, and it will stop by itself there.
    fn begin_and_stop_at(site: &Site, place: &str) -> Stopped {
        let announced = || site.objects("backups").iter().filter(|o| o.path.contains("/intent/")).count();
        let before = announced();
        let mut command = site.command(&["backup-push", "--rate-limit", "1MB"]);
        command.env("WALHOLD_TEST_STOP_AT", place);
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

    /// Lets it go on to where it stops by itself.
    fn go_on(&mut self) {
        self.send(Signal::SIGCONT);
        wait_stopped(Pid::from_raw(self.0.id() as i32));
    }

    fn finish(mut self) -> Output {
        self.send(Signal::SIGCONT);
        self.0.wait_with_output().expect("wait for walhold")
    }
}

/// How a backup ends during which this is done, where there is a tablespace.
fn during_a_backup(major: u32, work: &[&str], more: impl FnOnce(&Site)) -> (Site, Output) {
    let site = site(major);
    let space = site.cluster.directory("space");
    site.cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    let backup = Stopped::begin(&site);
    work.iter().for_each(|statement| site.cluster.execute(statement));
    more(&site);
    let output = backup.finish();
    (site, output)
}

/// What is done during a backup, and what its refusal says; then another backup is taken, and restores.
#[track_caller]
fn refused(major: u32, work: &[&str], problem: &str) {
    refused_with(major, work, |_| {}, problem);
}

/// The same, and something else is done after that.
#[track_caller]
fn refused_with(major: u32, work: &[&str], more: impl FnOnce(&Site), problem: &str) {
    let (site, output) = during_a_backup(major, work, more);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{log}");
    let line = format!("ERROR: {problem}, which PostgreSQL cannot recover  HINT: take the backup again");
    assert!(log.contains(&line), "{log}");
    assert!(site.list().is_empty());
    assert_restores(&site, &site.back_up(), "again");
}

#[track_caller]
fn accepted(major: u32, work: &[&str]) {
    let (site, output) = during_a_backup(major, work, |_| {});
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

/// Nobody finds the copy in the catalog afterwards, but it was there when the backup ended.
#[test]
fn a_copy_that_is_dropped_right_after_the_backups_end() {
    let site = site(15);
    let mut backup = Stopped::begin_and_stop_at(&site, "backup: stopped");
    site.cluster.execute("CREATE DATABASE copy TEMPLATE one STRATEGY file_copy");
    site.cluster.execute("DROP DATABASE one");
    backup.go_on();
    site.cluster.execute("DROP DATABASE copy");
    let output = backup.finish();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{log}");
    assert!(log.contains(" was made as a copy of one that was dropped or moved"), "{log}");
    assert!(site.list().is_empty());
}

/// Makes the archive's newest segment one of an earlier walhold, whose index does not tell of databases that are made.
fn forget_what_was_made(site: &Site) {
    let name = site.cluster.archive_now();
    let (repository, keys) = (site.open(), site.keys());
    let object =
        site.objects("wal").into_iter().find(|object| object.key.name() == name).expect("the segment");
    let system = site.cluster.value("SELECT system_identifier FROM pg_control_system()");
    let facts = ObjectFacts {
        kind: ObjectKind::WalSegment,
        name,
        system_identifier: SystemIdentifier::new(system.parse().expect("a number")),
        segment_size: None,
    };
    let source = RepositoryObject { repository: &repository, object: &object };
    let expected = Expected { facts: &facts, key: &object.key };
    let tail = read_tail(&source, &expected, &keys).expect("read its end");
    let index = WalIndex::decode(&tail.index).expect("read its index");
    assert!(index.databases_made.as_ref().is_some_and(|made| !made.is_empty()), "{index:?}");
    let mut segment = Vec::new();
    let read = decode_object(&source, &expected, &keys, &mut |bytes| {
        segment.extend_from_slice(bytes);
        Ok(())
    });
    read.expect("read it");
    let sealing = Sealing { compression: Compression::Zstd(1), key: None, workers: None };
    let mut writer = ObjectWriter::new(&tail.facts, &object.key, &sealing, Effort::Quick, Vec::new())
        .expect("write it anew");
    for chunk in segment.chunks(1 << 20) {
        writer.write_chunk(chunk).expect("write it anew");
    }
    let older = WalIndex { databases_made: None, ..index };
    let (_, bytes) = writer.finish(&older.encode()).expect("write it anew");
    std::fs::write(site.repository.join(&object.path), bytes).expect("replace it");
}

#[test]
fn a_segment_whose_index_says_nothing_is_read() {
    let work = ["CREATE DATABASE copy TEMPLATE one STRATEGY file_copy", "DROP DATABASE one"];
    refused_with(15, &work, forget_what_was_made, COPIED);
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
