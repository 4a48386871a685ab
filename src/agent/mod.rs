//! One process that stays: it archives for every wal-push of its host with connections that are open already, archives what waits behind each file meanwhile, fetches for every wal-fetch, and keeps the
//! windows of servers that recover.
//!
//! In: questions over a Unix socket, from this user or root. Out: answers. What must hold:
//! - The agent acknowledges what is durable, and only for the file that the asker has open: it opens the file itself and compares.
//! - An asker that gets no answer, or not one that it understands, does the work itself: an agent that hangs, dies, is another version or has other settings costs a bounded time.
//! - Memory is bounded whatever waits.
//!
//! [`protocol`] is what both sides say, [`client`] is wal-push's and wal-fetch's side, [`server`] listens and answers, [`archiver`] archives, [`fetcher`] fetches, [`bounds`] bounds.

pub mod archiver;
pub mod bounds;
pub mod client;
pub mod fetcher;
pub mod protocol;
pub mod server;
