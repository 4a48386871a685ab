//! `wal-verify` on archives of real servers: nothing to find in a whole one, and each kind of finding in one that was hurt.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::archive::run;
use support::postgres::installation::ServerUser;
use support::postgres::{Cluster, ClusterBuilder, StopMode, copy_tree};
use support::program::walhold;
use support::site::Site;

fn builder() -> ClusterBuilder {
    Cluster::builder(15)
        .wal_segment_mib(1)
        .setting("autovacuum", "off")
        .setting("checkpoint_timeout", "1h")
        .setting("wal_keep_size", "1GB")
}

/// A cluster with segments of 1 MiB and a table.
fn site_with_table() -> Site {
    let site = Site::archiving(builder());
    site.cluster.execute("CREATE TABLE t (i int)");
    site
}

impl Site {
    fn full_backup(&self) -> String {
        self.back_up_with(&["--full"])
    }

    /// Some commits, archived; the segment that they are in.
    fn work(&self) -> String {
        self.cluster.execute("INSERT INTO t SELECT i FROM generate_series(1, 1000) i");
        self.cluster.archive_now()
    }

    /// The report; the status must fit.
    fn verify(&self, arguments: &[&str]) -> Value {
        self.verify_at(&self.cluster, arguments)
    }

    fn verify_at(&self, cluster: &Cluster, arguments: &[&str]) -> Value {
        let command = [&["wal-verify", "--json"], arguments].concat();
        let run = run(self.command(&command).envs(cluster.environment()));
        let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run:?}"));
        let healthy = report["healthy"].as_bool().expect("healthy");
        assert_eq!(run.status, Some(if healthy { 0 } else { 4 }), "{run:?}");
        report
    }
}

fn findings(report: &Value) -> Vec<&Value> {
    let systems = report["systems"].as_array().expect("systems");
    let of = |value: &'_ Value| value["findings"].as_array().map(Vec::len);
    assert!(of(report).is_some());
    systems.iter().chain([report]).flat_map(|value| value["findings"].as_array().expect("findings")).collect()
}

fn kinds(report: &Value) -> Vec<&str> {
    findings(report).iter().map(|finding| finding["kind"].as_str().expect("a kind")).collect()
}

/// The segment `number` after this one.
fn after(name: &str, number: u32) -> String {
    let last = u32::from_str_radix(&name[16..], 16).expect("a number") + number;
    format!("{}{last:08X}", &name[..16])
}

#[test]
fn a_whole_archive_is_healthy() {
    let site = site_with_table();
    let backup = site.full_backup();
    let last = site.work();
    for arguments in [&[][..], &["--deep"], &["--offline"]] {
        let report = site.verify(arguments);
        assert_eq!(kinds(&report), Vec::<&str>::new(), "{report:#}");
        let system = &report["systems"][0];
        assert_eq!(system["timelines"][0]["last"], last.as_str());
        assert_eq!(system["timelines"][0]["missing"], 0);
        let checked = system["segments_checked"].as_u64().expect("a number");
        assert_eq!(Some(checked), system["timelines"][0]["segments"].as_u64());
        assert!(system["newest_commit"].is_string());
        assert_eq!(system["objects_decoded"].as_u64().expect("a number") > checked, arguments == ["--deep"]);
        if arguments == ["--offline"] {
            assert_eq!((&report["server"], &report["server_problem"]), (&Value::Null, &"not asked".into()));
            continue;
        }
        let server = &report["server"];
        assert_eq!((&server["timeline"], &server["lag_segments"]), (&1.into(), &0.into()), "{report:#}");
        assert_eq!((&server["last_archived"], &server["lag_seconds"]), (&last.as_str().into(), &0.0.into()));
        assert!(server["lag_bytes"].as_u64().expect("a number") < 1 << 20);
    }
    let run = site.walhold(&["wal-verify"]);
    run.expect_success();
    assert!(run.stdout.contains("0 missing") && run.stdout.ends_with("\nhealthy\n"), "{run:?}");
    assert!(!backup.is_empty());
}

