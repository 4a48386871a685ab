//! One conformance suite for every backend, against real stores, and what each backend promises beyond it.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use walhold::codec::encode::ObjectSink;
use walhold::error::Explain;
use walhold::format::marker::CreateOnly;
use walhold::format::{Digest, ObjectKey};
use walhold::repository::{
    Naming, Patience, Published, Repository, RepositoryError, RepositorySettings, StoredObject, init,
};

use support::cloud_emulators::{Azurite, GcsEmulator};
use support::fault_proxy::{Fault, FaultProxy};
use support::gcs_gateway::Reports;
use support::postgres::installation::{cache_directory, run};
use support::program::{describe, walhold_command};
use support::stores::{ACCESS_KEY, Conditions, S3Server, SECRET_KEY, directory, s3_settings};
use support::tls_proxy;

const PATIENCE: Patience = Patience::PerRequest(Duration::from_secs(30));

fn key(path: &str) -> ObjectKey {
    ObjectKey::from_listing(path)
}

fn paths(objects: &[StoredObject]) -> Vec<&str> {
    objects.iter().map(|object| object.path.as_str()).collect()
}

/// Bytes that no compression, checksum or text conversion anywhere on the way can mistake.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn created(repository: &Repository, path: &str, naming: Naming, bytes: &[u8]) -> StoredObject {
    assert_eq!(repository.put(&key(path), naming, bytes).unwrap(), Published::Created, "{path}");
    repository.find(&key(path), naming).unwrap().expect("an object that was just created")
}

fn stream(
    repository: &Repository,
    path: &str,
    naming: Naming,
    bytes: &[u8],
) -> Result<Published, RepositoryError> {
    let mut publication = repository.publish(&key(path), naming, bytes.len() as u64)?;
    for piece in bytes.chunks(700_001) {
        publication.write(piece).expect("a piece taken");
    }
    publication.finish(&Digest::of(bytes))
}

/// Everything that the rest of walhold relies on, the same for every store.
fn conformance(settings: &RepositorySettings, expected: CreateOnly) {
    assert!(matches!(Repository::open(settings, PATIENCE), Err(RepositoryError::NoMarker { .. })));
    let first = init(settings, PATIENCE).unwrap();
    assert!(first.created);
    assert_eq!((first.create_only, first.marker.create_only), (expected, expected));
    let again = init(settings, PATIENCE).unwrap();
    assert!(!again.created);
    assert_eq!(again.marker, first.marker);

    let repository = Repository::open(settings, PATIENCE).unwrap();
    assert_eq!(repository.marker(), &first.marker);
    repository.prove_present().unwrap();
    assert_eq!(paths(&repository.list("").unwrap()), ["walhold.json"], "init left something behind");

    never_overwrites(&repository);
    one_of_many_publishers_wins(&repository);
    reads_what_was_written(&repository);
    publishes_large_objects(&repository);
    lists_in_order(&repository);
    tells_what_is_missing(&repository);
    leaves_nothing_when_dropped(&repository);
    deletes_once_and_again(&repository);
    keeps_both_tails(&repository);
}

fn never_overwrites(repository: &Repository) {
    let path = "main/wal/7/00000001/00000000/000000010000000000000001";
    let object = created(repository, path, Naming::ByStore, b"first");
    match repository.put(&key(path), Naming::ByStore, b"second").unwrap() {
        Published::Exists(found) => assert_eq!(found, object),
        Published::Created => panic!("{path} was created twice"),
    }
    assert_eq!(
        stream(repository, path, Naming::ByStore, b"third").unwrap(),
        Published::Exists(object.clone())
    );
    assert_eq!(
        stream(repository, path, Naming::ByStore, b"first").unwrap(),
        Published::Exists(object.clone())
    );
    assert_eq!(repository.read(&object).unwrap(), b"first");
    assert_eq!(paths(&repository.list("main/wal/7/00000001").unwrap()), [object.path.as_str()]);
}

