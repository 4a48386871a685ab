//! How much of each of a base's chunks is used, and which are worn so much that keeping them costs restores too much.

use crate::format::manifest::{FileRange, Manifest, RangeSource};

/// The chunks of a base's packs.
pub(super) struct ChunkUse {
    /// By pack and chunk number.
    packs: Vec<Vec<Chunk>>,
}

#[derive(Clone, Copy, Default)]
struct Chunk {
    /// Bytes of its plaintext; 0 for one that nothing points to.
    length: u32,
    /// How many of them are used.
    used: u32,
    worn: bool,
}

impl ChunkUse {
    /// Nothing is used so far.
    pub(super) fn new(base: &Manifest) -> ChunkUse {
        ChunkUse { packs: vec![Vec::new(); base.packs.len()] }
    }

    /// A range is kept.
    pub(super) fn add(&mut self, range: &FileRange) {
        let RangeSource::Chunk { pack, number, plaintext_length, .. } = range.source else { return };
        let Some(chunks) = self.packs.get_mut(pack as usize) else { return };
        let number = number as usize;
        if chunks.len() <= number {
            chunks.resize(number + 1, Chunk::default());
        }
        if let Some(chunk) = chunks.get_mut(number) {
            chunk.length = plaintext_length;
            chunk.used = chunk.used.saturating_add(range.length).min(plaintext_length);
        }
    }

    pub(super) fn is_worn(&self, pack: u32, number: u32) -> bool {
        let chunk = self.packs.get(pack as usize).and_then(|chunks| chunks.get(number as usize));
        chunk.is_some_and(|chunk| chunk.worn)
    }

    /// Gives up chunks, those of which the smallest share is used first, until all that are kept, and what is stored anew
    /// in place of the others, decode to at most `limit` bytes.
    pub(super) fn give_up(&mut self, limit: u64) {
        let mut chunks: Vec<&mut Chunk> =
            self.packs.iter_mut().flatten().filter(|chunk| chunk.length > 0).collect();
        let mut decoded: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        // Shares compared as fractions, without rounding.
        chunks.sort_by(|a, b| {
            (u64::from(a.used) * u64::from(b.length)).cmp(&(u64::from(b.used) * u64::from(a.length)))
        });
        for chunk in chunks {
            if decoded <= limit || chunk.used == chunk.length {
                return;
            }
            chunk.worn = true;
            decoded -= u64::from(chunk.length - chunk.used);
        }
    }
}