#[test]
fn a_gap_is_named_with_what_it_costs() {
    let site = site_with_table();
    let old = site.work();
    let first = site.full_backup();
    let before = site.work();
    let commit = site.verify(&[])["systems"][0]["newest_commit"].clone();
    let (lost, lost_too, behind) = (site.work(), site.work(), site.work());
    assert_eq!(after(&lost, 1), lost_too);
    let objects: Vec<_> =
        [&lost, &lost_too].map(|name| (site.stored(name), fs::read(site.stored(name)).unwrap())).into();
    objects.iter().for_each(|(path, _)| fs::remove_file(path).expect("lose a segment"));
    // Older than every backup: nobody needs it.
    fs::remove_file(site.stored(&old)).expect("lose a segment");
    let report = site.verify(&[]);
    assert_eq!(kinds(&report), ["gap"], "{report:#}");
    let gap = findings(&report)[0].clone();
    assert_eq!((&gap["first"], &gap["last"]), (&lost.as_str().into(), &lost_too.as_str().into()));
    assert_eq!(gap["segments"], 2);
    assert_eq!(gap["cost"]["backups_cut"], serde_json::json!([first]));
    assert_eq!(gap["cost"]["backups_lost"], serde_json::json!([]));
    assert_eq!(gap["cost"]["lost_after"], commit, "{before}");
    assert_eq!(gap["cost"]["lost_until"], Value::Null);
    assert!(behind > lost_too);
    // From the next backup on everything can be reached again.
    let second = site.full_backup();
    let report = site.verify(&[]);
    let gap = findings(&report)[0].clone();
    assert_eq!(gap["cost"]["backups_cut"], serde_json::json!([first]));
    let shown: Value =
        serde_json::from_str(&site.walhold(&["backup-show", &second, "--json"]).stdout).expect("JSON");
    assert!(
        shown.to_string().contains(gap["cost"]["lost_until"].as_str().expect("a time")),
        "{gap:#} {shown:#}"
    );
    let run = site.walhold(&["wal-verify"]);
    assert_eq!(run.status, Some(4), "{run:?}");
    assert!(
        run.stdout.contains(&format!("PROBLEM: 2 segments are missing, {lost} to {lost_too}")),
        "{run:?}"
    );
    assert!(run.stdout.contains(&format!(": {first}\n")) && run.stdout.ends_with("NOT healthy\n"), "{run:?}");
    // A gap within a backup: it cannot be restored.
    objects.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("put it back"));
    let start = second.rsplit('-').next().expect("a position in the id");
    let name = format!("00000001{start}");
    fs::remove_file(site.stored(&name)).expect("lose a segment");
    site.work();
    let report = site.verify(&[]);
    assert_eq!(findings(&report)[0]["cost"]["backups_lost"], serde_json::json!([second]), "{report:#}");
}

#[test]
fn damage_is_found_by_index_or_by_reading_everything() {
    let site = site_with_table();
    let backup = site.full_backup();
    let (name, _) = (site.work(), site.work());
    let object = site.stored(&name);
    let clean = fs::read(&object).expect("read the object");
    // A byte of the WAL itself: the index does not tell.
    let mut damaged = clean.clone();
    damaged[2000] ^= 1;
    fs::write(&object, &damaged).expect("damage it");
    assert_eq!(kinds(&site.verify(&[])), Vec::<&str>::new());
    let deep = site.verify(&["--deep"]);
    assert_eq!(kinds(&deep), ["damaged"], "{deep:#}");
    assert_eq!(findings(&deep)[0]["first"], name.as_str());
    assert_eq!(findings(&deep)[0]["cost"]["backups_cut"], serde_json::json!([backup]));
    // A byte of the index: told either way, once.
    let mut damaged = clean.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    fs::write(&object, &damaged).expect("damage it");
    for arguments in [&[][..], &["--deep"]] {
        let report = site.verify(arguments);
        let of_it: Vec<_> =
            findings(&report).into_iter().filter(|finding| finding["first"] == name.as_str()).collect();
        assert_eq!(of_it.len(), 1, "{report:#}");
        assert_eq!(of_it[0]["kind"], "damaged");
    }
    fs::write(&object, &clean).expect("mend it");
    assert_eq!(kinds(&site.verify(&["--deep"])), Vec::<&str>::new());
}

/// PGDATA is set back to an older copy and goes on: other WAL under the same names.
#[test]
fn other_wal_under_the_same_names_does_not_fit() {
    let mut site = site_with_table();
    site.full_backup();
    site.cluster.stop(StopMode::Fast);
    let data = site.cluster.data_directory().to_path_buf();
    let copy = site.cluster.directory("copy").join("data");
    copy_tree(&data, &copy, &|_| false);
    site.cluster.start();
    let names = [site.work(), site.work(), site.work()];
    site.cluster.stop(StopMode::Fast);
    fs::remove_dir_all(&data).expect("remove the data directory");
    copy_tree(&copy, &data, &|_| false);
    ServerUser::get().own(&data);
    fs::remove_file(site.stored(&names[0])).expect("make room for the other one");
    site.cluster.start();
    site.cluster.execute("INSERT INTO t SELECT i FROM generate_series(1, 1500) i");
    site.cluster.archive_now();
    let report = site.verify(&[]);
    assert!(kinds(&report).contains(&"broken") && kinds(&report).contains(&"ahead"), "{report:#}");
    let broken = findings(&report)
        .into_iter()
        .find(|finding| finding["kind"] == "broken")
        .expect("it is there")
        .clone();
    assert_eq!(broken["first"], names[0].as_str(), "{report:#}");
    // And the archiver cannot go on.
    site.cluster.execute("INSERT INTO t SELECT i FROM generate_series(1, 1500) i");
    site.cluster.switch_wal();
    site.cluster.wait_for("a failure", "SELECT failed_count > 0 FROM pg_stat_archiver");
    assert!(kinds(&site.verify(&[])).contains(&"archiver"));
}

