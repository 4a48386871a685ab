//! Fetching the next segments while PostgreSQL replays the last one.
//!
//! In: which segment a recovering server asked for last. Out: the next ones, checked and synced, in `<pg_wal>/.walhold/`, from where a wal-fetch moves one to its destination by
//! rename. What must hold:
//! - A file there has a name only when it is whole and was checked like any other fetched file; it is handed out once, by the process that checked it, and only while it is unchanged.
//! - Nothing is ever called absent because of what is not there: every miss is asked of the archive itself.
//! - Disk use and memory are bounded, and nothing stays behind when recovery ends.
//!
//! [`mod@line`] knows which segments come next, [`window`] fetches them, [`worker`] is the process that does so without an agent, [`client`] is wal-fetch's side, [`protocol`] what they say
//! to each other.

pub mod client;
pub mod line;
pub mod protocol;
pub mod window;
pub mod worker;

/// The directory below pg_wal that holds the window, and nothing else.
pub const DIRECTORY: &str = ".walhold";
