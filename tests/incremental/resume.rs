//! A backup that ended early has stored something: the next one uses it, if it is what the cluster has now.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clone::assert_restores;
use crate::site::{Home, Site};
use crate::support::fault_proxy::Fault;
use crate::support::postgres::{Cluster, PATIENCE};
use crate::support::program::describe;

/// Small ones, so that a small cluster has many.
const PACK_SIZE: (&str, &str) = ("WALHOLD_TEST_PACK_SIZE", "400000");
const ROWS: &str = "INSERT INTO t SELECT i, md5(i::text) || md5((i * 3)::text) || md5((i * 7)::text) FROM generate_series(1, 60000) i";

fn builder() -> crate::support::postgres::ClusterBuilder {
    Cluster::builder(15).checksums(true).setting("autovacuum", "off")
}

fn fill(site: &Site) {
    site.cluster.execute("CREATE TABLE t (id bigint, x text)");
    site.cluster.execute(ROWS);
    site.cluster.execute("CREATE INDEX ON t (id)");
    site.cluster.execute("VACUUM t");
}

fn filled() -> Site {
    let site = Site::start(builder());
    fill(&site);
    site
}

fn backup(site: &Site, options: &[&str]) -> Command {
    let mut command = site.command(&[&["backup-push", "--json"], options].concat());
    command.env(PACK_SIZE.0, PACK_SIZE.1);
    command
}

/// Folders of backups without a manifest.
fn attempts(site: &Site) -> Vec<String> {
    let folders = fs::read_dir(site.repository.join("main/backups")).into_iter().flatten().flatten();
    let unfinished = folders.filter(|folder| !folder.path().join("manifest").exists());
    let mut ids: Vec<String> = unfinished.map(|folder| folder.file_name().into_string().unwrap()).collect();
    ids.sort();
    ids
}

/// A backup that dies at this place; the attempt's id.
#[track_caller]
fn killed_at(site: &Site, place: &str) -> String {
    let known = attempts(site);
    let output = backup(site, &[]).env("WALHOLD_TEST_KILL_AT", place).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{}", describe(&output));
    // Ids are whole seconds: the next one must not wait for its own.
    let new = attempts(site).into_iter().find(|id| !known.contains(id));
    new.expect("an attempt")
}

fn packs(site: &Site, id: &str) -> Vec<PathBuf> {
    let folder = fs::read_dir(site.repository.join("main/packs").join(id)).into_iter().flatten().flatten();
    let mut packs: Vec<PathBuf> = folder.map(|entry| entry.path()).collect();
    packs.sort();
    packs
}

fn pack_numbers(site: &Site, id: &str) -> Vec<u32> {
    let number = |pack: &PathBuf| pack.file_name().unwrap().to_str().unwrap().parse().unwrap();
    packs(site, id).iter().map(number).collect()
}

/// Those that the latest backup points to.
fn used_packs(site: &Site, id: &str) -> Vec<u32> {
    let packs = site.contents().manifest.packs;
    packs.iter().filter(|pack| pack.backup.as_str() == id).map(|pack| pack.number).collect()
}

fn stored_bytes(site: &Site, id: &str) -> u64 {
    packs(site, id).iter().map(|pack| pack.metadata().unwrap().len()).sum()
}

#[track_caller]
fn push(site: &Site, options: &[&str]) -> (Value, String) {
    let output = backup(site, options).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let summary = serde_json::from_slice(&output.stdout).expect("JSON");
    (summary, String::from_utf8(output.stderr).unwrap())
}

fn age(site: &Site, folder: &str) {
    let place = site.repository.join("main").join(folder);
    let files = Command::new("find")
        .arg(place)
        .args(["-type", "f", "-exec", "touch", "-d", "25 hours ago", "{}", "+"])
        .status();
    assert!(files.unwrap().success());
}

