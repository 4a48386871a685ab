//! Backups with a chosen source of changes, and clones restored from them.

use std::fs;

use serde_json::Value;

use crate::site::{Site, id_of};
use crate::support::postgres::Cluster;
use crate::support::postgres::installation::ServerUser;

/// Which server, and how changes are found.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub major: u32,
    pub source: &'static str,
}

impl Case {
    pub fn start(self) -> Site {
        let mut builder = Cluster::builder(self.major).checksums(true).setting("autovacuum", "off");
        if self.source == "summaries" {
            builder = builder.setting("summarize_wal", "on");
        }
        Site::start(builder)
    }

    /// An incremental backup that must be one, from this source.
    #[track_caller]
    pub fn back_up(self, site: &Site) -> Value {
        let text = site.ok(&["backup-push", "--json", "--changes-from", self.source]);
        let summary: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (summary["kind"].as_str(), summary["changes_from"].as_str()),
            (Some("incremental"), Some(self.source))
        );
        assert_eq!(summary["damaged_pages"], 0);
        summary
    }
}

/// A running server made from the backup alone: the WAL from its start to its stop, and no more. Tablespaces go below it.
pub fn clone_of(site: &Site, summary: &Value, name: &str) -> Cluster {
    let root = site.cluster.directory(name);
    let data = root.join("data");
    let mut arguments = vec!["restore", "--clone", "--target-immediate", "--backup"];
    let id = id_of(summary);
    arguments.push(id.as_str());
    let spaces: Vec<String> = site
        .cluster
        .query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 10000")
        .into_iter()
        .flatten()
        .filter(|location| location.starts_with('/'))
        .map(|location| {
            let place = root.join("spaces").join(location.replace('/', "_"));
            fs::create_dir_all(&place).expect("create a tablespace's directory");
            ServerUser::get().own(&root);
            format!("{location}={}", place.display())
        })
        .collect();
    spaces.iter().for_each(|space| arguments.extend(["--tablespace", space.as_str()]));
    let place = data.display().to_string();
    arguments.extend(["--pgdata", &place]);
    site.ok(&arguments);
    ServerUser::get().own(&root);
    let mut copy = Cluster::from_data_directory(site.cluster.major(), &data);
    copy.start();
    copy.wait_promoted();
    copy
}

/// Restores the backup and compares every row with the live server, which must not have changed since; pages and indexes are
/// checked.
#[track_caller]
pub fn assert_restores(site: &Site, summary: &Value, name: &str) -> Cluster {
    let copy = clone_of(site, summary, name);
    assert_eq!(copy.digest(), site.cluster.digest());
    for database in copy.databases() {
        let live = site.cluster.sequences(&database);
        for (sequence, value) in copy.sequences(&database) {
            assert!(
                (live[&sequence]..=live[&sequence] + 32).contains(&value),
                "{sequence}: {value}, not {}",
                live[&sequence]
            );
        }
    }
    copy.amcheck();
    copy
}
