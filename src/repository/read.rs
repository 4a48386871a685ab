//! Finding and reading objects by key.

use super::naming::is_hidden;
use super::store::Store;
use super::{Naming, Patience, Repository, RepositoryError, StoredObject};
use crate::codec::decode::ObjectSource;
use crate::codec::encode::SinkError;
use crate::fan_out;
use crate::format::marker::{FORMAT_VERSION, Marker};
use crate::format::{ObjectKey, keys};

/// No record is larger; a larger one is not a record.
const LARGEST_RECORD: u64 = 16 << 20;
/// No marker is larger.
const LARGEST_MARKER: usize = 64 << 10;

/// A [`StoredObject`] with its repository, as a decoder reads it.
pub struct RepositoryObject<'a> {
    /// Where it is.
    pub repository: &'a Repository,
    /// Which it is.
    pub object: &'a StoredObject,
}

impl ObjectSource for RepositoryObject<'_> {
    fn stored_length(&self) -> u64 {
        self.object.size
    }

    fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, SinkError> {
        self.read_range_reusing(offset, length, Vec::new())
    }

    fn read_range_reusing(&self, offset: u64, length: usize, spare: Vec<u8>) -> Result<Vec<u8>, SinkError> {
        let shared = &self.repository.shared;
        let read = shared.store.read_range_reusing(
            &self.object.path,
            offset,
            length,
            spare,
            self.repository.patience,
        );
        read.map_err(|error| Box::new(error) as SinkError)
    }

    fn read_size(&self) -> usize {
        self.repository.read_size()
    }
}

pub(super) fn find(
    repository: &Repository,
    key: &ObjectKey,
    naming: Naming,
) -> Result<Option<StoredObject>, RepositoryError> {
    let shared = &repository.shared;
    let found = if naming.is_suffixed(shared.marker.create_only) {
        let mut found = shared.store.find_suffixed(key.as_str(), repository.patience)?.into_iter();
        let first = found.next();
        if let (Some(first), Some(second)) = (&first, found.next()) {
            return Err(RepositoryError::TwoObjects {
                key: key.to_string(),
                first: first.path.clone(),
                second: second.path,
            });
        }
        first
    } else {
        shared.store.find(key.as_str(), repository.patience)?
    };
    Ok(found.map(|object| object.known_as(key)))
}

pub(super) fn find_and_read(
    repository: &Repository,
    key: &ObjectKey,
    naming: Naming,
    length: usize,
) -> Result<Option<(StoredObject, Vec<u8>)>, RepositoryError> {
    let shared = &repository.shared;
    if naming.is_suffixed(shared.marker.create_only) {
        let Some(object) = find(repository, key, naming)? else {
            return Ok(None);
        };
        let length = usize::try_from(object.size).unwrap_or(usize::MAX).min(length);
        let bytes = repository.read_range(&object, 0, length)?;
        return Ok(Some((object, bytes)));
    }
    let found = shared.store.find_and_read(key.as_str(), length, repository.patience)?;
    Ok(found.map(|(object, bytes)| (object.known_as(key), bytes)))
}

pub(super) fn whole(repository: &Repository, object: &StoredObject) -> Result<Vec<u8>, RepositoryError> {
    match usize::try_from(object.size) {
        Ok(length) if object.size <= LARGEST_RECORD => repository.read_range(object, 0, length),
        _ => Err(RepositoryError::Damaged {
            verb: "read",
            key: object.path.clone(),
            problem: format!("it has {} bytes, and no record has more than {LARGEST_RECORD}", object.size),
        }),
    }
}

pub(super) fn list(repository: &Repository, folder: &str) -> Result<Vec<StoredObject>, RepositoryError> {
    let shared = &repository.shared;
    let found = shared.store.list(folder, repository.patience)?;
    let visible = found.into_iter().filter(|object| !is_hidden(&object.path));
    Ok(visible.map(|object| object.named(shared.marker.create_only)).collect())
}

pub(super) fn list_in_parallel(
    repository: &Repository,
    folder: &str,
    depth: usize,
    threads: usize,
) -> Result<Vec<StoredObject>, RepositoryError> {
    let shared = &repository.shared;
    if shared.store.is_directory() {
        return list(repository, folder);
    }
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    for _ in 0..depth {
        let levels =
            fan_out::map(&folders, threads, |folder| shared.store.list_level(folder, repository.patience));
        let mut below = Vec::new();
        for (folder, level) in folders.iter().zip(levels) {
            let (objects, names) = level?;
            found.extend(objects);
            below.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
        }
        folders = below;
    }
    for part in fan_out::map(&folders, threads, |folder| shared.store.list(folder, repository.patience)) {
        found.extend(part?);
    }
    found.retain(|object| !is_hidden(&object.path));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found.into_iter().map(|object| object.named(shared.marker.create_only)).collect())
}

pub(super) fn leftovers(
    repository: &Repository,
    cluster: &str,
) -> Result<Vec<StoredObject>, RepositoryError> {
    let shared = &repository.shared;
    let found = shared.store.leftovers(cluster, repository.patience)?;
    Ok(found.into_iter().map(|object| object.named(shared.marker.create_only)).collect())
}

/// The marker; `None` if the store says there is none.
pub(super) fn marker(store: &Store, patience: Patience) -> Result<Option<Marker>, RepositoryError> {
    let key = keys::marker();
    match store.find_and_read(key.as_str(), LARGEST_MARKER, patience)? {
        None => Ok(None),
        Some((_, bytes)) => parse_marker(&bytes)
            .map(Some)
            .map_err(|problem| RepositoryError::BadMarker { url: store.url().to_owned(), problem }),
    }
}

fn parse_marker(bytes: &[u8]) -> Result<Marker, String> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    // The version is looked at first: a newer format may have other fields.
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if (1..=u64::from(FORMAT_VERSION)).contains(&version) => {}
        Some(version) => {
            return Err(format!(
                "it has format version {version}; this walhold reads up to {FORMAT_VERSION}"
            ));
        }
        None => return Err("it has no format_version".to_owned()),
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_that_is_not_one_says_why() {
        let problem = |text: &str| parse_marker(text.as_bytes()).unwrap_err();
        assert!(problem("").starts_with("it is not JSON: "));
        assert_eq!(problem("{}"), "it has no format_version");
        assert_eq!(
            problem(r#"{"format_version": 7}"#),
            "it has format version 7; this walhold reads up to 1"
        );
        assert!(problem(r#"{"format_version": 1}"#).contains("repository_id"));
    }
}
