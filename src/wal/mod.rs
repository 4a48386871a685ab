//! Archiving WAL and getting it back.
//!
//! In: files that PostgreSQL offers (`wal-push`), names that it asks for (`wal-fetch`). Out: durable objects, and files that
//! were checked to the last byte. What must hold: nothing is acknowledged that is not durable, nothing stored is replaced, nothing is called absent
//! that was not proven so, nothing wrong is delivered.

pub mod absence;
pub mod archive_file;
pub mod archive_view;
pub mod changes;
mod delivery_turn;
pub mod destination;
pub mod fetch;
pub mod first_page;
pub mod identity;
pub mod interruption;
pub mod prefetch;
pub mod push;
pub mod push_ahead;
pub mod push_notes;
pub mod ready;
pub mod scan;
pub mod server_directory;
pub mod show;
pub mod stored_segments;
pub mod verify;
pub mod wal_path;
