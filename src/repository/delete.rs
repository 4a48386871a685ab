//! Deleting many objects: in lists where the store takes them, else one by one, many at once.
//!
//! In: objects. Out: of each whether it is gone, in order. What must hold: whatever a list does not clearly say is gone is asked for alone, whose
//! answer is the one that counts; in a directory the names are gone for good, power loss or not, before this returns, so that a caller who
//! deletes in an order has that order.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::store::Store;
use super::{Repository, RepositoryError, StoredObject};
use crate::fan_out;
use crate::local::durable::{parent_of, sync_directory};

/// Requests that are under way at once.
const THREADS: usize = 64;
/// Lists that are under way at once.
const LISTS: usize = 8;
/// As many as S3 takes in one request.
const LIST_LENGTH: usize = 1000;

/// What became of an object; `None` if it was not tried any more.
pub type Deletion = Option<Result<(), RepositoryError>>;

/// Sees each result as it comes, and is asked before each request (with `None`): once it says no, nothing new is begun.
pub type DeletionWatch<'a> = dyn Fn(Option<&Result<(), RepositoryError>>) -> bool + Sync + 'a;

/// Deletes these objects.
pub(super) fn delete_all(
    repository: &Repository,
    objects: &[&StoredObject],
    go_on: &DeletionWatch<'_>,
) -> Vec<Deletion> {
    let store = &repository.shared.store;
    let stopped = AtomicBool::new(false);
    let may_begin = || {
        if !go_on(None) {
            stopped.store(true, Ordering::Relaxed);
        }
        !stopped.load(Ordering::Relaxed)
    };
    let note = |result: &Result<(), RepositoryError>| {
        if !go_on(Some(result)) {
            stopped.store(true, Ordering::Relaxed);
        }
    };
    let alone = |object: &StoredObject| {
        may_begin().then(|| {
            let result = store.delete(&object.path, repository.patience);
            note(&result);
            result
        })
    };
    let (Store::Cloud(cloud), true) = (store, objects.len() > 1) else {
        let deleted = fan_out::map(objects, THREADS, |object| alone(object));
        return durable(store, objects, deleted);
    };
    let lists: Vec<&[&StoredObject]> = objects.chunks(LIST_LENGTH).collect();
    let by_list = fan_out::map(&lists, LISTS, |list| {
        let paths: Vec<&str> = list.iter().map(|object| object.path.as_str()).collect();
        let gone = if may_begin() { cloud.delete_list(&paths) } else { HashSet::new() };
        (0..gone.len()).for_each(|_| note(&Ok(())));
        gone
    });
    let gone: HashSet<String> = by_list.into_iter().flatten().collect();
    fan_out::map(objects, THREADS, |object| match gone.contains(&object.path) {
        true => Some(Ok(())),
        false => alone(object),
    })
}

/// Makes the absence of names durable in a directory.
fn durable(store: &Store, objects: &[&StoredObject], mut deleted: Vec<Deletion>) -> Vec<Deletion> {
    let Store::Directory(directory) = store else { return deleted };
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    for (object, _) in objects.iter().zip(&deleted).filter(|(_, result)| matches!(result, Some(Ok(())))) {
        folders.extend(directory.place("delete", &object.path).ok().map(|place| parent_of(&place)));
    }
    let folders: Vec<PathBuf> = folders.into_iter().collect();
    let failed = fan_out::map(&folders, THREADS, |folder| match sync_directory(folder) {
        // A folder that somebody removed meanwhile takes its names along.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(error),
        Ok(()) => None,
    });
    if let Some((folder, error)) =
        folders.iter().zip(failed).find_map(|(folder, error)| Some((folder, error?)))
        && let Some(last) = deleted.iter_mut().rev().find(|result| matches!(result, Some(Ok(()))))
    {
        *last = Some(Err(directory.sync_failed(folder, &error)));
    }
    deleted
}
