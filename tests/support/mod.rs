//! Shared by all integration tests.
#![allow(dead_code)]

pub mod agent;
pub mod archive;
pub mod cloud;
pub mod cloud_emulators;
pub mod fake_server;
pub mod fault_proxy;
pub mod gcs_gateway;
pub mod memory;
pub mod postgres;
pub mod program;
pub mod random;
pub mod site;
pub mod stores;
pub mod tls_proxy;
pub mod tmpfs;
pub mod wal_files;
