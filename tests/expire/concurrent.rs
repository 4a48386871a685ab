//! Expire beside backups, pushes, restores and another expire, and after a kill at every point.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walhold::backup::tombstone::{self, Tombstone};
use walhold::format::{BackupId, ClusterName};

use crate::site::Site;
use crate::support::postgres::PATIENCE;
use crate::support::program::describe;
use crate::{everything, expire, listed, plan, site_with_backups, step_and_back_up};

const KEEP: [&str; 2] = ["--keep-last", "1"];

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn age(site: &Site, folder: &str, hours: u64) {
    let status = Command::new("find")
        .arg(site.repository.join("main").join(folder))
        .args(["-type", "f", "-exec", "touch", "-d", &format!("{hours} hours ago"), "{}", "+"])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A backup that was killed when it had stored something.
fn dead_attempt(site: &Site) -> String {
    site.cluster.execute("CREATE TABLE IF NOT EXISTS rows AS SELECT md5(i::text) || md5((i * 3)::text) AS x FROM generate_series(1, 300000) i");
    let known = listed(site);
    let arguments = ["backup-push", "--rate-limit", "500kB"];
    let mut child =
        site.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start walhold");
    let ids = || -> Vec<String> {
        let place = site.repository.join("main/backups");
        let names = fs::read_dir(place).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name().into_string().unwrap()).filter(|id| !known.contains(id)).collect()
    };
    until("the backup's announcement", || !ids().is_empty());
    let id = ids().remove(0);
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    // What it would have stored, had it come further.
    let folder = site.repository.join("main/packs").join(&id);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("00000000"), "a pack").unwrap();
    crate::support::postgres::installation::ServerUser::get().own(&folder);
    id
}

#[test]
fn a_kill_at_any_point_is_finished_by_the_next_run() {
    let points = [
        "expire: announced",
        "expire: agreed",
        "expire: mid-manifests",
        "expire: manifests deleted",
        "expire: mid-packs",
        "expire: packs deleted",
        "expire: mid-intents",
        "expire: mid-wal",
    ];
    let (site, first) = site_with_backups(1);
    let mut newest = first[0].clone();
    for (step, point) in (1..).zip(points) {
        newest = step_and_back_up(&site, step);
        let arguments = ["expire", "--confirm", "--grace", "0s", KEEP[0], KEEP[1]];
        let mut command = site.command(&arguments);
        let output = command.env("WALHOLD_TEST_KILL_AT", point).output().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(output.status.signal(), Some(9), "{point}: {}", describe(&output));
        assert!(listed(&site).contains(&newest), "{point}");
        expire(&site, &KEEP);
        assert_eq!(listed(&site), [newest.clone()], "{point}");
        let others =
            everything(&site).into_iter().filter(|path| !path.contains("/wal/") && !path.contains(&newest));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<String>::new(), "{point}");
        let left = plan(&site, &KEEP);
        assert_eq!(left["objects"], 0, "{point}: {left}");
    }
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step >= 0"), (points.len() + 1).to_string());
    assert_eq!(site.contents().manifest.summary.id.as_str(), newest);
}

#[test]
fn an_unfinished_backup_is_left_alone_until_it_is_old() {
    let (site, ids) = site_with_backups(1);
    let attempt = dead_attempt(&site);
    let young = expire(&site, &KEEP);
    assert_eq!(young["plan"]["unfinished"][0]["fate"], "at_work");
    assert!(site.repository.join("main/packs").join(&attempt).join("00000000").exists());
    age(&site, &format!("packs/{attempt}"), 25);
    age(&site, &format!("backups/{attempt}"), 25);
    let old = expire(&site, &KEEP);
    assert_eq!(old["plan"]["unfinished"][0]["fate"], "dead");
    assert!(!site.repository.join("main/packs").join(&attempt).exists());
    assert!(!site.repository.join("main/backups").join(&attempt).exists());
    assert_eq!(listed(&site), ids);
}

#[test]
fn what_a_backup_at_work_builds_on_stays() {
    let (site, ids) = site_with_backups(2);
    let attempt = dead_attempt(&site);
    // As an incremental backup announces itself.
    let folder = site.repository.join("main/backups").join(&attempt).join("intent");
    let intent = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&intent).unwrap()).unwrap();
    text["base"] = ids[0].as_str().into();
    fs::write(&intent, text.to_string()).unwrap();
    let done = expire(&site, &KEEP);
    assert_eq!(crate::reasons(&done["plan"], &ids[0]), ["base"]);
    assert_eq!(listed(&site), ids);
    age(&site, &format!("packs/{attempt}"), 25);
    age(&site, &format!("backups/{attempt}"), 25);
    expire(&site, &KEEP);
    assert_eq!(listed(&site), [ids[1].clone()]);
}

