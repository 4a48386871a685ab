//! The WAL engines.

pub mod scan;
