//! One conformance suite for every backend, against real stores, and what each backend promises beyond it.

mod support;

#[path = "repository/clouds.rs"]
mod clouds;
#[path = "repository/conformance.rs"]
mod conformance;
#[path = "repository/deletion.rs"]
mod deletion;
#[path = "repository/directories.rs"]
mod directories;
#[path = "repository/faults.rs"]
mod faults;
