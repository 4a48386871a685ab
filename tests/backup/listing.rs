//! Listing, showing and marking backups; none of it needs a server.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::site::{Site, id_of};
use crate::support::postgres::{Cluster, StopMode};

fn site_with_backups(count: usize) -> (Site, Vec<String>) {
    let mut site = Site::start(Cluster::builder(15));
    let take = |_| {
        let id = id_of(&site.back_up()).to_string();
        // Ids name the second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        id
    };
    let ids = (0..count).map(take).collect();
    site.cluster.stop(StopMode::Immediate);
    (site, ids)
}

fn listed(site: &Site) -> Vec<String> {
    site.list().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn marks_pin_a_backup_without_moving_it() {
    let (site, ids) = site_with_backups(2);
    assert_eq!(listed(&site), ids);
    assert_eq!(
        site.ok(&["backup-mark", &ids[0], "--permanent"]),
        format!("backup {} is permanent now\n", ids[0])
    );
    let permanent = |site: &Site| {
        site.list().iter().map(|backup| backup["permanent"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&site), ids, "a mark does not change the order");
    assert_eq!(permanent(&site), [true, false]);
    assert!(site.ok(&["backup-list"]).lines().nth(1).unwrap().ends_with("permanent"));
    site.ok(&["backup-mark", "latest", "--permanent"]);
    site.ok(&["backup-mark", &ids[0], "--impermanent"]);
    assert_eq!(permanent(&site), [false, true]);
    assert_eq!(site.objects("marks").len(), 3, "marks are added, never changed");
    let (status, line) = site.fails(&["backup-mark", &ids[0]]);
    assert_eq!(status, 2, "{line}");
}

#[test]
fn showing_a_backup_says_what_a_restore_needs() {
    let (site, ids) = site_with_backups(1);
    let text = site.ok(&["backup-show", &ids[0]]);
    for line in [
        "backup             ",
        "kind               full",
        "server             PostgreSQL 15.",
        "page checksums     the cluster has none",
        "database           postgres (5), ",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&site.ok(&["backup-show", "LATEST", "--json", "--files"])).unwrap();
    assert_eq!(json["id"], ids[0].as_str());
    assert_eq!(json["permanent"], false);
    assert!(json["backup_label"].as_str().unwrap().starts_with("START WAL LOCATION: "));
    let files = json["files"].as_array().unwrap();
    assert_eq!(files.len() as u64, json["file_count"].as_u64().unwrap());
    assert!(files.iter().any(|file| file["path"] == "global/pg_control" && file["size"] == 8192));
    assert!(json["server"]["settings"]["max_connections"] == "20");
    assert!(!json["server"]["settings"].as_object().unwrap().contains_key("archive_command"));
}

#[test]
fn what_is_not_there_is_told_with_the_next_step() {
    let site = Site::create(Cluster::builder(15));
    assert_eq!(site.ok(&["backup-list", "--json"]).trim(), "[]");
    let url = format!("file://{}", site.repository.display());
    assert_eq!(site.ok(&["backup-list"]), format!("no backups of cluster main in {url}\n"));
    let hint = "HINT: walhold backup-list shows what there is";
    let id = "20261120T224613Z-00000001-0000000A000000FE";
    for command in [vec!["backup-show", id], vec!["backup-mark", id, "--permanent"]] {
        let (status, line) = site.fails(&command);
        assert_eq!(
            (status, line),
            (1, format!("ERROR: there is no backup {id} of cluster main in {url}  {hint}"))
        );
    }
    let (status, line) = site.fails(&["backup-show", "latest"]);
    assert_eq!(
        (status, line),
        (1, format!("ERROR: there is no backup latest of cluster main in {url}  {hint}"))
    );
    let (status, line) = site.fails(&["backup-show", "yesterday"]);
    assert_eq!(status, 1);
    assert!(line.starts_with("ERROR: \"yesterday\" is not a backup id; expected one like "), "{line}");
}

#[test]
fn a_damaged_manifest_is_listed_as_damaged() {
    let (site, ids) = site_with_backups(2);
    let manifest = site.repository.join("main/backups").join(&ids[0]).join("manifest");
    let length = fs::metadata(&manifest).unwrap().len();
    // The index lies at the end, in front of the footer.
    let file = fs::File::options().read(true).write(true).open(&manifest).unwrap();
    for offset in length - 200..length {
        file.write_all_at(&[0xa5], offset).unwrap();
    }
    let output = site.run(&["backup-list", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&ids[0].as_str().into(), &"damaged".into()));
    assert!(list[0]["problem"].as_str().unwrap().contains("is damaged"));
    assert_eq!((&list[1]["id"], &list[1]["status"]), (&ids[1].as_str().into(), &"complete".into()));
    let (status, line) = site.fails(&["backup-list"]);
    assert_eq!(status, 1);
    assert!(
        line.starts_with(&format!(
            "ERROR: a backup cannot be used: object main/backups/{}/manifest is damaged",
            ids[0]
        )),
        "{line}"
    );
    let (status, line) = site.fails(&["backup-show", &ids[0]]);
    assert_eq!(status, 1, "{line}");
    site.ok(&["backup-show", &ids[1]]);
}

#[test]
fn a_backup_without_its_key_is_unreadable_not_damaged() {
    let mut site = Site::start_encrypted(Cluster::builder(15));
    let id = id_of(&site.back_up()).to_string();
    site.cluster.stop(StopMode::Immediate);
    site.variables.retain(|(name, _)| name != "WALHOLD_ENCRYPTION_KEY_FILE");
    let output = site.run(&["backup-list", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&id.as_str().into(), &"unreadable".into()));
    let (status, line) = site.fails(&["backup-list"]);
    assert_eq!(status, 1);
    assert!(
        line.ends_with(
            "which is not configured  HINT: add the key's file to [encryption] key_file; all listed keys read"
        ),
        "{line}"
    );
}

/// Readers rely on docs/json.md: what is printed stands there.
#[test]
fn every_field_of_the_json_is_documented() {
    fn names(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, into)),
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    into.push(name.clone());
                    // The names below are PostgreSQL's.
                    if name != "settings" || field.is_array() {
                        names(field, into);
                    }
                }
            }
            _ => {}
        }
    }
    let site = Site::start(Cluster::builder(15));
    let data = site.cluster.data_directory().display().to_string();
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let known: Vec<&str> =
        document.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches("[]")).collect();
    for arguments in [
        vec!["init", "--json"],
        vec!["backup-push", "--pgdata", &data, "--json"],
        vec!["backup-list", "--json"],
        vec!["backup-show", "latest", "--json", "--files"],
        vec!["config", "--json"],
        vec!["wal-show", "--all", "--json"],
    ] {
        let printed: serde_json::Value = serde_json::from_str(&site.ok(&arguments)).unwrap();
        let mut fields = Vec::new();
        names(&printed, &mut fields);
        assert!(fields.len() > 4, "{arguments:?} printed {printed}");
        for field in fields {
            assert!(known.contains(&field.as_str()), "docs/json.md does not know {field:?} of {arguments:?}");
        }
    }
}