#[test]
fn a_backup_is_refused_when_what_it_points_to_is_announced() {
    let (site, ids) = site_with_backups(1);
    let (repository, cluster) = (site.open(), ClusterName::default());
    let manifest = site.contents().manifest;
    let other: BackupId = "20200101T000000Z-00000001-0000000A000000FE".parse().unwrap();
    let check = |id: &BackupId| {
        tombstone::check_before_publish(&repository, &cluster, id, &manifest.packs)
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(&other), Ok(()));
    let id: BackupId = ids[0].parse().unwrap();
    let is_named = || tombstone::list(&repository, &cluster).unwrap().iter().any(|(_, tomb)| tomb.names(&id));
    assert!(!is_named());
    let mut announced = Tombstone::new();
    announced.backups.push(id.clone());
    announced.packs.insert(id.clone(), vec![manifest.packs[0].number]);
    announced.publish(&repository, &cluster).unwrap();
    let problem = check(&other).unwrap_err();
    assert!(problem.starts_with(&format!("backup {other} cannot be completed: main/expire/")), "{problem}");
    assert!(is_named());
}

#[test]
fn a_running_backup_that_was_taken_for_dead_is_not_published() {
    let (site, _) = site_with_backups(1);
    site.cluster.execute("CREATE TABLE rows AS SELECT md5(i::text) || md5((i * 3)::text) AS x FROM generate_series(1, 100000) i");
    let known = site.objects("backups").len();
    let child = site
        .command(&["backup-push", "--rate-limit", "2MB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start walhold");
    until("the backup's announcement", || site.objects("backups").len() > known);
    // Its host slept for a day.
    until("its death", || {
        age(&site, "backups", 25);
        age(&site, "packs", 25);
        let done = expire(&site, &KEEP);
        done["plan"]["unfinished"][0]["fate"] == "dead"
    });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("says that what it points to is being deleted"), "{text}");
    assert_eq!(listed(&site).len(), 1);
    site.back_up();
}

#[test]
fn a_backup_that_completes_while_expire_waits_counts() {
    let (site, ids) = site_with_backups(2);
    let arguments = ["expire", "--confirm", "--json", "--grace", "6s", KEEP[0], KEEP[1]];
    let child = site.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the announcement", || !site.objects("expire").is_empty());
    let third = step_and_back_up(&site, 2);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["done"]["deleted_backups"], serde_json::json!([ids[0]]));
    // The second was not announced, so it waits for the next run.
    assert_eq!(listed(&site), [ids[1].clone(), third]);
}

#[test]
fn a_pin_while_expire_waits_counts() {
    let (site, ids) = site_with_backups(2);
    let arguments = ["expire", "--confirm", "--json", "--grace", "5s", KEEP[0], KEEP[1]];
    let child = site.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the announcement", || !site.objects("expire").is_empty());
    site.ok(&["backup-mark", &ids[0], "--permanent"]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    assert_eq!(listed(&site), ids);
    // The announcement was narrowed to what went.
    let (repository, cluster) = (site.open(), ClusterName::default());
    let announced = tombstone::list(&repository, &cluster).unwrap();
    assert!(
        announced.iter().all(|(_, tombstone)| tombstone.backups.is_empty() && tombstone.packs.is_empty())
    );
}

#[test]
fn two_at_once_beside_pushes_and_a_backup_leave_a_whole_repository() {
    let (site, _) = site_with_backups(4);
    let start = |arguments: &[&str]| {
        site.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start walhold")
    };
    let arguments = ["expire", "--confirm", "--grace", "1s", KEEP[0], KEEP[1]];
    let both = [start(&arguments), start(&arguments)];
    let backup = start(&["backup-push"]);
    for _ in 0..5 {
        site.cluster.execute("INSERT INTO steps VALUES (7)");
        site.cluster.archive_now();
    }
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", describe(&output));
    }
    let output = backup.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    assert!((1..=2).contains(&listed(&site).len()), "{:?}", listed(&site));
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step = 7"), "5");
}

#[test]
fn old_leftovers_of_interrupted_publications_go() {
    let (site, ids) = site_with_backups(1);
    let folder = site.repository.join("main/packs").join(&ids[0]);
    let names = [".00000009.walhold-77-0123abcd", "00000009#1"];
    for name in names {
        fs::write(folder.join(name), "half").unwrap();
    }
    expire(&site, &KEEP);
    assert!(names.iter().all(|name| folder.join(name).exists()), "they are young");
    let status =
        Command::new("touch").args(["-d", "25 hours ago"]).args(names.map(|name| folder.join(name))).status();
    assert!(status.unwrap().success());
    expire(&site, &KEEP);
    assert!(names.iter().all(|name| !folder.join(name).exists()));
    assert_eq!(listed(&site), ids);
}