fn one_of_many_publishers_wins(repository: &Repository) {
    let path = "main/race/object";
    let results: Vec<_> = std::thread::scope(|scope| {
        let publish = |n: u64| stream(repository, path, Naming::ByStore, &noise(1000, n + 1));
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || publish(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let created = results.iter().filter(|result| matches!(result, Ok(Published::Created))).count();
    match repository.marker().create_only {
        CreateOnly::Enforced => {
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert_eq!(created, 1);
            let winner = results.iter().position(|result| matches!(result, Ok(Published::Created))).unwrap();
            let object = repository.find(&key(path), Naming::ByStore).unwrap().unwrap();
            assert_eq!(repository.read(&object).unwrap(), noise(1000, winner as u64 + 1));
        }
        // Nobody can be refused in time, but two must not both be told that all is well.
        CreateOnly::Suffixed => {
            assert!(created <= 1, "{results:?}");
            let lost = |result: &&Result<_, _>| matches!(result, Err(error) if !is_conflict(error));
            assert_eq!(results.iter().find(lost).map(|result| format!("{result:?}")), None);
        }
    }
    for object in repository.list("main/race").unwrap() {
        repository.delete(&object).unwrap();
    }
}

fn is_conflict(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::TwoObjects { .. })
}

fn reads_what_was_written(repository: &Repository) {
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for (path, bytes) in [
        ("main/read/empty", Vec::new()),
        ("main/read/zeroes", vec![0; 4097]),
        ("main/read/crlf.txt", b"\r\n\0\xff\xfe\n\r<?xml version=\"1.0\"?>".to_vec()),
        ("main/read/every-byte", every_byte),
    ] {
        let object = created(repository, path, Naming::ByStore, &bytes);
        assert_eq!((object.key.as_str(), object.size), (path, bytes.len() as u64));
        assert_eq!(repository.read(&object).unwrap(), bytes);
        let (found, start) = repository.find_and_read(&key(path), Naming::ByStore, 100).unwrap().unwrap();
        assert_eq!((found, start.as_slice()), (object.clone(), &bytes[..bytes.len().min(100)]), "{path}");
        let age = jiff::Timestamp::now().duration_since(object.modified).abs();
        assert!(age.as_secs() < 300, "{path} was modified {}", object.modified);
        assert_eq!(repository.read_range(&object, 0, 0).unwrap(), b"");
    }
    let object = repository.find(&key("main/read/every-byte"), Naming::ByStore).unwrap().unwrap();
    assert_eq!(repository.read_range(&object, 255, 3).unwrap(), [255, 0, 1]);
    assert_eq!(repository.read_range(&object, 69_999, 1).unwrap(), [(69_999 % 256) as u8]);
    for (offset, length) in [(69_999, 2), (70_000, 1), (1 << 40, 5)] {
        let read = repository.read_range(&object, offset, length);
        assert!(matches!(read, Err(RepositoryError::Damaged { .. })), "{offset}+{length}: {read:?}");
    }
}

fn publishes_large_objects(repository: &Repository) {
    let bytes = noise(40 << 20, 5);
    for (path, naming) in [("main/large/object", Naming::ByStore), ("main/large/pack", Naming::Unique)] {
        assert_eq!(stream(repository, path, naming, &bytes).unwrap(), Published::Created);
        let object = repository.find(&key(path), naming).unwrap().unwrap();
        assert_eq!(object.size, bytes.len() as u64);
        for offset in (0..bytes.len()).step_by(8 << 20) {
            let range = repository.read_range(&object, offset as u64, 8 << 20).unwrap();
            assert!(range == bytes[offset..offset + (8 << 20)], "{path} differs after {offset}");
        }
    }
    let other = noise(40 << 20, 6);
    let object = repository.find(&key("main/large/object"), Naming::ByStore).unwrap().unwrap();
    let again = stream(repository, "main/large/object", Naming::ByStore, &other).unwrap();
    assert_eq!(again, Published::Exists(object.clone()));
    assert_eq!(repository.read_range(&object, 0, 100).unwrap(), bytes[..100]);
    // A guess that is far too low must not matter.
    let mut publication = repository.publish(&key("main/large/guess"), Naming::ByStore, 10).unwrap();
    for piece in bytes.chunks(1 << 20) {
        publication.write(piece).expect("a piece taken");
    }
    assert_eq!(publication.finish(&Digest::of(&bytes)).unwrap(), Published::Created);
    let object = repository.find(&key("main/large/guess"), Naming::ByStore).unwrap().unwrap();
    assert_eq!(object.size, bytes.len() as u64);
    assert_eq!(repository.list("main/large").unwrap().len(), 3);
}

fn lists_in_order(repository: &Repository) {
    let expected =
        ["main/list/a.b/1", "main/list/a/1", "main/list/a/2/x", "main/list/a0", "main/list/b", "main/listed"];
    for path in expected.iter().rev() {
        created(repository, path, Naming::ByStore, path.as_bytes());
    }
    let keys_below = |folder: &str| {
        let objects = repository.list(folder).unwrap();
        assert!(objects.iter().all(|object| object.size == object.key.as_str().len() as u64));
        assert!(objects.is_sorted_by_key(|object| object.path.clone()));
        let mut keys: Vec<_> = objects.into_iter().map(|object| object.key.to_string()).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys_below("main/list"), expected[..5]);
    assert_eq!(keys_below("main/list/a"), ["main/list/a/1", "main/list/a/2/x"]);
    assert_eq!(keys_below("main/none"), Vec::<String>::new());
    assert_eq!(repository.list_folders("main/list").unwrap(), ["a", "a.b"]);
    assert_eq!(repository.list_folders("main/none").unwrap(), Vec::<String>::new());
    assert_eq!(repository.list_folders("").unwrap(), ["main"]);
    let many: Vec<_> = (0..40).map(|n| format!("main/many/{n:03}")).collect();
    std::thread::scope(|scope| {
        for part in many.chunks(10) {
            scope.spawn(move || {
                part.iter().for_each(|path| drop(created(repository, path, Naming::Unique, b"x")));
            });
        }
    });
    assert_eq!(paths(&repository.list("main/many").unwrap()), many);
}

fn tells_what_is_missing(repository: &Repository) {
    for naming in [Naming::ByStore, Naming::AlwaysSuffixed, Naming::Unique] {
        assert_eq!(repository.find(&key("main/wal/none"), naming).unwrap(), None);
        assert_eq!(repository.find_and_read(&key("main/wal/none"), naming, 10).unwrap(), None);
    }
    let object = created(repository, "main/gone", Naming::Unique, b"gone");
    repository.delete(&object).unwrap();
    let error = repository.read(&object).unwrap_err();
    assert!(matches!(error, RepositoryError::Missing { .. }), "{error}");
    assert_eq!(error.to_string(), "read main/gone: it is not there");
}

fn leaves_nothing_when_dropped(repository: &Repository) {
    for length in [1000, 30 << 20] {
        for naming in [Naming::ByStore, Naming::Unique] {
            let mut publication = repository.publish(&key("main/dropped/x"), naming, length as u64).unwrap();
            publication.write(&noise(length, 9)).expect("bytes taken");
            drop(publication);
        }
    }
    assert_eq!(repository.find(&key("main/dropped/x"), Naming::Unique).unwrap(), None);
    assert_eq!(paths(&repository.list("main/dropped").unwrap()), Vec::<&str>::new());
    assert_eq!(repository.list_folders("main/dropped").unwrap(), Vec::<String>::new());
}

fn deletes_once_and_again(repository: &Repository) {
    let object = created(repository, "main/deleted/x", Naming::ByStore, b"x");
    repository.delete(&object).unwrap();
    repository.delete(&object).unwrap();
    assert_eq!(repository.find(&key("main/deleted/x"), Naming::ByStore).unwrap(), None);
    created(repository, "main/deleted/x", Naming::ByStore, b"another, now that it is free");
}

fn keeps_both_tails(repository: &Repository) {
    let path = "main/wal/7/000000010000000000000002.partial";
    let first = created(repository, path, Naming::AlwaysSuffixed, b"tail of one standby");
    assert_eq!(first.path, format!("{path}.{}", Digest::of(b"tail of one standby").short()));
    assert_eq!(first.key.as_str(), path);
    let again = repository.put(&key(path), Naming::AlwaysSuffixed, b"tail of one standby").unwrap();
    assert_eq!(again, Published::Exists(first.clone()));
    let (found, start) = repository.find_and_read(&key(path), Naming::AlwaysSuffixed, 4).unwrap().unwrap();
    assert_eq!((found, start.as_slice()), (first.clone(), b"tail".as_slice()));

    let second = repository.put(&key(path), Naming::AlwaysSuffixed, b"tail of another").unwrap();
    assert_eq!(second, Published::Created);
    let error = repository.find(&key(path), Naming::AlwaysSuffixed).unwrap_err();
    assert!(is_conflict(&error), "{error}");
    let listed = repository.list("main/wal/7").unwrap();
    let tails: Vec<_> = listed.iter().filter(|object| object.key == key(path)).collect();
    assert_eq!(tails.len(), 2);
    assert_eq!(repository.read(&first).unwrap(), b"tail of one standby");
}

/// Every name below a directory, hidden ones included, folders left out.
fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

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
fn s3_conforms() {
    let server = S3Server::start(Conditions::Enforced);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
    assert_eq!(unpublished_files(&server), Vec::<String>::new());
}

#[test]
fn s3_without_prefix_conforms() {
    let server = S3Server::start(Conditions::Enforced);
    conformance(&server.settings(""), CreateOnly::Enforced);
}

#[test]
fn s3_that_replaces_silently_conforms() {
    let server = S3Server::start(Conditions::Ignored);
    conformance(&server.settings("some/prefix"), CreateOnly::Suffixed);
    assert_eq!(unpublished_files(&server), Vec::<String>::new());
    names_carry_digests(&server);
}

/// Temporary objects, and parts of uploads that were neither completed nor aborted.
fn unpublished_files(server: &S3Server) -> Vec<String> {
    let root = server.bucket_directory();
    let mut files = files_below(root.parent().unwrap());
    files.retain(|name| name.contains(".walhold-tmp/") || name.contains(".part-"));
    files
}

fn names_carry_digests(server: &S3Server) {
    let repository = Repository::open(&server.settings("some/prefix"), PATIENCE).unwrap();
    let path = "main/wal/8/00000001/00000000/000000010000000000000009";
    let object = created(&repository, path, Naming::ByStore, b"one server's");
    assert_eq!(object.path, format!("{path}.{}", Digest::of(b"one server's").short()));
    assert_eq!(repository.list("main/wal/8").unwrap(), std::slice::from_ref(&object));
    // Another server that looked before this one had written.
    let other = format!("{path}.{}", Digest::of(b"another's").short());
    created(&repository, &other, Naming::Unique, b"another's");
    let error = repository.find(&key(path), Naming::ByStore).unwrap_err();
    let text = error.to_string();
    assert!(is_conflict(&error) && text.contains(&object.path) && text.contains(&other), "{text}");
    assert!(is_conflict(&repository.find_and_read(&key(path), Naming::ByStore, 1).unwrap_err()));
    assert_eq!(repository.read(&object).unwrap(), b"one server's");
}

/// An S3 repository behind a proxy, with an object in it.
struct Behind {
    proxy: FaultProxy,
    repository: Repository,
    object: StoredObject,
    content: Vec<u8>,
    server: S3Server,
}

fn behind_proxy() -> Behind {
    let server = S3Server::start(Conditions::Enforced);
    let proxy = FaultProxy::start(server.addr());
    let settings = s3_settings(proxy.addr(), "pg");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let content = noise(300_000, 3);
    let object = created(&repository, "main/x", Naming::ByStore, &content);
    Behind { proxy, repository, object, content, server }
}

#[test]
fn a_store_that_fails_a_few_times_is_asked_again() {
    let store = behind_proxy();
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::ResetMidBody,
        Fault::TruncateBody,
        Fault::LoseAnswer,
    ] {
        let again = || store.proxy.set_first(2, fault);
        again();
        assert!(store.repository.read(&store.object).unwrap() == store.content, "{fault:?}");
        assert_eq!(store.proxy.requests(), 3, "{fault:?}");
        again();
        let (found, _) =
            store.repository.find_and_read(&key("main/x"), Naming::ByStore, 10).unwrap().unwrap();
        assert_eq!(found, store.object);
        again();
        assert_eq!(store.repository.list("main").unwrap(), std::slice::from_ref(&store.object), "{fault:?}");
        again();
        let path = format!("main/{fault:?}");
        let put = store.repository.put(&key(&path), Naming::ByStore, b"new").unwrap();
        match put {
            Published::Created => {}
            // The first attempt did it and could not say so: the caller compares.
            Published::Exists(object) => assert_eq!(store.repository.read(&object).unwrap(), b"new"),
        }
        again();
        let object = store.repository.find(&key(&path), Naming::ByStore).unwrap().unwrap();
        again();
        store.repository.delete(&object).unwrap();
        again();
        store.repository.prove_present().unwrap();
    }
}

#[test]
fn a_large_object_survives_lost_answers_at_every_step() {
    let store = behind_proxy();
    let content = noise(26 << 20, 4);
    for (number, pattern) in ["uploads", "partNumber=2", "uploadId", "main/large"].into_iter().enumerate() {
        for (fault, naming) in [
            (Fault::Status(503), Naming::ByStore),
            (Fault::LoseAnswer, Naming::Unique),
            (Fault::ResetMidBody, Naming::ByStore),
        ] {
            let path = format!("main/large-{number}-{fault:?}");
            store.proxy.set_matching(pattern, 1, fault);
            let published = stream(&store.repository, &path, naming, &content);
            store.proxy.set(Fault::None);
            if let Err(error) = &published {
                panic!("{pattern} {fault:?}: {error}");
            }
            let object = store.repository.find(&key(&path), naming).unwrap().unwrap();
            assert!(store.repository.read_range(&object, 0, content.len()).unwrap() == content);
        }
    }
    let left: Vec<_> = unpublished_files(&store.server);
    assert!(left.iter().all(|name| !name.contains(".walhold-tmp/")), "{left:?}");
}

#[test]
fn patience_ends_whatever_the_store_does() {
    let store = behind_proxy();
    for fault in
        [Fault::Refuse, Fault::HangMidBody, Fault::Status(503), Fault::Delay(Duration::from_secs(30))]
    {
        store.proxy.set(fault);
        let begun = Instant::now();
        let hurried = store.repository.with_patience(Patience::Until(begun + Duration::from_secs(2)));
        let answers = [
            hurried.read(&store.object).map(drop),
            hurried.find(&key("main/x"), Naming::ByStore).map(drop),
            hurried.put(&key("main/y"), Naming::ByStore, b"y").map(drop),
            hurried.list("main").map(drop),
            hurried.prove_present(),
            hurried.delete(&store.object),
            stream(&hurried, "main/z", Naming::Unique, &store.content).map(drop),
        ];
        assert!(begun.elapsed() < Duration::from_secs(3), "{fault:?} took {:?}", begun.elapsed());
        for answer in answers {
            let is_told = matches!(answer, Err(RepositoryError::Unreachable { .. }));
            assert!(is_told, "{fault:?}: {answer:?}");
        }
        // The answer to an open must not be "no repository" either.
        let patience = Patience::PerRequest(Duration::from_millis(300));
        let error = Repository::open(&s3_settings(store.proxy.addr(), "pg"), patience).err().unwrap();
        assert!(matches!(error, RepositoryError::Unreachable { .. }), "{fault:?}: {error}");
    }
    store.proxy.set(Fault::Refuse);
    let hurried = store.repository.with_patience(Patience::PerRequest(Duration::from_millis(200)));
    let text = hurried.read(&store.object).map(drop).unwrap_err().to_string();
    assert!(text.ends_with(&format!("{}: Connection refused", store.proxy.addr())), "{text}");
}

#[test]
fn a_hang_is_noticed_before_the_patience_is_over() {
    let store = behind_proxy();
    store.proxy.set_first(1, Fault::HangMidBody);
    let begun = Instant::now();
    assert!(store.repository.read(&store.object).unwrap() == store.content);
    let took = begun.elapsed();
    assert!((14..22).contains(&took.as_secs()), "took {took:?}");
}

#[test]
fn a_refusal_is_not_repeated() {
    let store = behind_proxy();
    for fault in [Fault::Status(403), Fault::Status(401)] {
        store.proxy.set(fault);
        for answer in [
            store.repository.read(&store.object).map(drop),
            store.repository.find(&key("main/x"), Naming::ByStore).map(drop),
            store.repository.put(&key("main/y"), Naming::ByStore, b"y").map(drop),
            store.repository.list("main").map(drop),
            store.repository.list_folders("main").map(drop),
            store.repository.delete(&store.object),
        ] {
            assert!(matches!(answer, Err(RepositoryError::Denied { .. })), "{answer:?}");
        }
        assert_eq!(store.proxy.requests(), 6);
    }
    store.proxy.set(Fault::Status(403));
    assert_eq!(
        store.repository.read(&store.object).map(drop).unwrap_err().to_string(),
        "read main/x: the store refuses: HTTP 403 AccessDenied: Injected by the test"
    );
}

#[test]
fn a_store_that_asks_for_time_gets_it() {
    let store = behind_proxy();
    store.proxy.set_first(1, Fault::StatusRetryAfter(429, 2));
    let begun = Instant::now();
    store.repository.prove_present().unwrap();
    assert!((2..4).contains(&begun.elapsed().as_secs()), "took {:?}", begun.elapsed());
}

#[test]
fn what_the_store_does_not_know_is_told_apart() {
    let server = S3Server::start(Conditions::Enforced);
    let mut settings = server.settings("pg");
    let error = Repository::open(&settings, PATIENCE).err().unwrap();
    assert_eq!(error.to_string(), "no walhold repository at s3://bucket/pg: walhold.json is not there");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    // The bucket is deleted under an open repository.
    std::fs::rename(server.bucket_directory(), server.bucket_directory().with_extension("away")).unwrap();
    assert!(matches!(repository.prove_present(), Err(RepositoryError::NoMarker { .. })));
    assert!(matches!(repository.list("main"), Err(RepositoryError::NoMarker { .. })));
    std::fs::rename(server.bucket_directory().with_extension("away"), server.bucket_directory()).unwrap();
    repository.prove_present().unwrap();

    settings.url = "s3://other-bucket/pg".to_owned();
    assert!(matches!(Repository::open(&settings, PATIENCE), Err(RepositoryError::NoMarker { .. })));

    let mut wrong = server.settings("pg");
    wrong.options.insert("secret_access_key".to_owned(), "falsch-falsch".to_owned());
    let error = Repository::open(&wrong, PATIENCE).err().unwrap();
    assert!(matches!(error, RepositoryError::Denied { .. }), "{error}");
    assert!(error.hint().unwrap().contains("s3:ListBucket"));
    let text = format!("{error} {error:?} {wrong:?}");
    assert!(!text.contains("falsch") && !text.contains(SECRET_KEY), "{text}");
}

#[test]
fn a_store_that_refuses_conditions_is_used_without_them() {
    let server = S3Server::start(Conditions::Enforced);
    let mut settings = server.settings("pg");
    settings.options.insert("conditional_put".to_owned(), "disabled".to_owned());
    assert_eq!(init(&settings, PATIENCE).unwrap().create_only, CreateOnly::Suffixed);
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    created(&repository, "main/x", Naming::ByStore, b"x");
    assert!(matches!(repository.put(&key("main/x"), Naming::ByStore, b"y").unwrap(), Published::Exists(_)));
}

#[test]
fn azure_conforms() {
    let server = Azurite::start();
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn google_conforms() {
    let server = GcsEmulator::start(Reports::Md5);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn a_store_that_reports_no_digest_is_read_back() {
    let server = GcsEmulator::start(Reports::Nothing);
    conformance(&server.settings("some/prefix"), CreateOnly::Enforced);
}

#[test]
fn what_a_store_kept_wrongly_is_sent_again() {
    let server = GcsEmulator::start(Reports::WrongContentOnce);
    let settings = server.settings("pg");
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let content = noise(5000, 8);
    let object = created(&repository, "main/x", Naming::ByStore, &content);
    assert_eq!(repository.read(&object).unwrap(), content);
}

/// A store with a certificate, reached by the program itself: whom it trusts is read from its environment.
#[test]
fn a_store_behind_tls_is_trusted_only_if_its_authority_is() {
    let server = S3Server::start(Conditions::Enforced);
    let endpoint = format!("https://localhost:{}", tls_proxy::start(server.addr()).port());
    let init = |variables: &[(&str, &str)]| {
        let output = walhold_command()
            .arg("init")
            .env("WALHOLD_REPOSITORY", "s3://bucket/tls")
            .env("WALHOLD_WAL_PUSH_DEADLINE", "2s")
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .envs(variables.iter().copied())
            .output()
            .expect("run walhold");
        (output.status.code(), describe(&output))
    };
    let (status, text) = init(&[]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("invalid peer certificate: UnknownIssuer"), "{text}");
    assert!(!text.contains(SECRET_KEY), "{text}");
    let (status, text) = init(&[("SSL_CERT_FILE", &readable_authority())]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("created repository s3://bucket/tls"), "{text}");
    assert!(server.bucket_directory().join("tls/walhold.json").exists());
}

/// The program runs as the server's user, who may not see the source tree.
fn readable_authority() -> String {
    let copy = cache_directory().join("test-authority.pem");
    std::fs::copy(tls_proxy::authority(), &copy).expect("copy the authority's certificate");
    copy.display().to_string()
}

/// A file system of a given size in memory; it is unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> SmallDisk {
        let disk = SmallDisk(tempfile::tempdir().unwrap());
        let options = format!("size={size}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(disk.0.path()));
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_or_read_only_disk_is_told_at_once_and_keeps_nothing_half() {
    for options in [[].as_slice(), &[("staging", "named")]] {
        let disk = SmallDisk::mount("3m");
        let settings = directory(disk.0.path(), options);
        init(&settings, PATIENCE).unwrap();
        let repository = Repository::open(&settings, PATIENCE).unwrap();
        created(&repository, "main/x", Naming::ByStore, b"x");
        let before = files_below(disk.0.path());
        let begun = Instant::now();
        let mut publication = repository.publish(&key("main/y"), Naming::ByStore, 5 << 20).unwrap();
        let written = noise(5 << 20, 1).chunks(100_000).try_for_each(|piece| publication.write(piece));
        let error = written.expect_err("5 MiB fit into 3");
        assert_eq!(error.to_string(), "publish main/y: the store is full: No space left on device");
        drop(publication);
        assert_eq!(files_below(disk.0.path()), before);
        created(&repository, "main/z", Naming::ByStore, b"small enough again");

        run(Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()));
        let error = repository.put(&key("main/w"), Naming::ByStore, b"w").unwrap_err();
        assert_eq!(error.to_string(), "publish main/w: the store refuses: Read-only file system");
        assert_eq!(repository.find(&key("main/w"), Naming::ByStore).unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(2), "asked again in vain: {:?}", begun.elapsed());
    }
}
