//! walhold keeps PostgreSQL recoverable: WAL archiving, base backups and point-in-time recovery.
//!
//! Dependencies point one way: `command` → {`backup`, `restore`, `wal`, `repository`, `local`} → {`format`, `codec`} → `pg`.

pub mod agent;
pub mod backup;
pub mod check;
pub mod cli;
pub mod codec;
pub mod command;
pub mod config;
pub mod error;
pub mod exit_status;
pub mod fan_out;
pub mod format;
pub mod interrupt;
pub mod local;
pub mod logging;
pub mod output;
pub mod pg;
pub mod progress;
pub mod repeating;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod status;
pub mod verify;
pub mod wal;
