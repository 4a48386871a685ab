//! Restores that cannot work: refused before anything is written where a plan can know it, and without litter where it cannot.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::archive::{Run, contents};
use support::fault_proxy::{Fault, FaultProxy};
use support::postgres::installation::{ServerUser, debian_program};
use support::postgres::{Cluster, PATIENCE, StopMode, copy_tree};
use support::site::{Site, count};
use support::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};
use support::tmpfs::Tmpfs;

/// Flips one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("damage an object");
}

#[test]
fn targets_that_cannot_be_reached_are_refused() {
    let site = Site::start(Cluster::builder(15));
    let cluster = &site.cluster;
    let early = cluster.value("SELECT pg_current_wal_lsn()");
    cluster.execute("INSERT INTO items VALUES (0, 'x')");
    let rolled_back = {
        let mut client = cluster.connect("postgres");
        let mut transaction = client.transaction().expect("begin");
        let xid: String =
            transaction.query_one("SELECT pg_current_xact_id()::text", &[]).expect("an xid").get(0);
        transaction.execute("INSERT INTO items VALUES (0, 'never')", &[]).expect("insert");
        transaction.rollback().expect("roll back");
        xid
    };
    let subtransaction = {
        let mut client = cluster.connect("postgres");
        client
            .batch_execute("BEGIN; INSERT INTO items VALUES (1, 'outer'); SAVEPOINT s; INSERT INTO items VALUES (2, 'inner')")
            .expect("begin");
        let row = client.query_one("SELECT xmin::text FROM items WHERE body = 'inner'", &[]).expect("xmin");
        let xid: String = row.get(0);
        client.batch_execute("COMMIT").expect("commit");
        xid
    };
    for _ in 0..2 {
        cluster.value("SELECT pg_create_restore_point('twice')");
    }
    cluster.archive_now();

    let run = site.restore(&site.target("refused"), &["--target-time", "2001-02-03 04:05:06Z"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    let line = run.error_line();
    let start = format!(
        "time 2001-02-03 04:05:06.000000+00 is before the backup {} was complete: the earliest moment that can be reached is ",
        site.backup
    );
    assert!(line.starts_with(&start), "{line}");
    let run = site.restore(&site.target("refused"), &["--target-time", "2101-02-03 04:05:06Z"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    let line = run.error_line();
    assert!(
        line.starts_with(
            "the target time 2101-02-03 04:05:06.000000+00 is after the end of the archive: it reaches to 0/"
        ),
        "{line}"
    );
    assert!(line.contains(", where the last transaction ended at 20"), "{line}");
    assert!(
        line.ends_with("HINT: leave the target out to recover to the end of the archive, or archive more WAL first (SELECT pg_switch_wal())"),
        "{line}"
    );

    let run = site.restore(&site.target("refused"), &["--target-lsn", "7F/0"]);
    assert!(
        run.error_line().starts_with("the target position 7F/0 is after the end of the archive"),
        "{run:?}"
    );
    let run = site.restore(&site.target("refused"), &["--target-lsn", "0/1000028"]);
    assert!(
        run.error_line().starts_with(&format!("position 0/1000028 is before the backup {}", site.backup)),
        "{run:?}"
    );
    // Just after the backup's stop is fine, though nothing happened between.
    site.restore(&site.target("refused"), &["--plan", "--target-lsn", &early]).expect_success();

    let run = site.restore(&site.target("refused"), &["--target-xid", &rolled_back]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(
        run.error_line().starts_with(&format!("transaction {rolled_back} was rolled back at 20")),
        "{run:?}"
    );
    assert!(run.error_line().contains(
        "there is nothing of it to recover  HINT: to recover to that moment all the same, use --target-lsn 0/"
    ));
    for never in [&subtransaction, "99999"] {
        site.refuses(
            &["--target-xid", never],
            &format!(
                "transaction {never} neither committed nor was rolled back in the WAL that is archived since backup {}  \
                 HINT: a subtransaction's number is never a target, and a transaction that still ran has no end: use --target-time or --target-lsn",
                site.backup
            ),
        );
    }
    let run = site.restore(&site.target("refused"), &["--target-name", "twice"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(run.error_line().starts_with("restore point \"twice\" was used 2 times: at 20"), "{run:?}");
    // The hint's positions work.
    for hint in run.error_line().split("--target-lsn ").skip(1) {
        let lsn = hint.split_whitespace().next().expect("a position");
        site.restore(&site.target("refused"), &["--plan", "--target-lsn", lsn]).expect_success();
    }
    site.refuses(
        &["--target-name", "never"],
        &format!(
            "restore point \"never\" is not in the WAL that is archived since backup {}  \
             HINT: names are compared letter by letter; use --target-time or --target-lsn if it was never archived",
            site.backup
        ),
    );
    site.refuses(&["--timeline", "9"], "timeline 9 is not in the archive  HINT: there are: 1");
    let missing = "20200101T000000Z-00000001-0000000000000001";
    let run = site.restore(&site.target("refused"), &["--backup", missing]);
    run.expect_failure(
        1,
        &format!("there is no complete backup {missing}  HINT: walhold backup-list shows the ones there are"),
    );
}

#[test]
fn a_gap_and_a_damaged_segment_stop_the_plan_and_not_the_server() {
    let site = Site::start(Cluster::builder(15));
    let (mut segments, mut moments) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        moments.push(site.moment());
        segments.push(site.cluster.archive_now());
    }
    let in_the_gap = &moments[2];
    let hidden = site.stored(&segments[2]);
    let aside = hidden.with_extension("aside");
    fs::rename(&hidden, site.directory.join("aside")).expect("hide a segment");
    let run = site.restore(&site.target("refused"), &[]);
    assert_eq!(run.status, Some(3), "{run:?}");
    let expected = format!(
        "the end of the archive cannot be reached: WAL segment {} is missing although {} is stored; the last transaction before it ended at 20",
        segments[2], segments[3]
    );
    assert!(run.error_line().starts_with(&expected), "{}", run.error_line());
    // Nor is what lies in the hole, or behind it.
    for (target, shown) in [
        (["--target-lsn", &in_the_gap.lsn], format!("the target position {}", in_the_gap.lsn)),
        (["--target-xid", &in_the_gap.xid], format!("transaction {}", in_the_gap.xid)),
        (["--target-time", &in_the_gap.time], "the target time 20".to_owned()),
        (["--target-xid", &moments[3].xid], format!("transaction {}", moments[3].xid)),
    ] {
        let target_directory = site.target("refused");
        let run = site.restore(&target_directory, &target);
        assert_eq!(run.status, Some(3), "{target:?}: {run:?}");
        let line = run.error_line();
        assert!(line.starts_with(&shown), "{target:?}: {line}");
        assert!(line.contains(&format!("WAL segment {} is missing", segments[2])), "{target:?}: {line}");
        assert!(line.contains("  HINT: "), "{target:?}: {line}");
        assert!(!target_directory.exists());
    }
    // The way out that the hint names is one.
    let lsn = run.error_line().rsplit("--target-lsn ").next().expect("a position").to_owned();
    let rows = |name: &str, arguments: &[&str]| {
        let mut rows = String::new();
        site.started(name, &[&["--clone"], arguments].concat(), |_, client| rows = count(client));
        rows
    };
    assert_eq!(rows("before-gap", &["--target-lsn", &lsn]), "1004");

    fs::rename(site.directory.join("aside"), &hidden).expect("put the segment back");
    assert!(!aside.exists());
    flip(&hidden);
    // The damage is in the middle: the index at the end is intact, and plans read no more.
    let run = site.restore(&site.target("late"), &["--clone", "--start"]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert!(
        run.error_line().starts_with("the server stopped before the target was reached: it said: "),
        "{run:?}"
    );

    let length = fs::metadata(&hidden).expect("the segment").len();
    fs::File::options()
        .write(true)
        .open(&hidden)
        .and_then(|file| file.set_len(length - 10))
        .expect("truncate");
    let run = site.restore(&site.target("refused"), &[]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(run.error_line().contains(&format!("WAL segment {} is damaged at 0/", segments[2])), "{run:?}");
}

#[test]
fn missing_truncated_and_flipped_packs_restore_nothing() {
    let site = Site::start(Cluster::builder(15));
    let pack = site.repository(&format!("packs/{}/00000000", site.backup));
    let key = format!("main/packs/{}/00000000", site.backup);
    let hint = "HINT: restore another backup (--backup), or this object from a copy of the repository";
    let whole = fs::read(&pack).expect("read the pack");

    fs::remove_file(&pack).expect("remove the pack");
    site.refuses(&[], &format!("backup {} cannot be restored: pack {key} is missing  {hint}", site.backup));
    fs::write(&pack, &whole[..whole.len() - 1]).expect("truncate the pack");
    site.refuses(
        &[],
        &format!(
            "backup {} cannot be restored: pack {key} has {} bytes instead of {}  {hint}",
            site.backup,
            whole.len() - 1,
            whole.len()
        ),
    );
    fs::write(&pack, &whole).expect("put the pack back");
    flip(&pack);
    let target = site.target("flipped");
    let run = site.restore(&target, &[]);
    assert_eq!(run.status, Some(1), "{run:?}");
    let line = run.error_line();
    assert!(line.contains(&key) && line.contains("damaged") && line.ends_with(hint), "{line}");
    assert!(!target.exists(), "what was made is removed");
    // A directory that was there stays, empty.
    fs::create_dir(&target).expect("create the target");
    ServerUser::get().own(&target);
    assert_eq!(site.restore(&target, &[]).status, Some(1));
    assert_eq!(fs::read_dir(&target).expect("the target is still there").count(), 0);
    fs::write(&pack, &whole).expect("put the pack back");
    site.restore(&target, &[]).expect_success();
}

#[test]
fn a_damaged_manifest_is_told_and_passed_over_if_there_is_another() {
    let site = Site::start(Cluster::builder(15));
    let second = site.back_up();
    let manifest = site.repository(&format!("backups/{second}/manifest"));
    let key = format!("main/backups/{second}/manifest");
    let whole = fs::read(&manifest).expect("read the manifest");
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &flipped, b""] {
        fs::write(&manifest, damaged).expect("damage the manifest");
        let target = site.target("refused");
        let named = site.restore(&target, &["--backup", &second]);
        assert_eq!(named.status, Some(1), "{named:?}");
        let line = named.error_line();
        let hint = "  HINT: restore another backup (--backup), or this object from a copy of the repository";
        assert!(line.contains(&format!("{key} is damaged: ")) && line.ends_with(hint), "{line}");
        assert!(!target.exists());
        let auto = site.restore(&site.target("refused"), &["--plan", "--target-immediate"]);
        auto.expect_success();
        assert!(auto.stdout.contains(&format!("WARNING: backup {second} is passed over: ")), "{auto:?}");
        assert!(auto.stdout.contains(&format!("backup      {}", site.backup)), "{auto:?}");
    }
}

#[test]
fn directories_that_must_not_be_touched_are_refused() {
    let site = Site::start(Cluster::builder(15));
    let data = site.cluster.data_directory();
    let pid = fs::read_to_string(data.join("postmaster.pid")).expect("postmaster.pid");
    let pid = pid.lines().next().expect("a process");
    let shown = data.display();
    site.restore(data, &[]).expect_failure(
        3,
        &format!("a server (process {pid}) is running in {shown}  HINT: stop it (pg_ctl stop -D {shown}), or restore to another directory"),
    );
    let taken = site.cluster.directory("taken");
    fs::write(taken.join("anything"), "").expect("write a file");
    site.restore(&taken, &[]).expect_failure(
        3,
        &format!(
            "--pgdata {} is not empty  HINT: move it away (mv), it may hold WAL that was never archived; or take it over with --delta",
            taken.display()
        ),
    );
    let missing = site.cluster.directory("missing").join("a/b");
    let run = site.restore(&missing, &[]);
    assert!(run.error_line().contains("a does not exist"), "{run:?}");
    let programs = site.cluster.directory("programs");
    fs::write(programs.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 16.4'\n")
        .expect("write a program");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(programs.join("postgres"), fs::Permissions::from_mode(0o755))
        .expect("make it a program");
    site.refuses(
        &["--start", "--pg-bin", &programs.display().to_string()],
        &format!(
            "{}/postgres is PostgreSQL 16.4, the backup is of PostgreSQL 15  HINT: name the directory of PostgreSQL 15's programs with --pg-bin",
            programs.display()
        ),
    );
}

/// It notes its process in another way than a server of many users.
#[test]
fn the_directory_of_a_server_in_single_user_mode_is_not_touched() {
    let mut site = Site::start(Cluster::builder(15));
    site.cluster.stop(StopMode::Fast);
    let data = site.cluster.data_directory();
    let mut command = ServerUser::get().command(debian_program("postgres"));
    command.args(["--single", "-D"]).arg(data).arg("postgres").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut single = command.spawn().expect("start PostgreSQL");
    let begun = Instant::now();
    while !data.join("postmaster.pid").exists() {
        assert!(begun.elapsed() < PATIENCE, "PostgreSQL did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let run = site.restore(data, &["--delta"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(
        run.error_line().starts_with(&format!("a server (process {}) is running in ", single.id())),
        "{run:?}"
    );
    assert!(!data.join("walhold-restore-unfinished").exists());
    drop(single.stdin.take());
    assert!(single.wait().expect("wait for PostgreSQL").success());
    site.restore(data, &["--delta"]).expect_success();
}

#[test]
fn a_full_disk_is_told_before_or_cleaned_up_after() {
    let site = Site::start(Cluster::builder(15));
    let place = site.cluster.directory("small");
    let _small = Tmpfs::mount(&place, "8m");
    let run = site.restore(&place.join("data"), &[]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(
        run.error_line()
            .starts_with(&format!("not enough space on the file system of {}/data: ", place.display())),
        "{run:?}"
    );
    assert_eq!(fs::read_dir(&place).expect("read the small disk").count(), 0);

    let few = site.cluster.directory("few");
    let _few = Tmpfs::mount(&few, "1g,nr_inodes=50");
    let run = site.restore(&few.join("data"), &[]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(run.error_line().contains("files can be made"), "{run:?}");
    assert_eq!(fs::read_dir(&few).expect("read the disk").count(), 0);

    // Full in the middle of writing: what the library reports.
    use walhold::error::Explain;
    use walhold::restore::target_files::{Presence, TargetFile, TargetFiles};
    let file = TargetFile {
        path: place.join("big"),
        mode: 0o600,
        size: 16 << 20,
        written: 16 << 20,
        presence: Presence::New,
    };
    let error =
        TargetFiles::new(vec![file], None).write(0, 0, &vec![1; 16 << 20]).expect_err("the disk is full");
    assert_eq!(error.exit_cause(), walhold::exit_status::Cause::LocalFull);
    assert_eq!(error.to_string(), format!("write {}/big: No space left on device", place.display()));
}

#[test]
fn a_disk_that_fills_while_files_are_written_is_told_and_cleaned_up() {
    let site = Site::start(Cluster::builder(15));
    let server = S3Server::start(Conditions::Enforced);
    let bucket = server.bucket_directory();
    copy_tree(&site.directory.join("repository"), &bucket.join("prefix"), &|_| false);
    let proxy = FaultProxy::start(server.addr());
    // Time to fill the disk, after the plan was proven and before the first file's bytes come.
    proxy.set_matching("/packs/", usize::MAX, Fault::Delay(Duration::from_secs(2)));
    let place = site.cluster.directory("disk");
    let disk = Tmpfs::mount(&place, "512m");
    let target = place.join("data");
    let mut command = site.command(&["restore", "--pgdata", &target.display().to_string()]);
    command
        .env("WALHOLD_REPOSITORY", format!("s3://{BUCKET}/prefix"))
        .env("AWS_ENDPOINT_URL", format!("http://{}", proxy.addr()))
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the restore");
    let begun = Instant::now();
    while !target.join("walhold-restore-unfinished").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the restore did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    let filler = place.join("filler");
    let mut file = fs::File::create(&filler).expect("create a file");
    while file.write_all(&[1; 64 << 10]).is_ok() {}
    let run = Run::of(&child.wait_with_output().expect("wait for the restore"));
    assert_eq!(run.status, Some(1), "{run:?}");
    let line = run.error_line();
    let hint = "make room on this file system, or restore to another one (--pgdata, --tablespace)";
    assert!(
        line.starts_with(&format!("write {}/", target.display()))
            && line.ends_with(&format!(": No space left on device  HINT: {hint}")),
        "{line}"
    );
    assert_eq!(contents(&place).into_keys().collect::<Vec<_>>(), ["filler"], "something was left");
    assert!(!target.exists());
    // With room it goes through.
    drop(file);
    fs::remove_file(filler).expect("make room");
    disk.wait_for_room(256 << 20);
    proxy.set(Fault::None);
    support::archive::run(&mut command).expect_success();
}

/// After an upgrade the name holds backups of two systems: each is restored along its own WAL.
#[test]
fn a_backup_of_an_older_system_is_proven_by_its_own_wal() {
    let site = Site::start(Cluster::builder(15));
    let moment = site.moment();
    let last = site.cluster.archive_now();
    let newer = Cluster::builder(15).create();
    let configuration = site.directory.join("walhold.toml").display().to_string();
    newer.archive_with(support::program::walhold(), &[("WALHOLD_CONFIG", &configuration)]);
    let mut newer = newer;
    newer.start();
    let data = newer.data_directory().display().to_string();
    let mut push = site.command(&["backup-push", "--pgdata", &data]);
    support::archive::run(push.envs(newer.environment())).expect_success();
    let target = site.target("older");
    for wanted in [vec!["--target-time", moment.time.as_str()], vec![]] {
        let plan = site
            .restore(&target, &[&["--plan", "--backup", site.backup.as_str()], wanted.as_slice()].concat());
        plan.expect_success();
        assert!(plan.stdout.contains(&format!(" to {last}, ")), "{plan:?}");
    }
    let run = site.restore(&target, &["--plan"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(
        run.error_line().starts_with("backups of different clusters lie under this name: ")
            && run.error_line().ends_with("  HINT: name the backup with --backup"),
        "{run:?}"
    );
}
