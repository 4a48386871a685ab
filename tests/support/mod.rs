//! Shared by all integration tests.
#![allow(dead_code)]

pub mod postgres;
pub mod program;
