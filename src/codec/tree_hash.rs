//! BLAKE3 of a whole object, computed where its chunks are.
//!
//! BLAKE3 is a tree. Chunks of one power of two are whole subtrees of it, so each worker hashes its own chunk and
//! the calling thread only joins 32 bytes per chunk.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::format::Digest;

/// One chunk's part of the digest.
pub(super) enum Subtree {
    /// The first chunk: may yet turn out to be the only one, and then it is the root.
    First(Box<blake3::Hasher>),
    /// Any other.
    Later(ChainingValue),
    /// An empty chunk after others adds nothing.
    Empty,
}

impl Subtree {
    /// Hashes chunk `number` of an object whose chunks, but the last, have `chunk_size` bytes: a power of two of
    /// at least 1024. `plaintext` is not longer.
    pub(super) fn of(number: u32, chunk_size: usize, plaintext: &[u8]) -> Subtree {
        let mut hasher = blake3::Hasher::new();
        if number == 0 {
            hasher.update(plaintext);
            return Subtree::First(Box::new(hasher));
        }
        if plaintext.is_empty() {
            return Subtree::Empty;
        }
        hasher.set_input_offset(u64::from(number) * chunk_size as u64).update(plaintext);
        Subtree::Later(hasher.finalize_non_root())
    }
}

/// Joins the subtrees, which come in order.
#[derive(Default)]
pub(super) struct TreeDigest {
    first: Option<Box<blake3::Hasher>>,
    /// Complete subtrees, largest first: one per bit of `count`.
    stack: Vec<ChainingValue>,
    count: u64,
}

impl TreeDigest {
    pub(super) fn push(&mut self, subtree: Subtree) {
        let value = match subtree {
            Subtree::First(hasher) => {
                self.first = Some(hasher);
                return;
            }
            Subtree::Empty => return,
            Subtree::Later(value) => value,
        };
        if let Some(first) = self.first.take() {
            self.add(first.finalize_non_root());
        }
        self.add(value);
    }

    fn add(&mut self, value: ChainingValue) {
        // Subtrees are merged only once more input follows: the last merge must be made as the root.
        while self.stack.len() > self.count.count_ones() as usize {
            if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
                self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
            }
        }
        self.stack.push(value);
        self.count += 1;
    }

    pub(super) fn finish(mut self) -> Digest {
        if let Some(first) = self.first {
            return Digest(*first.finalize().as_bytes());
        }
        let Some(mut right) = self.stack.pop() else { return Digest::of(&[]) };
        while let Some(left) = self.stack.pop() {
            if self.stack.is_empty() {
                return Digest(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        // One subtree alone would have been `first`.
        Digest(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_the_parts_is_that_of_the_whole() {
        let size = 1 << 10;
        let input: Vec<u8> = (0..40 * size).map(|n| (n % 251) as u8).collect();
        for chunks in 0..=38 {
            for extra in [0, 1, size / 2, size - 1] {
                let plaintext = &input[..chunks * size + extra];
                let mut digest = TreeDigest::default();
                for (number, chunk) in plaintext.chunks(size).enumerate() {
                    digest.push(Subtree::of(number as u32, size, chunk));
                }
                if extra == 0 {
                    digest.push(Subtree::of(chunks as u32, size, &[]));
                }
                assert_eq!(digest.finish(), Digest::of(plaintext), "{chunks} chunks and {extra} bytes");
            }
        }
    }
}