#[test]
fn backups_that_share_packs_go_in_any_order() {
    let (site, mut ids) = site_with_backups(1);
    let incremental = |step| crate::step_and_run(&site, step, &["backup-push", "--json"]);
    ids.extend([incremental(1), incremental(2)]);
    let kinds: Vec<String> =
        site.list().iter().map(|backup| backup["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["full", "incremental", "incremental"]);
    let size = || site.objects("packs").iter().map(|object| object.size).sum::<u64>();
    let before = size();
    let done = expire(&site, &KEEP);
    assert_eq!(listed(&site), [ids[2].clone()]);
    // The full one's packs stay as far as the newest points to them.
    assert!(size() < before && site.repository.join("main/packs").join(&ids[0]).exists(), "{done}");
    let left = plan(&site, &KEEP);
    assert_eq!(left["objects"], 0, "{left}");
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step >= 0"), "3");
    drop(copy);
    // What the next one builds on is the one that is left; then the old packs go with the last that needs them.
    let next = incremental(3);
    expire(&site, &KEEP);
    assert_eq!(listed(&site), [next]);
    site.ok(&["verify", "--deep"]);
    let copy = site.contents().recover(&site, "copy-2");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step >= 0"), "4");
}

#[test]
fn a_backup_does_not_build_on_what_is_announced() {
    let (site, ids) = site_with_backups(1);
    let (repository, cluster) = (site.open(), ClusterName::default());
    let mut announced = Tombstone::new();
    announced.backups.push(ids[0].parse().unwrap());
    let object = announced.publish(&repository, &cluster).unwrap();
    crate::support::postgres::installation::ServerUser::get().own(&site.repository);
    assert_eq!(site.back_up()["kind"], "full");
    repository.delete(&object).unwrap();
    assert_eq!(site.back_up()["kind"], "incremental");
}

/// A restore that was killed when it had begun to read.
fn begun_restore(site: &Site, id: &str, name: &str) -> std::process::Output {
    let place = site.cluster.directory(name).join("data").display().to_string();
    let arguments = ["restore", "--clone", "--target-immediate", "--backup", id, "--pgdata", &place];
    site.command(&arguments).env("WALHOLD_TEST_KILL_AT", "restore: laid out").output().unwrap()
}

#[test]
fn a_backup_that_is_being_restored_stays_with_its_wal() {
    let (site, ids) = site_with_backups(2);
    begun_restore(&site, &ids[0], "restored");
    let leases = || site.objects(&format!("leases/{}", ids[0])).len();
    assert_eq!(leases(), 1);
    let done = expire(&site, &KEEP);
    assert_eq!(crate::reasons(&done["plan"], &ids[0]), ["restore"]);
    assert_eq!(listed(&site), ids);
    let kept_from = &done["plan"]["systems"][0]["wal_kept_from"];
    let begin = site.list()[0]["start_lsn"].as_str().unwrap().to_owned();
    // Up to where its segment begins.
    assert_eq!(kept_from.as_str().unwrap().get(..3), begin.get(..3), "{done}");
    // An hour after it was renewed for the last time.
    age(&site, "leases", 2);
    expire(&site, &KEEP);
    assert_eq!((listed(&site), leases()), (vec![ids[1].clone()], 1));
    age(&site, "leases", 25);
    expire(&site, &KEEP);
    assert_eq!(leases(), 0);
}

#[test]
fn a_restore_that_begins_while_expire_waits_counts() {
    let (site, ids) = site_with_backups(2);
    let arguments = ["expire", "--confirm", "--json", "--grace", "6s", KEEP[0], KEEP[1]];
    let child = site.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the announcement", || !site.objects("expire").is_empty());
    let restored = begun_restore(&site, &ids[0], "restored");
    let text = String::from_utf8_lossy(&restored.stderr);
    assert!(text.contains("an expire has announced that it deletes backup"), "{text}");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    assert_eq!(listed(&site), ids);
}

#[test]
fn a_restore_that_may_not_write_says_so_and_goes_on() {
    let (site, ids) = site_with_backups(1);
    // No folder can be made where a file lies.
    fs::write(site.repository.join("main/leases"), "").unwrap();
    let place = site.cluster.directory("restored").join("data").display().to_string();
    let arguments = ["restore", "--clone", "--target-immediate", "--backup", &ids[0], "--pgdata", &place];
    let output = site.run(&arguments);
    assert!(output.status.success(), "{}", describe(&output));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("nothing keeps expire from deleting backup") && text.contains("--permanent"),
        "{text}"
    );
}
