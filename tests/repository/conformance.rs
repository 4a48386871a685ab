//! What every backend must do, and what the other tests need for it.

use std::path::Path;
use std::time::Duration;

use walhold::codec::encode::ObjectSink;
use walhold::format::marker::CreateOnly;
use walhold::format::{Digest, ObjectKey};
use walhold::repository::{
    Naming, Patience, Published, Repository, RepositoryError, RepositorySettings, StoredObject, init,
};

pub const PATIENCE: Patience = Patience::PerRequest(Duration::from_secs(30));

pub fn key(path: &str) -> ObjectKey {
    ObjectKey::from_listing(path)
}

pub fn paths(objects: &[StoredObject]) -> Vec<&str> {
    objects.iter().map(|object| object.path.as_str()).collect()
}

/// Bytes that no compression, checksum or text conversion anywhere on the way can mistake.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
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

pub fn created(repository: &Repository, path: &str, naming: Naming, bytes: &[u8]) -> StoredObject {
    assert_eq!(repository.put(&key(path), naming, bytes).unwrap(), Published::Created, "{path}");
    repository.find(&key(path), naming).unwrap().expect("an object that was just created")
}

pub fn stream(
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
pub fn conformance(settings: &RepositorySettings, expected: CreateOnly) {
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

pub fn never_overwrites(repository: &Repository) {
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

pub fn one_of_many_publishers_wins(repository: &Repository) {
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

pub fn is_conflict(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::TwoObjects { .. })
}

pub fn reads_what_was_written(repository: &Repository) {
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

pub fn publishes_large_objects(repository: &Repository) {
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

pub fn lists_in_order(repository: &Repository) {
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
    for folder in ["main/list", "main/many", "main/none", "main"] {
        let one_by_one = repository.list(folder).unwrap();
        for depth in 0..4 {
            let at_once = repository.list_in_parallel(folder, depth, 8).unwrap();
            assert_eq!(at_once, one_by_one, "{folder} in {depth} levels");
        }
    }
    assert_eq!(repository.leftovers("main").unwrap(), []);
}

pub fn tells_what_is_missing(repository: &Repository) {
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

pub fn leaves_nothing_when_dropped(repository: &Repository) {
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

pub fn deletes_once_and_again(repository: &Repository) {
    let object = created(repository, "main/deleted/x", Naming::ByStore, b"x");
    repository.delete(&object).unwrap();
    repository.delete(&object).unwrap();
    assert_eq!(repository.find(&key("main/deleted/x"), Naming::ByStore).unwrap(), None);
    created(repository, "main/deleted/x", Naming::ByStore, b"another, now that it is free");
}

pub fn keeps_both_tails(repository: &Repository) {
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
pub fn files_below(root: &Path) -> Vec<String> {
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
