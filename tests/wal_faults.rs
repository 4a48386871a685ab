//! `wal-push` and `wal-fetch` against an S3 store that fails on purpose: an outage is never taken for an absence, nothing wrong is
//! delivered, nothing is acknowledged that is not stored.

mod support;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use walhold::repository::{Patience, Repository};

use support::archive::Run;
use support::cloud::Cloud;
use support::fault_proxy::Fault;
use support::postgres::PATIENCE;
use support::postgres::installation::ServerUser;
use support::program::walhold;
use support::stores::{BUCKET, Conditions, SECRET_KEY};
use support::wal_files::{default_files, incompressible, large_files, small_files};

const UNREACHABLE: &str = "check the network and the store; the request may be repeated";

/// Nobody waits for long here.
const DEADLINES: [(&str, &str); 3] = [
    ("WALHOLD_WAL_FETCH_DEADLINE", "2s"),
    ("WALHOLD_WAL_HISTORY_DEADLINE", "2s"),
    ("WALHOLD_WAL_PUSH_DEADLINE", "2s"),
];

/// With the first two segments stored.
fn with_segments() -> (Cloud, &'static str, &'static str) {
    let files = small_files();
    let cloud = Cloud::start(files, Conditions::Enforced, &DEADLINES);
    let (first, second) = (files.segment(0), files.segment(1));
    for name in [first, second] {
        cloud.archive.push(name, files.bytes(name)).expect_success();
        fs::remove_file(cloud.archive.path("data/pg_wal").join(name)).unwrap();
    }
    (cloud, first, second)
}

#[track_caller]
fn refused(cloud: &Cloud, name: &str, status: i32) -> Run {
    let run = cloud.archive.fetch(name);
    assert_eq!(run.status, Some(status), "{run:?}");
    assert!(cloud.archive.pg_wal().is_empty(), "{:?} was left", cloud.archive.pg_wal());
    run
}

#[track_caller]
fn assert_gave_up(run: &Run, verb_and_object: &str, problem: &str) {
    let line = run.error_line();
    let beginning = format!("{verb_and_object}: gave up after ");
    assert!(line.starts_with(&beginning), "{line}");
    assert!(line.ends_with(&format!("{problem}  HINT: {UNREACHABLE}")), "{line}");
}

