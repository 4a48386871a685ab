//! Where each object lies in the repository.
//!
//! ```text
//! walhold.json
//! <cluster>/identity/<system-identifier>.json
//! <cluster>/wal/<system-identifier>/<tli>/<log>/<segment>
//! <cluster>/wal/<system-identifier>/<tli>.history, <segment>.partial, <segment>.<offset>.backup
//! <cluster>/backups/<backup-id>/manifest
//! <cluster>/backups/<backup-id>/intent/<time>
//! <cluster>/packs/<backup-id>/<number>
//! <cluster>/expire/<time>
//! <cluster>/verify/<time>
//! <cluster>/leases/<backup-id>/<time>
//! <cluster>/marks/<backup-id>/<time>-permanent | <time>-impermanent
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::backup_id::BackupId;
use crate::pg::{ArchiveFileName, SystemIdentifier, TimelineId};

/// An object's path relative to the repository's root, without any suffix that a store which cannot create
/// exclusively makes necessary. It is part of what encryption authenticates.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// The path, segments separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment of the path.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// A key read from a listing; nothing is checked, because what lies in a repository may be anything.
    pub fn from_listing(path: impl Into<String>) -> ObjectKey {
        ObjectKey(path.into())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name under which a cluster's objects lie: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or
/// digit, so that it is one path segment on every store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    fn default() -> Self {
        ClusterName("main".to_owned())
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that cannot name a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a cluster; expected 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct ParseClusterNameError(pub String);

impl FromStr for ClusterName {
    type Err = ParseClusterNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(allowed)
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if valid { Ok(ClusterName(text.to_owned())) } else { Err(ParseClusterNameError(text.to_owned())) }
    }
}

impl Serialize for ClusterName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ClusterName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The repository's marker.
pub fn marker() -> ObjectKey {
    ObjectKey("walhold.json".to_owned())
}

/// The record that a cluster with this identity archives here.
pub fn identity(cluster: &ClusterName, system: SystemIdentifier) -> ObjectKey {
    ObjectKey(format!("{cluster}/identity/{system}.json"))
}

/// The folder of identities.
pub fn identities(cluster: &ClusterName) -> String {
    format!("{cluster}/identity")
}

/// The folder of all WAL of one identity.
pub fn wal_folder(cluster: &ClusterName, system: SystemIdentifier) -> String {
    format!("{cluster}/wal/{system}")
}

/// The folder of one timeline's segments, which lie one level deeper.
pub fn timeline_folder(cluster: &ClusterName, system: SystemIdentifier, timeline: TimelineId) -> String {
    format!("{cluster}/wal/{system}/{timeline}")
}

/// An archived file.
pub fn wal(cluster: &ClusterName, system: SystemIdentifier, name: ArchiveFileName) -> ObjectKey {
    let folder = wal_folder(cluster, system);
    ObjectKey(match name {
        ArchiveFileName::Segment(segment) => {
            format!("{folder}/{}/{:08X}/{segment}", segment.timeline, segment.log())
        }
        other => format!("{folder}/{other}"),
    })
}

/// The folder of all backups.
pub fn backups(cluster: &ClusterName) -> String {
    format!("{cluster}/backups")
}

/// A backup's manifest.
pub fn manifest(cluster: &ClusterName, id: &BackupId) -> ObjectKey {
    ObjectKey(format!("{cluster}/backups/{id}/manifest"))
}

/// A running backup's sign of life: the first announces it, later ones are its heartbeat.
pub fn intent(cluster: &ClusterName, id: &BackupId, at: jiff::Timestamp) -> ObjectKey {
    ObjectKey(format!("{cluster}/backups/{id}/intent/{}", at.strftime("%Y%m%dT%H%M%SZ")))
}

/// The folder of all packs.
pub fn packs(cluster: &ClusterName) -> String {
    format!("{cluster}/packs")
}

/// The folder of one backup's packs.
pub fn packs_folder(cluster: &ClusterName, id: &BackupId) -> String {
    format!("{cluster}/packs/{id}")
}

/// A pack of data-file chunks.
pub fn pack(cluster: &ClusterName, id: &BackupId, number: u32) -> ObjectKey {
    ObjectKey(format!("{cluster}/packs/{id}/{number:08}"))
}

/// The folder of all marks.
pub fn marks(cluster: &ClusterName) -> String {
    format!("{cluster}/marks")
}

/// The folder of what expire is deleting.
pub fn tombstones(cluster: &ClusterName) -> String {
    format!("{cluster}/expire")
}

/// What one expire is deleting.
pub fn tombstone(cluster: &ClusterName, at: jiff::Timestamp) -> ObjectKey {
    ObjectKey(format!("{cluster}/expire/{}", at.strftime("%Y%m%dT%H%M%S.%6fZ")))
}

/// The folder of what verify found.
pub fn verifications(cluster: &ClusterName) -> String {
    format!("{cluster}/verify")
}

/// What one verify found.
pub fn verification(cluster: &ClusterName, at: jiff::Timestamp) -> ObjectKey {
    ObjectKey(format!("{cluster}/verify/{}", at.strftime("%Y%m%dT%H%M%S.%6fZ")))
}

/// The folder of what restores read.
pub fn leases(cluster: &ClusterName) -> String {
    format!("{cluster}/leases")
}

/// That a restore reads a backup.
pub fn lease(cluster: &ClusterName, id: &BackupId, at: jiff::Timestamp) -> ObjectKey {
    ObjectKey(format!("{cluster}/leases/{id}/{}", at.strftime("%Y%m%dT%H%M%S.%6fZ")))
}

/// One mark on a backup; the newest one counts.
pub fn mark(cluster: &ClusterName, id: &BackupId, at: jiff::Timestamp, word: &str) -> ObjectKey {
    ObjectKey(format!("{cluster}/marks/{id}/{}-{word}", at.strftime("%Y%m%dT%H%M%S.%6fZ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_lies_where_the_format_says() {
        let key = |name: &str| {
            wal(&ClusterName::default(), SystemIdentifier::new(7371), name.parse().unwrap()).to_string()
        };
        assert_eq!(
            key("000000010000000A000000FE"),
            "main/wal/7371/00000001/0000000A/000000010000000A000000FE"
        );
        assert_eq!(key("00000002.history"), "main/wal/7371/00000002.history");
        assert_eq!(key("000000010000000A000000FE.partial"), "main/wal/7371/000000010000000A000000FE.partial");
    }

    #[test]
    fn a_cluster_name_is_one_path_segment() {
        for text in ["main", "a", "tenant-1.example_2", "9"] {
            assert!(text.parse::<ClusterName>().is_ok(), "{text:?} was refused");
        }
        for text in ["", ".", "..", "a/b", "-a", "a b", "\u{e9}", &"a".repeat(65)] {
            assert!(text.parse::<ClusterName>().is_err(), "{text:?} was accepted");
        }
    }
}
