//! What `status` says.

use std::fs;

use crate::site::Site;
use crate::support::postgres::Cluster;
use crate::{json, segments, sound_site};

fn problems(report: &serde_json::Value) -> Vec<String> {
    let problems = report["problems"].as_array().expect("problems");
    problems.iter().map(|problem| problem["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_sound_archive_is_healthy_and_its_window_is_told_in_times() {
    let (site, ids) = sound_site();
    let commit = site.cluster.value("SELECT to_char(max(timestamp) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM (SELECT pg_xact_commit_timestamp(xmin) AS timestamp FROM steps) x WHERE false");
    assert_eq!(commit, "");
    let (report, status) = json(&site, &["status"]);
    assert_eq!(status, 0, "{report}");
    assert_eq!(report["healthy"], true);
    let system = &report["systems"][0];
    let windows = system["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 1);
    assert_eq!((&windows[0]["first_backup"], &windows[0]["backups"]), (&ids[0].as_str().into(), &2.into()));
    assert_eq!(windows[0]["end"]["kind"], "archive");
    assert_eq!(system["last_backup"]["id"], ids[1].as_str());
    assert_eq!(windows[0]["to"], system["last_commit"]);
    assert!(system["last_commit"].as_str() > system["last_backup"]["stop_time"].as_str(), "{system}");
    assert!(system["last_commit_age_seconds"].as_u64().unwrap() < 120);
    assert_eq!(segments(&site).last().unwrap().rsplit('/').next(), system["newest_segment"]["name"].as_str());
    assert_eq!(
        (&report["verified"], &report["retention"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    let text = site.ok(&["status"]);
    for words in ["any moment from 20", "last backup", "healthy\n", "encryption     off", "next due by"] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn an_archive_without_backup_or_with_an_old_one_is_not() {
    let mut site = Site::create(Cluster::builder(15));
    let (report, status) = json(&site, &["status"]);
    assert_eq!(
        (status, problems(&report)),
        (4, vec!["nothing was ever archived under this name".to_owned()])
    );
    site.cluster.start();
    site.cluster.archive_now();
    let (report, status) = json(&site, &["status"]);
    let words = "there is no complete backup: nothing can be recovered".to_owned();
    assert_eq!((status, problems(&report)), (4, vec![words]));
    site.back_up();
    std::thread::sleep(std::time::Duration::from_secs(2));
    site.variables.push(("WALHOLD_STATUS_MAX_ARCHIVE_AGE".to_owned(), "1s".to_owned()));
    let (report, status) = json(&site, &["status"]);
    assert_eq!(status, 4);
    assert!(problems(&report)[0].ends_with("more than 1.00 s (status.max_archive_age)"), "{report}");
    site.variables.push(("WALHOLD_STATUS_MAX_VERIFY_AGE".to_owned(), "1d".to_owned()));
    let (report, _) = json(&site, &["status"]);
    assert_eq!(problems(&report)[1], "the repository was never verified (status.max_verify_age)");
    let (status, line) = site.fails(&["status"]);
    assert_eq!(status, 4);
    assert!(
        line.starts_with("ERROR: unhealthy: the newest segment, ") && line.contains("; and 1 more"),
        "{line}"
    );
}

#[test]
fn a_hole_and_damage_are_problems_but_what_expire_left_is_not() {
    let (site, ids) = sound_site();
    let stored = segments(&site);
    let hole = site.repository.join(&stored[stored.len() - 2]);
    let aside = site.cluster.directory("aside").join("segment");
    fs::rename(&hole, &aside).unwrap();
    let (report, status) = json(&site, &["status"]);
    assert_eq!(status, 4);
    let name = stored[stored.len() - 2].rsplit('/').next().unwrap();
    assert_eq!(problems(&report), [format!("WAL segment {name} is missing")], "{report}");
    fs::rename(&aside, &hole).unwrap();
    assert_eq!(json(&site, &["status"]).1, 0);

    site.ok(&["backup-mark", &ids[0], "--permanent"]);
    site.ok(&["expire", "--keep-last", "1", "--confirm", "--grace", "0s"]);
    let (report, status) = json(&site, &["status"]);
    assert_eq!((status, report["systems"][0]["windows"].as_array().unwrap().len()), (0, 2), "{report}");
    for command in ["verify", "wal-verify"] {
        let (report, status) = json(&site, &[command]);
        assert_eq!(status, 0, "{command}: {report}");
    }

    let manifest = site.repository.join("main/backups").join(&ids[0]).join("manifest");
    fs::write(&manifest, "rubbish").unwrap();
    let (report, status) = json(&site, &["status"]);
    assert_eq!(status, 4);
    assert!(problems(&report)[0].starts_with(&format!("the manifest of backup {} cannot be read", ids[0])));
}
