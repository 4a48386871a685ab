//! The local machine: crash-safe files, the walk through PGDATA, locks and notes.

pub mod caller;
pub mod durable;
pub mod heap;
pub mod kill_point;
pub mod libraries;
pub mod lines;
pub mod pgdata_walk;
pub mod postmaster;
pub mod relation_path;
pub mod socket;