#[test]
fn what_an_interrupted_backup_stored_is_not_stored_again() {
    let site = filled();
    let attempt = killed_at(&site, "backup: copied");
    let stored = stored_bytes(&site, &attempt);
    assert!(packs(&site, &attempt).len() > 3, "{stored} bytes");
    // Pages change, a file grows, another one goes, between the attempts.
    site.cluster.execute("UPDATE t SET x = 'new' WHERE id BETWEEN 30000 AND 30100; INSERT INTO t SELECT i, 'more' FROM generate_series(70000, 72000) i; CREATE TABLE other AS SELECT 1 AS x");
    let output = site.command(&["backup-push"]).env(PACK_SIZE.0, PACK_SIZE.1).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(
        line.contains(", resumed: ") && line.contains(&format!(" reused from the attempt of {attempt}, WAL")),
        "{line}"
    );
    let summary = site.list().remove(0);
    assert_eq!(summary["kind"], "full");
    assert_eq!(summary["resumed"]["attempts"], serde_json::json!([attempt]));
    let (new, resumed) =
        (summary["new_bytes"].as_u64().unwrap(), summary["resumed"]["bytes"].as_u64().unwrap());
    assert!(resumed > stored / 4, "of {stored} bytes {resumed} were used again");
    assert!(
        new + resumed < stored + stored / 2 && new < stored,
        "{new} new bytes and {resumed} after {stored}"
    );
    let shown = site.ok(&["backup-show", "latest"]);
    assert!(shown.contains(&format!(" of the attempt of {attempt}")), "{shown}");
    site.ok(&["verify", "--deep"]);
    assert_restores(&site, &summary, "resumed");
    // What the backup points to is no leftover.
    let known = packs(&site, &attempt);
    let used = used_packs(&site, &attempt);
    assert!(!used.is_empty());
    age(&site, &format!("packs/{attempt}"));
    age(&site, &format!("backups/{attempt}"));
    site.ok(&["expire", "--confirm", "--grace", "0s", "--keep-last", "1"]);
    assert_eq!(pack_numbers(&site, &attempt), used, "of {}", known.len());
    assert_restores(&site, &summary, "after-expire");
    // The next backup takes over from the complete one alone, and keeps what lies in the attempt's packs.
    let (next, _) = push(&site, &[]);
    assert_eq!((&next["base"], &next["resumed"]), (&summary["id"], &Value::Null));
    assert_restores(&site, &next, "next");
}

#[test]
fn an_incremental_backup_resumes_twice_and_ends_in_a_full_one_without() {
    let site = filled();
    let (first, _) = push(&site, &[]);
    site.cluster.execute("UPDATE t SET x = md5(x) || md5(x || 'a') WHERE id % 3 = 0");
    let one = killed_at(&site, "backup: pack stored");
    assert!(!packs(&site, &one).is_empty());
    site.cluster.execute("UPDATE t SET x = 'again' WHERE id BETWEEN 40000 AND 40100");
    let two = killed_at(&site, "backup: before manifest");
    let (summary, _) = push(&site, &[]);
    assert_eq!((&summary["kind"], &summary["base"]), (&"incremental".into(), &first["id"]));
    let resumed = &summary["resumed"];
    assert!(resumed["bytes"].as_u64().unwrap() > summary["new_bytes"].as_u64().unwrap(), "{summary}");
    assert!(
        resumed["attempts"].as_array().unwrap().contains(&two.as_str().into()),
        "{summary}, {one}, {two}"
    );
    assert_restores(&site, &summary, "resumed");
    // A full backup takes nothing over.
    site.cluster.execute("UPDATE t SET x = md5(x) WHERE id % 3 = 1");
    killed_at(&site, "backup: before manifest");
    let (full, _) = push(&site, &["--full"]);
    assert_eq!((&full["kind"], &full["resumed"]), (&"full".into(), &Value::Null));
    assert_eq!(
        full["repository_bytes"].as_u64().unwrap() / 100_000,
        full["new_bytes"].as_u64().unwrap() / 100_000
    );
}

