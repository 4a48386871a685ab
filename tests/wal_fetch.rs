//! `wal-fetch`: what it delivers, what it proves absent, and which failures end in which words and status.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::archive::{Archive, Run, contents};
use support::fake_server::FakeServer;
use support::postgres::installation::ServerUser;
use support::tmpfs::Tmpfs;
use support::wal_files::{WalFiles, default_files, foreign_files, small_files};

const FROM_A_COPY: &str =
    "restore this object from a copy of the repository, or recover to a moment that does not need it";
const RESTORE_COMMAND: &str = "restore_command is: walhold wal-fetch %f %p";

/// Archives these files.
fn archive_of(files: &WalFiles, names: &[&str]) -> Archive {
    let archive = Archive::new(files);
    for name in names {
        archive.push(name, files.bytes(name)).expect_success();
        fs::remove_file(archive.path("data/pg_wal").join(name)).unwrap();
    }
    archive
}

/// Fetches what must fail, and sees that nothing was delivered or left, in the repository or in pg_wal.
#[track_caller]
fn refuse(archive: &Archive, name: &str, status: i32, line: &str) {
    let run = refused(archive, name, status);
    assert_eq!(run.error_line(), line);
}

#[track_caller]
fn refused(archive: &Archive, name: &str, status: i32) -> Run {
    let before = archive.stored();
    let run = archive.fetch(name);
    assert_eq!(run.status, Some(status), "{run:?}");
    assert!(archive.pg_wal().is_empty(), "{:?} was left in pg_wal", archive.pg_wal());
    assert!(archive.stored() == before, "the repository was changed");
    run
}

