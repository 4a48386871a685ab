//! Base backups of real servers: what they hold, what they refuse, and what is left when they end early.

mod support;

#[path = "backup/contents.rs"]
mod contents;
#[path = "backup/endings.rs"]
mod endings;
#[path = "backup/listing.rs"]
mod listing;
#[path = "backup/refusals.rs"]
mod refusals;
#[path = "backup/site.rs"]
#[allow(dead_code, reason = "shared with the tests of incremental backups")]
mod site;
