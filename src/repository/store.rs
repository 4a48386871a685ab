//! One of two backends, which know paths and bytes but neither keys nor formats.

use super::cloud::CloudStore;
use super::cloud_publish::CloudUpload;
use super::directory::DirectoryStore;
use super::directory_publish::{DirectoryPublication, RawPublished};
use super::naming::{RawObject, TEMPORARY_FOLDER};
use super::{Naming, Patience, RepositoryError};
use crate::format::marker::CreateOnly;

/// A connected store. Cheap to clone.
#[derive(Clone)]
pub(super) enum Store {
    Directory(DirectoryStore),
    Cloud(CloudStore),
}

/// An object on its way into a store.
pub(super) enum Upload {
    Directory(DirectoryPublication),
    Cloud(Box<CloudUpload>),
}

impl Upload {
    /// Takes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        match self {
            Upload::Directory(upload) => upload.write(bytes),
            Upload::Cloud(upload) => upload.write(bytes),
        }
    }

    /// Makes the object durable and visible under `path`, unless the store knows that something lies there.
    pub(super) fn finish(self, path: &str) -> Result<RawPublished, RepositoryError> {
        match self {
            Upload::Directory(upload) => upload.finish(path),
            Upload::Cloud(upload) => upload.finish(path),
        }
    }
}

impl Store {
    /// For messages, without secrets.
    pub(super) fn url(&self) -> &str {
        match self {
            Store::Directory(store) => &store.shared.url,
            Store::Cloud(store) => &store.shared.url,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        match self {
            Store::Directory(_) => true,
            Store::Cloud(_) => false,
        }
    }

    /// The error for a repository without marker.
    pub(super) fn no_marker(&self) -> RepositoryError {
        RepositoryError::NoMarker { url: self.url().to_owned() }
    }

    /// Begins an object whose path will be `key`, perhaps with a suffix. `create_only` is what the store is relied on
    /// for.
    pub(super) fn begin(
        &self,
        key: &str,
        naming: Naming,
        create_only: CreateOnly,
        expected_length: u64,
        patience: Patience,
    ) -> Result<Upload, RepositoryError> {
        match self {
            Store::Directory(store) => store.begin(key, patience).map(Upload::Directory),
            Store::Cloud(store) => {
                let upload = store.begin(key, naming, create_only, expected_length, patience);
                Ok(Upload::Cloud(Box::new(upload)))
            }
        }
    }

    /// Publishes a small object whole.
    pub(super) fn put(
        &self,
        path: &str,
        bytes: &[u8],
        create_only: CreateOnly,
        patience: Patience,
    ) -> Result<RawPublished, RepositoryError> {
        match self {
            Store::Directory(store) => store.put(path, bytes, patience),
            Store::Cloud(store) => store.put(path, bytes, create_only, patience),
        }
    }

    /// The object under `path`.
    pub(super) fn find(&self, path: &str, patience: Patience) -> Result<Option<RawObject>, RepositoryError> {
        match self {
            Store::Directory(store) => store.find(path, patience),
            Store::Cloud(store) => store.find(path, patience),
        }
    }

    /// The object under `path` and its first `length` bytes, or all of it if it is shorter.
    pub(super) fn find_and_read(
        &self,
        path: &str,
        length: usize,
        patience: Patience,
    ) -> Result<Option<(RawObject, Vec<u8>)>, RepositoryError> {
        match self {
            Store::Directory(store) => store.find_and_read(path, length, patience),
            Store::Cloud(store) => store.find_and_read(path, length, patience),
        }
    }

    /// The objects named `key`, `.`, 32 hexadecimal digits; in order.
    pub(super) fn find_suffixed(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        match self {
            Store::Directory(store) => store.find_suffixed(key, patience),
            Store::Cloud(store) => store.find_suffixed(key, patience),
        }
    }

    /// Exactly `length` bytes from `offset`.
    pub(super) fn read_range(
        &self,
        path: &str,
        offset: u64,
        length: usize,
        patience: Patience,
    ) -> Result<Vec<u8>, RepositoryError> {
        self.read_range_reusing(path, offset, length, Vec::new(), patience)
    }

    /// [`Store::read_range`] into memory that is there already, where that saves anything.
    pub(super) fn read_range_reusing(
        &self,
        path: &str,
        offset: u64,
        length: usize,
        spare: Vec<u8>,
        patience: Patience,
    ) -> Result<Vec<u8>, RepositoryError> {
        match self {
            Store::Directory(store) => store.read_range(path, offset, length, spare, patience),
            Store::Cloud(store) => store.read_range(path, offset, length, patience),
        }
    }

    /// Everything below `folder`, in path order.
    pub(super) fn list(&self, folder: &str, patience: Patience) -> Result<Vec<RawObject>, RepositoryError> {
        match self {
            Store::Directory(store) => store.list(folder, patience),
            Store::Cloud(store) => store.list(folder, patience),
        }
    }

    /// The folders directly below `folder`, in order.
    pub(super) fn list_folders(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<Vec<String>, RepositoryError> {
        match self {
            Store::Directory(store) => store.list_folders(folder, patience),
            Store::Cloud(store) => store.list_folders(folder, patience),
        }
    }

    /// What lies directly below `folder`: objects, and the names of folders in order.
    pub(super) fn list_level(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<(Vec<RawObject>, Vec<String>), RepositoryError> {
        match self {
            // Its folders cost nothing apiece: one walk is as good.
            Store::Directory(store) => Ok((store.list(folder, patience)?, Vec::new())),
            Store::Cloud(store) => store.list_level(folder, patience),
        }
    }

    /// What interrupted publications left behind.
    pub(super) fn leftovers(
        &self,
        cluster: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        match self {
            Store::Directory(store) => store.leftovers(cluster, patience),
            Store::Cloud(store) => store.list(TEMPORARY_FOLDER, patience),
        }
    }

    /// Whether large objects are created exclusively too: they take another way on some stores. Something lies under
    /// `path`; an attempt to replace it by `other` is made.
    pub(super) fn probe_large_objects(
        &self,
        path: &str,
        other: &[u8],
        patience: Patience,
    ) -> Result<CreateOnly, RepositoryError> {
        match self {
            // One way for all sizes.
            Store::Directory(_) => Ok(CreateOnly::Enforced),
            Store::Cloud(store) => store.probe_large_objects(path, other, patience),
        }
    }

    /// Removes a folder if it is empty; cloud stores have none.
    pub(super) fn remove_empty_folder(&self, folder: &str) {
        if let Store::Directory(store) = self {
            store.remove_empty_folder(folder);
        }
    }

    /// Removes one object; success if it is gone already.
    pub(super) fn delete(&self, path: &str, patience: Patience) -> Result<(), RepositoryError> {
        match self {
            Store::Directory(store) => store.delete(path, patience),
            Store::Cloud(store) => store.delete(path, patience),
        }
    }
}
