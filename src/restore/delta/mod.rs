//! `restore --delta`: an existing data directory becomes the backup, and what is right in it already stays.
//!
//! In: a stopped, crashed or half-restored data directory of the same cluster. Out: the same as a restore into an empty one, with only those ranges
//! fetched whose bytes differ. What must hold: before anything in it changes, `global/pg_control` is gone durably, so that no half-done
//! mixture can be started; WAL that only lies here is put aside and never deleted; nothing outside the cluster's own directories is touched.

pub mod clear;
pub mod compare;
pub mod examine;
pub mod old_wal;

pub use compare::{Kept, keep_what_is_right};
pub use examine::Over;
pub use old_wal::Existing;