/// The key of a segment's object.
fn segment_key(files: &WalFiles, name: &str) -> String {
    format!("main/wal/{}/{}/{}/{name}", files.system_identifier, &name[..8], &name[8..16])
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

#[test]
fn delivers_over_what_is_there() {
    let files = small_files();
    let segment = files.segment(0);
    let archive = archive_of(files, &[segment]);
    archive.offer("RECOVERYXLOG", b"left over");
    archive.fetch(segment).expect_success();
    assert!(archive.fetched() == files.bytes(segment));
    assert_eq!(archive.pg_wal(), ["RECOVERYXLOG"]);
    let facts = archive.path("data/pg_wal/RECOVERYXLOG").metadata().unwrap();
    // As PostgreSQL's own files: for the group only where the directory is.
    assert_eq!(facts.permissions().mode() & 0o777, 0o640);
    fs::set_permissions(archive.path("data/pg_wal"), fs::Permissions::from_mode(0o700)).unwrap();
    archive.fetch(segment).expect_success();
    let facts = archive.path("data/pg_wal/RECOVERYXLOG").metadata().unwrap();
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_person_may_choose_the_destination() {
    let files = small_files();
    let segment = files.segment(0);
    let mut archive = archive_of(files, &[segment]);
    let destination = archive.path("out").join("a segment");
    archive.set("PGDATA", &archive.path("data").display().to_string());
    let text = destination.display().to_string();
    let mut command = archive.command(["wal-fetch", segment, &text]);
    support::archive::run(command.current_dir("/")).expect_success();
    assert!(fs::read(&destination).unwrap() == files.bytes(segment));
    assert_eq!(contents(&archive.path("out")).len(), 1);
}

#[test]
fn an_absence_is_proven() {
    let files = small_files();
    let archive = archive_of(files, &[files.segment(0)]);
    let others = [files.segment(1), files.only(".history"), files.only(".partial"), files.only(".backup")];
    for name in others {
        let run = refused(&archive, name, 1);
        assert_eq!(run.stderr, format!("walhold: INFO: {name} is not in the archive\n"));
    }
}

#[test]
fn a_cluster_that_never_archived_here_proves_nothing() {
    let files = small_files();
    let mut archive = Archive::new(files);
    let check = "check WALHOLD_CLUSTER, WALHOLD_REPOSITORY and PGDATA; where a cluster never archived, no absence can be proven";
    let line = |archive: &Archive, cluster: &str| {
        format!(
            "nothing was ever archived under the name {cluster} by the cluster with system identifier {} in {}  HINT: {check}",
            files.system_identifier,
            archive.url()
        )
    };
    let segment = files.segment(0);
    refuse(&archive, segment, 221, &line(&archive, "main"));
    refuse(&archive, "00000002.history", 221, &line(&archive, "main"));
    archive.push(segment, files.bytes(segment)).expect_success();
    fs::remove_file(archive.path("data/pg_wal").join(segment)).unwrap();
    archive.set("WALHOLD_CLUSTER", "mian");
    refuse(&archive, files.segment(1), 221, &line(&archive, "mian"));
}

#[test]
fn a_repository_that_is_not_there_proves_nothing() {
    let files = small_files();
    let archive = archive_of(files, &[files.segment(0)]);
    let hint = "is the address right and the disk mounted? for a new repository run: walhold init";
    let line = format!("no walhold repository at {}: walhold.json is not there  HINT: {hint}", archive.url());
    let away = archive.path("away");
    fs::rename(archive.repository(), &away).unwrap();
    refuse(&archive, files.segment(1), 210, &line);
    // An unmounted disk: the directory is there, and empty.
    fs::create_dir(archive.repository()).unwrap();
    refuse(&archive, files.segment(1), 210, &line);
    refuse(&archive, "00000002.history", 210, &line);
    fs::remove_dir(archive.repository()).unwrap();
    fs::rename(away, archive.repository()).unwrap();
    refused(&archive, files.segment(1), 1);
}

#[test]
fn a_gap_is_not_the_end_of_wal() {
    let files = small_files();
    let (first, missing, later) = (files.segment(0), files.segment(1), files.segment(2));
    let mut archive = archive_of(files, &[first, later]);
    archive.set("WALHOLD_WAL_FETCH_DEADLINE", "1s");
    let begun = Instant::now();
    refuse(
        &archive,
        missing,
        216,
        &format!(
            "{missing} is missing from the archive, although {later} is there  HINT: archive the missing segment from the server that has it; if that is lost for good, wal.allow_gap = true ends recovery here"
        ),
    );
    assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait");
    archive.set("WALHOLD_WAL_ALLOW_GAP", "true");
    let run = refused(&archive, missing, 1);
    assert!(
        run.stderr.contains(&format!(
            "WARNING: {missing} is missing from the archive, although {later} is there; wal.allow_gap lets recovery end here"
        )),
        "{run:?}"
    );
}

#[test]
fn a_gap_that_is_filling_is_waited_for() {
    let files = small_files();
    let (first, missing, later) = (files.segment(0), files.segment(1), files.segment(2));
    let mut archive = archive_of(files, &[first, later]);
    archive.set("WALHOLD_WAL_FETCH_DEADLINE", "60s");
    let mut command = archive.command(["wal-fetch", missing, "pg_wal/RECOVERYXLOG"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start wal-fetch");
    std::thread::sleep(Duration::from_millis(1500));
    archive.push(missing, files.bytes(missing)).expect_success();
    let run = Run::of(&child.wait_with_output().expect("wait for wal-fetch"));
    run.expect_success();
    assert!(run.stderr.contains("for the gap to be filled"), "{run:?}");
    assert!(archive.fetched() == files.bytes(missing));
}

#[test]
fn what_lies_before_a_timeline_s_beginning_is_no_gap() {
    let files = small_files();
    let of_timeline_2: Vec<&str> =
        files.names("").into_iter().filter(|name| name.starts_with("00000002")).collect();
    let last = *of_timeline_2.last().expect("a segment of timeline 2");
    let history = files.only(".history");
    let mut archive = archive_of(files, &[last, history]);
    archive.set("WALHOLD_WAL_FETCH_DEADLINE", "1s");
    refused(&archive, &format!("00000002{}", &files.segment(0)[8..]), 1);
    // Without the history nothing says where the timeline begins.
    let alone = archive_of(files, &[last]);
    let mut alone = alone;
    alone.set("WALHOLD_WAL_FETCH_DEADLINE", "1s");
    refused(&alone, &format!("00000002{}", &files.segment(0)[8..]), 216);
}

#[test]
fn sigterm_ends_a_wait_at_once_by_that_signal() {
    let files = small_files();
    let archive = archive_of(files, &[files.segment(0), files.segment(2)]);
    let mut command = archive.command(["wal-fetch", files.segment(1), "pg_wal/RECOVERYXLOG"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start wal-fetch");
    std::thread::sleep(Duration::from_millis(1500));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("send SIGTERM");
    let begun = Instant::now();
    let run = Run::of(&child.wait_with_output().expect("wait for wal-fetch"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!((run.status, run.signal), (None, Some(15)), "{run:?}");
    assert_eq!(run.error_line(), "interrupted by SIGTERM");
    assert!(archive.pg_wal().is_empty());
}

#[test]
fn a_truncated_or_emptied_object_is_not_delivered() {
    let files = small_files();
    let segment = files.segment(0);
    let archive = archive_of(files, &[segment]);
    let object = archive.stored_path(segment);
    let whole = fs::read(&object).unwrap();
    let key = segment_key(files, segment);
    let lengths = [0, 1, 7, 100, whole.len() / 2, whole.len() - 33, whole.len() - 1];
    for length in lengths {
        overwrite(&object, &whole[..length]);
        let run = refused(&archive, segment, 214);
        let line = run.error_line();
        assert!(line.starts_with(&format!("object {key} is damaged: ")), "{length}: {line}");
        assert!(line.ends_with(&format!("  HINT: {FROM_A_COPY}")), "{length}: {line}");
    }
    overwrite(&object, &[whole.as_slice(), b"more"].concat());
    let run = refused(&archive, segment, 214);
    assert!(run.error_line().starts_with(&format!("object {key} is damaged: ")), "{run:?}");
    overwrite(&object, &whole);
    archive.fetch(segment).expect_success();
}

#[test]
fn no_byte_of_a_small_object_can_flip_unnoticed() {
    let files = small_files();
    let history = files.only(".history");
    for encryption in [false, true] {
        let mut archive = Archive::new(files);
        if encryption {
            set_key(&mut archive, "key");
        }
        archive.push(history, files.bytes(history)).expect_success();
        fs::remove_file(archive.path("data/pg_wal").join(history)).unwrap();
        archive.set("WALHOLD_WAL_HISTORY_DEADLINE", "1s");
        let object = archive.stored_path(history);
        let whole = fs::read(&object).unwrap();
        assert!(whole.len() < 2048, "the object is not small: {} bytes", whole.len());
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            overwrite(&object, &flipped);
            let run = archive.fetch(history);
            assert!(
                matches!(run.status, Some(208 | 214 | 215)),
                "byte {at} of {} flipped, encryption {encryption}: {run:?}",
                whole.len()
            );
            let line = run.error_line();
            assert!(
                line.starts_with("object main/wal/") && line.contains("  HINT: "),
                "byte {at}, encryption {encryption}: {line}"
            );
            assert!(archive.pg_wal().is_empty(), "byte {at}: {:?} was left", archive.pg_wal());
        }
        overwrite(&object, &whole);
        archive.fetch(history).expect_success();
    }
}

#[test]
fn an_object_under_another_name_is_not_delivered() {
    let files = small_files();
    let (first, second) = (files.segment(0), files.segment(1));
    for encryption in [false, true] {
        let mut archive = Archive::new(files);
        if encryption {
            set_key(&mut archive, "key");
        }
        archive.push(first, files.bytes(first)).expect_success();
        fs::remove_file(archive.path("data/pg_wal").join(first)).unwrap();
        let object = archive.stored_path(first);
        fs::copy(&object, object.with_file_name(second)).unwrap();
        ServerUser::get().own(&archive.repository());
        let run = refused(&archive, second, 214);
        let key = segment_key(files, second);
        assert!(
            run.error_line().starts_with(&format!("object {key} is not what its name says: "))
                && run.error_line().ends_with(&format!("  HINT: {FROM_A_COPY}")),
            "{run:?}"
        );
    }
}

#[test]
fn an_object_of_another_cluster_is_not_delivered() {
    let (files, foreign) = (default_files(), foreign_files());
    let segment = files.segment(0);
    let archive = archive_of(files, &[segment]);
    // The archive's folder renamed to the other cluster's, as somebody who repairs by hand might do.
    let wal = archive.repository().join("main/wal");
    fs::rename(wal.join(&files.system_identifier), wal.join(&foreign.system_identifier)).unwrap();
    archive.set_control(foreign);
    let run = refused(&archive, segment, 208);
    let key = segment_key(foreign, segment);
    assert!(
        run.error_line().starts_with(&format!("object {key} belongs to another cluster: "))
            && run.error_line().contains(&files.system_identifier)
            && run
                .error_line()
                .ends_with("  HINT: check WALHOLD_CLUSTER and PGDATA: two clusters may share a name"),
        "{run:?}"
    );
}

#[test]
fn the_key_must_be_the_right_one() {
    let files = small_files();
    let segment = files.segment(0);
    let mut archive = Archive::new(files);
    set_key(&mut archive, "key");
    archive.push(segment, files.bytes(segment)).expect_success();
    fs::remove_file(archive.path("data/pg_wal").join(segment)).unwrap();
    let right = archive.path("state/key").display().to_string();
    archive.fetch(segment).expect_success();
    fs::remove_file(archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    let key = segment_key(files, segment);
    set_key(&mut archive, "other key");
    let missing = |run: &Run| {
        let line = run.error_line();
        assert!(
            line.starts_with(&format!("object {key} is encrypted with key "))
                && line.ends_with(", which is not configured  HINT: add the key's file to [encryption] key_file; all listed keys read"),
            "{line}"
        );
    };
    missing(&refused(&archive, segment, 215));
    archive.unset("WALHOLD_ENCRYPTION_KEY_FILE");
    missing(&refused(&archive, segment, 215));
    // Asking again would not cure it on a standby either.
    fs::write(archive.path("data/standby.signal"), "").unwrap();
    missing(&refused(&archive, segment, 215));
    let both = format!("{}:{right}", archive.path("state/other key").display());
    archive.set("WALHOLD_ENCRYPTION_KEY_FILE", &both);
    archive.fetch(segment).expect_success();
    assert!(archive.fetched() == files.bytes(segment));
}

#[test]
fn a_plain_object_is_refused_where_a_key_is_configured() {
    let files = small_files();
    let segment = files.segment(0);
    let mut archive = archive_of(files, &[segment]);
    set_key(&mut archive, "key");
    let key = segment_key(files, segment);
    let hint = "somebody without the key wrote it, or it predates encryption: unset the key to read it";
    refuse(
        &archive,
        segment,
        215,
        &format!("object {key} is not encrypted, although a key is configured  HINT: {hint}"),
    );
    // Nor is it taken for the same content.
    let before = archive.stored();
    let run = archive.push(segment, files.bytes(segment));
    run.expect_failure(
        15,
        &format!(
            "compare with {key}, which is stored under this name already: object {key} is not encrypted, although a key is configured  HINT: {hint}"
        ),
    );
    assert_eq!(archive.stored(), before);
}

#[test]
fn a_destination_that_cannot_be_written_is_told() {
    let files = small_files();
    let segment = files.segment(0);
    let archive = archive_of(files, &[segment]);
    let hint = "the destination's directory must be writable by the user that runs walhold";
    let to = |destination: &str| archive.walhold(["wal-fetch", segment, destination]);
    let before = archive.stored();
    to("pg_wal/missing/RECOVERYXLOG").expect_failure(
        204,
        &format!(
            "create pg_wal/missing/RECOVERYXLOG: No such file or directory  HINT: {RESTORE_COMMAND}; create the destination's directory first"
        ),
    );
    let run = to("pg_wal");
    assert_eq!(run.status, Some(205), "{run:?}");
    fs::set_permissions(archive.path("data/pg_wal"), fs::Permissions::from_mode(0o500)).unwrap();
    to("pg_wal/RECOVERYXLOG")
        .expect_failure(205, &format!("create pg_wal/RECOVERYXLOG: Permission denied  HINT: {hint}"));
    fs::set_permissions(archive.path("data/pg_wal"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(archive.pg_wal().is_empty());
    assert!(!archive.path("data/pg_wal/missing").exists());
    assert!(archive.stored() == before, "the repository was changed");
}

#[test]
fn a_full_destination_is_told() {
    let files = small_files();
    let segment = files.segment(0);
    let archive = archive_of(files, &[segment]);
    let mounted = Tmpfs::mount(&archive.path("data/pg_wal"), "512k");
    refuse(
        &archive,
        segment,
        206,
        "write pg_wal/RECOVERYXLOG: No space left on device  HINT: make space where pg_wal/RECOVERYXLOG lies; nothing was left there",
    );
    mounted.resize("4m");
    archive.fetch(segment).expect_success();
}

#[test]
fn a_name_that_is_none_and_a_server_that_is_none_are_told() {
    let files = small_files();
    let archive = archive_of(files, &[files.segment(0)]);
    refuse(
        &archive,
        "postgresql.conf",
        207,
        &format!(
            "fetch postgresql.conf: \"postgresql.conf\" is not the name of a WAL segment (24 hexadecimal digits), nor one with .partial, .<offset>.backup, or <timeline>.history  HINT: {RESTORE_COMMAND}"
        ),
    );
    fs::remove_file(archive.path("data/global/pg_control")).unwrap();
    refuse(
        &archive,
        files.segment(0),
        204,
        &format!(
            "cannot tell which cluster {} belongs to: neither the working directory nor PGDATA is a data directory  HINT: PostgreSQL runs its commands in the data directory; elsewhere set PGDATA or --pgdata",
            files.segment(0)
        ),
    );
}

#[test]
fn a_standby_asks_again_but_not_for_histories() {
    let files = small_files();
    let segment = files.segment(0);
    let mut archive = archive_of(files, &[segment, files.only(".history")]);
    fs::write(archive.path("data/standby.signal"), "").unwrap();
    fs::rename(archive.repository(), archive.path("away")).unwrap();
    let run = refused(&archive, segment, 1);
    assert!(run.error_line().starts_with("no walhold repository at "), "{run:?}");
    assert!(
        run.stderr.ends_with(&format!(
            "walhold: WARNING: {segment} could not be had; it is reported as not archived, because this server is a standby and will ask again\n"
        )),
        "{run:?}"
    );
    refused(&archive, "00000003.history", 210);
    archive.set("WALHOLD_WAL_FETCH_ON_ERROR", "abort");
    refused(&archive, segment, 210);
    archive.set("WALHOLD_WAL_FETCH_ON_ERROR", "absent");
    let run = refused(&archive, "00000003.history", 1);
    assert!(
        run.stderr.ends_with(
            "walhold: WARNING: 00000003.history could not be had; it is reported as not archived, because wal.fetch_on_error is absent\n"
        ),
        "{run:?}"
    );
}

#[test]
fn a_kill_at_any_moment_leaves_no_litter() {
    let files = small_files();
    let segment = files.segment(0);
    for (place, left) in [("fetch: before delivery", 0), ("fetch: after delivery", 1)] {
        let mut archive = archive_of(files, &[segment]);
        archive.set("WALHOLD_TEST_KILL_AT", place);
        let run = archive.fetch(segment);
        assert_eq!(run.signal, Some(9), "{place}: {run:?}");
        assert_eq!(archive.pg_wal().len(), left, "{place}: {:?}", archive.pg_wal());
        archive.unset("WALHOLD_TEST_KILL_AT");
        archive.fetch(segment).expect_success();
        assert_eq!(archive.pg_wal(), ["RECOVERYXLOG"]);
    }
    // Over an existing file there is one step more; what a kill leaves there is removed by the next fetch.
    let mut archive = archive_of(files, &[segment]);
    archive.offer("RECOVERYXLOG", b"old");
    archive.set("WALHOLD_TEST_KILL_AT", "fetch: before rename");
    assert_eq!(archive.fetch(segment).signal, Some(9));
    assert_eq!(archive.fetched(), b"old");
    archive.unset("WALHOLD_TEST_KILL_AT");
    archive.fetch(segment).expect_success();
    assert_eq!(archive.pg_wal(), ["RECOVERYXLOG"]);
    assert!(archive.fetched() == files.bytes(segment));
}

/// The server is killed when its call has looked for it and is about to put the segment in place; the next server asks for another one.
#[test]
fn a_delivery_that_comes_too_late_is_never_another_servers() {
    let files = small_files();
    let (late, asked) = (files.segment(0), files.segment(1));
    let mut archive = archive_of(files, &[late, asked]);
    for is_killed in [false, true] {
        let mut first = FakeServer::stopped_at(&mut archive, "fetch: its turn", late);
        first.die();
        let second = FakeServer::asking(&archive, asked);
        std::thread::sleep(Duration::from_millis(300));
        assert!(archive.pg_wal().is_empty(), "{is_killed}: {:?}", archive.pg_wal());
        if is_killed {
            // Dead with the turn: nobody waits for it.
            first.signal(Signal::SIGKILL);
        } else {
            first.signal(Signal::SIGCONT);
            let (_, said) = first.ended();
            assert!(said.contains("the PostgreSQL process that asked for it has ended"), "{said}");
        }
        let (status, said) = second.ended();
        assert_eq!(status, Some(0), "{said}");
        assert!(archive.fetched() == files.bytes(asked));
        fs::remove_file(archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    }

    // One that neither goes on nor dies.
    archive.set("WALHOLD_TEST_TURN_PATIENCE_MS", "200");
    let mut first = FakeServer::stopped_at(&mut archive, "fetch: its turn", late);
    first.die();
    let (status, said) = FakeServer::asking(&archive, asked).ended();
    assert_eq!(status, Some(205), "{said}");
    assert!(
        said.ends_with("ERROR: deliver pg_wal/RECOVERYXLOG: another wal-fetch is about to, and does not go on  HINT: an earlier server's wal-fetch was stopped: let it go on, or end it\n"),
        "{said}"
    );
    first.signal(Signal::SIGCONT);
    first.ended();
    assert!(archive.pg_wal().is_empty(), "{:?}", archive.pg_wal());
}

/// Makes a key, if it is not there, and configures it alone.
fn set_key(archive: &mut Archive, name: &str) {
    let path = archive.path("state").join(name);
    if !path.exists() {
        let made = archive.walhold(["keygen"]);
        made.expect_success();
        fs::write(&path, made.stdout).expect("write the key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("close the key file");
        ServerUser::get().own(&path);
    }
    archive.set("WALHOLD_ENCRYPTION_KEY_FILE", &path.display().to_string());
}
