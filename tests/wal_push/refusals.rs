//! What `wal-push` refuses, and in which words: nothing is lost, and the repository is as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::support::archive::{Archive, run};
use super::support::postgres::installation::ServerUser;
use super::support::tmpfs::Tmpfs;
use super::support::wal_files::{default_files, foreign_files, incompressible, small_files};

const TRUNCATED: &str = "the file was truncated or written by something else: restore it from another copy, for example a standby's pg_wal";
const NOT_WAL: &str =
    "the file is damaged or not WAL: restore it from another copy, for example a standby's pg_wal";
const RENAMED: &str =
    "the file was recycled or renamed and holds other WAL than its name says; find out what put it there";
const CONFLICT: &str = "two servers archive to one place, or this one was rolled back and wrote its WAL anew: fetch the stored file and compare with pg_waldump; give each server its own WALHOLD_CLUSTER";
const NAMES: &str = "is not the name of a WAL segment (24 hexadecimal digits), nor one with .partial, .<offset>.backup, or <timeline>.history";
const ARCHIVE_COMMAND: &str = "archive_command is: walhold wal-push %p";

/// Pushes what must be refused, and sees that the repository is as it was.
#[track_caller]
fn refuse(archive: &Archive, name: &str, bytes: &[u8], status: i32, problem: &str, hint: &str) {
    let before = archive.stored();
    let run = archive.push(name, bytes);
    run.expect_failure(status, &format!("archive pg_wal/{name}: {problem}  HINT: {hint}"));
    assert_eq!(archive.stored().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(archive.stored(), before);
    assert_eq!(fs::read(archive.path("data/pg_wal").join(name)).unwrap(), bytes, "the file was changed");
}

#[test]
fn what_is_not_wal_is_refused() {
    let files = default_files();
    let archive = Archive::new(files);
    let segment = files.segment(1);
    let good = files.bytes(segment);
    let random: Vec<u8> = incompressible(16 << 20);
    let magic = u16::from_le_bytes([random[0], random[1]]);
    refuse(
        &archive,
        segment,
        &random,
        7,
        &format!(
            "its first page is not that of a WAL segment: page magic {magic:04X} is not that of PostgreSQL 13 or newer"
        ),
        NOT_WAL,
    );
    refuse(&archive, segment, b"", 7, "it has 0 bytes, too few for a WAL segment", TRUNCATED);
    refuse(
        &archive,
        segment,
        &good[..1000],
        7,
        "it has 1000 bytes, but its first page says that segments have 16777216",
        TRUNCATED,
    );
    let longer = [good, b"x"].concat();
    refuse(
        &archive,
        segment,
        &longer,
        7,
        "it has 16777217 bytes, but its first page says that segments have 16777216",
        TRUNCATED,
    );
    refuse(
        &archive,
        segment,
        &vec![0; 16 << 20],
        7,
        "its first page is not that of a WAL segment: page magic 0000 is not that of PostgreSQL 13 or newer",
        NOT_WAL,
    );
}

#[test]
fn a_segment_of_another_place_or_cluster_is_refused() {
    let files = default_files();
    let archive = Archive::new(files);
    let (first, second) = (files.segment(0), files.segment(1));
    let position = |name: &str| format!("0/{:X}", u64::from_str_radix(&name[16..], 16).unwrap() << 24);
    refuse(
        &archive,
        second,
        files.bytes(first),
        7,
        &format!(
            "its first page is that of WAL position {}, the name stands for {}",
            position(first),
            position(second)
        ),
        RENAMED,
    );
    let later = format!("00000002{}", &first[8..]);
    let mut of_timeline_3 = files.bytes(first).to_vec();
    of_timeline_3[4] = 3;
    refuse(
        &archive,
        &later,
        &of_timeline_3,
        7,
        "its first page was written on timeline 3, which is later than the name's 2",
        RENAMED,
    );
    let name_of_1_mib = "0000000100000000000003FF";
    refuse(
        &archive,
        name_of_1_mib,
        files.bytes(first),
        7,
        "no segment of 16777216 bytes has this name",
        RENAMED,
    );
    let foreign = foreign_files();
    let segment = foreign.segment(0);
    refuse(
        &archive,
        segment,
        foreign.bytes(segment),
        8,
        &format!(
            "it belongs to the cluster with system identifier {}, not {}",
            foreign.system_identifier, files.system_identifier
        ),
        "a file of another cluster lies in this pg_wal, or PGDATA names another cluster than the one that archives",
    );
}

#[test]
fn a_history_or_backup_file_that_is_none_is_refused() {
    let files = small_files();
    let archive = Archive::new(files);
    let damaged = "the file is damaged or not PostgreSQL's; find out what wrote it before removing it";
    refuse(
        &archive,
        "00000002.history",
        b"",
        7,
        "it is not a timeline history: history of timeline 00000002: line 0: no ancestor is named",
        damaged,
    );
    let backup = files.only(".backup");
    let segment = &backup[..24];
    refuse(
        &archive,
        backup,
        b"half a line",
        7,
        &format!("it has no line START WAL LOCATION that names {segment}"),
        damaged,
    );
}

#[test]
fn an_unknown_name_is_refused() {
    let files = small_files();
    let archive = Archive::new(files);
    for name in ["RECOVERYXLOG", "00000001000000000000000a", "000000010000000000000001.gz"] {
        refuse(&archive, name, b"x", 7, &format!("{name:?} {NAMES}"), ARCHIVE_COMMAND);
    }
}

#[test]
fn a_missing_or_unreadable_file_is_told() {
    let files = small_files();
    let archive = Archive::new(files);
    let before = archive.stored();
    let segment = files.segment(0);
    archive.walhold(["wal-push", &format!("pg_wal/{segment}")]).expect_failure(
        4,
        &format!(
            "open pg_wal/{segment}: No such file or directory  HINT: {ARCHIVE_COMMAND}; a relative path starts at the data directory"
        ),
    );
    let path = archive.offer(segment, files.bytes(segment));
    let owner = "run walhold as the user that owns the data directory";
    fs::set_permissions(archive.path("data").join(&path), fs::Permissions::from_mode(0o000)).unwrap();
    archive
        .walhold(["wal-push", &path])
        .expect_failure(5, &format!("open {path}: Permission denied  HINT: {owner}"));
    fs::remove_file(archive.path("data").join(&path)).unwrap();
    let damaged = "the file is damaged or not PostgreSQL's; find out what wrote it before removing it";
    let not_regular = format!("archive {path}: it is not a regular file  HINT: {damaged}");
    fs::create_dir(archive.path("data").join(&path)).unwrap();
    archive.walhold(["wal-push", &path]).expect_failure(7, &not_regular);
    fs::remove_dir(archive.path("data").join(&path)).unwrap();
    nix::unistd::mkfifo(&archive.path("data").join(&path), nix::sys::stat::Mode::from_bits_truncate(0o666))
        .unwrap();
    fs::set_permissions(archive.path("data").join(&path), fs::Permissions::from_mode(0o666)).unwrap();
    archive.walhold(["wal-push", &path]).expect_failure(7, &not_regular);
    assert_eq!(archive.stored(), before);
}

#[test]
fn other_content_under_a_stored_name_is_refused() {
    let files = small_files();
    let archive = Archive::new(files);
    let system = &files.system_identifier;
    let (segment, history, backup) = (files.segment(1), files.only(".history"), files.only(".backup"));
    for name in [segment, history, backup] {
        archive.push(name, files.bytes(name)).expect_success();
        let mut other = files.bytes(name).to_vec();
        let last = other.len() - 2;
        other[last] ^= 1;
        let folder = match name.len() {
            24 => format!("main/wal/{system}/{}/{}", &name[..8], &name[8..16]),
            _ => format!("main/wal/{system}"),
        };
        let before = archive.stored();
        let run = archive.push(name, &other);
        run.expect_failure(
            9,
            &format!(
                "archive {name}: {folder}/{name} in {} holds other content under this name; it was not touched  HINT: {CONFLICT}",
                archive.url()
            ),
        );
        assert_eq!(archive.stored(), before);
    }
    // Two standbys promoted from one segment leave different tails: both are kept.
    let partial = files.only(".partial");
    archive.push(partial, files.bytes(partial)).expect_success();
    let stored = archive.stored().len();
    let mut other = files.bytes(partial).to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    archive.push(partial, &other).expect_success();
    assert_eq!(archive.stored().len(), stored + 1);
}

#[test]
fn a_repository_that_is_absent_is_told() {
    let files = small_files();
    let archive = Archive::without_repository(files);
    let segment = files.segment(0);
    let hint = "is the address right and the disk mounted? for a new repository run: walhold init";
    let line = format!("no walhold repository at {}: walhold.json is not there  HINT: {hint}", archive.url());
    archive.push(segment, files.bytes(segment)).expect_failure(10, &line);
    assert!(!archive.repository().exists(), "a repository was made");
    fs::create_dir(archive.repository()).unwrap();
    ServerUser::get().own(&archive.repository());
    archive.push(segment, files.bytes(segment)).expect_failure(10, &line);
    assert!(archive.stored().is_empty());
}

#[test]
fn a_repository_that_cannot_be_written_is_told() {
    let files = small_files();
    let archive = Archive::new(files);
    let (first, second) = (files.segment(0), files.segment(1));
    archive.push(first, files.bytes(first)).expect_success();
    let folder = archive.stored_path(first).parent().unwrap().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
    let before = archive.stored();
    let system = &files.system_identifier;
    archive.push(second, files.bytes(second)).expect_failure(
        11,
        &format!(
            "publish main/wal/{system}/00000001/00000000/{second}: the store refuses: Permission denied  HINT: {DENIED}"
        ),
    );
    assert_eq!(archive.stored(), before);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    archive.push(second, files.bytes(second)).expect_success();
}

const DENIED: &str = "check the credentials and their permissions (S3: s3:GetObject, s3:PutObject, s3:DeleteObject, and s3:ListBucket on the bucket, without which S3 answers 403 for objects that are not there), or the owner and mode of the directory";

#[test]
fn a_full_repository_is_told_and_works_again_with_space() {
    let files = small_files();
    let archive = Archive::without_repository(files);
    let mounted = Tmpfs::mount(&archive.repository(), "256k");
    archive.walhold(["init"]).expect_success();
    let (small, large) = (files.segment(0), files.segment(1));
    let mut other = files.bytes(large).to_vec();
    other[8192..].copy_from_slice(&incompressible((1 << 20) - 8192));
    let system = &files.system_identifier;
    archive.push(files.only(".history"), files.bytes(files.only(".history"))).expect_success();
    let before = archive.stored();
    let run = archive.push(large, &other);
    assert_eq!(run.status, Some(12), "{run:?}");
    assert_eq!(
        run.error_line(),
        format!(
            "publish main/wal/{system}/00000001/00000000/{large}: the store is full: No space left on device  HINT: free space, or raise the quota; nothing incomplete was left behind"
        )
    );
    assert_eq!(archive.stored(), before);
    // What was written is free again.
    mounted.resize("8m");
    archive.push(large, &other).expect_success();
    archive.push(small, files.bytes(small)).expect_success();
}

#[test]
fn a_key_of_31_bytes_archives_and_fetches_nothing() {
    let files = small_files();
    let (first, second) = (files.segment(0), files.segment(1));
    let mut archive = Archive::new(files);
    archive.push(first, files.bytes(first)).expect_success();
    fs::remove_file(archive.path("data/pg_wal").join(first)).unwrap();
    let key = archive.path("state/key");
    fs::write(&key, "3b".repeat(31)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    ServerUser::get().own(&key);
    archive.set("WALHOLD_ENCRYPTION_KEY_FILE", &key.display().to_string());
    let line = format!(
        "read encryption key file {}: an encryption key has 32 bytes (64 hexadecimal digits or 44 of base64), this one has 31  HINT: make one with: walhold keygen > FILE; chmod 600 FILE",
        key.display()
    );
    let before = archive.stored();
    archive.fetch(first).expect_failure(203, &line);
    assert!(archive.pg_wal().is_empty(), "{:?}", archive.pg_wal());
    archive.push(second, files.bytes(second)).expect_failure(3, &line);
    assert_eq!(archive.pg_wal(), [second]);
    assert_eq!(archive.stored(), before);
}

#[test]
fn the_cluster_of_a_file_without_header_must_be_known() {
    let files = small_files();
    let archive = Archive::new(files);
    let history = files.only(".history");
    let path = archive.path("out").join(history);
    fs::write(&path, files.bytes(history)).unwrap();
    ServerUser::get().own(&path);
    let elsewhere = |archive: &Archive| {
        let mut command = archive.command(["wal-push", &path.display().to_string()]);
        run(command.current_dir("/"))
    };
    elsewhere(&archive).expect_failure(
        4,
        &format!(
            "cannot tell which cluster {} belongs to: neither the working directory nor PGDATA is a data directory  HINT: PostgreSQL runs its commands in the data directory; elsewhere set PGDATA or --pgdata",
            path.display()
        ),
    );
    let mut archive = archive;
    archive.set("PGDATA", &archive.path("data").display().to_string());
    elsewhere(&archive).expect_success();
}

#[test]
fn the_flag_pgdata_outweighs_the_working_directory() {
    let own = Archive::new(small_files());
    let other = Archive::without_repository(foreign_files());
    let path = own.offer(small_files().only(".history"), small_files().bytes(small_files().only(".history")));
    let absolute = own.path("data").join(path).display().to_string();
    let data = own.path("data").display().to_string();
    // Run where another server lives: only the flag tells whose file it is.
    let run = |pgdata: &str| {
        let mut command = own.command(["--pgdata", pgdata, "wal-push", &absolute]);
        run(command.current_dir(other.path("data")))
    };
    run(&data).expect_success();
    let identities: Vec<_> = fs::read_dir(own.repository().join("main/identity")).unwrap().collect();
    assert_eq!(identities.len(), 1);
    own.walhold(["wal-fetch", small_files().only(".history"), "pg_wal/RECOVERYHISTORY"]).expect_success();
    let empty = own.path("out").display().to_string();
    run(&empty).expect_failure(
        4,
        &format!("--pgdata {empty} is not a data directory: it has no global/pg_control  HINT: name the directory that postgres -D names, or leave --pgdata out where PostgreSQL runs the command"),
    );
}

#[test]
fn a_damaged_control_file_is_told() {
    let files = small_files();
    let archive = Archive::new(files);
    let path = archive.path("data/global/pg_control");
    let mut control = files.control.clone();
    control[0] ^= 1;
    fs::write(&path, control).unwrap();
    let segment = files.segment(0);
    let run = archive.push(segment, files.bytes(segment));
    assert_eq!(run.status, Some(5), "{run:?}");
    assert!(run.error_line().starts_with("read ./global/pg_control: pg_control cannot be used: "), "{run:?}");
}
