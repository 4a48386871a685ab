//! The repository: the only part that talks to a store.
//!
//! Everything above sees typed keys, create-only publishing, retried reads and listings, in blocking calls. A
//! `file://` repository is served by `directory` without any runtime; S3, GCS and Azure by `cloud` through
//! object_store on a small runtime of its own.

//!
//! Inside, `store::Store` is one of two backends that know paths only; `naming` turns keys into paths and back; `retry`
//! decides how often a failing store is asked again.

mod aws_profile;
mod cloud;
mod cloud_error;
mod cloud_publish;
mod connect;
mod delete;
mod directory;
mod directory_publish;
mod error;
mod init;
mod listing_head;
mod naming;
mod probe;
mod providers;
mod publish;
mod read;
mod retry;
mod store;
mod transport;
mod upload_buffer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use cloud_publish::MOST_HELD;
pub use delete::{Deletion, DeletionWatch};
pub use error::RepositoryError;
pub use init::{InitReport, init};
pub use probe::StoreLook;
pub use publish::Publication;
pub use read::RepositoryObject;

use crate::codec::decode::READ_SIZE;
use crate::format::ObjectKey;
use crate::format::marker::Marker;
use store::Store;

/// Where the repository is and how to get there.
#[derive(Clone)]
pub struct RepositorySettings {
    /// `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// object_store keys passed through (`[repository.options]`); values may be secrets.
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for RepositorySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepositorySettings")
            .field("url", &connect::without_secrets(&self.url))
            .field("options", &self.options.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Says what is wrong with an address, as far as that needs no store; quotes no secret.
pub fn check_address(url: &str) -> Result<(), String> {
    connect::parse(url).map(drop)
}

/// Whether the client of the store that this address means reads an environment variable.
pub fn reads_variable(url: &str, name: &str) -> bool {
    match connect::parse(url) {
        Ok(connect::Address::Cloud { provider, .. }) => providers::reads_variable(provider, name),
        Ok(connect::Address::Directory(_)) | Err(_) => false,
    }
}

/// How long a failing store is asked again.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Every request of this handle must be done by then: one segment's push or fetch.
    Until(Instant),
    /// Each request has this long: backups and restores, which have no end of their own.
    PerRequest(Duration),
}

/// The address for messages, without secrets.
pub fn display_url(settings: &RepositorySettings) -> String {
    connect::without_secrets(&settings.url)
}

/// An open repository. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Repository {
    shared: Arc<Shared>,
    patience: Patience,
}

/// What all clones share.
struct Shared {
    store: Store,
    marker: Marker,
}

/// An object as the store reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// The key without suffix: what the object claims to be.
    pub key: ObjectKey,
    /// The path it really lies under: `key`, or `key` plus `.` and 32 hexadecimal digits.
    pub path: String,
    /// Bytes as stored.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: jiff::Timestamp,
}

/// Whether an object's key carries its digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    /// Plain where the store enforces create-only, suffixed where it does not.
    ByStore,
    /// Suffixed everywhere: `.partial` files.
    AlwaysSuffixed,
    /// Plain everywhere: packs, whose keys belong to one backup, and the marker.
    Unique,
}

/// How a publication ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The object is durable and new.
    Created,
    /// Something is stored under this key already (perhaps by an attempt of ours whose answer was lost); it was
    /// not touched, and is durable (a directory is synced again). The caller compares.
    Exists(StoredObject),
}

impl Repository {
    /// Connects and reads the marker. Fails with [`RepositoryError::NoMarker`] where there is none.
    pub fn open(settings: &RepositorySettings, patience: Patience) -> Result<Repository, RepositoryError> {
        let store = connect::connect(settings, directory::MarkerRule::Required)?;
        let marker = read::marker(&store, patience)?.ok_or_else(|| store.no_marker())?;
        Ok(Repository { shared: Arc::new(Shared { store, marker }), patience })
    }

    /// Connects and takes the marker on trust: that of an earlier [`Repository::open`] under the same settings. The caller acknowledges nothing before
    /// [`Repository::prove_present`], which may run beside other requests, has found it right.
    pub fn open_assuming(
        settings: &RepositorySettings,
        patience: Patience,
        marker: Marker,
    ) -> Result<Repository, RepositoryError> {
        let store = connect::connect(settings, directory::MarkerRule::Required)?;
        Ok(Repository { shared: Arc::new(Shared { store, marker }), patience })
    }

    /// The same connections under another patience.
    pub fn with_patience(&self, patience: Patience) -> Repository {
        Repository { shared: Arc::clone(&self.shared), patience }
    }

    /// What `open` read.
    pub fn marker(&self) -> &Marker {
        &self.shared.marker
    }

