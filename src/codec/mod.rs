//! The chunk pipeline both ways: compress, encrypt, digest; decode and check.
//!
//! Blocking code on plain threads: CPU work never runs on an async executor, because there is none here.
//! In: plaintext chunks and a [`Sealing`]. Out: an object in the envelope of [`crate::format::envelope`].

pub(crate) mod base64;
pub mod compress;
mod crew;
pub mod decode;
pub mod encode;
pub mod encrypt;
#[cfg(test)]
mod golden;
mod open;
mod seal;
mod stored_stream;
mod tail;
mod tree_hash;

pub use compress::{Compression, Effort};
pub use encrypt::{KeyId, KeyRing, MasterKey};

/// How new objects are written.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// How chunks are compressed.
    pub compression: Compression,
    /// The key that encrypts; `None` writes plain zstd.
    pub key: Option<MasterKey>,
    /// Worker threads for one object; `None` for one per core, capped so that promise 7 holds.
    pub workers: Option<usize>,
}
