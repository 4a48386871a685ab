//! Where tablespaces go: as they are mapped, and never over those of the original.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::support::archive::contents;
use super::support::postgres::Cluster;
use super::support::postgres::installation::ServerUser;
use super::support::site::{Site, show};

#[test]
fn tablespaces_go_where_they_are_mapped() {
    let site = Site::start(Cluster::builder(15));
    let original = site.cluster.directory("space");
    site.cluster.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", original.display()));
    site.cluster.execute("CREATE TABLE spaced TABLESPACE space AS SELECT i FROM generate_series(1, 5000) i");
    site.back_up();
    site.cluster.archive_now();
    site.refuses(
        &[],
        &format!(
            "the directory of tablespace space {} is not empty  HINT: put it elsewhere: --tablespace space=DIRECTORY (empty)",
            original.display()
        ),
    );
    let target = site.target("mapped");
    let inside = format!("space={}/space", target.display());
    let run = site.restore(&target, &["--tablespace", &inside]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert_eq!(
        run.error_line(),
        format!(
            "tablespace space would go to {}/space, which overlaps PGDATA  HINT: give it a directory of its own: --tablespace space=DIRECTORY",
            target.display()
        )
    );
    assert!(!target.exists());
    site.refuses(
        &["--tablespace", "other=/elsewhere"],
        &format!(
            "--tablespace \"other\" names no tablespace of this backup  HINT: it has: space ({}, {})",
            site.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'"),
            original.display()
        ),
    );
    let before = contents(&original);
    let elsewhere = site.cluster.directory("elsewhere").join("space");
    let mapping = format!("space={}", elsewhere.display());
    site.started("mapped", &["--clone", "--tablespace", &mapping], |_, client| {
        let sum = show(client, "SELECT sum(i)::text FROM spaced");
        assert_eq!(sum, "12502500");
        let location =
            show(client, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'");
        assert_eq!(location, elsewhere.display().to_string());
        client
            .batch_execute("INSERT INTO spaced SELECT 0 FROM generate_series(1, 5000); CHECKPOINT")
            .expect("write");
    });
    assert_eq!(contents(&original), before, "the original's tablespace was touched");
}

/// Replay of CREATE TABLESPACE goes to the original path, and removes what it finds there.
#[test]
fn a_tablespace_younger_than_the_backup_never_overwrites_the_original() {
    let site = Site::start(Cluster::builder(15));
    let cluster = &site.cluster;
    let before = site.moment();
    let original = cluster.directory("later");
    cluster.execute(&format!("CREATE TABLESPACE later LOCATION '{}'", original.display()));
    cluster.execute("CREATE TABLE spaced TABLESPACE later AS SELECT i FROM generate_series(1, 5000) i");
    cluster.archive_now();
    let (oid, files) =
        (cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'later'"), contents(&original));
    assert!(!files.is_empty());
    for role in [&["--clone"][..], &[]] {
        let run = site.restore(&site.target("refused"), role);
        assert_eq!(run.status, Some(3), "{run:?}");
        let line = run.error_line();
        assert!(
            line.starts_with(&format!("tablespace {oid} was created after the backup began, at ")),
            "{line}"
        );
        let used = format!(
            "({}): replay creates it there again, and that directory is in use on this machine  HINT: take a newer backup",
            original.display()
        );
        assert!(line.contains(&used), "{line}");
        assert!(!site.target("refused").exists());
    }
    // A target before it, and a backup after it, are safe.
    let until = ["--clone", "--target-lsn", &before.lsn];
    site.started("before", &until, |_, client| {
        assert_eq!(show(client, "SELECT count(*)::text FROM pg_tablespace WHERE spcname = 'later'"), "0");
    });
    assert_eq!(contents(&original), files, "the original's tablespace was touched");

    // Another machine: the directory is not there, or empty.
    let aside = original.with_file_name("aside");
    fs::rename(&original, &aside).expect("put the directory aside");
    let run = site.restore(&site.target("refused"), &["--clone"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    assert!(run.error_line().contains("a clone must not share directories with its original"), "{run:?}");
    let run = site.restore(&site.target("refused"), &["--start"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    let create =
        format!("create it first: install -d -o {} ", fs::metadata(&aside).expect("look at it").uid());
    assert!(run.error_line().contains(&create), "{run:?}");
    let run = site.restore(&site.target("refused"), &["--plan"]);
    run.expect_success();
    assert!(run.stdout.contains("before the server is started, install -d -o"), "{run:?}");
    fs::create_dir(&original).expect("make an empty directory");
    ServerUser::get().own(&original);
    site.started("elsewhere", &["--clone"], |_, client| {
        assert_eq!(show(client, "SELECT sum(i)::text FROM spaced"), "12502500");
    });
    assert!(fs::read_dir(&original).expect("list it").next().is_some(), "replay did not go there");
    fs::remove_dir_all(&original).expect("remove the copy's directory");
    fs::rename(&aside, &original).expect("put the directory back");
}