#[test]
fn what_is_not_archived_yet_is_lag_and_a_failing_archiver_is_told() {
    let site = site_with_table();
    site.full_backup();
    site.work();
    site.cluster.configure("archive_command", "false");
    site.cluster.execute("SELECT pg_reload_conf()");
    for _ in 0..3 {
        site.cluster.execute("INSERT INTO t VALUES (1)");
        site.cluster.switch_wal();
    }
    site.cluster.wait_for("a failure", "SELECT failed_count > 0 FROM pg_stat_archiver");
    let report = site.verify(&[]);
    assert_eq!(kinds(&report), ["archiver"], "{report:#}");
    assert_eq!(report["server"]["lag_segments"], 3, "{report:#}");
    assert!(report["server"]["lag_bytes"].as_u64().expect("a number") > 3 << 20);
    assert!(report["server"]["lag_seconds"].as_f64().expect("a number") > 0.0);
}

#[test]
fn another_server_and_one_that_does_not_archive_are_told() {
    let site = site_with_table();
    site.full_backup();
    site.work();
    let other = builder().start();
    let report = site.verify_at(&other, &[]);
    assert_eq!(kinds(&report), ["other_server", "archiver"], "{report:#}");
    // No server at all: that is said, and is no finding.
    let mut site = site;
    site.cluster.stop(StopMode::Fast);
    let report = site.verify(&[]);
    assert_eq!(report["server"], Value::Null);
    assert!(report["server_problem"].as_str().expect("a reason").starts_with("connect to PostgreSQL at "));
    assert_eq!(report["healthy"], true);
}

#[test]
fn continuity_goes_across_timelines() {
    let site = site_with_table();
    let backup = site.full_backup();
    let before = site.work();
    let mut standby = Cluster::standby_of(&site.cluster);
    let configuration = site.directory.join("walhold.toml").display().to_string();
    standby.archive_with(walhold(), &[("WALHOLD_CONFIG", &configuration)]);
    standby.restart();
    site.cluster.execute("INSERT INTO t VALUES (1)");
    site.cluster.wait_replayed_by(&standby);
    let mut site = site;
    site.cluster.stop(StopMode::Immediate);
    standby.promote();
    standby.execute("INSERT INTO t SELECT i FROM generate_series(1, 1000) i");
    let on_new = standby.archive_now();
    assert!(on_new.starts_with("00000002"), "{on_new}");
    let report = site.verify_at(&standby, &["--deep"]);
    assert_eq!(kinds(&report), Vec::<&str>::new(), "{report:#}");
    let timelines = report["systems"][0]["timelines"].as_array().expect("timelines");
    assert_eq!(timelines.len(), 2, "{report:#}");
    assert_eq!(report["server"]["timeline"], 2);
    // The last segment that only the old timeline has.
    let object = site.stored(&before);
    let bytes = fs::read(&object).expect("read it");
    fs::remove_file(&object).expect("lose it");
    let report = site.verify_at(&standby, &[]);
    assert_eq!(kinds(&report), ["gap"], "{report:#}");
    assert_eq!(findings(&report)[0]["first"], before.as_str());
    assert_eq!(findings(&report)[0]["cost"]["backups_cut"], serde_json::json!([backup]));
    fs::write(&object, bytes).expect("put it back");
    // The history that says how they hang together.
    let object = site.stored("00000002.history");
    let mut bytes = fs::read(&object).expect("read it");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&object, bytes).expect("damage it");
    let report = site.verify_at(&standby, &[]);
    assert!(kinds(&report).contains(&"history"), "{report:#}");
    standby.stop(StopMode::Fast);
}

#[test]
fn a_backup_without_any_wal_and_two_objects_of_one_name_are_told() {
    let site = site_with_table();
    site.full_backup();
    let name = site.work();
    let object = site.stored(&name);
    // As a store leaves it that cannot refuse a second object: under the digest of what it holds.
    let twin = PathBuf::from(format!("{}.{}", object.display(), "0".repeat(32)));
    fs::copy(&object, &twin).expect("make a second one");
    let marker = site.directory.join("repository/walhold.json");
    let enforced = fs::read_to_string(&marker).expect("read the marker");
    assert!(enforced.contains("\"enforced\""), "{enforced}");
    fs::write(&marker, enforced.replace("\"enforced\"", "\"suffixed\"")).expect("write the marker");
    let report = site.verify(&["--offline"]);
    assert_eq!(kinds(&report), ["two_objects"], "{report:#}");
    assert_eq!(findings(&report)[0]["first"], name.as_str());
    fs::write(&marker, enforced).expect("write the marker");
    fs::remove_file(&twin).expect("remove it");
    let wal = site.directory.join("repository/main/wal");
    remove_below(&wal);
    let report = site.verify(&["--offline"]);
    assert_eq!(kinds(&report), ["no_wal"], "{report:#}");
}

fn remove_below(directory: &Path) {
    fs::remove_dir_all(directory).expect("remove the archive");
    fs::create_dir_all(directory).expect("an empty one");
}
