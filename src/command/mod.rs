//! One file per verb. Each opens with the numbered list of its steps and reads like its own help text.
//!
//! A verb's file has its clap arguments (`…Args`) and `run(args, &Config) -> Result<Outcome, Failure>`; `cli.rs` parses, `main.rs`
//! dispatches, and one place turns a [`crate::error::Failure`] into text and exit status.

pub mod agent;
pub mod backup_list;
pub mod backup_mark;
pub mod backup_push;
pub mod backup_show;
pub mod check;
pub mod completions;
pub mod config;
pub mod expire;
pub mod init;
pub mod keygen;
pub mod man;
pub mod restore;
pub mod status;
pub mod verify;
pub mod wal_fetch;
pub mod wal_prefetch;
pub mod wal_push;
pub mod wal_show;
pub mod wal_verify;
