//! Restore: choose → prove → lay out → fetch → finish → (start → watch).

pub mod archive_view;
pub mod choose;
pub mod error;
pub mod fetch;
pub mod layout;
pub mod packs;
pub mod place;
pub mod prove;
#[cfg(test)]
mod synthetic;
pub mod target;
pub mod target_files;
pub mod time_text;
pub mod wal_path;
