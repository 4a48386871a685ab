//! What lies in the repository: object keys, the envelope around every object, manifests, indexes, the marker.
//!
//! Pure: bytes and values only, no I/O. `docs/format.md` gives every layout with byte offsets.

pub mod backup_id;
pub mod digest;
pub mod envelope;
pub mod keys;
pub mod manifest;
pub mod marker;
pub mod pack_contents;
mod varint;
pub mod wal_index;

pub use backup_id::BackupId;
pub use digest::Digest;
pub use keys::{ClusterName, ObjectKey};
