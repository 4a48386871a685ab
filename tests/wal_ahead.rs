//! `wal-push` and the segments behind the asked one: archived in the same call, acknowledged by a note only while everything is as it was.

mod support;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::archive::{Archive, Run};
use support::cloud::Cloud;
use support::fault_proxy::Fault;
use support::postgres::Cluster;
use support::postgres::installation::ServerUser;
use support::site::Site;
use support::stores::Conditions;
use support::wal_files::{WalFiles, default_files, small_files};

/// Puts the file into pg_wal and marks it as PostgreSQL does.
fn wait_for_archiving(archive: &Archive, name: &str, bytes: &[u8]) -> String {
    let status = archive.path("data/pg_wal/archive_status");
    fs::create_dir_all(&status).unwrap();
    fs::write(status.join(format!("{name}.ready")), "").unwrap();
    let path = archive.offer(name, bytes);
    ServerUser::get().own(&status);
    path
}

/// Three segments wait; the first one's call is over.
fn pushed_ahead(archive: &Archive) -> [&'static str; 3] {
    let files = small_files();
    let names = [0, 1, 2].map(|n| files.segment(n));
    for name in names {
        wait_for_archiving(archive, name, files.bytes(name));
    }
    let run = push(archive, names[0]);
    run.expect_success();
    for name in &names[1..] {
        assert!(run.stderr.contains(&format!("archived {name} ahead: ")), "{run:?}");
    }
    names
}

fn push(archive: &Archive, name: &str) -> Run {
    archive.walhold(["wal-push", &format!("pg_wal/{name}")])
}

fn says_it_was_ahead(run: &Run, name: &str) -> bool {
    run.status == Some(0)
        && run.stderr == format!("walhold: INFO: {name} was archived ahead by an earlier call\n")
}

#[track_caller]
fn was_compared(run: &Run, name: &str) {
    run.expect_success();
    assert!(run.stderr.contains(&format!("{name} is already archived with the same content")), "{run:?}");
}

fn notes(archive: &Archive) -> std::path::PathBuf {
    let found: Vec<_> = fs::read_dir(archive.path("state/wal-push")).unwrap().flatten().collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].path()
}

#[test]
fn what_waits_is_archived_by_one_call_and_answered_from_a_note() {
    let archive = Archive::new(small_files());
    let names = pushed_ahead(&archive);
    for name in &names[1..] {
        let run = push(&archive, name);
        assert!(says_it_was_ahead(&run, name), "{run:?}");
        // As often as PostgreSQL asks.
        assert!(says_it_was_ahead(&push(&archive, name), name));
    }
    for name in names {
        archive.fetch(name).expect_success();
        assert!(archive.fetched() == small_files().bytes(name), "{name} came back different");
    }
}

#[test]
fn nothing_is_archived_ahead_that_does_not_wait_or_is_switched_off() {
    let files = small_files();
    let mut archive = Archive::new(files);
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    // A person pushes a file that does not wait; another lies there without a mark.
    wait_for_archiving(&archive, second, files.bytes(second));
    archive.push(first, files.bytes(first)).expect_success();
    assert!(!archive.stored().keys().any(|path| path.ends_with(second)));
    archive.offer(third, files.bytes(third));
    push(&archive, second).expect_success();
    assert!(!archive.stored().keys().any(|path| path.ends_with(third)));
    wait_for_archiving(&archive, third, files.bytes(third));
    archive.set("WALHOLD_WAL_PUSH_AHEAD", "0");
    push(&archive, second).expect_success();
    assert!(!archive.stored().keys().any(|path| path.ends_with(third)));
    assert!(!archive.path("state/wal-push").exists());
}

#[test]
fn a_file_behind_that_is_wrong_is_left_to_its_own_call() {
    let files = small_files();
    let archive = Archive::new(files);
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    wait_for_archiving(&archive, first, files.bytes(first));
    wait_for_archiving(&archive, second, &files.bytes(second)[..1000]);
    wait_for_archiving(&archive, third, files.bytes(third));
    push(&archive, first).expect_success();
    let run = push(&archive, second);
    assert_eq!(run.status, Some(7), "{run:?}");
    push(&archive, third).expect_success();
}

