//! Shared by all integration tests.
#![allow(dead_code)]

pub mod archive;
pub mod memory;
pub mod postgres;
pub mod program;
pub mod tmpfs;
pub mod wal_files;