#[test]
fn an_outage_is_not_an_absence() {
    let (cloud, stored, _) = with_segments();
    let never_stored = small_files().segment(2);
    for name in [stored, never_stored, "00000002.history"] {
        cloud.proxy.set(Fault::Refuse);
        let run = refused(&cloud, name, 213);
        assert_gave_up(&run, "read walhold.json", ": Connection refused");
        for (status, words) in [
            (500, "HTTP 500 InternalError: Injected by the test"),
            (503, "HTTP 503 SlowDown: Injected by the test"),
            (429, "HTTP 429 TooManyRequests: Injected by the test"),
        ] {
            cloud.proxy.set(Fault::Status(status));
            assert_gave_up(&refused(&cloud, name, 213), "read walhold.json", words);
        }
        cloud.proxy.set(Fault::Status(403));
        let run = refused(&cloud, name, 211);
        assert!(
            run.error_line().starts_with(
                "read walhold.json: the store refuses: HTTP 403 AccessDenied: Injected by the test  HINT: check the credentials"
            ),
            "{run:?}"
        );
        // A wrong bucket, a wrong prefix.
        cloud.proxy.set(Fault::Status(404));
        let run = refused(&cloud, name, 210);
        assert!(
            run.error_line().starts_with(&format!(
                "no walhold repository at s3://{BUCKET}/prefix: walhold.json is not there  HINT: "
            )),
            "{run:?}"
        );
    }
    cloud.proxy.set(Fault::None);
    cloud.archive.fetch(stored).expect_success();
    fs::remove_file(cloud.archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    refused(&cloud, never_stored, 1);
}

/// The hole before a stored segment shows in a listing only. A document that is none must not be read as an empty one.
#[test]
fn an_error_in_place_of_a_listing_proves_no_absence() {
    let files = small_files();
    let cloud = Cloud::start(files, Conditions::Enforced, &DEADLINES);
    cloud.archive.push(files.segment(1), files.bytes(files.segment(1))).expect_success();
    fs::remove_file(cloud.archive.path("data/pg_wal").join(files.segment(1))).unwrap();
    refused(&cloud, files.segment(0), 216);
    cloud.proxy.set_matching("list-type", 1000, Fault::OkWithError);
    let run = refused(&cloud, files.segment(0), 213);
    let line = run.error_line();
    assert!(
        line.starts_with("list main/wal/") && line.contains(": the answer to a listing is none"),
        "{line}"
    );
    cloud.proxy.set_matching("list-type", 1, Fault::OkWithError);
    refused(&cloud, files.segment(0), 216);
}

#[test]
fn an_outage_that_comes_after_the_miss_is_not_an_absence() {
    let (cloud, ..) = with_segments();
    let absent = small_files().segment(2);
    // The store says that the segment is not there, and nothing more: the marker, the identity or the listing fails.
    for (pattern, verb_and_object) in [("/identity/", "read main/identity/"), ("list-type", "list main/wal/")]
    {
        cloud.proxy.set_matching(pattern, 1000, Fault::Status(503));
        let run = refused(&cloud, absent, 213);
        assert!(run.error_line().starts_with(verb_and_object), "{run:?}");
        cloud.proxy.set_matching(pattern, 1000, Fault::Status(404));
        let run = refused(&cloud, absent, if pattern == "/identity/" { 221 } else { 210 });
        assert!(!run.error_line().is_empty());
    }
    cloud.proxy.set(Fault::None);
    refused(&cloud, absent, 1);
}

#[test]
fn a_transfer_that_breaks_is_begun_again_or_told() {
    let (cloud, segment, _) = with_segments();
    let files = small_files();
    for fault in [Fault::HangMidBody, Fault::ResetMidBody, Fault::TruncateBody] {
        cloud.proxy.set_matching(segment, 1000, fault);
        let begun = Instant::now();
        let run = refused(&cloud, segment, 213);
        let line = run.error_line();
        assert!(line.contains(segment) && line.contains(": gave up after "), "{fault:?}: {run:?}");
        assert!(line.ends_with(&format!("  HINT: {UNREACHABLE}")), "{fault:?}: {run:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{fault:?} took {:?}", begun.elapsed());
    }
    for fault in [Fault::ResetMidBody, Fault::TruncateBody, Fault::Status(503), Fault::Status(429)] {
        cloud.proxy.set_matching(segment, 1, fault);
        cloud.archive.fetch(segment).expect_success();
        assert!(cloud.archive.fetched() == files.bytes(segment), "{fault:?}");
        fs::remove_file(cloud.archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    }
    // A bit that flips on the way can't be told from one that flipped in the store.
    cloud.proxy.set_matching(segment, 1000, Fault::FlipBit);
    let run = refused(&cloud, segment, 214);
    assert!(run.error_line().contains(" is damaged: "), "{run:?}");
}

#[test]
fn a_push_succeeds_only_when_the_object_is_stored() {
    let (cloud, ..) = with_segments();
    let files = small_files();
    let segment = files.segment(2);
    let before = cloud.stored();
    for fault in [Fault::Refuse, Fault::Status(500), Fault::Status(503), Fault::Status(429)] {
        cloud.proxy.set(fault);
        let run = cloud.archive.push(segment, files.bytes(segment));
        assert_eq!(run.status, Some(13), "{fault:?}: {run:?}");
        assert!(run.error_line().ends_with(&format!("  HINT: {UNREACHABLE}")), "{fault:?}: {run:?}");
        assert_eq!(cloud.archive.pg_wal(), [segment], "{fault:?}");
        cloud.proxy.set(Fault::None);
        assert_eq!(cloud.stored(), before, "{fault:?}");
    }
    cloud.proxy.set_matching("PUT ", 1000, Fault::Status(503));
    let run = cloud.archive.push(segment, files.bytes(segment));
    assert_eq!(run.status, Some(13), "{run:?}");
    assert!(run.error_line().starts_with("publish main/wal/"), "{run:?}");
    cloud.proxy.set(Fault::Status(403));
    assert_eq!(cloud.archive.push(segment, files.bytes(segment)).status, Some(11));
    cloud.proxy.set(Fault::None);
    assert_eq!(cloud.stored(), before);
    // The store has it, but its answer is lost: the next attempt finds it and compares.
    cloud.proxy.set_matching("PUT ", 1, Fault::LoseAnswer);
    cloud.archive.push(segment, files.bytes(segment)).expect_success();
    assert_eq!(cloud.stored().len(), before.len() + 1);
    cloud.proxy.set(Fault::None);
    cloud.archive.fetch(segment).expect_success();
    assert!(cloud.archive.fetched() == files.bytes(segment));
    // However often it is lost, also to a push that comes later and would be refused.
    let segment = files.segment(3);
    cloud.proxy.set_matching("PUT ", usize::MAX, Fault::LoseAnswer);
    for _ in 0..2 {
        cloud.archive.push(segment, files.bytes(segment)).expect_success();
        assert_eq!(cloud.stored().len(), before.len() + 2);
    }
    cloud.proxy.set(Fault::None);
    cloud.archive.fetch(segment).expect_success();
    assert!(cloud.archive.fetched() == files.bytes(segment));
}

#[test]
fn wrong_credentials_are_told_and_not_shown() {
    let (mut cloud, ..) = with_segments();
    let files = small_files();
    let segment = files.segment(2);
    let secret = "this-is-not-the-secret-key";
    cloud.archive.set("AWS_SECRET_ACCESS_KEY", secret);
    let before = cloud.stored();
    let run = cloud.archive.push(segment, files.bytes(segment));
    assert_eq!(run.status, Some(11), "{run:?}");
    assert!(
        run.error_line().starts_with("read walhold.json: the store refuses: HTTP 403 SignatureDoesNotMatch")
            && run.error_line().contains("  HINT: check the credentials and their permissions "),
        "{run:?}"
    );
    assert!(!run.stderr.contains(secret) && !run.stderr.contains(SECRET_KEY));
    assert_eq!(cloud.archive.fetch(segment).status, Some(211));
    assert_eq!(cloud.stored(), before);
}

#[test]
fn conflicts_are_told_by_every_store() {
    let files = small_files();
    let segment = files.segment(0);
    let mut other = files.bytes(segment).to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    for conditions in [Conditions::Enforced, Conditions::Ignored] {
        let mut cloud = Cloud::start(files, conditions, &DEADLINES);
        cloud.go_directly();
        cloud.archive.push(segment, files.bytes(segment)).expect_success();
        let before = cloud.stored();
        let again = cloud.archive.push(segment, files.bytes(segment));
        again.expect_success();
        assert!(again.stderr.contains("is already archived with the same content"), "{again:?}");
        assert_eq!(cloud.archive.push(segment, &other).status, Some(9), "{conditions:?}");
        assert_eq!(cloud.stored(), before, "{conditions:?}");
        cloud.archive.fetch(segment).expect_success();
        assert!(cloud.archive.fetched() == files.bytes(segment), "{conditions:?}");
    }
}

#[test]
fn memory_stays_bounded_with_a_store_in_the_cloud() {
    let files = large_files();
    let mut cloud = Cloud::start(files, Conditions::Enforced, &DEADLINES);
    cloud.go_directly();
    for deadline in ["WALHOLD_WAL_PUSH_DEADLINE", "WALHOLD_WAL_FETCH_DEADLINE"] {
        cloud.archive.set(deadline, "60s");
    }
    let segment = files.segment(0);
    let mut bytes = files.bytes(segment).to_vec();
    let records = bytes.len() - 8192;
    bytes[8192..].copy_from_slice(&incompressible(records));
    let path = cloud.archive.offer(segment, &bytes);
    for arguments in [vec!["wal-push", path.as_str()], vec!["wal-fetch", segment, "pg_wal/RECOVERYXLOG"]] {
        let mut looking_around = cloud.archive.command(["wal-show"]);
        support::memory::assert_bounded(&mut cloud.archive.command(arguments), &mut looking_around);
    }
    assert!(cloud.archive.fetched() == bytes);
}

#[test]
fn sigterm_ends_a_push_or_fetch_that_waits_for_the_store() {
    let (mut cloud, stored, _) = with_segments();
    let files = small_files();
    let segment = files.segment(2);
    let path = cloud.archive.offer(segment, files.bytes(segment));
    for variable in ["WALHOLD_WAL_PUSH_DEADLINE", "WALHOLD_WAL_FETCH_DEADLINE"] {
        cloud.archive.set(variable, "60s");
    }
    let before = cloud.stored();
    for fault in [Fault::Refuse, Fault::Delay(Duration::from_secs(30))] {
        cloud.proxy.set(fault);
        for arguments in [vec!["wal-push", path.as_str()], vec!["wal-fetch", stored, "pg_wal/RECOVERYXLOG"]] {
            let is_push = arguments.contains(&"wal-push");
            let mut command = cloud.archive.command(arguments);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
            std::thread::sleep(Duration::from_millis(1500));
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("send SIGTERM");
            let begun = Instant::now();
            let run = Run::of(&child.wait_with_output().expect("wait for it"));
            assert!(begun.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", begun.elapsed());
            let expected = if is_push { (Some(17), None) } else { (None, Some(15)) };
            assert_eq!((run.status, run.signal), expected, "{fault:?}: {run:?}");
            assert_eq!(run.error_line(), "read walhold.json: interrupted by a signal");
        }
    }
    cloud.proxy.set(Fault::None);
    assert_eq!(cloud.stored(), before);
    assert_eq!(cloud.archive.pg_wal(), [segment]);
}

/// Pushes, dies by SIGKILL when the first request with this in its first line is held, and looks at what that leaves.
#[track_caller]
fn killed_at(cloud: &Cloud, segment: &str, bytes: &[u8], pattern: &str, fault: Fault) {
    let what = format!("{fault:?} of {pattern}");
    let before = cloud.stored();
    let path = cloud.archive.offer(segment, bytes);
    cloud.proxy.set_matching(pattern, 1, fault);
    let mut push = cloud.archive.command(["wal-push", &path]).spawn().expect("start wal-push");
    let begun = Instant::now();
    while cloud.proxy.held() == 0 {
        assert!(push.try_wait().expect("look after it").is_none(), "{what}: it ended first");
        assert!(begun.elapsed() < PATIENCE, "{what}: no such request came");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(push.id() as i32), Signal::SIGKILL).expect("kill it");
    push.wait().expect("wait for it");
    cloud.proxy.set(Fault::None);

    // Nothing, or the right thing.
    let fetched = cloud.archive.fetch(segment);
    match fetched.status {
        Some(0) => assert!(cloud.archive.fetched() == bytes, "{what}: something wrong lies there"),
        _ => assert_eq!(fetched.status, Some(1), "{what}: {fetched:?}"),
    }
    // The same again, as PostgreSQL asks for it.
    let again = cloud.archive.walhold(["wal-push", &path]);
    assert_eq!(again.status, Some(0), "{what}: {again:?}");
    cloud.archive.fetch(segment).expect_success();
    assert!(cloud.archive.fetched() == bytes, "{what}");
    fs::remove_file(cloud.archive.path("data/pg_wal/RECOVERYXLOG")).unwrap();
    fs::remove_file(cloud.archive.path("data").join(&path)).unwrap();

    let (temporary, mut objects): (Vec<String>, Vec<String>) =
        cloud.stored().into_iter().partition(|path| path.contains("/.walhold-tmp/"));
    objects.retain(|path| !before.contains(path));
    assert_eq!(objects.len(), 1, "{what}: {objects:?}");
    // What is left where no listing of the archive looks is what expire looks for.
    let repository =
        Repository::open(&cloud.server.settings("prefix"), Patience::PerRequest(PATIENCE)).unwrap();
    let leftovers = repository.leftovers("main").unwrap();
    let leftovers: Vec<String> = leftovers.iter().map(|object| format!("prefix/{}", object.path)).collect();
    assert_eq!(leftovers, temporary, "{what}");
    for path in temporary.iter().chain(&objects) {
        fs::remove_file(cloud.server.bucket_directory().join(path)).expect("clear for the next one");
    }
}

/// A shell that looks like PostgreSQL's process, since PostgreSQL's own would not be killed alone by any means of its own.
#[test]
fn a_fetch_that_outlives_its_server_delivers_nothing_to_the_next_one() {
    let (cloud, segment, _) = with_segments();
    let postgres = cloud.archive.path("state/postgres");
    fs::copy("/bin/sh", &postgres).expect("copy the shell");
    let call = format!("{} wal-fetch {segment} pg_wal/RECOVERYXLOG; true", walhold().display());
    for (script, is_killed) in [
        (call.clone(), false),
        (call.clone(), true),
        // A shell between them lives on.
        (format!("sh -c '{call}'; true"), true),
    ] {
        cloud.proxy.set_matching(segment, 1, Fault::Delay(Duration::from_secs(1)));
        let mut command = ServerUser::get().command(&postgres);
        for (name, value) in cloud.archive.command([]).get_envs() {
            value.map(|value| command.env(name, value));
        }
        command.env("WALHOLD_WAL_FETCH_DEADLINE", "30s");
        command.current_dir(cloud.archive.path("data")).args(["-c", &script]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start it");
        let begun = Instant::now();
        while !cloud.proxy.seen().iter().any(|request| request.contains(segment)) {
            assert!(begun.elapsed() < PATIENCE, "nothing was fetched");
            std::thread::sleep(Duration::from_millis(5));
        }
        if is_killed {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).expect("kill the server's process");
        }
        // Until nobody holds the other end: the command has ended too.
        let said = String::from_utf8_lossy(&child.wait_with_output().expect("wait").stderr).into_owned();
        let gone = "deliver pg_wal/RECOVERYXLOG: the PostgreSQL process that asked for it has ended";
        assert_eq!(said.contains(gone), is_killed, "{said}");
        let left = cloud.archive.pg_wal();
        assert_eq!(left.len(), usize::from(!is_killed), "{left:?}");
        for name in left {
            fs::remove_file(cloud.archive.path("data/pg_wal").join(name)).unwrap();
        }
    }
}

/// A request that an upload consists of, by its first line.
const CREATE: &str = "?uploads";
const LAST_PART: &str = "?partNumber=4&";
const COMPLETE: &str = "?uploadId=";
/// A single upload, or the copy that publishes a temporary object.
const PUBLISH: &str = "PUT /bucket/prefix/main/wal/";

#[test]
fn a_kill_in_the_middle_of_an_upload_loses_nothing_and_shows_nothing_wrong() {
    let files = default_files();
    let (first, segment) = (files.segment(0), files.segment(1));
    let small = files.bytes(segment).to_vec();
    // Too large for one request.
    let mut large = small.clone();
    large[8192..].copy_from_slice(&incompressible((16 << 20) - 8192));
    for (conditions, of_many_parts) in [
        (Conditions::Enforced, &[CREATE, LAST_PART, COMPLETE][..]),
        (Conditions::Ignored, &[CREATE, LAST_PART, COMPLETE, PUBLISH, "DELETE "]),
    ] {
        let mut cloud = Cloud::start(files, conditions, &DEADLINES);
        for deadline in ["WALHOLD_WAL_PUSH_DEADLINE", "WALHOLD_WAL_FETCH_DEADLINE"] {
            cloud.archive.set(deadline, "60s");
        }
        cloud.archive.push(first, files.bytes(first)).expect_success();
        fs::remove_file(cloud.archive.path("data/pg_wal").join(first)).unwrap();
        for fault in [Fault::HoldRequest, Fault::HoldAnswer] {
            killed_at(&cloud, segment, &small, PUBLISH, fault);
            for pattern in of_many_parts {
                killed_at(&cloud, segment, &large, pattern, fault);
            }
        }
    }
}