    /// Reads the marker again: promise 3's proof that the repository itself answers.
    pub fn prove_present(&self) -> Result<(), RepositoryError> {
        let store = &self.shared.store;
        let marker = read::marker(store, self.patience)?.ok_or_else(|| store.no_marker())?;
        if marker.repository_id == self.shared.marker.repository_id {
            Ok(())
        } else {
            let problem = format!(
                "it names repository {}, but {} was opened: another one took its place",
                marker.repository_id, self.shared.marker.repository_id
            );
            Err(RepositoryError::BadMarker { url: self.url().to_owned(), problem })
        }
    }

    /// The URL for messages, without secrets.
    pub fn url(&self) -> &str {
        self.shared.store.url()
    }

    /// True for `file://`: readers may then expect local speed and writers local syncs.
    pub fn is_directory(&self) -> bool {
        self.shared.store.is_directory()
    }

    /// Begins an object. `expected_length` (stored bytes, an upper guess) lets small ones go out as one request.
    pub fn publish(
        &self,
        key: &ObjectKey,
        naming: Naming,
        expected_length: u64,
    ) -> Result<Publication, RepositoryError> {
        Publication::begin(self, key, naming, expected_length)
    }

    /// Publishes a small object whole. The suffix, where needed, is the digest of `bytes`.
    pub fn put(&self, key: &ObjectKey, naming: Naming, bytes: &[u8]) -> Result<Published, RepositoryError> {
        publish::put(self, key, naming, bytes)
    }

    /// The object under this key, `None` if the store says there is none (which proves nothing about the
    /// repository: see [`Repository::prove_present`]). Two different objects of one key are an error.
    pub fn find(&self, key: &ObjectKey, naming: Naming) -> Result<Option<StoredObject>, RepositoryError> {
        read::find(self, key, naming)
    }

    /// Exactly `length` bytes from `offset`.
    pub fn read_range(
        &self,
        object: &StoredObject,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        self.shared.store.read_range(&object.path, offset, length, self.patience)
    }

    /// Bytes to ask for at a time when an object is read from front to back. Near storage answers at once: small reads, which stay in
    /// the processor's caches and let decoding begin early, cost nothing there.
    pub fn read_size(&self) -> usize {
        if self.is_directory() { 1 << 20 } else { READ_SIZE }
    }

    /// A small object whole (records, at most 16 MiB).
    pub fn read(&self, object: &StoredObject) -> Result<Vec<u8>, RepositoryError> {
        read::whole(self, object)
    }

    /// The object under `key` found and its first bytes read in as few round trips as the store allows (one where
    /// names are plain): the object, and its first `length` bytes or all of it if it is shorter.
    pub fn find_and_read(
        &self,
        key: &ObjectKey,
        naming: Naming,
        length: usize,
    ) -> Result<Option<(StoredObject, Vec<u8>)>, RepositoryError> {
        read::find_and_read(self, key, naming, length)
    }

    /// Everything below a folder, however deep, in path order; temporary objects of publications under way are
    /// not listed.
    pub fn list(&self, folder: &str) -> Result<Vec<StoredObject>, RepositoryError> {
        read::list(self, folder)
    }

    /// The same as [`Repository::list`], for folders with many objects: the folders of the first `depth` levels are
    /// listed one by one, `threads` at once, because a cloud store gives one listing's pages only one after the other.
    pub fn list_in_parallel(
        &self,
        folder: &str,
        depth: usize,
        threads: usize,
    ) -> Result<Vec<StoredObject>, RepositoryError> {
        read::list_in_parallel(self, folder, depth, threads)
    }

    /// What publications that were interrupted left behind below a cluster's folder and in the folder of temporary
    /// objects: in no listing, and nobody's any more once it is old.
    pub fn leftovers(&self, cluster: &str) -> Result<Vec<StoredObject>, RepositoryError> {
        read::leftovers(self, cluster)
    }

    /// The names of the folders directly below a folder, in order.
    pub fn list_folders(&self, folder: &str) -> Result<Vec<String>, RepositoryError> {
        self.shared.store.list_folders(folder, self.patience)
    }

    /// Removes a folder that holds nothing any more, where folders are things of their own; a folder that is not empty stays.
    pub fn remove_empty_folder(&self, folder: &str) {
        self.shared.store.remove_empty_folder(folder);
    }

    /// Deletes these objects, in lists where the store takes them; of each whether it is gone, in order. One object that will not go stops no other.
    pub fn delete_all(&self, objects: &[&StoredObject], go_on: &DeletionWatch<'_>) -> Vec<Deletion> {
        delete::delete_all(self, objects, go_on)
    }

    /// Deletes one object; success if it is already gone. Only `expire` and cleaning up after oneself call this.
    pub fn delete(&self, object: &StoredObject) -> Result<(), RepositoryError> {
        self.shared.store.delete(&object.path, self.patience)
    }
}
