//! Creates a repository: probes what the store can be relied on for, then writes the marker that fixes it.
//!
//! 1. connect; a directory that holds somebody's files is refused
//! 2. read the marker: a repository that exists is probed and left as it is
//! 3. probe: write, read back, list, try to replace, delete
//! 4. write the marker, unless somebody was faster

use super::directory::{DirectoryStore, MarkerRule, classify, foreign_name};
use super::directory_publish::RawPublished;
use super::naming::TEMPORARY_FOLDER;
use super::retry::retried;
use super::store::Store;
use super::{Patience, RepositoryError, RepositorySettings, connect, read};
use crate::format::digest::to_hex;
use crate::format::keys;
use crate::format::marker::{CreateOnly, FORMAT_VERSION, Marker};

/// What the probe writes, and what it tries to replace that with.
const FIRST_BODY: &[u8] = b"walhold probe: the first content\n";
const SECOND_BODY: &[u8] = b"walhold probe: a second content, which must not replace the first\n";

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

/// Writes, reads back, lists, tries to replace, deletes: what every later command relies on.
fn probe(store: &Store, patience: Patience) -> Result<CreateOnly, RepositoryError> {
    let path = format!("{TEMPORARY_FOLDER}/probe-{}", random_hex(&keys::marker().to_string())?);
    let probed = probe_object(store, &path, patience);
    // Also after a failed probe, which is then what is told.
    let deleted = store.delete(&path, patience);
    let create_only = probed?;
    deleted?;
    match store.find(&path, patience)? {
        None => {}
        Some(_) => return Err(lies(&path, "it is still there after it was deleted")),
    }
    if let Store::Directory(directory) = store {
        // Empty again; somebody else's probe may keep it.
        let _ = std::fs::remove_dir(directory.shared.root.join(TEMPORARY_FOLDER));
    }
    Ok(create_only)
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

fn write_marker(
    store: &Store,
    create_only: CreateOnly,
    patience: Patience,
) -> Result<(Marker, bool), RepositoryError> {
    let key = keys::marker();
    let marker = Marker {
        format_version: FORMAT_VERSION,
        repository_id: random_hex(key.as_str())?,
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

/// 32 random hexadecimal digits.
fn random_hex(key: &str) -> Result<String, RepositoryError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| RepositoryError::Damaged {
        verb: "init",
        key: key.to_owned(),
        problem: format!("the system gives no randomness: {error}"),
    })?;
    Ok(to_hex(&random))
}
