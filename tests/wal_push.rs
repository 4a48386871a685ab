//! `wal-push`: what it accepts, what it refuses and in which words, and what a kill at any moment leaves.

mod support;

#[path = "wal_push/refusals.rs"]
mod refusals;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::archive::{Archive, Run};
use support::postgres::Cluster;
use support::postgres::StopMode;
use support::postgres::installation::ServerUser;
use support::wal_files::{WalFiles, default_files, incompressible, large_files, small_files};

/// Pushes every file of a cluster, fetches each and compares.
fn round_trip(files: &WalFiles) -> Archive {
    let archive = Archive::new(files);
    for (name, bytes) in &files.files {
        archive.push(name, bytes).expect_success();
        fs::remove_file(archive.path("data/pg_wal").join(name)).unwrap();
        archive.fetch(name).expect_success();
        assert!(archive.fetched() == *bytes, "{name} came back different");
    }
    archive
}

#[test]
fn archives_all_four_kinds_of_file_of_every_segment_size() {
    for (files, kinds) in [(small_files(), 4), (default_files(), 4), (large_files(), 1)] {
        let kinds_made = ["", ".partial", ".history", ".backup"].map(|kind| files.names(kind).len());
        assert_eq!(kinds_made.iter().filter(|made| **made > 0).count(), kinds, "{kinds_made:?}");
        let archive = round_trip(files);
        let system = &files.system_identifier;
        let segment = files.segment(0);
        let stored = archive.stored();
        let folder = format!("main/wal/{system}");
        assert!(stored.contains_key(&format!("{folder}/00000001/{}/{segment}", &segment[8..16])));
        assert!(stored.contains_key(&format!("main/identity/{system}.json")));
        for name in files.names(".history").into_iter().chain(files.names(".backup")) {
            assert!(stored.contains_key(&format!("{folder}/{name}")), "{:?}", stored.keys());
        }
        // One object per file, the marker and the identity: nothing else is left.
        assert_eq!(stored.len(), files.files.len() + 2, "{:?}", stored.keys());
    }
}

#[test]
fn says_what_it_archived() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let run = archive.push(segment, files.bytes(segment));
    run.expect_success();
    let object = archive.stored_path(segment);
    let expected = [
        format!(
            "walhold: INFO: cluster main with system identifier {} archives to {} from now on",
            files.system_identifier,
            archive.url()
        ),
        format!(
            "walhold: INFO: archived {segment}: 1048576 bytes stored as {}",
            object.metadata().unwrap().len()
        ),
    ];
    assert_eq!(run.stderr.lines().collect::<Vec<_>>(), expected);
    assert_eq!(run.stdout, "");
}

#[test]
fn the_same_file_again_is_a_success_that_changes_nothing() {
    let files = small_files();
    let archive = Archive::new(files);
    for name in files.files.keys() {
        archive.push(name, files.bytes(name)).expect_success();
        let path = archive.repository().join(
            archive.stored().keys().find(|path| path.contains(&format!("/{name}"))).expect("it is stored"),
        );
        let (before, facts) = (archive.stored(), path.metadata().unwrap());
        let run = archive.push(name, files.bytes(name));
        run.expect_success();
        let relative = path.strip_prefix(archive.repository()).unwrap().display().to_string();
        assert_eq!(
            run.stderr,
            format!("walhold: INFO: {name} is already archived with the same content: {relative}\n")
        );
        assert_eq!(archive.stored(), before);
        let after = path.metadata().unwrap();
        assert_eq!((after.ino(), after.mtime_nsec()), (facts.ino(), facts.mtime_nsec()));
    }
}

#[test]
fn a_stored_object_that_is_damaged_is_no_success() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    archive.push(segment, files.bytes(segment)).expect_success();
    let object = archive.stored_path(segment);
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    make_writable(&object);
    fs::write(&object, &bytes).unwrap();
    let before = archive.stored();
    let run = archive.push(segment, files.bytes(segment));
    assert_eq!(run.status, Some(14), "{run:?}");
    let line = run.error_line();
    let relative = object.strip_prefix(archive.repository()).unwrap().display().to_string();
    assert!(
        line.starts_with(&format!(
            "compare with {relative}, which is stored under this name already: object {relative} is damaged: "
        )),
        "{line}"
    );
    assert!(
        line.ends_with("  HINT: the stored object is damaged and was not touched: move it out of the repository, and PostgreSQL's next attempt archives the file again"),
        "{line}"
    );
    assert_eq!(archive.stored(), before);
}

