//! Which backup is a base, and which is only compared.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::clone::{Case, assert_restores};
use crate::site::Site;
use crate::support::postgres::installation::{ServerUser, run};
use crate::support::postgres::{Cluster, StopMode, copy_tree};
use crate::support::program::walhold;

const INDEX: Case = Case { major: 15, source: "index" };

fn table(site: &Site) {
    site.cluster.execute("CREATE TABLE t AS SELECT i AS id, repeat(md5(i::text), 8) AS x FROM generate_series(1, 20000) i; CREATE INDEX ON t (id)");
}

fn touch(site: &Site, value: &str) {
    site.cluster.execute(&format!("UPDATE t SET x = '{value}' WHERE id % 500 = 0"));
}

/// `backup-push` with sources chosen by itself, and what it logs.
fn back_up(site: &Site) -> (Value, String) {
    let output = site.run(&["backup-push", "--json"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), log)
}

/// Puts the cluster's data directory, as a crash would leave it, where another may lie.
fn take_over(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("remove the old data directory");
    }
    copy_tree(from, to, &|_| false);
    ServerUser::get().own(to);
}

#[test]
fn auto_takes_the_index_and_a_named_source_that_cannot_be_used_fails() {
    let site = INDEX.start();
    table(&site);
    let first = site.back_up();
    assert_eq!((first["kind"].as_str(), first["changes_from"].as_str()), (Some("full"), Some("full")));
    touch(&site, "a");
    let (second, log) = back_up(&site);
    assert_eq!(second["changes_from"], "index", "{log}");
    assert!(log.contains("(summaries: PostgreSQL 15 has no WAL summaries)"), "{log}");
    let (status, line) = site.fails(&["backup-push", "--changes-from", "summaries"]);
    assert_eq!(status, 3);
    assert_eq!(
        line,
        "ERROR: changes cannot be taken from summaries: PostgreSQL 15 has no WAL summaries  HINT: --changes-from auto falls back to a source that can be trusted; --full stores everything"
    );
    assert_eq!(site.list().len(), 2);
    // It stored nothing, so that no expire need wait for it.
    let announced =
        |backup: &Value| site.objects(&format!("backups/{}", backup["id"].as_str().unwrap())).len();
    assert_eq!(site.objects("backups").len(), announced(&first) + announced(&second));
    let full: Value = serde_json::from_str(&site.ok(&["backup-push", "--full", "--json"])).expect("JSON");
    assert_eq!((full["kind"].as_str(), full["base"].is_null()), (Some("full"), true));
}

/// Vacuum sets all-visible bits in heap pages without a new LSN where hint bits are not logged.
#[test]
fn a_scan_needs_logged_hint_bits_and_no_restart() {
    let mut site = Site::start(Cluster::builder(15).checksums(false).setting("autovacuum", "off"));
    table(&site);
    site.back_up();
    let (status, line) = site.fails(&["backup-push", "--changes-from", "scan"]);
    assert_eq!(status, 3);
    assert!(line.contains("hint bits are not logged (no page checksums, wal_log_hints is off)"), "{line}");
    site.cluster.configure("wal_log_hints", "on");
    site.cluster.restart();
    site.ok(&["backup-push", "--full"]);
    touch(&site, "a");
    let scan = Case { major: 15, source: "scan" };
    scan.back_up(&site);
    site.cluster.restart();
    let (_, line) = site.fails(&["backup-push", "--changes-from", "scan"]);
    assert!(line.contains("the server may have been restarted at"), "{line}");
}

/// After a recovery the summarizer may look for ever for a segment that only the archive has: no backup waits for it.
#[test]
fn a_summarizer_that_fails_is_not_waited_for() {
    use std::os::unix::fs::PermissionsExt;
    let site = Case { major: 17, source: "summaries" }.start();
    table(&site);
    site.back_up();
    let summaries = site.cluster.data_directory().join("pg_wal/summaries");
    fs::set_permissions(&summaries, fs::Permissions::from_mode(0o500)).expect("close the directory");
    touch(&site, "a");
    let (backup, log) = back_up(&site);
    assert_eq!(backup["changes_from"], "index", "{log}");
    assert!(log.contains("(summaries: the summarizer fails at "), "{log}");
    fs::set_permissions(&summaries, fs::Permissions::from_mode(0o700)).expect("open the directory");
    assert_restores(&site, &backup, "restored");
}

#[test]
fn switched_page_checksums_are_noticed() {
    let mut site = INDEX.start();
    table(&site);
    site.back_up();
    site.cluster.stop(StopMode::Fast);
    let mut command = ServerUser::get().command(site.cluster.installation.program("pg_checksums"));
    run(command.arg("--disable").arg("-D").arg(site.cluster.data_directory()));
    site.cluster.start();
    touch(&site, "a");
    let (backup, log) = back_up(&site);
    assert_eq!(backup["changes_from"], "compare", "{log}");
    assert!(log.contains("page checksums were switched since backup"), "{log}");
    assert_restores(&site, &backup, "restored");
}

#[test]
fn a_crash_does_not_break_the_line() {
    let mut site = INDEX.start();
    table(&site);
    site.back_up();
    touch(&site, "a");
    site.cluster.kill9();
    site.cluster.start();
    touch(&site, "b");
    assert_restores(&site, &INDEX.back_up(&site), "restored");
}