#[test]
fn a_note_is_for_the_very_same_file_only() {
    let files = small_files();
    let archive = Archive::new(files);
    let [_, second, third] = pushed_ahead(&archive);
    let path = archive.path("data/pg_wal").join(second);
    let before = path.metadata().unwrap();

    // Other bytes at the same inode, with the old times put back.
    let file = File::options().write(true).open(&path).unwrap();
    let last = files.bytes(second).len() as u64 - 1;
    file.write_all_at(&[files.bytes(second)[last as usize] ^ 1], last).unwrap();
    let times =
        FileTimes::new().set_modified(before.modified().unwrap()).set_accessed(before.accessed().unwrap());
    file.set_times(times).unwrap();
    let run = push(&archive, second);
    assert_eq!(run.status, Some(9), "{run:?}");

    // The same bytes in another file, as after a restore of PGDATA.
    let copy = path.with_extension("copy");
    fs::write(&copy, files.bytes(second)).unwrap();
    ServerUser::get().own(&copy);
    File::options().write(true).open(&copy).unwrap().set_times(times).unwrap();
    fs::rename(&copy, &path).unwrap();
    was_compared(&push(&archive, second), second);

    // Replaced under its name by another one's content.
    let path = archive.path("data/pg_wal").join(third);
    fs::write(&copy, files.bytes(second)).unwrap();
    ServerUser::get().own(&copy);
    fs::rename(&copy, &path).unwrap();
    let run = push(&archive, third);
    assert_eq!(run.status, Some(7), "{run:?}");
}

#[test]
fn a_torn_or_foreign_note_is_none() {
    let archive = Archive::new(small_files());
    let [_, second, third] = pushed_ahead(&archive);
    let note = notes(&archive);
    let whole = fs::read(&note).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", &whole.iter().map(|b| b ^ 1).collect::<Vec<_>>()] {
        fs::write(&note, damaged).unwrap();
        was_compared(&push(&archive, second), second);
    }
    fs::write(&note, &whole).unwrap();
    assert!(says_it_was_ahead(&push(&archive, second), second));
    // Whoever else can write it could make PostgreSQL drop what was never archived.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&note, fs::Permissions::from_mode(0o666)).unwrap();
    was_compared(&push(&archive, third), third);
}

#[test]
fn a_note_is_for_this_repository_and_these_settings_only() {
    let files = small_files();
    let mut archive = Archive::new(files);
    let [_, second, third] = pushed_ahead(&archive);
    // Another cluster's name, another repository: nothing of this is there.
    archive.set("WALHOLD_CLUSTER", "other");
    let run = push(&archive, second);
    assert!(run.stderr.contains(&format!("INFO: archived {second}: ")), "{run:?}");
    archive.unset("WALHOLD_CLUSTER");
    assert!(says_it_was_ahead(&push(&archive, second), second));
    let other = format!("file://{}", archive.path("other").display());
    archive.set("WALHOLD_REPOSITORY", &other);
    archive.walhold(["init"]).expect_success();
    let run = push(&archive, second);
    assert!(run.stderr.contains(&format!("INFO: archived {second}: ")), "{run:?}");

    // Made anew under the same address.
    let url = archive.url();
    archive.set("WALHOLD_REPOSITORY", &url);
    pushed_again(&archive);
    fs::rename(archive.repository(), archive.path("old")).unwrap();
    archive.walhold(["init"]).expect_success();
    let run = push(&archive, third);
    assert!(run.stderr.contains(&format!("INFO: archived {third}: ")), "{run:?}");
    assert!(archive.stored().keys().any(|path| path.ends_with(third)));
}

/// The notes were lost to other settings: makes them anew.
fn pushed_again(archive: &Archive) {
    let _ = fs::remove_dir_all(archive.path("state/wal-push"));
    for name in archive.stored().keys().filter(|path| path.contains("/wal/")) {
        fs::remove_file(archive.repository().join(name)).unwrap();
    }
    pushed_ahead(archive);
}

#[test]
fn an_object_that_is_gone_is_archived_again() {
    let archive = Archive::new(small_files());
    let [_, second, third] = pushed_ahead(&archive);
    fs::remove_file(archive.stored_path(second)).unwrap();
    let run = push(&archive, second);
    assert!(run.stderr.contains(&format!("INFO: archived {second}: ")), "{run:?}");
    let object = archive.stored_path(third);
    File::options().write(true).open(&object).unwrap().set_len(1000).unwrap();
    assert_eq!(push(&archive, third).status, Some(14));
}

