//! Many objects deleted at once: in lists where the store takes them, and what will not go stops nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use walhold::repository::{Naming, Repository, RepositoryError, StoredObject, init};

use crate::conformance::{PATIENCE, created};
use crate::support::stores::{Conditions, S3Server, directory};

fn filled(repository: &Repository, count: usize) -> Vec<StoredObject> {
    (0..count)
        .map(|number| {
            created(repository, &format!("main/f{}/{number:04}", number % 3), Naming::ByStore, b"x")
        })
        .collect()
}

fn s3(server: &S3Server) -> Repository {
    let settings = server.settings("some/prefix");
    init(&settings, PATIENCE).unwrap();
    Repository::open(&settings, PATIENCE).unwrap()
}

/// What was deleted, what was denied, and what else went wrong.
fn delete(repository: &Repository, objects: &[StoredObject]) -> (usize, Vec<String>) {
    let objects: Vec<&StoredObject> = objects.iter().collect();
    let results = repository.delete_all(&objects, &|_| true);
    assert_eq!(results.len(), objects.len());
    let mut denied = Vec::new();
    for result in &results {
        match result.as_ref().expect("tried") {
            Ok(()) => {}
            Err(RepositoryError::Denied { key, .. }) => denied.push(key.clone()),
            Err(error) => panic!("{error}"),
        }
    }
    (results.len() - denied.len(), denied)
}

#[test]
fn s3_takes_lists() {
    let server = S3Server::start(Conditions::Enforced);
    let repository = s3(&server);
    let objects = filled(&repository, 60);
    let before = server.deletions().single.load(Ordering::Relaxed);
    assert_eq!(delete(&repository, &objects), (60, vec![]));
    assert_eq!(server.deletions().lists.load(Ordering::Relaxed), 1);
    assert_eq!(server.deletions().single.load(Ordering::Relaxed), before);
    assert_eq!(repository.list("main").unwrap(), []);
    // Gone already is as good as gone.
    assert_eq!(delete(&repository, &objects), (60, vec![]));
}

#[test]
fn locked_objects_stay_and_the_others_go() {
    for no_lists in [false, true] {
        let server = S3Server::start(Conditions::Enforced);
        let repository = s3(&server);
        let objects = filled(&repository, 30);
        server.deletions().no_lists.store(no_lists, Ordering::Relaxed);
        *server.deletions().locked.lock().unwrap() = vec!["0007".to_owned(), "0021".to_owned()];
        let (deleted, mut denied) = delete(&repository, &objects);
        denied.sort();
        assert_eq!((deleted, denied), (28, vec!["main/f0/0021".to_owned(), "main/f1/0007".to_owned()]));
        let left: Vec<String> =
            repository.list("main").unwrap().into_iter().map(|object| object.path).collect();
        assert_eq!(left, ["main/f0/0021", "main/f1/0007"]);
        // A store that knows no lists is not asked for one again.
        let more = filled(&repository, 5);
        assert_eq!(delete(&repository, &more).0, 5);
        assert_eq!(server.deletions().lists.load(Ordering::Relaxed), if no_lists { 1 } else { 2 });
    }
}

#[test]
fn a_directory_loses_them_all_and_keeps_what_was_not_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let settings = directory(root.path(), &[]);
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let mut objects = filled(&repository, 300);
    let kept = objects.split_off(290);
    assert_eq!(delete(&repository, &objects), (290, vec![]));
    let mut left = repository.list("main").unwrap();
    left.sort_by(|a, b| a.path[8..].cmp(&b.path[8..]));
    assert_eq!(left, kept);
}

#[test]
fn a_caller_can_stop() {
    let root = tempfile::tempdir().unwrap();
    let settings = directory(root.path(), &[]);
    init(&settings, PATIENCE).unwrap();
    let repository = Repository::open(&settings, PATIENCE).unwrap();
    let objects = filled(&repository, 300);
    let seen = AtomicUsize::new(0);
    let borrowed: Vec<&StoredObject> = objects.iter().collect();
    let results = repository.delete_all(&borrowed, &|result| match result {
        None => true,
        Some(_) => seen.fetch_add(1, Ordering::Relaxed) < 10,
    });
    let tried = results.iter().filter(|result| result.is_some()).count();
    // Those that were under way end.
    assert!((11..200).contains(&tried), "{tried}");
    assert_eq!(repository.list("main").unwrap().len(), 300 - tried);
}
