//! What `verify` finds, what it says that costs, and what it remembers.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::site::Site;
use crate::support::postgres::Cluster;
use crate::support::program::describe;
use crate::{fill, json, segments, sound_site, with_state};

/// Flips a bit in the middle of an object.
fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn pack(site: &Site, id: &str) -> PathBuf {
    site.repository.join("main/packs").join(id).join("00000000")
}

fn paths(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().map(|finding| finding["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_sound_repository_passes_each_way_and_is_recorded() {
    let site = with_state(sound_site().0);
    for (arguments, word) in [
        (&["verify"][..], "quick"),
        (&["verify", "--deep"], "deep"),
        (&["verify", "--sample", "50%"], "sample"),
    ] {
        let (report, status) = json(&site, arguments);
        assert_eq!((status, &report["depth"], paths(&report).len()), (0, &word.into(), 0), "{report}");
        let (listed, read) = (&report["listed_objects"], &report["read_objects"]);
        match word {
            "quick" => assert_eq!(read, 0),
            "deep" => assert!(listed == read && read.as_u64().unwrap() > 10, "{report}"),
            _ => assert!(read.as_u64() < listed.as_u64(), "{report}"),
        }
        assert_eq!(json(&site, &["status"]).0["verified"]["depth"], word);
    }
    assert_eq!(site.objects("verify").len(), 3);
    site.ok(&["verify", "--no-record"]);
    assert_eq!(site.objects("verify").len(), 3);
    assert_eq!(site.fails(&["verify", "--sample", "0"]).0, 2);
    assert!(fs::read_dir(site.cluster.directory("state").join("verify")).unwrap().next().is_none());
}

#[test]
fn a_missing_pack_costs_its_backup_until_it_is_copied_back() {
    let (site, ids) = sound_site();
    let aside = site.cluster.directory("aside").join("pack");
    fs::rename(pack(&site, &ids[0]), &aside).unwrap();
    let (report, status) = json(&site, &["verify"]);
    assert_eq!(status, 4);
    assert_eq!(paths(&report), [format!("main/packs/{}/00000000", ids[0])]);
    let finding = &report["findings"][0];
    assert_eq!(
        (&finding["problem"], &finding["backups"]),
        (&"it is missing".into(), &serde_json::json!([ids[0]]))
    );
    // Moments before the second backup need the first one.
    let (lost, windows) = (&finding["lost"], &report["systems"][0]["windows"]);
    assert_eq!(lost[0]["to"], windows[0]["from"]);
    assert_eq!(windows[0]["first_backup"], ids[1].as_str());
    let text = String::from_utf8(site.run(&["verify"]).stdout).unwrap();
    assert!(text.contains(&format!("backup {} cannot be restored", ids[0])), "{text}");
    assert!(text.contains("cannot be recovered: moments from "), "{text}");
    assert_eq!(json(&site, &["status"]).1, 4);
    fs::rename(&aside, pack(&site, &ids[0])).unwrap();
    assert_eq!(json(&site, &["verify"]).1, 0);
    assert_eq!(json(&site, &["status"]).1, 0);
}

#[test]
fn damage_inside_objects_is_found_by_a_deep_run_and_not_forgotten_by_a_quick_one() {
    let site = with_state(fill(Site::start_encrypted(Cluster::builder(15))).0);
    let ids: Vec<String> =
        site.list().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect();
    let stored = segments(&site);
    let bad_segment = stored[stored.len() - 2].clone();
    let bad_manifest = format!("main/backups/{}/manifest", ids[0]);
    let bad_pack = format!("main/packs/{}/00000000", ids[1]);
    for path in [&bad_segment, &bad_pack, &bad_manifest] {
        flip(&site.repository.join(path));
    }
    let (report, status) = json(&site, &["verify", "--deep"]);
    assert_eq!(status, 4);
    let mut expected = vec![bad_manifest.clone(), bad_pack.clone(), bad_segment.clone()];
    expected.sort();
    assert_eq!(paths(&report), expected, "{report}");
    let of = |path: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["path"] == path).unwrap()
    };
    assert_eq!(of(&bad_pack)["backups"], serde_json::json!([ids[1]]));
    assert_eq!(of(&bad_manifest)["backups"], serde_json::json!([ids[0]]));
    assert_eq!(of(&bad_segment)["backups"], serde_json::json!([]));
    // Nothing behind the bad segment can be reached: no backup follows.
    assert_eq!(of(&bad_segment)["lost"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["systems"][0]["windows"], serde_json::json!([]), "both backups are lost");

    // A quick run reads again what is known to be bad, and nothing else.
    let (again, status) = json(&site, &["verify"]);
    assert_eq!((status, paths(&again)), (4, expected));
    flip(&site.repository.join(&bad_segment));
    flip(&site.repository.join(&bad_manifest));
    assert_eq!(paths(&json(&site, &["verify"]).0), [bad_pack.as_str()]);
    flip(&site.repository.join(&bad_pack));
    assert_eq!(json(&site, &["verify"]).1, 0);
    assert_eq!(json(&site, &["status"]).1, 0);
}

#[test]
fn a_missing_segment_costs_a_span_of_time() {
    let (site, ids) = sound_site();
    let stored = segments(&site);
    // Between the backups: the first one's own WAL is whole.
    let own = site.list()[0]["stop_lsn"].as_str().unwrap().to_owned();
    let between = stored
        .iter()
        .position(|path| {
            path.ends_with(&format!(
                "{:02X}",
                u64::from_str_radix(own.split_once('/').unwrap().1, 16).unwrap() >> 24
            ))
        })
        .unwrap()
        + 2;
    fs::remove_file(site.repository.join(&stored[between])).unwrap();
    let (report, status) = json(&site, &["verify"]);
    assert_eq!((status, paths(&report)), (4, vec![stored[between].clone()]), "{report}");
    let windows = report["systems"][0]["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 2);
    assert_eq!(windows[1]["first_backup"], ids[1].as_str());
    let hole = &windows[0]["end"]["missing"];
    assert_eq!(hole, stored[between].rsplit('/').next().unwrap());
}

#[test]
fn an_interrupted_deep_run_goes_on_where_it_was() {
    let site = with_state(sound_site().0);
    let child = site
        .command(&["verify", "--deep", "--jobs", "1", "--rate-limit", "300kB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let journals = site.cluster.directory("state").join("verify");
    let lines = || {
        let entries = fs::read_dir(&journals).into_iter().flatten().flatten();
        entries.map(|entry| fs::read_to_string(entry.path()).unwrap().lines().count()).sum::<usize>()
    };
    let begun = std::time::Instant::now();
    while lines() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was read");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", describe(&output));
    assert!(site.objects("verify").is_empty(), "half a run is no result");
    let known = lines();
    let output = site.run(&["verify", "--deep"]);
    assert!(output.status.success(), "{}", describe(&output));
    let words = format!("going on with a run that was interrupted: {known} objects are read already");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&words), "{}", describe(&output));
    assert_eq!(lines(), 0);
}

#[test]
fn a_key_that_is_missing_is_no_damage() {
    let (mut site, _) = fill(Site::start_encrypted(Cluster::builder(15)));
    site.variables.retain(|(name, _)| name != "WALHOLD_ENCRYPTION_KEY_FILE");
    let output = site.run(&["verify"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(site.objects("verify").is_empty());
}