#[test]
fn a_kill_at_any_moment_acknowledges_nothing_that_is_not_stored() {
    let files = small_files();
    let names = [0, 1, 2].map(|n| files.segment(n));
    for place in [
        "push: mid-write",
        "push: before publish",
        "push: after publish",
        "publish: after link",
        "ahead: after a follower",
        "ahead: before notes",
        "ahead: after notes",
    ] {
        let mut archive = Archive::new(files);
        for name in names {
            wait_for_archiving(&archive, name, files.bytes(name));
        }
        archive.set("WALHOLD_TEST_KILL_AT", place);
        let run = push(&archive, names[0]);
        assert_eq!(run.signal, Some(9), "{place}: {run:?}");
        archive.unset("WALHOLD_TEST_KILL_AT");
        for name in names {
            push(&archive, name).expect_success();
            let stored = archive.stored_path(name);
            assert!(stored.exists(), "{place}: {name} was acknowledged and is not stored");
        }
        for name in names {
            archive.fetch(name).expect_success();
            assert!(archive.fetched() == files.bytes(name), "{place}: {name}");
        }
        let strangers: Vec<String> =
            archive.stored().into_keys().filter(|path| path.contains(".walhold-")).collect();
        assert!(strangers.is_empty(), "{place}: {strangers:?}");
    }
}

fn cloud(files: &WalFiles) -> Cloud {
    Cloud::start(files, Conditions::Enforced, &[("WALHOLD_WAL_PUSH_DEADLINE", "5s")])
}

#[test]
fn a_note_needs_no_store() {
    let cloud = cloud(small_files());
    let names = pushed_ahead(&cloud.archive);
    cloud.proxy.set(Fault::Refuse);
    for name in &names[1..] {
        let run = push(&cloud.archive, name);
        assert!(says_it_was_ahead(&run, name), "{run:?}");
    }
    assert_eq!(push(&cloud.archive, names[0]).status, Some(13));
}

#[test]
fn a_push_to_a_known_repository_takes_the_time_of_its_upload() {
    let files = small_files();
    let cloud = cloud(files);
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    cloud.archive.push(first, files.bytes(first)).expect_success();
    let delay = Duration::from_millis(400);
    cloud.proxy.set(Fault::Delay(delay));
    let begun = Instant::now();
    cloud.archive.push(second, files.bytes(second)).expect_success();
    let took = begun.elapsed();
    // Marker, identity and object in turn would take three delays; marker and identity follow each other, the object is beside them.
    assert!(took < delay * 3 - delay / 4, "{took:?}");
    assert_eq!(cloud.proxy.requests(), 3);
    cloud.proxy.set(Fault::None);
    cloud.archive.push(third, files.bytes(third)).expect_success();
}

