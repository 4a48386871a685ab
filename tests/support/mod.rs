//! Shared by all integration tests.
#![allow(dead_code)]

pub mod archive;
pub mod postgres;
pub mod program;
pub mod wal_files;
