//! Creates a repository: probes what the store can be relied on for, then writes the marker that fixes it.
//!
//! 1. connect; a directory that holds somebody's files is refused
//! 2. read the marker: a repository that exists is probed and left as it is
//! 3. probe: write, read back, list, try to replace, delete
//! 4. write the marker, unless somebody was faster

use super::directory::{DirectoryStore, MarkerRule, classify, foreign_name};
use super::naming::random_hex;
use super::probe::probe;
use super::retry::retried;
use super::store::Store;
use super::{Patience, RepositoryError, RepositorySettings, connect, read};
use crate::format::keys;
use crate::format::marker::{CreateOnly, FORMAT_VERSION, Marker};

/// What `init` did and found.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The marker, new or found.
    pub marker: Marker,
    /// False if the repository existed already.
    pub created: bool,
    /// What the probe found now.
    pub create_only: CreateOnly,
}

/// Creates a repository, or finds that it exists already.
pub fn init(settings: &RepositorySettings, patience: Patience) -> Result<InitReport, RepositoryError> {
    let store = connect::connect(settings, MarkerRule::NotYet)?;
    if let Store::Directory(directory) = &store {
        refuse_foreign_directory(directory, patience)?;
    }
    let existing = read::marker(&store, patience)?;
    let create_only = probe(&store, patience)?;
    let (marker, created) = match existing {
        Some(marker) => (marker, false),
        None => write_marker(&store, create_only, patience)?,
    };
    Ok(InitReport { marker, created, create_only })
}

/// A repository is never created over somebody's files. The root is created here if it is missing.
fn refuse_foreign_directory(directory: &DirectoryStore, patience: Patience) -> Result<(), RepositoryError> {
    let shared = &directory.shared;
    let foreign = retried("init", &shared.url, patience, |_| {
        directory.create_folders(&shared.root, &shared.url)?;
        foreign_name(&shared.root).map_err(|error| classify("init", &shared.url, &error))
    })?;
    match foreign {
        Some(name) if !shared.root.join(keys::marker().as_str()).exists() => {
            let problem = format!("the directory is not empty and not a repository: it holds {name}");
            Err(RepositoryError::NotEmpty { url: shared.url.clone(), problem })
        }
        _ => Ok(()),
    }
}

fn write_marker(
    store: &Store,
    create_only: CreateOnly,
    patience: Patience,
) -> Result<(Marker, bool), RepositoryError> {
    let key = keys::marker();
    let marker = Marker {
        format_version: FORMAT_VERSION,
        repository_id: random_hex("init", key.as_str())?,
        // Seconds are enough for people, and read better.
        created: jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default(),
        create_only,
    };
    let mut bytes = serde_json::to_vec_pretty(&marker).map_err(|error| RepositoryError::BadMarker {
        url: store.url().to_owned(),
        problem: error.to_string(),
    })?;
    bytes.push(b'\n');
    store.put(key.as_str(), &bytes, create_only, patience)?;
    // What counts is what lies there now: another init may have been faster.
    let written = read::marker(store, patience)?.ok_or_else(|| store.no_marker())?;
    let created = written.repository_id == marker.repository_id;
    Ok((written, created))
}
