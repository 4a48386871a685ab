//! Checking a repository without trusting it: whether everything that backups need is there, and with `--deep` whether it still
//! is what was written.
//!
//! [`check`] finds what is wrong, [`report`] says what that costs, [`record`] leaves the result in the repository, where `status` finds it,
//! [`journal`] lets an interrupted deep run go on.

pub mod check;
pub mod journal;
pub mod record;
pub mod report;
