//! `wal-show`: what is said about an archive of which everything is known.

mod support;

use std::fs;

use serde_json::Value;

use support::archive::{Archive, Run};
use support::wal_files::{WalFiles, foreign_files, small_files};

fn json(run: &Run) -> Value {
    run.expect_success();
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run:?}"))
}

/// Everything but the third segment of timeline 1.
fn with_a_gap(files: &WalFiles) -> (Archive, Vec<String>) {
    let archive = Archive::new(files);
    let missing = files.segment(2);
    let mut of_timeline_1 = Vec::new();
    for (name, bytes) in &files.files {
        if name != missing {
            archive.push(name, bytes).expect_success();
        }
        if name.len() == 24 && name.starts_with("00000001") {
            of_timeline_1.push(name.clone());
        }
    }
    (archive, of_timeline_1)
}

#[test]
fn an_archive_is_shown_without_a_server() {
    let files = small_files();
    let (archive, names) = with_a_gap(files);
    fs::remove_dir_all(archive.path("data/global")).unwrap();
    for arguments in [vec!["wal-show", "--json"], vec!["wal-show", "--json", "--all"]] {
        let exact = arguments.len() == 3;
        let listing = json(&archive.walhold(arguments));
        assert_eq!(listing["repository"], archive.url());
        assert_eq!(listing["cluster"], "main");
        let system = &listing["systems"][0];
        assert_eq!(system["system_identifier"], files.system_identifier);
        assert_eq!(system["wal_segment_size"], 1 << 20);
        assert_eq!(system["problems"], Value::Array(Vec::new()));
        assert_eq!(system["partials"][0]["name"], files.only(".partial"));
        assert_eq!(system["backup_histories"][0]["name"], files.only(".backup"));
        let first = &system["timelines"][0];
        assert_eq!(first["timeline"], 1);
        assert_eq!((&first["parent"], &first["history_stored"]), (&Value::Null, &Value::Bool(false)));
        assert_eq!(first["segments"], names.len() - 1);
        let runs = first["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(
            (&runs[0]["first"], &runs[0]["last"]),
            (&names[0].as_str().into(), &names[1].as_str().into())
        );
        assert_eq!(runs[0]["segments"], 2);
        assert_eq!(runs[1]["last"], names[names.len() - 1].as_str());
        assert_eq!(first["gaps"].as_array().unwrap().len(), 1);
        assert_eq!(first["gaps"][0]["first"], names[2].as_str());
        assert_eq!(first["gaps"][0]["segments"], 1);
        let times = &runs[0]["commit_times"];
        assert_eq!(times["exact"], true, "a run of two is read whole");
        assert!(times["least"].as_str().unwrap() < times["greatest"].as_str().unwrap());
        assert!(exact || runs[1]["commit_times"]["exact"] != Value::Null);
        let second = &system["timelines"][1];
        assert_eq!(second["timeline"], 2);
        assert_eq!((&second["parent"], &second["history_stored"]), (&1.into(), &Value::Bool(true)));
        let history = String::from_utf8_lossy(files.bytes(files.only(".history"))).into_owned();
        assert_eq!(second["begins_at"].as_str(), history.split_whitespace().nth(1));
    }
}

#[test]
fn the_table_shows_the_same() {
    let files = small_files();
    let (archive, names) = with_a_gap(files);
    let run = archive.walhold(["wal-show"]);
    run.expect_success();
    let text = &run.stdout;
    assert!(
        text.starts_with(&format!("cluster main, system identifier {}: ", files.system_identifier)),
        "{text}"
    );
    let row = |first: &str| {
        let found = text.lines().find(|line| line.starts_with(first));
        found.unwrap_or_else(|| panic!("no line for {first}: {text}")).to_owned()
    };
    assert!(row(&names[0]).contains(&names[1]), "{text}");
    assert!(row(&names[0]).ends_with(" UTC"), "{text}");
    assert!(row(&names[2]).ends_with("1  MISSING"), "{text}");
    assert!(text.contains("timeline 2, which left timeline 1 at 0/"), "{text}");
    assert!(text.contains(files.only(".partial")) && text.contains(files.only(".backup")), "{text}");
}

#[test]
fn an_empty_archive_and_one_of_two_clusters_are_shown() {
    let files = small_files();
    let archive = Archive::new(files);
    let run = archive.walhold(["wal-show"]);
    run.expect_success();
    assert_eq!(run.stdout, format!("nothing is archived under the name main in {}\n", archive.url()));
    archive.push(files.segment(0), files.bytes(files.segment(0))).expect_success();
    let foreign = foreign_files();
    archive.set_control(foreign);
    archive.push(foreign.segment(0), foreign.bytes(foreign.segment(0))).expect_success();
    let listing = json(&archive.walhold(["wal-show", "--json"]));
    assert_eq!(listing["systems"].as_array().unwrap().len(), 2);
}

#[test]
fn one_index_is_shown() {
    let files = small_files();
    let archive = Archive::new(files);
    let segment = files.segment(0);
    archive.push(segment, files.bytes(segment)).expect_success();
    let index = json(&archive.walhold(["wal-show", "--json", "--index", segment]));
    assert_eq!(index["postgresql_major"], 15);
    assert_eq!(index["verdict"], "intact");
    assert!(index["transactions"]["count"].as_u64().unwrap() >= 20, "{index}");
    assert!(index["blocks"].as_array().is_some_and(|forks| !forks.is_empty()), "{index:#}");
    let run = archive.walhold(["wal-show", "--index", segment]);
    run.expect_success();
    assert!(run.stdout.starts_with(&format!("segment {segment}: ")), "{run:?}");
    let rows =
        run.stdout.lines().skip_while(|line| !line.starts_with("tablespace  database")).skip(1).count();
    assert_eq!(rows, index["blocks"].as_array().map_or(0, Vec::len), "{run:?}");
    archive.walhold(["wal-show", "--index", files.segment(1)]).expect_failure(
        1,
        &format!(
            "{} is not stored under the name main  HINT: walhold wal-show lists what is stored; check WALHOLD_CLUSTER",
            files.segment(1)
        ),
    );
}

#[test]
fn damage_and_strangers_are_problems() {
    let files = small_files();
    let archive = Archive::new(files);
    for n in [0, 1] {
        let segment = files.segment(n);
        let mut bytes = files.bytes(segment).to_vec();
        if n == 1 {
            bytes[100_000] ^= 0xFF;
        }
        archive.push(segment, &bytes).expect_success();
    }
    let folder = archive.stored_path(files.segment(0)).parent().unwrap().to_owned();
    fs::write(folder.join("notes.txt"), "by hand").unwrap();
    let listing = json(&archive.walhold(["wal-show", "--json"]));
    let problems: Vec<&str> =
        listing["systems"][0]["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("notes.txt is no archived file"), "{problems:?}");
    assert!(
        problems[1].starts_with(&format!("{} was archived damaged: at 0/", files.segment(1))),
        "{problems:?}"
    );
}
