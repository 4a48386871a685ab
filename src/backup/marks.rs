//! Marks on backups: immutable records, of which the newest counts.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::format::{BackupId, ClusterName, keys};
use crate::repository::{Naming, Repository, StoredObject};

/// What a mark says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The backup is kept until it is marked otherwise.
    Permanent,
    /// The backup is subject to retention, as if it had never been marked.
    Impermanent,
}

impl Mark {
    /// The word in keys.
    pub const fn word(self) -> &'static str {
        match self {
            Mark::Permanent => "permanent",
            Mark::Impermanent => "impermanent",
        }
    }
}

/// A mark's content; its key says the same.
#[derive(Serialize)]
struct MarkRecord<'a> {
    id: &'a BackupId,
    mark: Mark,
    at: jiff::Timestamp,
}

/// Marks a backup.
pub fn put(
    repository: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    mark: Mark,
) -> Result<(), BackupError> {
    let at = jiff::Timestamp::now();
    let key = keys::mark(cluster, id, at, mark.word());
    let record = serde_json::to_vec_pretty(&MarkRecord { id, mark, at }).unwrap_or_default();
    // Found there already: the same mark in the same microsecond.
    repository.put(&key, Naming::Unique, &record)?;
    Ok(())
}

/// The newest mark of every backup that has one. An error reading them is an error: "nothing is permanent" would be the
/// most dangerous answer.
pub fn newest(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<HashMap<BackupId, Mark>, BackupError> {
    Ok(newest_of(&repository.list(&keys::marks(cluster))?))
}

fn newest_of(objects: &[StoredObject]) -> HashMap<BackupId, Mark> {
    let mut newest: HashMap<BackupId, (&str, Mark)> = HashMap::new();
    for object in objects {
        let Some((id, time, mark)) = parse_key(object.key.as_str()) else {
            tracing::warn!("{} is not a mark and is ignored", object.path);
            continue;
        };
        let entry = newest.entry(id).or_insert((time, mark));
        // Times are of one length, so text order is time order.
        if entry.0 < time {
            *entry = (time, mark);
        }
    }
    newest.into_iter().map(|(id, (_, mark))| (id, mark)).collect()
}

/// `<cluster>/marks/<backup-id>/<time>-<word>`.
fn parse_key(key: &str) -> Option<(BackupId, &str, Mark)> {
    let mut segments = key.rsplit('/');
    let (time, word) = segments.next()?.split_once('-')?;
    let id = segments.next()?.parse().ok()?;
    let mark = match word {
        "permanent" => Mark::Permanent,
        "impermanent" => Mark::Impermanent,
        _ => return None,
    };
    Some((id, time, mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ObjectKey;

    #[test]
    fn the_newest_counts_whatever_the_listing_order() {
        let id = "20261120T224613Z-00000001-0000000A000000FE";
        let object = |name: &str| {
            let path = format!("main/marks/{id}/{name}");
            StoredObject {
                key: ObjectKey::from_listing(path.clone()),
                path,
                size: 1,
                modified: jiff::Timestamp::UNIX_EPOCH,
            }
        };
        let names = [
            "20261121T000000.000001Z-impermanent",
            "20261121T000000.000002Z-permanent",
            "20261120T235959.999999Z-impermanent",
            "note.txt",
        ];
        let mut objects: Vec<StoredObject> = names.iter().map(|name| object(name)).collect();
        for _ in 0..objects.len() {
            objects.rotate_left(1);
            let marks = newest_of(&objects);
            assert_eq!(marks.get(&id.parse().unwrap()), Some(&Mark::Permanent));
            assert_eq!(marks.len(), 1);
        }
    }
}