#[test]
fn damaged_records_are_archived_and_told() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let mut damaged = files.bytes(segment).to_vec();
    damaged[300_000] ^= 0xFF;
    let run = archive.push(segment, &damaged);
    run.expect_success();
    let warning = run.stderr.lines().find(|line| line.starts_with("walhold: WARNING: "));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {run:?}"));
    assert!(warning.starts_with(&format!("walhold: WARNING: {segment} is damaged: at 0/")), "{warning}");
    assert!(warning.contains("take a new base backup now"), "{warning}");
    archive.fetch(segment).expect_success();
    assert!(archive.fetched() == damaged);
}

#[test]
fn wal_of_a_newer_postgresql_is_archived() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let mut newer = files.bytes(segment).to_vec();
    newer[0] = 0x7F;
    let run = archive.push(segment, &newer);
    run.expect_success();
    assert!(
        run.stderr.contains(&format!(
            "WARNING: pg_wal/{segment} is of a PostgreSQL newer than this walhold knows (WAL page magic D17F): archived without an index"
        )),
        "{run:?}"
    );
    archive.fetch(segment).expect_success();
    assert!(archive.fetched() == newer);
}

#[test]
fn pushes_of_one_segment_at_once_all_succeed_and_store_one_object() {
    let files = default_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let path = archive.offer(segment, files.bytes(segment));
    let start = || {
        let mut command = archive.command(["wal-push", &path]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start wal-push")
    };
    let running: Vec<_> = (0..8).map(|_| start()).collect();
    let runs: Vec<Run> =
        running.into_iter().map(|child| Run::of(&child.wait_with_output().expect("wait"))).collect();
    for run in &runs {
        run.expect_success();
    }
    let fresh = runs.iter().filter(|run| run.stderr.contains("INFO: archived ")).count();
    assert_eq!(fresh, 1, "{runs:?}");
    assert_eq!(archive.stored().len(), 3, "{:?}", archive.stored().keys());
    archive.fetch(segment).expect_success();
    assert!(archive.fetched() == files.bytes(segment));
}

#[test]
fn different_contents_at_once_leave_one_and_tell_the_others() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let mut running = Vec::new();
    for n in 0..6_u8 {
        let directory = archive.path(&format!("server{n}"));
        fs::create_dir(&directory).unwrap();
        let mut bytes = files.bytes(segment).to_vec();
        let last = bytes.len() - 1;
        bytes[last] = n;
        fs::write(directory.join(segment), bytes).unwrap();
        ServerUser::get().own(&directory);
        let path = directory.join(segment).display().to_string();
        let mut command = archive.command(["wal-push", &path]);
        running.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start wal-push"));
    }
    let statuses: Vec<Option<i32>> =
        running.into_iter().map(|child| child.wait_with_output().expect("wait").status.code()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == Some(0)).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == Some(9)).count(), 5, "{statuses:?}");
    let winner = statuses.iter().position(|status| *status == Some(0)).unwrap();
    archive.fetch(segment).expect_success();
    assert_eq!(archive.fetched().last(), Some(&(winner as u8)));
}