#[test]
fn encrypted_attempts_resume_with_their_key_only() {
    let mut site = Site::start_encrypted(builder());
    fill(&site);
    let attempt = killed_at(&site, "backup: copied");
    // A plain backup would have to point to sealed packs, and no key opens them.
    let variables = std::mem::take(&mut site.variables);
    site.variables.push(variables[0].clone());
    let (plain, log) = push(&site, &[]);
    assert_eq!(plain["resumed"], Value::Null);
    assert!(log.contains("of an interrupted backup is not used: "), "{log}");
    site.variables = variables;
    drop(plain);
    let second = killed_at(&site, "backup: copied");
    assert!(second > attempt);
    // The plain one is newer than the first attempt, and cannot be read with a key that must be used.
    let (summary, _) = push(&site, &[]);
    assert_eq!(summary["resumed"]["attempts"], serde_json::json!([second]));
    assert!(summary["new_bytes"].as_u64().unwrap() < stored_bytes(&site, &second) / 2, "{summary}");
    assert_restores(&site, &summary, "resumed");
}

/// What was done to every pack of the attempt, what is told of it, and whether anything of it may still be used.
fn tampered(change: impl Fn(&mut Vec<u8>), told: &str) {
    let site = filled();
    let attempt = killed_at(&site, "backup: copied");
    let stored = stored_bytes(&site, &attempt);
    for pack in packs(&site, &attempt) {
        let mut bytes = fs::read(&pack).unwrap();
        change(&mut bytes);
        fs::write(&pack, bytes).unwrap();
    }
    let (summary, log) = push(&site, &[]);
    assert!(log.contains(told), "{log}");
    assert_eq!(summary["resumed"], Value::Null, "{log}");
    assert!(summary["new_bytes"].as_u64().unwrap() > stored / 2);
    assert_restores(&site, &summary, "not-resumed");
}

#[test]
fn packs_whose_end_was_changed_are_not_used() {
    tampered(
        |bytes| {
            let at = bytes.len() - 150;
            bytes[at] ^= 1;
        },
        "is not used: ",
    );
}

#[test]
fn packs_that_are_cut_off_are_not_used() {
    tampered(|bytes| bytes.truncate(bytes.len() / 2), "is not used: ");
}

/// Their ends say what the cluster has, but their chunks do not hold it.
#[test]
fn packs_whose_chunks_were_changed_are_not_used() {
    tampered(
        |bytes| {
            // Every stretch of 1,000 bytes but for the end: every chunk.
            let end = bytes.len() - 40_000.min(bytes.len() / 2);
            (200..end).step_by(1000).for_each(|at| bytes[at] ^= 1);
        },
        "is not used any more: ",
    );
}

#[test]
fn expire_keeps_what_a_resuming_backup_uses() {
    let site = filled();
    site.back_up();
    site.cluster.execute("UPDATE t SET x = md5(x) || md5(x || 'a')");
    let attempt = killed_at(&site, "backup: copied");
    age(&site, &format!("packs/{attempt}"));
    age(&site, &format!("backups/{attempt}"));
    site.cluster.execute(
        "CREATE TABLE u AS SELECT md5(i::text) || md5((i * 11)::text) AS x FROM generate_series(1, 60000) i",
    );
    let announced =
        || site.objects("backups").iter().filter(|object| object.path.contains("/intent/")).count();
    let before = announced();
    let child = backup(&site, &["--rate-limit", "1MB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    // Announced, not only its folder made: else expire may announce first, and the backup does without the attempt.
    while announced() == before {
        assert!(begun.elapsed() < PATIENCE, "the backup did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let expired: Value = serde_json::from_str(&site.ok(&[
        "expire",
        "--json",
        "--confirm",
        "--grace",
        "0s",
        "--keep-last",
        "1",
    ]))
    .unwrap();
    let fates: Vec<&Value> = expired["plan"]["unfinished"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|plan| plan["id"] == attempt.as_str())
        .map(|plan| &plan["fate"])
        .collect();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["resumed"]["attempts"], serde_json::json!([attempt]), "{expired}");
    // If the backup was quicker than expire, its manifest is what keeps them.
    assert!(fates.iter().all(|fate| **fate == "at_work" || **fate == "used"), "{expired}");
    assert_restores(&site, &summary, "resumed");
}

