//! `restore --delta`: an existing data directory becomes the backup.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use support::archive::{contents, run};
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, StopMode};
use support::site::Site;

/// Files that name the directory they are in.
fn comparable(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(directory);
    files.retain(|path, _| {
        !path.starts_with("pg_tblspc/")
            && !["postgresql.auto.conf", "tablespace_map"].contains(&path.as_str())
    });
    files
}

fn assert_same(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    for (path, bytes) in left {
        assert!(right[path] == *bytes, "{path} differs");
    }
}

#[test]
fn an_existing_directory_becomes_the_backup() {
    let mut site = Site::start(Cluster::builder(15));
    let tablespace = site.cluster.directory("tablespace");
    site.cluster.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", tablespace.display()));
    site.cluster.execute("CREATE TABLE distant TABLESPACE far AS SELECT i FROM generate_series(1, 20000) i");
    site.cluster.execute("CREATE TABLE dropped AS SELECT i FROM generate_series(1, 5000) i");
    // An incremental one: parts of what the first stored have no digest of their own.
    site.back_up();
    let items = site.cluster.value("SELECT pg_relation_filepath('items')");
    let distant = site.cluster.value("SELECT pg_relation_filepath('distant')");
    for sql in [
        "UPDATE items SET body = 'changed' WHERE id % 7 = 0",
        "DELETE FROM distant WHERE i > 10000",
        "VACUUM distant",
        "DROP TABLE dropped",
        "CREATE TABLE newer TABLESPACE far AS SELECT i FROM generate_series(1, 5000) i",
        "CREATE DATABASE another",
        "CHECKPOINT",
    ] {
        site.cluster.execute(sql);
    }
    site.cluster.archive_now();
    site.cluster.execute("INSERT INTO items VALUES (1, 'never archived')");
    let last = site.cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())");
    site.cluster.kill9();

    let data = site.cluster.data_directory().to_owned();
    fs::File::options()
        .append(true)
        .open(data.join(&distant))
        .and_then(|f| f.set_len(4000))
        .expect("truncate");
    let mut bytes = fs::read(data.join(&items)).expect("read a table");
    bytes[100] ^= 1;
    bytes.extend_from_slice(&[1; 20_000]);
    fs::write(data.join(&items), bytes).expect("damage a table");
    fs::create_dir_all(data.join("base/77777/deep")).expect("make a directory");
    fs::write(data.join("base/77777/deep/file"), "x").expect("write a file");
    fs::remove_file(data.join("global/1262")).expect("remove pg_database");
    fs::write(tablespace.join("not ours"), "stays").expect("write a file");
    ServerUser::get().own(site.directory.parent().expect("the cluster's directory"));

    let fresh = site.target("fresh");
    let mapping = format!("far={}", site.cluster.directory("elsewhere").display());
    site.restore(&fresh, &["--clone", "--target-immediate", "--tablespace", &mapping]).expect_success();
    let wal_before = fs::read(data.join("pg_wal").join(&last)).expect("the last segment");
    let plan = site.restore(&data, &["--clone", "--delta", "--target-immediate", "--plan"]);
    plan.expect_success();
    assert!(plan.stdout.contains(" files of its pg_wal that are not in the repository go to "), "{plan:?}");
    assert!(data.join("global/pg_control").exists(), "a plan writes nothing");
    site.restore(&data, &["--clone", "--delta", "--target-immediate"]).expect_success();
    assert_same(&comparable(&fresh), &comparable(&data));
    let version = |directory: &Path| {
        let mut files = contents(directory);
        files.retain(|path, _| path.starts_with("PG_15_"));
        files
    };
    assert_same(&version(&site.cluster.directory("elsewhere")), &version(&tablespace));
    assert_eq!(fs::read_to_string(tablespace.join("not ours")).expect("a stranger's file"), "stays");
    let beside = fs::read_dir(data.parent().expect("a parent"))
        .expect("list")
        .map(|entry| entry.expect("list").path());
    let kept: Vec<_> = beside.filter(|path| path.display().to_string().contains("data.wal-kept-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(fs::read(kept[0].join(&last)).expect("the kept segment") == wal_before);

    // All is right now, but for the settings that recovery was given.
    let again = site.restore(&data, &["--clone", "--delta", "--target-immediate", "--json"]);
    again.expect_success();
    let report: serde_json::Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert!(report["restored"]["bytes"].as_u64().expect("bytes") < 64 << 10, "{report}");
    assert_same(&comparable(&fresh), &comparable(&data));

    site.cluster.start();
    // A hot standby answers before it has replayed everything.
    site.cluster.wait_promoted();
    assert_eq!(
        site.cluster.value("SELECT count(*) - count(*) FILTER (WHERE body = 'changed') FROM items"),
        "1000"
    );
    assert_eq!(site.cluster.value("SELECT count(*) FROM distant"), "20000");
    assert_eq!(site.cluster.value("SELECT count(*) FROM dropped"), "5000");
}

#[test]
fn a_kill_at_any_step_leaves_what_only_delta_finishes() {
    let mut site = Site::start(Cluster::builder(15));
    site.cluster.execute("INSERT INTO items SELECT i, 'later' FROM generate_series(1, 500) i");
    site.cluster.archive_now();
    let items = site.cluster.value("SELECT pg_relation_filepath('items')");
    site.cluster.stop(StopMode::Fast);
    let data = site.cluster.data_directory().to_owned();
    let directory = data.display().to_string();
    for point in [
        "delta: marked",
        "delta: pg_control removed",
        "delta: WAL kept",
        "delta: cleared",
        "restore: laid out",
        "restore: compared",
        "restore: mid-fetch",
        "restore: fetched",
        "restore: synced",
        "restore: before pg_control",
    ] {
        if let Ok(mut bytes) = fs::read(data.join(&items)) {
            bytes[0] ^= 0xFF;
            fs::write(data.join(&items), bytes).expect("damage a table");
        }
        let mut command = site.command(&["restore", "--pgdata", &directory, "--delta"]);
        let killed = run(command.env("WALHOLD_TEST_KILL_AT", point));
        assert_eq!(killed.signal, Some(9), "{point}: {killed:?}");
        assert_eq!(data.join("global/pg_control").exists(), point == "delta: marked", "{point}");
        let plain = site.restore(&data, &[]);
        assert_eq!(plain.status, Some(3), "{point}: {plain:?}");
        assert!(plain.error_line().contains("holds an unfinished restore (backup "), "{point}: {plain:?}");
        if point == "delta: marked" {
            // As if it had been killed while it wrote that; pg_control still says whose the directory is.
            fs::write(data.join("walhold-restore-unfinished"), "").expect("empty the note");
        }
    }
    site.restore(&data, &["--delta"]).expect_success();
    site.cluster.start();
    // A hot standby answers before it has replayed everything.
    site.cluster.wait_promoted();
    assert_eq!(site.cluster.value("SELECT count(*) FROM items"), "1500");
}

#[test]
fn only_the_same_clusters_directory_is_taken_over() {
    let site = Site::start(Cluster::builder(15));
    let running = site.cluster.data_directory().to_owned();
    let refused = site.restore(&running, &["--delta"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.error_line().starts_with("a server (process "), "{refused:?}");

    let other = Cluster::builder(15).create();
    let foreign = other.data_directory();
    let refused = site.restore(foreign, &["--delta"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(
        refused
            .error_line()
            .starts_with(&format!("{} belongs to another cluster (system ", foreign.display())),
        "{refused:?}"
    );
    assert!(
        refused
            .error_line()
            .ends_with("HINT: name the right directory; --other-cluster overwrites this one all the same"),
        "{refused:?}"
    );

    let papers = site.cluster.directory("papers");
    fs::write(papers.join("thesis"), "x").expect("write a file");
    let refused = site.restore(&papers, &["--delta"]);
    refused.expect_failure(
        3,
        &format!(
            "--pgdata {} is not empty and not a data directory: it has no global/pg_control  HINT: --delta takes a data directory over; for anything else name an empty directory",
            papers.display()
        ),
    );
    let refused = site.restore(&papers, &["--delta", "--other-cluster"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert_eq!(fs::read_to_string(papers.join("thesis")).expect("still there"), "x");

    // Where nothing is, delta is a restore like any other.
    site.restore(&site.target("new"), &["--delta", "--clone"]).expect_success();
    site.restore(foreign, &["--delta", "--other-cluster", "--clone"]).expect_success();
    let control = |directory: &Path| fs::read(directory.join("global/pg_control")).expect("pg_control");
    assert!(control(foreign)[..8] == control(&site.target("new"))[..8], "it is the restored cluster's");
}

/// What the server still has to archive, what has another content than the stored one, and what is stored as a partial segment alone, lies nowhere else.
#[test]
fn wal_counts_as_archived_by_its_content_alone() {
    let mut site = Site::start(Cluster::builder(15).wal_segment_mib(1));
    let names: Vec<String> = (0..4).map(|_| site.cluster.archive_now()).collect();
    site.cluster.kill9();
    let data = site.cluster.data_directory().to_owned();
    let wal = data.join("pg_wal");
    let [same, ready, other, partial] = names.as_slice() else { panic!("four segments") };
    fs::rename(
        wal.join(format!("archive_status/{ready}.done")),
        wal.join(format!("archive_status/{ready}.ready")),
    )
    .expect("archive it again");
    let mut bytes = fs::read(wal.join(other)).expect("read a segment");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(wal.join(other), &bytes).expect("change a segment");
    // Only the partial segment is stored of this one.
    fs::copy(wal.join(partial), wal.join(format!("{partial}.partial"))).expect("copy a segment");
    ServerUser::get().own(&wal);
    let mut push = site.command(&["wal-push", &format!("pg_wal/{partial}.partial")]);
    run(push.current_dir(&data)).expect_success();
    fs::remove_file(site.stored(&format!("/{partial}"))).expect("lose the segment");
    // The end of the line is not what is looked at here.
    let plan = site.restore(&data, &["--delta", "--target-immediate", "--plan", "--json"]);
    plan.expect_success();
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
    let kept: Vec<&str> = plan["existing"]["unarchived_wal"]
        .as_array()
        .expect("names")
        .iter()
        .map(|name| name.as_str().expect("a name"))
        .collect();
    for (name, is_kept) in [(same, false), (ready, true), (other, true), (partial, true)] {
        assert_eq!(kept.contains(&name.as_str()), is_kept, "{name}: {kept:?}");
    }
    assert!(!kept.contains(&format!("{partial}.partial").as_str()), "{kept:?}");
    site.restore(&data, &["--delta", "--target-immediate"]).expect_success();
    let beside = data.parent().expect("a parent");
    let aside = fs::read_dir(beside)
        .expect("list")
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("data.wal-kept-"));
    let aside = aside.expect("a directory for them").path();
    assert!(fs::read(aside.join(other)).expect("the changed segment") == bytes);
    assert!(aside.join(ready).exists() && aside.join(partial).exists() && !aside.join(same).exists());
}
