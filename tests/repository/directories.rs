//! Directories: what they promise beyond the suite.

use std::process::Command;
use std::time::{Duration, Instant};

use walhold::codec::encode::ObjectSink;
use walhold::format::marker::CreateOnly;
use walhold::repository::{Naming, Repository, RepositoryError, init};

use crate::conformance::{PATIENCE, conformance, created, files_below, key, noise};
use crate::support::postgres::installation::run;
use crate::support::stores::directory;
use crate::support::tmpfs::Tmpfs;

#[test]
fn a_directory_conforms() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("new/repository");
    conformance(&directory(&root, &[]), CreateOnly::Enforced);
    assert!(files_below(&root).iter().all(|name| !name.contains("/.") && !name.starts_with('.')));
}

#[test]
fn a_directory_without_unnamed_files_conforms() {
    let place = tempfile::tempdir().unwrap();
    conformance(&directory(place.path(), &[("staging", "named")]), CreateOnly::Enforced);
    assert!(files_below(place.path()).iter().all(|name| !name.contains("/.") && !name.starts_with('.')));
}

#[test]
fn an_unmounted_directory_is_no_repository_rather_than_an_empty_one() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("mount");
    let settings = directory(&root, &[]);
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let object = created(&repository, "main/x", Naming::ByStore, b"x");
    std::fs::rename(&root, place.path().join("elsewhere")).unwrap();
    for round in ["without mount point", "with an empty mount point"] {
        let name = key("main/x");
        let url = settings.url.clone();
        let expected = format!("no walhold repository at {url}: walhold.json is not there");
        let told = |error: RepositoryError| assert_eq!(error.to_string(), expected, "{round}");
        told(Repository::open(&settings, PATIENCE).err().unwrap());
        told(repository.prove_present().unwrap_err());
        told(repository.find(&name, Naming::ByStore).unwrap_err());
        told(repository.find(&name, Naming::AlwaysSuffixed).unwrap_err());
        told(repository.find_and_read(&name, Naming::ByStore, 1).unwrap_err());
        told(repository.read(&object).unwrap_err());
        told(repository.list("main").unwrap_err());
        told(repository.list_folders("main").unwrap_err());
        told(repository.delete(&object).unwrap_err());
        told(repository.put(&key("main/y"), Naming::ByStore, b"y").unwrap_err());
        let _ = std::fs::create_dir(&root);
    }
    assert_eq!(files_below(&root), Vec::<String>::new(), "something was written under the mount point");
}

#[test]
fn another_repository_in_the_same_place_is_noticed() {
    let place = tempfile::tempdir().unwrap();
    let settings = directory(place.path(), &[]);
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    std::fs::remove_file(place.path().join("walhold.json")).unwrap();
    init(&settings, PATIENCE).unwrap();
    let error = repository.prove_present().unwrap_err();
    assert!(matches!(error, RepositoryError::BadMarker { .. }), "{error}");
}

#[test]
fn init_leaves_foreign_directories_alone() {
    let place = tempfile::tempdir().unwrap();
    let settings = directory(place.path(), &[]);
    std::fs::create_dir(place.path().join("lost+found")).unwrap();
    std::fs::write(place.path().join(".snapshot"), "").unwrap();
    std::fs::write(place.path().join("thesis.txt"), "my only copy").unwrap();
    let error = init(&settings, PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "init repository file://{}: the directory is not empty and not a repository: it holds thesis.txt",
            place.path().display()
        )
    );
    assert_eq!(files_below(place.path()), [".snapshot", "thesis.txt"]);
    std::fs::remove_file(place.path().join("thesis.txt")).unwrap();
    assert!(init(&settings, PATIENCE).unwrap().created);
}

#[test]
fn a_damaged_or_newer_marker_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let settings = directory(place.path(), &[]);
    init(&settings, PATIENCE).unwrap();
    let marker = place.path().join("walhold.json");
    let text = std::fs::read_to_string(&marker).unwrap();
    for damaged in ["", "{", &text[..text.len() / 2], &text.replace(": 1,", ": 9,")] {
        std::fs::write(&marker, damaged).unwrap();
        let error = Repository::open(&settings, PATIENCE).err().unwrap();
        assert!(matches!(error, RepositoryError::BadMarker { .. }), "{damaged:?}: {error}");
        assert!(init(&settings, PATIENCE).is_err(), "init wrote over {damaged:?}");
        assert_eq!(std::fs::read_to_string(&marker).unwrap(), damaged);
    }
}

#[test]
fn a_truncated_file_is_damaged_and_a_folder_is_no_object() {
    let place = tempfile::tempdir().unwrap();
    let settings = directory(place.path(), &[]);
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let object = created(&repository, "main/x", Naming::ByStore, b"0123456789");
    std::fs::write(place.path().join("main/x"), "01234").unwrap();
    assert_eq!(
        repository.read(&object).unwrap_err().to_string(),
        "read main/x: it has 5 bytes, but 10 from 0 were asked for: it was truncated or replaced"
    );
    std::fs::create_dir(place.path().join("main/folder")).unwrap();
    for error in [
        repository.find(&key("main/folder"), Naming::ByStore).unwrap_err(),
        repository.find_and_read(&key("main/folder"), Naming::ByStore, 1).unwrap_err(),
        repository.put(&key("main/folder"), Naming::ByStore, b"x").unwrap_err(),
        repository.put(&key("main/x/y"), Naming::ByStore, b"x").unwrap_err(),
        repository.find(&key("../x"), Naming::ByStore).unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_full_or_read_only_disk_is_told_at_once_and_keeps_nothing_half() {
    for options in [[].as_slice(), &[("staging", "named")]] {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("disk");
        let disk = Tmpfs::mount(&root, "3m");
        let settings = directory(&root, options);
        init(&settings, PATIENCE).unwrap();
        let repository = Repository::open(&settings, PATIENCE).unwrap();
        created(&repository, "main/x", Naming::ByStore, b"x");
        let before = files_below(&root);
        let begun = Instant::now();
        let mut publication = repository.publish(&key("main/y"), Naming::ByStore, 5 << 20).unwrap();
        let written = noise(5 << 20, 1).chunks(100_000).try_for_each(|piece| publication.write(piece));
        let error = written.expect_err("5 MiB fit into 3");
        assert_eq!(error.to_string(), "publish main/y: the store is full: No space left on device");
        drop(publication);
        assert_eq!(files_below(&root), before);
        disk.wait_for_room(1 << 20);
        created(&repository, "main/z", Naming::ByStore, b"small enough again");

        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&root));
        let error = repository.put(&key("main/w"), Naming::ByStore, b"w").unwrap_err();
        assert_eq!(error.to_string(), "publish main/w: the store refuses: Read-only file system");
        assert_eq!(repository.find(&key("main/w"), Naming::ByStore).unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(20), "asked again in vain: {:?}", begun.elapsed());
    }
}