/// The server was set back to an older copy of its disk: its WAL goes on at positions that the archive knows other WAL for.
#[test]
fn a_server_set_back_to_an_older_state_is_noticed() {
    let mut site = INDEX.start();
    table(&site);
    site.back_up();
    let data = site.cluster.data_directory().to_owned();
    let snapshot = site.cluster.directory("snapshot").join("data");
    site.cluster.stop(StopMode::Fast);
    take_over(&data, &snapshot);
    site.cluster.start();
    touch(&site, "of the lost line");
    let lost = site.back_up();
    site.cluster.execute("DELETE FROM t WHERE id < 1000");
    site.cluster.archive_now();
    site.cluster.stop(StopMode::Fast);
    take_over(&snapshot, &data);
    site.cluster.start();
    touch(&site, "x");
    site.cluster.execute("SELECT pg_switch_wal()");
    site.cluster.execute("CREATE TABLE other AS SELECT repeat('y', 500) FROM generate_series(1, 100000)");
    let (_, line) = site.fails(&["backup-push", "--changes-from", "index", "--wal-timeout", "2s"]);
    assert!(line.contains("changes cannot be taken from index"), "{line}");
    let _ = lost;
}

/// Recovered to a moment before the last backup: that one lies on a line of its own now, the one before it does not.
#[test]
fn after_a_recovery_only_backups_before_the_fork_are_trusted() {
    let mut site = INDEX.start();
    table(&site);
    let first = site.back_up();
    touch(&site, "kept");
    let target = site.cluster.value("SELECT pg_current_wal_insert_lsn()");
    touch(&site, "lost");
    let second = INDEX.back_up(&site);
    assert_eq!(second["base"], first["id"]);
    site.cluster.archive_now();
    let data = site.cluster.data_directory().to_owned();
    site.cluster.stop(StopMode::Fast);
    fs::remove_dir_all(&data).expect("lose the cluster");
    let place = data.display().to_string();
    site.ok(&["restore", "--pgdata", &place, "--target-lsn", &target]);
    ServerUser::get().own(&data);
    site.cluster.start();
    site.cluster.wait_promoted();
    assert_eq!(site.cluster.value("SELECT count(*) FROM t WHERE x = 'lost'"), "0");
    touch(&site, "new");
    let third = INDEX.back_up(&site);
    assert_eq!(third["base"], first["id"], "the backup of the abandoned line was trusted");
    assert_eq!(third["start_timeline"], 2);
    assert_restores(&site, &third, "restored");
    // The next one follows on the new line.
    touch(&site, "newer");
    let fourth = INDEX.back_up(&site);
    assert_eq!(fourth["base"], third["id"]);
    assert_restores(&site, &fourth, "again");
}

#[test]
fn a_backup_that_lost_a_pack_is_no_base() {
    let site = INDEX.start();
    table(&site);
    let first = site.back_up();
    touch(&site, "a");
    let second = INDEX.back_up(&site);
    let packs = site.objects(&format!("packs/{}", second["id"].as_str().unwrap()));
    fs::remove_file(site.repository.join(&packs[0].path)).expect("lose a pack");
    let (third, log) = back_up(&site);
    assert_eq!(third["base"], first["id"], "{log}");
    assert!(log.contains("is not used as a base") && log.contains("is missing"), "{log}");
    assert_restores(&site, &third, "restored");
}

/// A standby takes over from its primary's backup, and after its promotion from its own.
#[test]
fn a_standby_and_a_promoted_one_go_on() {
    let mut site = INDEX.start();
    table(&site);
    let first = site.back_up();
    touch(&site, "a");
    let mut standby = Cluster::standby_of(&site.cluster);
    site.cluster.execute("CHECKPOINT");
    site.cluster.wait_replayed_by(&standby);
    standby.execute("CHECKPOINT");
    let variables: Vec<(String, String)> = site.variables.clone();
    let on_standby = |standby: &Cluster, arguments: &[&str]| {
        let mut command = crate::support::program::walhold_command();
        command.envs(standby.environment()).envs(variables.iter().cloned()).args(arguments);
        let output = command.output().expect("run walhold");
        assert!(output.status.success(), "{}", crate::support::program::describe(&output));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let push = ["backup-push", "--json", "--changes-from", "index"];
    let second = on_standby(&standby, &push);
    assert_eq!((&second["base"], &second["from_standby"]), (&first["id"], &Value::Bool(true)));
    assert_restores(&site, &second, "of_standby");
    // Promoted, it archives by itself.
    site.cluster.stop(StopMode::Fast);
    standby.promote();
    let pairs: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    standby.archive_with(walhold(), &pairs);
    standby.restart();
    standby.execute("UPDATE t SET x = 'promoted' WHERE id % 300 = 0");
    let third = on_standby(&standby, &push);
    assert_eq!((&third["base"], &third["start_timeline"]), (&second["id"], &Value::from(2)));
    let _old = std::mem::replace(&mut site.cluster, standby);
    assert_restores(&site, &third, "of_promoted");
}

/// Expire takes manifests in any order; packs stay as long as a manifest names them.
#[test]
fn what_later_backups_use_outlives_its_own_backup() {
    let site = INDEX.start();
    table(&site);
    let first = site.back_up();
    touch(&site, "a");
    let second = INDEX.back_up(&site);
    touch(&site, "b");
    let third = INDEX.back_up(&site);
    site.ok(&["expire", "--confirm", "--grace", "0s", "--keep-last", "1"]);
    let left = site.list();
    assert_eq!(left.iter().map(|backup| &backup["id"]).collect::<Vec<_>>(), [&third["id"]]);
    let has_packs =
        |backup: &Value| !site.objects(&format!("packs/{}", backup["id"].as_str().unwrap())).is_empty();
    assert!(has_packs(&first) && has_packs(&third), "{second}");
    assert_restores(&site, &third, "alone");
    touch(&site, "c");
    let fourth = INDEX.back_up(&site);
    assert_eq!(fourth["base"], third["id"]);
    assert_restores(&site, &fourth, "next");
}
