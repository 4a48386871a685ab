//! When nothing, or not everything, is deleted.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use crate::site::Site;
use crate::{everything, expire, listed, plan, reasons, site_with_backups};

fn damage_manifest(site: &Site, id: &str) {
    let manifest = site.repository.join("main/backups").join(id).join("manifest");
    let length = fs::metadata(&manifest).unwrap().len();
    let file = fs::File::options().read(true).write(true).open(&manifest).unwrap();
    for offset in length - 200..length {
        file.write_all_at(&[0xa5], offset).unwrap();
    }
}

#[test]
fn what_is_not_said_or_cannot_be_read_deletes_nothing() {
    let (site, ids) = site_with_backups(3);
    let before = everything(&site);
    let (status, line) = site.fails(&["expire", "--confirm"]);
    assert_eq!(status, 3);
    assert!(line.starts_with("ERROR: no retention policy is configured: nothing says what may go"), "{line}");

    let (status, line) = site.fails(&["expire", "--keep-last", "1", "--drop-damaged", &ids[0]]);
    assert_eq!(status, 3);
    assert!(line.starts_with(&format!("ERROR: backup {} is not damaged", ids[0])), "{line}");

    damage_manifest(&site, &ids[1]);
    let (status, line) = site.fails(&["expire", "--keep-last", "1", "--confirm", "--grace", "0s"]);
    assert_eq!(status, 3);
    let words =
        format!("ERROR: nothing is deleted, because the manifest of backup {} cannot be read", ids[1]);
    assert!(line.starts_with(&words), "{line}");
    assert!(line.contains(&format!("--drop-damaged {}", ids[1])), "{line}");
    assert_eq!(everything(&site), before);
    assert!(site.objects("expire").is_empty(), "nothing was announced");

    let done = expire(&site, &["--keep-last", "1", "--drop-damaged", &ids[1]]);
    assert_eq!(done["plan"]["dropped"][0], ids[1].as_str());
    assert_eq!(listed(&site), [ids[2].clone()]);
    assert!(!site.repository.join("main/packs").join(&ids[1]).exists());
}

#[test]
fn a_backup_that_lost_a_pack_counts_for_no_policy() {
    let (site, ids) = site_with_backups(3);
    let pack = site.repository.join("main/packs").join(&ids[2]).join("00000000");
    fs::remove_file(&pack).unwrap();
    let plan = plan(&site, &["--keep-last", "1"]);
    assert_eq!(reasons(&plan, &ids[2]), ["incomplete"]);
    assert_eq!(reasons(&plan, &ids[1]), ["last", "last-good"], "the last good one stays");
    expire(&site, &["--keep-last", "1", "--drop-damaged", &ids[2]]);
    assert_eq!(listed(&site), [ids[1].clone()]);
}

#[test]
fn a_damaged_history_deletes_nothing() {
    let (site, _) = site_with_backups(2);
    let system = fs::read_dir(site.repository.join("main/wal")).unwrap().next().unwrap().unwrap().path();
    fs::write(system.join("00000002.history"), "rubbish").unwrap();
    let (status, line) = site.fails(&["expire", "--keep-last", "1", "--confirm", "--grace", "0s"]);
    assert_eq!(status, 3);
    assert!(line.contains("because the history of timeline 2 of system"), "{line}");
    assert_eq!(listed(&site).len(), 2);
}

#[test]
fn objects_that_the_store_will_not_delete_are_told_and_the_rest_goes() {
    let (site, ids) = site_with_backups(3);
    // As an object lock would: this folder's objects stay. Its owner is another user than walhold's.
    let locked = site.repository.join("main/packs").join(&ids[0]);
    let count = fs::read_dir(&locked).unwrap().count();
    std::os::unix::fs::chown(&locked, Some(0), Some(0)).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    let (status, line) = site.fails(&["expire", "--keep-last", "1", "--confirm", "--grace", "0s"]);
    assert_eq!(status, 1);
    assert!(line.contains("could not be deleted"), "{line}");
    assert_eq!(listed(&site), [ids[2].clone()]);
    assert!(!site.repository.join("main/packs").join(&ids[1]).exists());
    assert_eq!(fs::read_dir(&locked).unwrap().count(), count);
    // The lock has passed.
    crate::support::postgres::installation::ServerUser::get().own(&locked);
    expire(&site, &["--keep-last", "1"]);
    assert!(!locked.exists());
}

#[test]
fn a_manifest_that_the_store_will_not_delete_keeps_all_that_it_needs() {
    let (site, ids) = site_with_backups(2);
    let locked = site.repository.join("main/backups").join(&ids[0]);
    std::os::unix::fs::chown(&locked, Some(0), Some(0)).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    let (status, _) = site.fails(&["expire", "--keep-last", "1", "--confirm", "--grace", "0s"]);
    assert_eq!(status, 1);
    assert_eq!(listed(&site), ids);
    let place = site.cluster.directory("restored").join("data").display().to_string();
    site.ok(&["restore", "--plan", "--pgdata", &place, "--backup", &ids[0], "--target-immediate"]);
}
