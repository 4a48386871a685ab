//! A backup's manifest: the whole cluster, file by file, whichever backup wrote the bytes.
//!
//! Stored as an object of kind manifest; the [`BackupSummary`] is its index area (JSON), so that a listing
//! reads a few KiB per backup. The body is binary (see `docs/format.md`), because a terabyte has a million ranges.

mod bytes;
mod decode;
mod encode;
mod pack_scan;

pub use pack_scan::PackScan;

use serde::{Deserialize, Serialize};

use super::backup_id::BackupId;
use super::digest::ShortDigest;
use crate::codec::{Compression, KeyId};
use crate::pg::{Lsn, PgTimestamp, SystemIdentifier, TimelineId, WalSegmentSize};

/// A complete backup.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// What listings show and plans need.
    pub summary: BackupSummary,
    /// What else was recorded about the server.
    pub server: ServerFacts,
    /// `backup_label` as `pg_backup_stop` gave it.
    pub backup_label: String,
    /// `tablespace_map` likewise; `None` if empty.
    pub tablespace_map: Option<String>,
    /// Tablespaces outside PGDATA.
    pub tablespaces: Vec<Tablespace>,
    /// Names for numbers, as of the backup; only the connected database's relations are named, others' are when they could be read.
    pub catalogue: Vec<CatalogueEntry>,
    /// Packs that ranges point into, of this backup and of earlier ones.
    pub packs: Vec<PackEntry>,
    /// Directories, parents first.
    pub directories: Vec<DirectoryEntry>,
    /// Files, in path order per root.
    pub files: Vec<FileEntry>,
}

/// What listings show: readable with one small range read.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BackupSummary {
    /// The backup's name.
    pub id: BackupId,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// `server_version_num`, 150018.
    pub server_version: u32,
    /// `full` or `incremental`.
    pub kind: BackupKind,
    /// The backup whose packs an incremental one reuses.
    pub base: Option<BackupId>,
    /// Taken from a server in recovery.
    pub from_standby: bool,
    /// The timeline at the start.
    pub start_timeline: TimelineId,
    /// The timeline at the stop (a standby may have followed a promotion).
    pub stop_timeline: TimelineId,
    /// `START WAL LOCATION`: replay begins here.
    pub start_lsn: Lsn,
    /// The start checkpoint's record.
    pub checkpoint_lsn: Lsn,
    /// What `pg_backup_stop` returned: replay is consistent from here (on a standby: pg_control's minimum recovery point).
    pub stop_lsn: Lsn,
    /// The server's clock at the start.
    pub start_time: PgTimestamp,
    /// The server's clock at the stop.
    pub stop_time: PgTimestamp,
    /// Bytes in a WAL segment.
    pub wal_segment_size: WalSegmentSize,
    /// Bytes in a page.
    pub block_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Bytes of all files as the cluster sees them.
    pub cluster_bytes: u64,
    /// Files.
    pub file_count: u64,
    /// Stored bytes of the packs that this backup wrote.
    pub new_bytes: u64,
    /// Stored bytes of all packs' chunks that it points to.
    pub repository_bytes: u64,
    /// What it took over from attempts that ended early; `None` if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Resumed>,
    /// Pages whose checksum did not fit and were not in motion.
    pub damaged_pages: u64,
    /// Whether its objects are encrypted.
    pub encrypted: bool,
    /// How "changed" was found, per source: `full`, `summaries`, `index`, `scan`, `compare`.
    pub changes_from: String,
    /// The server's `TimeZone`.
    pub time_zone: String,
    /// Of this walhold.
    pub walhold_version: String,
}

/// What a backup took over from attempts that ended early.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// The attempts.
    pub attempts: Vec<BackupId>,
    /// Stored bytes of the chunks in their packs that it points to.
    pub bytes: u64,
}

/// Whether a backup reads everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every page was read and stored.
    Full,
    /// Ranges of earlier packs are reused.
    Incremental,
}

/// Recorded so that plans can warn and refuse.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `version()`.
    pub version_text: String,
    /// `data_directory`.
    pub data_directory: String,
    /// `config_file`, `hba_file`, `ident_file` where they lie outside PGDATA.
    pub external_configuration: Vec<String>,
    /// glibc's version, where it could be found.
    pub glibc_version: Option<String>,
    /// The version that ICU gives its root collation (`153.120`), where the server is built with ICU.
    pub icu_version: Option<String>,
    /// The version of the ICU library that the server had loaded (`72.1`), where that could be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu_library: Option<String>,
    /// `pg_control`'s catalog version, part of tablespace directories' names.
    pub catalog_version: u32,
    /// `max_connections`, `max_worker_processes`, `max_wal_senders`, `max_prepared_transactions`,
    /// `max_locks_per_transaction`, `wal_level`, `full_page_writes`, `hot_standby`, … : settings by name.
    pub settings: std::collections::BTreeMap<String, String>,
    /// Damaged pages found: path and block, at most 1,000.
    pub damaged_blocks: Vec<(String, u32)>,
}

