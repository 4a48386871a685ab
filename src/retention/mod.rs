//! Retention: which backups and which WAL stay, what that means for the moments that can be recovered, and deleting the rest.
//!
//! [`inventory`] reads what there is, [`plan`] decides (a value that only reads produce: what is printed, what `--json` gives
//! and what a real run does are the same), [`apply`] announces the plan, looks again and deletes. `status` and `verify` use
//! the same inventory and the same [`windows`].
//!
//! What must hold: nothing is deleted if something could not be read or listed; the last good backup of a line stays; a pack
//! goes only if no manifest that stays points to it and no backup at work may.

pub mod apply;
mod decide;
pub mod inventory;
pub mod keep_wal;
pub mod plan;
pub mod policy;
pub mod render;
mod unfinished;
pub mod windows;