#[test]
fn an_attempt_that_nobody_resumed_goes() {
    let site = filled();
    site.back_up();
    site.cluster.execute("UPDATE t SET x = md5(x)");
    let attempt = killed_at(&site, "backup: copied");
    age(&site, &format!("packs/{attempt}"));
    age(&site, &format!("backups/{attempt}"));
    site.ok(&["expire", "--confirm", "--grace", "0s", "--keep-last", "1"]);
    assert_eq!((packs(&site, &attempt).len(), attempts(&site).len()), (0, 0));
    let (summary, _) = push(&site, &[]);
    assert_eq!((&summary["kind"], &summary["resumed"]), (&"incremental".into(), &Value::Null));
    assert_restores(&site, &summary, "without");
}

/// First lines of the requests for objects of this attempt's that the store has seen.
fn requests(site: &Site, method: &str, id: &str) -> Vec<String> {
    let seen = site.bucket.as_ref().expect("a bucket").proxy.seen();
    let wanted = format!("/main/packs/{id}/");
    seen.into_iter().filter(|line| line.starts_with(method) && line.contains(&wanted)).collect()
}

/// The same over HTTP, where the process is gone in the middle of an upload and what the store has of it is no object.
#[test]
fn a_backup_killed_while_it_uploads_to_a_store_is_resumed() {
    let mut site = Site::create_in(Home::Bucket, builder());
    site.cluster.start();
    fill(&site);
    let proxy = &site.bucket.as_ref().expect("a bucket").proxy;
    // Half of it reaches the store; the job that wrote it waits, the others do not.
    proxy.set_matching("/00000003", 1, Fault::HoldRequest);
    let command = &mut backup(&site, &["--jobs", "2"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let attempt = loop {
        assert!(begun.elapsed() < PATIENCE, "nothing is uploaded: {:?}", proxy.seen());
        assert_eq!(child.try_wait().unwrap(), None, "the backup ended");
        if let Some(id) = attempts(&site).pop().filter(|id| proxy.held() == 1 && packs(&site, id).len() > 3) {
            break id;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let dead = packs(&site, &attempt);
    assert!(dead.iter().all(|pack| !pack.ends_with("00000003")), "{dead:?}");
    let stored = stored_bytes(&site, &attempt);

    proxy.set(Fault::None);
    let (summary, log) = push(&site, &["--jobs", "2"]);
    assert_eq!(summary["resumed"]["attempts"], serde_json::json!([attempt]), "{log}");
    let id = summary["id"].as_str().unwrap();
    let number = |field: &Value| field.as_u64().unwrap();
    let new = number(&summary["new_bytes"]);
    assert_eq!(new, stored_bytes(&site, id));
    // Of each dead pack only its end was asked for, and none was uploaded again.
    assert_eq!(requests(&site, "GET ", &attempt).len(), dead.len());
    assert_eq!(requests(&site, "PUT ", &attempt).len(), 0);
    assert_eq!(requests(&site, "PUT ", id).len(), packs(&site, id).len());
    assert_restores(&site, &summary, "resumed");

    // A day later packs go that the backup does not point to; the rest of the attempt goes with the backup.
    age(&site, &format!("packs/{attempt}"));
    age(&site, &format!("backups/{attempt}"));
    let expire = ["expire", "--confirm", "--grace", "0s", "--keep-last", "1"];
    site.ok(&expire);
    let used = used_packs(&site, &attempt);
    assert!(!used.is_empty());
    assert_eq!(pack_numbers(&site, &attempt), used, "of {}", dead.len());
    assert_restores(&site, &summary, "after-expire");
    let (full, _) = push(&site, &["--full"]);
    // What the attempt had was not stored again. How much of it the backup points to says less: files that databases have in common lie in
    // the attempt several times, and one place of each is enough.
    let all = number(&full["new_bytes"]);
    assert!(new + stored * 3 / 4 < all && all < (new + stored) * 5 / 4, "{new} + {stored} bytes, {full}");
    fs::remove_dir_all(site.repository.join("main/leases")).unwrap();
    site.ok(&expire);
    assert_eq!(packs(&site, &attempt), Vec::<PathBuf>::new());
    let left: Vec<String> = site.objects("backups").into_iter().map(|object| object.path).collect();
    let newest = full["id"].as_str().unwrap();
    assert!(left.iter().all(|path| path.contains(newest)), "{left:?}");
    assert_restores(&site, &full, "full");
}
