//! What goes and what stays.

use crate::site::Site;
use crate::support::postgres::StopMode;
use crate::{everything, expire, listed, plan, reasons, segments, site_with_backups};

fn restore_plan(site: &Site, target: &[&str]) -> std::process::Output {
    let place = site.cluster.directory("restored").join("data").display().to_string();
    let arguments = [&["restore", "--plan", "--pgdata", &place], target].concat();
    site.run(&arguments)
}

#[test]
fn a_plan_says_why_and_deletes_nothing() {
    let (site, ids) = site_with_backups(3);
    site.ok(&["backup-mark", &ids[0], "--permanent"]);
    let before = everything(&site);
    let text = site.ok(&["expire", "--keep-last", "1"]);
    assert_eq!(everything(&site), before);
    for line in [
        "policy: keep_last 1 (days begin in UTC)".to_owned(),
        format!("goes   {}", ids[1]),
        format!("stays  {}", ids[2]),
        "number 1 of".replace("number 1 of", "the newest; the last good backup for timeline 1"),
        "nothing was deleted: add --confirm to delete".to_owned(),
        "can be recovered now:".to_owned(),
        "can be recovered afterwards:".to_owned(),
        format!(": the end of backup {}", ids[0]),
    ] {
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
    let plan = plan(&site, &["--keep-last", "1"]);
    assert_eq!(reasons(&plan, &ids[0]), ["permanent"]);
    assert!(reasons(&plan, &ids[1]).is_empty());
    assert_eq!(reasons(&plan, &ids[2]), ["last", "last-good"]);
    let system = &plan["systems"][0];
    assert_eq!(system["windows_before"].as_array().unwrap().len(), 1);
    let after = system["windows_after"].as_array().unwrap();
    assert_eq!((&after[0]["end"]["kind"], &after[1]["end"]["kind"]), (&"backup".into(), &"archive".into()));
    assert_eq!(after[1]["first_backup"], ids[2].as_str());
    assert_eq!(site.ok(&["delete", "--keep-last", "1"]), text, "delete is another name");
}

#[test]
fn what_stays_can_be_restored_and_what_goes_is_gone() {
    let (mut site, ids) = site_with_backups(4);
    site.ok(&["backup-mark", &ids[1], "--permanent"]);
    let planned = plan(&site, &["--keep-last", "1"]);
    let done = expire(&site, &["--keep-last", "1"]);
    assert_eq!(done["done"]["deleted_objects"], planned["objects"]);
    assert_eq!(done["done"]["freed_bytes"], planned["freed_bytes"]);
    assert_eq!(done["done"]["failed_objects"], 0);
    assert_eq!(listed(&site), [ids[1].clone(), ids[3].clone()]);
    for gone in [&ids[0], &ids[2]] {
        for folder in ["packs", "backups"] {
            let place = site.repository.join("main").join(folder).join(gone);
            assert!(!place.exists(), "{} is still there", place.display());
        }
    }
    assert_eq!(site.objects("expire").len(), 1, "the announcement stays");
    // The newest: with all WAL behind it.
    let copy = site.contents().recover(&site, "newest");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step >= 0"), "4");
    drop(copy);
    // The pinned one: its own end, and nothing else.
    let pinned = restore_plan(&site, &["--backup", &ids[1], "--target-immediate"]);
    assert!(pinned.status.success(), "{}", crate::support::program::describe(&pinned));
    let beyond = restore_plan(&site, &["--backup", &ids[1]]);
    assert_eq!(beyond.status.code(), Some(3), "{}", crate::support::program::describe(&beyond));
    // Nothing more to do.
    site.cluster.stop(StopMode::Fast);
    let again = plan(&site, &["--keep-last", "1"]);
    assert_eq!((&again["objects"], &again["freed_bytes"]), (&0.into(), &0.into()), "{again}");
}

#[test]
fn without_a_window_wal_stays_from_the_oldest_backup_that_a_policy_keeps() {
    let (site, ids) = site_with_backups(3);
    let before = segments(&site);
    expire(&site, &["--keep-last", "2"]);
    assert_eq!(listed(&site), ids[1..]);
    let after = segments(&site);
    assert!(after.len() < before.len() && before.ends_with(&after), "a suffix stays: {before:?} {after:?}");
    let plan = plan(&site, &["--keep-last", "2"]);
    assert_eq!(plan["systems"][0]["windows_after"].as_array().unwrap().len(), 1);
}

#[test]
fn with_a_window_older_backups_keep_only_their_own_wal() {
    let (site, ids) = site_with_backups(3);
    std::thread::sleep(std::time::Duration::from_secs(61));
    let plan = plan(&site, &["--keep-last", "2", "--keep-within", "1min"]);
    assert_eq!(reasons(&plan, &ids[2]), ["last", "window-start", "last-good"]);
    assert_eq!(reasons(&plan, &ids[1]), ["last"]);
    assert_eq!(plan["systems"][0]["windows_after"].as_array().unwrap().len(), 2);
    expire(&site, &["--keep-last", "2", "--keep-within", "1min"]);
    let own = restore_plan(&site, &["--backup", &ids[1], "--target-immediate"]);
    assert!(own.status.success(), "{}", crate::support::program::describe(&own));
    let newest = restore_plan(&site, &[]);
    assert!(newest.status.success(), "{}", crate::support::program::describe(&newest));
}

#[test]
fn backups_that_the_current_line_needs_stay_after_a_recovery_to_an_earlier_moment() {
    let (mut site, ids) = site_with_backups(3);
    // Back to before the last two backups; the new timeline has no backup of its own.
    site.cluster.stop(StopMode::Fast);
    let place = site.cluster.directory("back").join("data");
    let text = place.display().to_string();
    site.ok(&["restore", "--pgdata", &text, "--backup", &ids[0], "--target-immediate"]);
    let mut restored = crate::support::postgres::Cluster::from_data_directory(15, &place);
    restored.start();
    restored.wait_promoted();
    restored.archive_now();
    assert!(site.repository.join("main/wal").exists());
    let plan = plan(&site, &["--keep-last", "1"]);
    // The restore was a moment ago, too.
    assert_eq!(reasons(&plan, &ids[0]), ["restore", "last-good"], "timeline 2 has no other backup");
    assert!(reasons(&plan, &ids[1]).is_empty());
    assert_eq!(reasons(&plan, &ids[2])[0], "last");
    expire(&site, &["--keep-last", "1"]);
    let end = restore_plan(&site, &[]);
    assert!(end.status.success(), "{}", crate::support::program::describe(&end));
    let words = String::from_utf8_lossy(&end.stdout).into_owned();
    assert!(words.contains(&ids[0]), "{words}");
}

#[test]
fn an_encrypted_repository_expires_too() {
    use crate::support::postgres::Cluster;
    let site = Site::start_encrypted(Cluster::builder(15));
    site.cluster.execute("CREATE TABLE steps (step int)");
    let ids: Vec<String> = (0..2).map(|step| crate::step_and_back_up(&site, step)).collect();
    expire(&site, &["--keep-last", "1"]);
    assert_eq!(listed(&site), [ids[1].clone()]);
    let copy = site.contents().recover(&site, "copy");
    assert_eq!(copy.value("SELECT count(*) FROM steps WHERE step >= 0"), "2");
}