#[test]
fn a_repository_that_took_the_place_of_a_known_one_gets_no_acknowledgement() {
    let files = small_files();
    let mut cloud = cloud(files);
    // Straight: the proxy loses what a server answers before it has read the whole body.
    cloud.go_directly();
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    cloud.archive.push(first, files.bytes(first)).expect_success();
    let marker = cloud.object("walhold.json");
    let text = fs::read_to_string(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    let run = cloud.archive.push(second, files.bytes(second));
    assert_eq!(run.status, Some(10), "{run:?}");
    // The guess was dropped: the next call asks first.
    let before = cloud.stored();
    assert_eq!(cloud.archive.push(third, files.bytes(third)).status, Some(10));
    assert_eq!(cloud.stored(), before);

    fs::write(&marker, &text).unwrap();
    cloud.archive.push(first, files.bytes(first)).expect_success();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let id = value["repository_id"].as_str().unwrap();
    fs::write(&marker, text.replace(id, &"ab".repeat(16))).unwrap();
    let run = cloud.archive.push(third, files.bytes(third));
    assert!(run.error_line().contains("another one took its place"), "{run:?}");
    // It is another repository now, and is used as one.
    cloud.archive.push(third, files.bytes(third)).expect_success();
}

#[test]
fn an_identity_that_is_missing_is_recorded_before_the_acknowledgement() {
    let files = small_files();
    let cloud = cloud(files);
    cloud.archive.push(files.segment(0), files.bytes(files.segment(0))).expect_success();
    let identity = cloud.object(&format!("{}.json", files.system_identifier));
    fs::remove_file(&identity).unwrap();
    cloud.archive.push(files.segment(1), files.bytes(files.segment(1))).expect_success();
    assert!(identity.exists());
}

#[test]
fn a_store_that_fails_behind_the_asked_one_delays_it_for_a_bounded_time() {
    let mut cloud = cloud(small_files());
    cloud.archive.set("WALHOLD_WAL_PUSH_DEADLINE", "60s");
    let files = small_files();
    let names = [0, 1, 2].map(|n| files.segment(n));
    for name in names {
        wait_for_archiving(&cloud.archive, name, files.bytes(name));
    }
    cloud.proxy.set_matching(&format!("{} ", names[1]), 1000, Fault::Status(503));
    let begun = Instant::now();
    let run = push(&cloud.archive, names[0]);
    run.expect_success();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // What was stored has a note; what was not has none.
    assert!(says_it_was_ahead(&push(&cloud.archive, names[2]), names[2]));
    cloud.archive.set("WALHOLD_WAL_PUSH_DEADLINE", "1s");
    assert_eq!(push(&cloud.archive, names[1]).status, Some(13));
    cloud.proxy.set(Fault::None);
    push(&cloud.archive, names[1]).expect_success();
}

#[test]
fn memory_stays_bounded_however_much_waits() {
    let files = default_files();
    let cloud = cloud(files);
    // Each with about 4 MB that do not compress.
    let segments = files.synthetic(24, 2048);
    for (name, bytes) in &segments {
        wait_for_archiving(&cloud.archive, name, bytes);
    }
    let path = format!("pg_wal/{}", segments[0].0);
    let mut command = cloud.archive.command(["wal-push", path.as_str()]);
    command.env("WALHOLD_WAL_PUSH_DEADLINE", "60s").stdout(Stdio::null());
    support::memory::assert_bounded(&mut command, &mut cloud.archive.command(["wal-show"]));
    let ahead = cloud.stored().iter().filter(|path| path.contains("/wal/")).count();
    println!("{ahead} of 24 in one call");
    assert!(ahead > 1, "only {ahead} were archived by one call");
}

#[test]
fn postgresql_archives_a_backlog_and_recovers_from_it() {
    let mut site = Site::archiving(Cluster::builder(15).wal_segment_mib(1));
    let command = site.cluster.value("SHOW archive_command");
    site.cluster.configure("archive_command", "false");
    site.cluster.restart();
    let cluster = &site.cluster;
    cluster.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS word FROM generate_series(1, 200000) i");
    for _ in 0..5 {
        cluster.execute("UPDATE t SET word = md5(word) WHERE i % 3 = 0; SELECT pg_switch_wal()");
    }
    let waiting: u64 = cluster
        .value("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
        .parse()
        .unwrap();
    assert!(waiting > 40, "only {waiting} segments wait");
    cluster.configure("archive_command", &command);
    cluster.execute("SELECT pg_reload_conf()");
    let begun = Instant::now();
    cluster.archive_now();
    println!("{waiting} segments in {:?}", begun.elapsed());
    assert!(cluster.log().contains("was archived ahead by an earlier call"), "{}", cluster.log_tail());

    site.back_up();
    cluster.execute("UPDATE t SET word = md5(word); SELECT pg_switch_wal()");
    cluster.archive_now();
    let expected = cluster.row_digest("postgres");
    let copy = site.recover("copy", &[]);
    assert_eq!(copy.row_digest("postgres"), expected);
}

#[test]
fn over_a_far_store_a_push_waits_for_one_round_trip_after_it_is_connected() {
    let files = small_files();
    let cloud = Cloud::start(files, Conditions::Enforced, &[]);
    let (proxy, archive) = (&cloud.proxy, &cloud.archive);
    let [first, second, third] = [0, 1, 2].map(|n| files.segment(n));
    archive.push(first, files.bytes(first)).expect_success();
    // Its upload, and the marker and the identity that must be seen before it is acknowledged: none is answered before all three are asked.
    proxy.set(Fault::Gather(3));
    archive.push(second, files.bytes(second)).expect_success();
    let mut seen = proxy.seen();
    seen.sort();
    let kinds: Vec<&str> = seen.iter().map(|line| line.split('/').next().unwrap().trim()).collect();
    assert_eq!(kinds, ["GET", "HEAD", "PUT"], "{seen:?}");
    // The acknowledgement waits for all of them.
    proxy.set_matching("HEAD ", 1, Fault::Status(403));
    let run = archive.push(third, files.bytes(third));
    assert_eq!(run.status, Some(11), "{run:?}");
    fs::remove_file(cloud.object("prefix/walhold.json")).unwrap();
    proxy.set(Fault::None);
    let run = archive.push(third, files.bytes(third));
    assert_eq!(run.status, Some(10), "{run:?}");
}