/// A tablespace with its own directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its oid: the link's name in pg_tblspc.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The directory that the link points to.
    pub location: String,
}

/// A relation's names and numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// Database name and oid.
    pub database: String,
    /// Database oid.
    pub database_oid: u32,
    /// Schema; empty for a database's own line.
    pub schema: String,
    /// Relation; empty for a database's own line.
    pub relation: String,
    /// The relation's oid; 0 for a database's own line.
    pub oid: u32,
    /// `pg_relation_filenode`; 0 for none.
    pub relfilenode: u32,
    /// Tablespace oid, 0 for the database's default.
    pub tablespace: u32,
    /// `relkind`.
    pub kind: char,
}

/// A pack that ranges point into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackEntry {
    /// The backup that wrote it.
    pub backup: BackupId,
    /// Its number there.
    pub number: u32,
    /// Bytes as stored.
    pub stored_length: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// The key that it is encrypted with.
    pub key_id: Option<KeyId>,
    /// Its salt.
    pub salt: [u8; 32],
}

/// Where a path is anchored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Root {
    /// Relative to PGDATA; tablespaces appear as `pg_tblspc/<oid>/PG_…`.
    DataDirectory,
    /// A configuration file outside PGDATA: its absolute path without the leading slash.
    External,
}

/// A directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// Relative to PGDATA, `/`-separated. Bytes, because paths need not be UTF-8.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// A file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Where `path` is anchored.
    pub root: Root,
    /// `/`-separated bytes.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time when read, microseconds since 1970.
    pub modified: i64,
    /// Cover `0..size` without gap or overlap, ascending.
    pub ranges: Vec<FileRange>,
}

/// A run of a file's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRange {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Where they are.
    pub source: RangeSource,
}

/// Where a range's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeSource {
    /// All zero: stored nowhere, restored sparse.
    Zeros,
    /// In a chunk of a pack.
    Chunk {
        /// Index into [`Manifest::packs`].
        pack: u32,
        /// The chunk's number in the pack.
        number: u32,
        /// The stored chunk's offset in the pack, prefix included.
        offset: u64,
        /// The stored chunk's length, prefix included.
        stored_length: u32,
        /// The chunk's plaintext length.
        plaintext_length: u32,
        /// The range's offset in the chunk's plaintext.
        within: u32,
        /// What the range's bytes are checked with.
        digested: Digested,
    },
}

/// A digest, and the bytes of a chunk's plaintext that it is of. They hold the range: usually they are the range; of a
/// range that a later backup uses in part, they are what the first backup stored in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digested {
    /// Where they begin in the chunk's plaintext.
    pub within: u32,
    /// How many they are.
    pub length: u32,
    /// Their digest.
    pub digest: ShortDigest,
}

impl FileRange {
    /// The digest of exactly the range's bytes. `None` for zeros, and where only a digest of more bytes is known.
    pub fn own_digest(&self) -> Option<ShortDigest> {
        match self.source {
            RangeSource::Chunk { within, digested, .. }
                if (digested.within, digested.length) == (within, self.length) =>
            {
                Some(digested.digest)
            }
            RangeSource::Chunk { .. } | RangeSource::Zeros => None,
        }
    }
}

/// A manifest that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the manifest is malformed at byte {offset}: {problem}")]
pub struct ParseManifestError {
    /// Where in the body.
    pub offset: usize,
    /// What is wrong.
    pub problem: String,
}

impl Manifest {
    /// The object's body; the summary goes into the index area as JSON as well.
    pub fn encode(&self) -> Vec<u8> {
        encode::encode(self)
    }

    /// The inverse of [`Manifest::encode`]. Checked: paths stay below their root and every parent is listed, files and
    /// directories are in order and unique, ranges cover each file, and every chunk lies in a pack of the list.
    pub fn decode(body: &[u8]) -> Result<Manifest, ParseManifestError> {
        decode::decode(body)
    }
}

impl BackupSummary {
    /// Stored bytes of earlier complete backups' packs that it uses. Ends of objects, and what is stored and not pointed to, count as its own.
    pub fn reused_bytes(&self) -> u64 {
        let resumed = self.resumed.as_ref().map_or(0, |resumed| resumed.bytes);
        self.repository_bytes.saturating_sub(self.new_bytes).saturating_sub(resumed)
    }

    /// As it stands in the object's index area.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The inverse of [`BackupSummary::to_json`].
    pub fn from_json(bytes: &[u8]) -> Result<BackupSummary, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
