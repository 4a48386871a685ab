//! The envelope around every object: header, chunks, index, footer. Byte layouts only; `docs/format.md` is the
//! table. Compression and encryption of the parts happen in [`crate::codec`].

use crate::pg::{SystemIdentifier, WalSegmentSize};

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ObjectKind {
    /// A complete WAL segment, or a `.partial` one.
    WalSegment,
    /// A `.history` file.
    TimelineHistory,
    /// A `.backup` file.
    BackupHistory,
    /// A pack of data-file chunks.
    Pack,
    /// A backup's manifest.
    Manifest,
}

/// The plaintext facts in an object's header: what it claims to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectFacts {
    /// What it is.
    pub kind: ObjectKind,
    /// The last segment of its key: the file's name, `manifest`, a pack's number.
    pub name: String,
    /// The cluster that it belongs to.
    pub system_identifier: SystemIdentifier,
    /// The cluster's segment size; `None` where it is not known (a `.history` pushed without a server).
    pub segment_size: Option<WalSegmentSize>,
}

/// Plaintext bytes per chunk, except the last: 1 MiB.
pub const CHUNK_SIZE: usize = 1 << 20;
/// The most that a reader accepts.
pub const MAX_CHUNK_SIZE: usize = 4 << 20;
