//! Facts that PostgreSQL defines: names, positions, file layouts, settings.
//!
//! Everything here except [`client`] is pure: bytes and text in, typed values out, no I/O. Each item names
//! the part of PostgreSQL that it follows.

pub mod backup_label;
pub mod client;
pub mod control;
pub mod lsn;
pub mod page_checksum;
pub mod record_crc;
pub mod recovery;
pub mod system_identifier;
pub mod timeline;
pub mod timestamp;
pub mod wal_event;
pub mod wal_page;
pub mod wal_record;
pub mod wal_segment;
pub mod wal_storage;

pub use lsn::Lsn;
pub use system_identifier::SystemIdentifier;
pub use timeline::{TimelineHistory, TimelineId};
pub use timestamp::PgTimestamp;
pub use wal_segment::{ArchiveFileName, WalSegmentName, WalSegmentNumber, WalSegmentSize};
