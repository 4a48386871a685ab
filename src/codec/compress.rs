//! zstd frames per chunk.

/// How chunks are compressed. Either way every chunk is a zstd frame, so `zstd -dc` opens unencrypted objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Raw zstd blocks.
    None,
    /// A zstd level, -7 to 19.
    Zstd(i32),
}
