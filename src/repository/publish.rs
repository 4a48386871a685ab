//! Publishing objects: create-only, whatever the store can do.
//!
//! Where the store enforces create-only (a directory always does), the backend's own publication is enough. Where
//! it replaces silently, the path carries the content's digest; the key is looked at before and after, so that of two
//! publishers of different contents at least one is told.

use super::directory_publish::RawPublished;
use super::naming::path_of;
use super::store::{Store, Upload};
use super::{Naming, Patience, Published, Repository, RepositoryError};
use crate::codec::encode::{ObjectSink, SinkError};
use crate::format::marker::CreateOnly;
use crate::format::{Digest, ObjectKey};

/// An object on its way into the repository. Dropped unfinished, it leaves nothing behind.
pub struct Publication {
    target: Target,
    upload: Upload,
}

/// Where an object goes.
struct Target {
    store: Store,
    key: ObjectKey,
    naming: Naming,
    create_only: CreateOnly,
    patience: Patience,
}

impl ObjectSink for Publication {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.upload.write(bytes).map_err(|error| Box::new(error) as SinkError)
    }
}

impl Publication {
    pub(super) fn begin(
        repository: &Repository,
        key: &ObjectKey,
        naming: Naming,
        expected_length: u64,
    ) -> Result<Publication, RepositoryError> {
        let target = Target::new(repository, key, naming);
        let upload =
            target.store.begin(key.as_str(), naming, target.create_only, expected_length, target.patience)?;
        Ok(Publication { target, upload })
    }

    /// Makes the object durable and visible, unless something lies under its key already. `digest` is the
    /// plaintext's: suffixed keys carry it.
    pub fn finish(self, digest: &Digest) -> Result<Published, RepositoryError> {
        let Publication { target, upload } = self;
        target.publish(digest, |path| upload.finish(path))
    }
}

pub(super) fn put(
    repository: &Repository,
    key: &ObjectKey,
    naming: Naming,
    bytes: &[u8],
) -> Result<Published, RepositoryError> {
    let target = Target::new(repository, key, naming);
    target.publish(&Digest::of(bytes), |path| {
        target.store.put(path, bytes, target.create_only, target.patience)
    })
}

impl Target {
    fn new(repository: &Repository, key: &ObjectKey, naming: Naming) -> Target {
        Target {
            store: repository.shared.store.clone(),
            key: key.clone(),
            naming,
            create_only: repository.shared.marker.create_only,
            patience: repository.patience,
        }
    }

    fn publish(
        &self,
        digest: &Digest,
        upload: impl FnOnce(&str) -> Result<RawPublished, RepositoryError>,
    ) -> Result<Published, RepositoryError> {
        let path = path_of(&self.key, self.naming, self.create_only, digest);
        if let Some(existing) = self.in_the_way(&path)? {
            return Ok(existing);
        }
        match upload(&path)? {
            RawPublished::Exists(object) => Ok(Published::Exists(object.known_as(&self.key))),
            RawPublished::Created => {
                self.check_alone(&path)?;
                Ok(Published::Created)
            }
        }
    }

    /// What must keep an object from being uploaded although the store would take it.
    fn in_the_way(&self, path: &str) -> Result<Option<Published>, RepositoryError> {
        if !self.naming.is_suffixed(self.create_only) {
            return Ok(None);
        }
        let found = self.store.find_suffixed(self.key.as_str(), self.patience)?;
        let blocks = |found: &str| match self.naming {
            // Other tails of one segment are legitimate.
            Naming::AlwaysSuffixed => found == path,
            Naming::ByStore | Naming::Unique => true,
        };
        // A directory itself finds that the same path is taken, and syncs what lies there.
        let leave_to_store = |found: &str| self.store.is_directory() && found == path;
        let existing = found.into_iter().find(|found| blocks(&found.path) && !leave_to_store(&found.path));
        Ok(existing.map(|object| Published::Exists(object.known_as(&self.key))))
    }

    /// Two publishers of different contents may both have found nothing; at least the later one sees the other now.
    fn check_alone(&self, path: &str) -> Result<(), RepositoryError> {
        if self.create_only == CreateOnly::Enforced || self.naming != Naming::ByStore {
            return Ok(());
        }
        let found = self.store.find_suffixed(self.key.as_str(), self.patience)?;
        match found.into_iter().find(|found| found.path != path) {
            None => Ok(()),
            Some(other) => Err(RepositoryError::TwoObjects {
                key: self.key.to_string(),
                first: other.path,
                second: path.to_owned(),
            }),
        }
    }
}
