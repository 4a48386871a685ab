//! `status` and `verify` on real backups: what they say of a sound repository, and of damage done on purpose.

mod support;

#[path = "backup/site.rs"]
#[allow(dead_code)]
mod site;
#[path = "health/status.rs"]
mod status;
#[path = "health/verify.rs"]
mod verify;

use std::time::Duration;

use serde_json::Value;
use site::{Site, id_of};
use support::postgres::Cluster;
use support::program::describe;

/// A server with two backups and archived WAL around them.
pub fn sound_site() -> (Site, Vec<String>) {
    fill(Site::start(Cluster::builder(15)))
}

pub fn fill(site: Site) -> (Site, Vec<String>) {
    site.cluster.execute("CREATE TABLE steps (step int)");
    let step = |step: u32| {
        site.cluster.execute(&format!("INSERT INTO steps VALUES ({step})"));
        site.cluster.archive_now();
        let backup = site.ok(&["backup-push", "--json", "--full"]);
        let id = id_of(&serde_json::from_str(&backup).expect("JSON")).to_string();
        std::thread::sleep(Duration::from_millis(1100));
        for _ in 0..3 {
            site.cluster.execute("INSERT INTO steps VALUES (-1)");
            site.cluster.archive_now();
        }
        id
    };
    let ids = (0..2).map(step).collect();
    (site, ids)
}

/// A command's JSON and its exit status.
pub fn json(site: &Site, arguments: &[&str]) -> (Value, i32) {
    let output = site.run(&[arguments, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", describe(&output)));
    (value, output.status.code().unwrap_or(-1))
}

/// Paths of the archived segments, oldest first.
pub fn segments(site: &Site) -> Vec<String> {
    let objects = site.objects("wal");
    let paths = objects.into_iter().filter(|object| object.key.name().len() == 24);
    paths.map(|object| object.path).collect()
}

/// Runs with a state directory that the server's user can write.
pub fn with_state(mut site: Site) -> Site {
    let state = site.cluster.directory("state").display().to_string();
    site.variables.push(("WALHOLD_STATE_DIR".to_owned(), state));
    site
}