#[test]
fn a_kill_at_any_moment_loses_nothing_and_leaves_nothing() {
    let files = small_files();
    for place in [
        "push: mid-write",
        "push: before publish",
        "publish: before link",
        "publish: after link",
        "publish: after sync",
        "push: after publish",
    ] {
        let mut archive = Archive::new(files);
        let (first, second) = (files.segment(0), files.segment(1));
        archive.push(first, files.bytes(first)).expect_success();
        let before = archive.stored().len();
        archive.set("WALHOLD_TEST_KILL_AT", place);
        let run = archive.push(second, files.bytes(second));
        assert_eq!(run.signal, Some(9), "{place}: {run:?}");
        let published =
            ["publish: after link", "publish: after sync", "push: after publish"].contains(&place);
        assert_eq!(
            archive.stored().len(),
            before + usize::from(published),
            "{place}: {:?}",
            archive.stored().keys()
        );
        archive.unset("WALHOLD_TEST_KILL_AT");
        archive.push(second, files.bytes(second)).expect_success();
        assert_eq!(archive.stored().len(), before + 1, "{place}: {:?}", archive.stored().keys());
        archive.fetch(second).expect_success();
        assert!(archive.fetched() == files.bytes(second), "{place}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_archived() {
    use walhold::config::PgdataOrigin;
    use walhold::wal::archive_file::ArchiveFile;
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let changes: [&dyn Fn(&Path); 4] = [
        &|path| fs::write(path, b"overwritten").unwrap(),
        &|path| fs::remove_file(path).unwrap(),
        &|path| fs::rename(path, path.with_extension("old")).unwrap(),
        &|path| {
            let copy = path.with_extension("new");
            fs::copy(path, &copy).unwrap();
            fs::rename(copy, path).unwrap();
        },
    ];
    for change in changes {
        let path = archive.path("data").join(archive.offer(segment, files.bytes(segment)));
        let file = ArchiveFile::open(&path, None, PgdataOrigin::Setting).unwrap();
        file.check_unchanged().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        change(&path);
        let error = file.check_unchanged().unwrap_err();
        assert_eq!(error.to_string(), format!("archive {}: it changed while it was read", path.display()));
    }
    // Cut in the middle of the pass.
    let path = archive.path("data").join(archive.offer(segment, files.bytes(segment)));
    let file = ArchiveFile::open(&path, None, PgdataOrigin::Setting).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let mut chunk = vec![0; 4096];
    let error = file.read_at(0, &mut chunk).unwrap_err();
    assert_eq!(error.to_string(), format!("archive {}: it changed while it was read", path.display()));
}

#[test]
fn memory_stays_bounded_whatever_the_segment_size() {
    let mut cluster = Cluster::builder(15).wal_segment_mib(1024).start();
    let segment = cluster.switch_wal();
    // A clean shutdown would recycle it.
    cluster.stop(StopMode::Immediate);
    let repository = cluster.directory("repository");
    let mut init = support::program::walhold_command();
    let url = format!("file://{}/store", repository.display());
    init.env("WALHOLD_REPOSITORY", &url).arg("init");
    support::archive::run(&mut init).expect_success();
    let walhold = |arguments: &[String]| {
        let mut command = support::program::walhold_command();
        command.current_dir(cluster.data_directory()).env("WALHOLD_REPOSITORY", &url).args(arguments);
        command
    };
    for arguments in [
        vec!["wal-push".to_owned(), format!("pg_wal/{segment}")],
        vec!["wal-fetch".to_owned(), segment.clone(), "pg_wal/RECOVERYXLOG".to_owned()],
    ] {
        support::memory::assert_bounded(&mut walhold(&arguments), &mut walhold(&["wal-show".to_owned()]));
    }
    let data = cluster.data_directory().join("pg_wal");
    let same = std::process::Command::new("cmp")
        .args([data.join(&segment), data.join("RECOVERYXLOG")])
        .status()
        .expect("run cmp");
    assert!(same.success());
}

#[test]
fn memory_stays_bounded_for_wal_that_does_not_shrink() {
    let files = large_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    let mut bytes = files.bytes(segment).to_vec();
    let records = bytes.len() - 8192;
    bytes[8192..].copy_from_slice(&incompressible(records));
    let path = archive.offer(segment, &bytes);
    for arguments in [vec!["wal-push", path.as_str()], vec!["wal-fetch", segment, "pg_wal/RECOVERYXLOG"]] {
        support::memory::assert_bounded(&mut archive.command(arguments), &mut archive.command(["wal-show"]));
    }
    assert!(archive.fetched() == bytes);
}

fn make_writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("make it writable");
}
