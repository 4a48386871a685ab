//! Real recoveries that the archive fails: PostgreSQL stops and is never promoted early, whatever it is, and goes on when that is mended.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use support::archive::contents;
use support::fault_proxy::{Fault, FaultProxy};
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, StopMode, copy_tree};
use support::program::{walhold, walhold_command};
use support::stores::{ACCESS_KEY, BUCKET, Conditions, S3Server, SECRET_KEY};
use support::tmpfs::Tmpfs;

#[derive(Clone, Copy, PartialEq)]
enum Encryption {
    On,
    Off,
}

/// A server that archived, and a copy of it as it was before: what a restore would lay out.
struct Recovery {
    primary: Cluster,
    copy: Cluster,
    rows: String,
    key: Option<PathBuf>,
}

impl Recovery {
    /// The copy still needs all of the archive.
    fn prepare(files_in_archive: u32, encryption: Encryption) -> Recovery {
        let mut primary = Cluster::builder(15).wal_segment_mib(1).create();
        let repository = primary.directory("repository");
        let url = format!("file://{}/store", repository.display());
        let state = primary.directory("state").display().to_string();
        let mut environment =
            vec![("WALHOLD_REPOSITORY", url.as_str()), ("WALHOLD_STATE_DIR", state.as_str())];
        let key = (encryption == Encryption::On).then(|| new_key(&primary, "key"));
        let key_text = key.as_ref().map(|key| key.display().to_string());
        environment.extend(key_text.as_deref().map(|key| ("WALHOLD_ENCRYPTION_KEY_FILE", key)));
        let mut init = walhold_command();
        support::archive::run(init.envs(environment.iter().copied()).arg("init")).expect_success();
        primary.archive_with(walhold(), &environment);
        primary.start();
        primary.execute("CREATE TABLE t (i int, word text)");
        primary.archive_now();
        primary.stop(StopMode::Fast);
        let data = primary.directory("copies").join("data");
        copy_tree(primary.data_directory(), &data, &|_| false);
        primary.start();
        for _ in 0..files_in_archive {
            primary.execute("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 1000) i");
            primary.archive_now();
        }
        let rows = primary.value("SELECT count(*) FROM t");
        primary.stop(StopMode::Fast);
        let copy = Cluster::from_data_directory(15, &data);
        copy.configure("archive_mode", "off");
        copy.restore_with(walhold(), &environment);
        fs::write(data.join("recovery.signal"), "").expect("write recovery.signal");
        ServerUser::get().own(&data);
        Recovery { primary, copy, rows, key }
    }

    fn store(&self) -> PathBuf {
        self.primary.directory("repository").join("store")
    }

    /// The names of all archived segments, in order.
    fn segments(&self) -> Vec<String> {
        let name = |path: String| path.rsplit('/').next().map(str::to_owned);
        contents(&self.store()).into_keys().filter_map(name).filter(|name| name.len() == 24).collect()
    }

    /// The file of a stored segment.
    fn object(&self, segment: &str) -> PathBuf {
        let store = self.store();
        let path = contents(&store).into_keys().find(|path| path.ends_with(segment));
        store.join(path.unwrap_or_else(|| panic!("{segment} is not stored")))
    }

    /// Sets `restore_command`: wal-fetch under these variables. Nothing is fetched ahead, so that it is known which request fails.
    fn fetch_with(&self, variables: &[(&str, &str)], destination: &str) {
        let words: Vec<String> = variables.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        self.copy.configure(
            "restore_command",
            &format!(
                "WALHOLD_WAL_PREFETCH=0 WALHOLD_WAL_FETCH_DEADLINE=1s WALHOLD_WAL_HISTORY_DEADLINE=1s {} '{}' wal-fetch %f {destination}",
                words.join(" "),
                walhold().display()
            ),
        );
    }

