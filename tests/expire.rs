//! Retention on real backups: what a plan says, what goes, what can be restored afterwards, and what happens to those who are at
//! work meanwhile.

mod support;

#[path = "expire/concurrent.rs"]
mod concurrent;
#[path = "expire/plans.rs"]
mod plans;
#[path = "expire/refusals.rs"]
mod refusals;
#[path = "backup/site.rs"]
#[allow(dead_code)]
mod site;
#[path = "expire/years.rs"]
mod years;

use std::time::Duration;

use serde_json::Value;
use site::{Site, id_of};
use support::postgres::Cluster;

/// A server with `count` backups, WAL before, between and behind them, and a table with one row per backup.
pub fn site_with_backups(count: u32) -> (Site, Vec<String>) {
    let site = Site::start(Cluster::builder(15));
    site.cluster.execute("CREATE TABLE steps (step int)");
    let ids = (0..count).map(|step| step_and_back_up(&site, step)).collect();
    site.cluster.archive_now();
    (site, ids)
}

/// A row, some archived WAL, a full backup.
pub fn step_and_back_up(site: &Site, step: u32) -> String {
    step_and_run(site, step, &["backup-push", "--json", "--full"])
}

pub fn step_and_run(site: &Site, step: u32, backup: &[&str]) -> String {
    site.cluster.execute(&format!("INSERT INTO steps VALUES ({step})"));
    site.cluster.archive_now();
    site.cluster.execute("INSERT INTO steps VALUES (-1)");
    site.cluster.archive_now();
    let id = id_of(&serde_json::from_str(&site.ok(backup)).expect("JSON")).to_string();
    // Ids name the second.
    std::thread::sleep(Duration::from_millis(1100));
    id
}

pub fn plan(site: &Site, policy: &[&str]) -> Value {
    let arguments = [&["expire", "--json"], policy].concat();
    serde_json::from_str(&site.ok(&arguments)).expect("JSON")
}

/// `expire --confirm` without waiting.
pub fn expire(site: &Site, policy: &[&str]) -> Value {
    let arguments = [&["expire", "--confirm", "--json", "--grace", "0s"], policy].concat();
    serde_json::from_str(&site.ok(&arguments)).expect("JSON")
}

pub fn listed(site: &Site) -> Vec<String> {
    site.list().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// The words why a backup stays.
pub fn reasons(plan: &Value, id: &str) -> Vec<String> {
    let backups = plan["systems"][0]["backups"].as_array().expect("backups");
    let backup = backups.iter().find(|backup| backup["id"] == id).expect("the backup");
    let keep = backup["keep"].as_array().expect("reasons");
    keep.iter().map(|reason| reason["reason"].as_str().unwrap().to_owned()).collect()
}

/// Names of the archived segments.
pub fn segments(site: &Site) -> Vec<String> {
    let objects = site.objects("wal");
    let names = objects.iter().map(|object| object.key.name().to_owned());
    names.filter(|name| name.len() == 24).collect()
}

/// Everything in the repository but tombstones.
pub fn everything(site: &Site) -> Vec<String> {
    let objects = site.objects("packs").into_iter().chain(site.objects("backups")).chain(site.objects("wal"));
    objects.map(|object| object.path).collect()
}
