//! Restore: choose → prove → lay out → fetch → finish → (start → watch).

pub mod archive_view;
pub mod choose;
pub mod error;
pub mod prove;
#[cfg(test)]
mod synthetic;
pub mod target;
pub mod time_text;
pub mod wal_path;