    /// Starts the copy, which must end by itself because wal-fetch ended with this status and these words, and leave nothing in pg_wal.
    #[track_caller]
    fn stops(&mut self, what: &str, status: i32, words: &str) {
        let before = self.copy.log().len();
        self.copy.launch();
        self.copy.wait_ended();
        let log = self.copy.log();
        let log = &log[before..];
        assert!(log.contains(words), "{what}: {log}");
        assert!(log.contains("FATAL:  could not restore file \""), "{what}: {log}");
        let ended = format!("\" from archive: child process exited with exit code {status}\n");
        assert!(log.contains(&ended), "{what}: {log}");
        assert!(!log.contains("archive recovery complete"), "{what}: it promoted\n{log}");
        let pg_wal = self.copy.data_directory().join("pg_wal");
        for name in contents(&pg_wal).into_keys() {
            let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(is_segment || name.starts_with("archive_status/"), "{what}: {name} was left in pg_wal");
        }
    }

    /// Starts the copy, which must come up with all rows.
    #[track_caller]
    fn completes(&mut self) {
        self.copy.start();
        self.copy.wait_promoted();
        assert_eq!(self.copy.value("SELECT count(*) FROM t"), self.rows);
        self.copy.stop(StopMode::Fast);
    }
}

/// A key file that the server's user can read.
fn new_key(cluster: &Cluster, name: &str) -> PathBuf {
    let path = cluster.directory("keys").join(name);
    let made = support::archive::run(walhold_command().arg("keygen"));
    made.expect_success();
    fs::write(&path, made.stdout).expect("write the key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("close the key file");
    ServerUser::get().own(&path);
    path
}

#[test]
fn an_outage_stops_recovery_and_never_promotes() {
    let mut recovery = Recovery::prepare(6, Encryption::Off);
    let store = recovery.store();
    let away = store.with_extension("away");
    // The disk goes away in the middle, just before this segment is asked for.
    let segment = recovery.segments()[3].clone();
    // Without prefetch, so that it is this segment that is missed.
    let fetch = format!(
        "WALHOLD_WAL_PREFETCH=0 WALHOLD_REPOSITORY='file://{}' '{}' wal-fetch %f %p",
        store.display(),
        walhold().display()
    );
    recovery.copy.configure(
        "restore_command",
        &format!("[ %f != {segment} ] || mv '{}' '{}'; {fetch}", store.display(), away.display()),
    );
    recovery.copy.launch();
    recovery.copy.wait_ended();
    let log = recovery.copy.log();
    assert!(log.contains("restored log file"), "recovery restored nothing\n{log}");
    assert!(log.contains("no walhold repository at"), "{log}");
    assert!(log.contains(&format!("FATAL:  could not restore file \"{segment}\" from archive")), "{log}");
    assert!(!log.contains("archive recovery complete"), "it promoted\n{log}");
    // The disk comes back, and recovery goes through.
    fs::rename(&away, &store).unwrap();
    recovery.copy.configure("restore_command", &fetch);
    recovery.completes();
}

#[test]
fn a_lost_segment_stops_recovery_and_never_promotes() {
    let mut recovery = Recovery::prepare(4, Encryption::Off);
    recovery.copy.configure(
        "restore_command",
        &format!(
            "WALHOLD_WAL_FETCH_DEADLINE=1s WALHOLD_REPOSITORY='file://{}' '{}' wal-fetch %f %p",
            recovery.store().display(),
            walhold().display()
        ),
    );
    let store = recovery.store();
    let segments: Vec<String> =
        contents(&store).into_keys().filter(|path| path.contains("/00000001/")).collect();
    let lost = store.join(&segments[segments.len() - 2]);
    let kept = recovery.primary.directory("moved").join("lost");
    fs::rename(&lost, &kept).unwrap();
    recovery.copy.launch();
    recovery.copy.wait_ended();
    let log = recovery.copy.log();
    assert!(log.contains("is missing from the archive, although"), "{log}");
    assert!(!log.contains("archive recovery complete"), "it promoted\n{log}");
    fs::rename(&kept, &lost).unwrap();
    recovery.completes();
}

#[test]
fn a_segment_that_cannot_be_opened_or_delivered_stops_recovery() {
    let mut recovery = Recovery::prepare(4, Encryption::On);
    let segments = recovery.segments();
    let (other, segment) = (&segments[segments.len() - 3], &segments[segments.len() - 2]);
    let url = format!("file://{}", recovery.store().display());
    let key = recovery.key.as_ref().expect("a key").display().to_string();
    let wrong_key = new_key(&recovery.primary, "wrong").display().to_string();
    let repository = ("WALHOLD_REPOSITORY", url.as_str());
    let right = [repository, ("WALHOLD_ENCRYPTION_KEY_FILE", key.as_str())];
    let wrong = [repository, ("WALHOLD_ENCRYPTION_KEY_FILE", wrong_key.as_str())];

    let object = recovery.object(segment);
    let whole = fs::read(&object).expect("read the object");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let moved = fs::read(recovery.object(other)).expect("read another object");
    recovery.fetch_with(&right, "%p");
    for (what, bytes, words) in [
        ("truncated", &whole[..whole.len() / 2], " is damaged: "),
        ("emptied", b"", " is damaged: "),
        ("flipped", &flipped, " is damaged: "),
        ("another segment's", &moved, " is not what its name says: "),
    ] {
        fs::write(&object, bytes).expect("damage the object");
        recovery.stops(what, 214, words);
    }
    fs::write(&object, &whole).expect("mend the object");

    recovery.fetch_with(&[repository], "%p");
    recovery.stops("no key", 215, " is encrypted with key ");
    recovery.fetch_with(&wrong, "%p");
    recovery.stops("wrong key", 215, " is encrypted with key ");
    recovery.fetch_with(&[right[0], right[1], ("WALHOLD_CLUSTER", "mian")], "%p");
    recovery.stops("another cluster's name", 221, "nothing was ever archived under the name mian ");
    recovery.fetch_with(&right, "nowhere/%f");
    recovery.stops("no directory", 204, "create nowhere/");
    recovery.fetch_with(&[right[0], right[1], ("WALHOLD_COLOUR", "red")], "%p");
    recovery.stops("a setting that is none", 203, "unknown environment variable WALHOLD_COLOUR");
    recovery.fetch_with(&right, "%p");
    recovery.completes();
}

#[test]
fn a_store_that_fails_stops_recovery() {
    let mut recovery = Recovery::prepare(4, Encryption::Off);
    let server = S3Server::start(Conditions::Enforced);
    copy_tree(&recovery.store(), &server.bucket_directory().join("prefix"), &|_| false);
    let proxy = FaultProxy::start(server.addr());
    let (url, endpoint) = (format!("s3://{BUCKET}/prefix"), format!("http://{}", proxy.addr()));
    let mut variables = vec![
        ("WALHOLD_REPOSITORY", url.as_str()),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    recovery.fetch_with(&variables, "%p");
    let segments = recovery.segments();
    let segment = format!("/{} ", segments[segments.len() - 2]);
    // All the store, and the answers to one segment alone.
    for (pattern, fault, status, words) in [
        ("", Fault::Refuse, 213, "Connection refused"),
        ("", Fault::Status(403), 211, "the store refuses: HTTP 403"),
        ("", Fault::Status(404), 210, "no walhold repository at "),
        ("", Fault::Status(503), 213, "HTTP 503 SlowDown"),
        (&segment, Fault::Status(403), 211, "the store refuses: HTTP 403"),
        (&segment, Fault::Status(500), 213, "HTTP 500 InternalError"),
        (&segment, Fault::Status(503), 213, "HTTP 503 SlowDown"),
        (&segment, Fault::Status(429), 213, "HTTP 429 TooManyRequests"),
        (&segment, Fault::HangMidBody, 213, "gave up after "),
        (&segment, Fault::ResetMidBody, 213, "gave up after "),
        (&segment, Fault::TruncateBody, 213, "gave up after "),
        (&segment, Fault::FlipBit, 214, " is damaged: "),
        // The segment is said to be absent, but a later one is stored.
        (&segment, Fault::Status(404), 216, " is missing from the archive, although "),
    ] {
        proxy.set_matching(pattern, usize::MAX, fault);
        recovery.stops(&format!("{fault:?} of {pattern:?}"), status, words);
        proxy.set(Fault::None);
    }
    let key = new_key(&recovery.primary, "key").display().to_string();
    variables.push(("WALHOLD_ENCRYPTION_KEY_FILE", &key));
    recovery.fetch_with(&variables, "%p");
    recovery.stops("a plain object", 215, " is not encrypted, although a key is configured");
    variables.pop();
    variables[4].1 = "not-the-secret";
    recovery.fetch_with(&variables, "%p");
    recovery.stops("wrong credentials", 211, "SignatureDoesNotMatch");
    variables[4].1 = SECRET_KEY;
    recovery.fetch_with(&variables, "%p");
    recovery.completes();
}

#[test]
fn a_pg_wal_that_is_full_or_cannot_be_written_stops_recovery() {
    let mut recovery = Recovery::prepare(4, Encryption::Off);
    let url = format!("file://{}", recovery.store().display());
    recovery.fetch_with(&[("WALHOLD_REPOSITORY", &url)], "%p");
    let pg_wal = recovery.copy.data_directory().join("pg_wal");
    fs::set_permissions(&pg_wal, fs::Permissions::from_mode(0o500)).expect("close pg_wal");
    recovery.stops("pg_wal not writable", 205, "create pg_wal/RECOVERYXLOG: Permission denied");
    fs::set_permissions(&pg_wal, fs::Permissions::from_mode(0o700)).expect("open pg_wal");

    let elsewhere = pg_wal.with_file_name("pg_wal.elsewhere");
    fs::rename(&pg_wal, &elsewhere).expect("move pg_wal");
    let used: usize = contents(&elsewhere).values().map(|bytes| bytes.len().next_multiple_of(4096)).sum();
    // A segment has 1 MiB: half of one is free.
    let disk = Tmpfs::mount(&pg_wal, &format!("{}k", used / 1024 + 512));
    let copied = Command::new("cp").arg("-r").arg(elsewhere.join(".")).arg(&pg_wal).status();
    assert!(copied.expect("run cp").success());
    ServerUser::get().own(&pg_wal);
    recovery.stops("pg_wal full", 206, "write pg_wal/RECOVERYXLOG: No space left on device");
    disk.resize("100m");
    recovery.completes();
}

#[test]
fn another_cluster_s_segment_under_the_right_name_stops_recovery() {
    let mut recovery = Recovery::prepare(4, Encryption::Off);
    let stranger = Recovery::prepare(4, Encryption::Off);
    let segments = recovery.segments();
    let segment = &segments[segments.len() - 2];
    let (object, strange) = (recovery.object(segment), stranger.object(segment));
    let own = fs::read(&object).expect("read the object");
    fs::copy(strange, &object).expect("replace it by the other cluster's");
    let url = format!("file://{}", recovery.store().display());
    recovery.fetch_with(&[("WALHOLD_REPOSITORY", &url)], "%p");
    recovery.stops("another cluster's segment", 208, " belongs to another cluster: ");
    fs::write(&object, own).expect("put its own back");
    // Nor is it taken from a data directory that is another cluster's: there is nothing of it in this repository.
    let control = recovery.copy.data_directory().join("global/pg_control");
    let own = fs::read(&control).expect("read pg_control");
    let others = stranger.copy.data_directory().join("global/pg_control");
    fs::copy(others, &control).expect("replace pg_control");
    let mut fetch = walhold_command();
    fetch.current_dir(recovery.copy.data_directory()).env("WALHOLD_REPOSITORY", &url);
    let run = support::archive::run(fetch.args(["wal-fetch", segment, "pg_wal/RECOVERYXLOG"]));
    assert_eq!(run.status, Some(221), "{run:?}");
    fs::write(&control, own).expect("put pg_control back");
    recovery.completes();
}
