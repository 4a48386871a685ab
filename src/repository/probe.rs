//! What a store can be relied on for, found out by doing it.
//!
//! `init` fixes what it finds in the marker; `check` finds out again, each thing by itself, so that one refusal hides no other. What must hold: only objects
//! under a random temporary name are touched.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::directory_publish::RawPublished;
use super::naming::{TEMPORARY_FOLDER, random_hex};
use super::store::Store;
use super::{Patience, Repository, RepositoryError};
use crate::format::keys;
use crate::format::marker::CreateOnly;

/// What the probe writes, and what it tries to replace that with.
const FIRST_BODY: &[u8] = b"walhold probe: the first content\n";
const SECOND_BODY: &[u8] = b"walhold probe: a second content, which must not replace the first\n";
/// Requests whose fastest one tells how far away the store is: the first of them connects.
const ROUND_TRIPS: u32 = 4;

/// What a store does.
#[derive(Debug)]
pub struct StoreLook {
    /// How long it takes to answer.
    pub round_trip: Result<Duration, RepositoryError>,
    /// Whether it says of an object that is not there that it is not there.
    pub absent: Result<(), RepositoryError>,
    /// Whether it writes, reads back, lists, and refuses to replace.
    pub probe: Result<CreateOnly, RepositoryError>,
    /// Whether it deletes; `None` if there was nothing to delete.
    pub deleted: Option<Result<(), RepositoryError>>,
    /// The store's time of a new object, and this machine's before and after it was written.
    pub stored_at: Option<(Timestamp, Timestamp, Timestamp)>,
}

impl Repository {
    /// Does to the store what commands do, under a name of its own.
    pub fn look_at_store(&self) -> StoreLook {
        let (store, patience) = (&self.shared.store, self.patience);
        let round_trip = round_trip(store, patience);
        let path = match probe_path() {
            Ok(path) => path,
            Err(error) => {
                let absent = Ok(());
                return StoreLook { round_trip, absent, probe: Err(error), deleted: None, stored_at: None };
            }
        };
        let absent = store.find(&path, patience).map(drop);
        let before = Timestamp::now();
        let probe = probe_object(store, &path, patience);
        let after = Timestamp::now();
        let found = store.find(&path, patience).ok().flatten();
        let stored_at = found.as_ref().map(|object| (object.modified, before, after));
        let deleted = match (&probe, found) {
            (Err(_), None) => None,
            _ => Some(delete(store, &path, patience)),
        };
        StoreLook { round_trip, absent, probe, deleted, stored_at }
    }
}

fn round_trip(store: &Store, patience: Patience) -> Result<Duration, RepositoryError> {
    let mut fastest = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        store.find(keys::marker().as_str(), patience)?;
        fastest = fastest.min(begun.elapsed());
    }
    Ok(fastest)
}

/// Writes, reads back, lists, tries to replace, deletes: what every later command relies on.
pub(super) fn probe(store: &Store, patience: Patience) -> Result<CreateOnly, RepositoryError> {
    let path = probe_path()?;
    let probed = probe_object(store, &path, patience);
    // Also after a failed probe, which is then what is told.
    let deleted = delete(store, &path, patience);
    let create_only = probed?;
    deleted?;
    Ok(create_only)
}

fn probe_path() -> Result<String, RepositoryError> {
    Ok(format!("{TEMPORARY_FOLDER}/probe-{}", random_hex("init", keys::marker().as_str())?))
}

fn delete(store: &Store, path: &str, patience: Patience) -> Result<(), RepositoryError> {
    store.delete(path, patience)?;
    if store.find(path, patience)?.is_some() {
        return Err(lies(path, "it is still there after it was deleted"));
    }
    if let Store::Directory(directory) = store {
        // Empty again; somebody else's probe may keep it.
        let _ = std::fs::remove_dir(directory.shared.root.join(TEMPORARY_FOLDER));
    }
    Ok(())
}

fn probe_object(store: &Store, path: &str, patience: Patience) -> Result<CreateOnly, RepositoryError> {
    // `Exists` is an attempt of ours whose answer was lost: nobody else knows the name.
    store.put(path, FIRST_BODY, CreateOnly::Suffixed, patience)?;
    expect_content(store, path, FIRST_BODY, patience)?;
    let listed = store.list(TEMPORARY_FOLDER, patience)?;
    if !listed.iter().any(|object| object.path == path && object.size == FIRST_BODY.len() as u64) {
        return Err(lies(path, "the listing does not show it right after it was written"));
    }
    let replaced = match store.put(path, SECOND_BODY, CreateOnly::Enforced, patience) {
        // A store that does not know the condition refuses the request instead of ignoring it.
        Err(RepositoryError::Address { .. }) => return Ok(CreateOnly::Suffixed),
        replaced => replaced?,
    };
    match replaced {
        RawPublished::Created => {
            expect_content(store, path, SECOND_BODY, patience)?;
            Ok(CreateOnly::Suffixed)
        }
        RawPublished::Exists(_) => {
            expect_content(store, path, FIRST_BODY, patience)?;
            let large = store.probe_large_objects(path, SECOND_BODY, patience)?;
            let content = match large {
                CreateOnly::Enforced => FIRST_BODY,
                CreateOnly::Suffixed => SECOND_BODY,
            };
            expect_content(store, path, content, patience)?;
            Ok(large)
        }
    }
}

fn expect_content(
    store: &Store,
    path: &str,
    content: &[u8],
    patience: Patience,
) -> Result<(), RepositoryError> {
    match store.find_and_read(path, content.len() + 1, patience)? {
        Some((_, bytes)) if bytes == content => Ok(()),
        Some(_) => Err(lies(path, "it reads back as something other than what was written")),
        None => Err(lies(path, "it is not there right after it was written")),
    }
}

fn lies(path: &str, problem: &str) -> RepositoryError {
    RepositoryError::Damaged { verb: "probe", key: path.to_owned(), problem: problem.to_owned() }
}
