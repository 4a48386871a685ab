//! What an upload holds in memory: bytes in pieces that are shared, not copied, when they are sent and sent again.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;

/// The pieces that a body is held and sent in; progress is seen from one to the next.
const BLOCK: usize = 256 << 10;
/// Bytes that were not sent yet, in pieces that are shared rather than copied when they are sent.
#[derive(Default)]
pub(super) struct Buffer {
    blocks: VecDeque<Bytes>,
    open: BytesMut,
    pub(super) length: usize,
}

impl Buffer {
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            if self.open.capacity() == 0 {
                self.open.reserve(BLOCK);
            }
            let room = self.open.capacity() - self.open.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(now);
            bytes = later;
            if self.open.len() == self.open.capacity() {
                self.blocks.push_back(std::mem::take(&mut self.open).freeze());
            }
        }
    }

    /// The first `length` bytes, or all there are.
    pub(super) fn take(&mut self, length: usize) -> PutPayload {
        if length >= self.length && !self.open.is_empty() {
            self.blocks.push_back(std::mem::take(&mut self.open).freeze());
        }
        let (mut taken, mut missing) = (Vec::new(), length.min(self.length));
        while missing > 0 {
            let Some(mut block) = self.blocks.pop_front() else {
                // What is open is needed too.
                self.blocks.push_back(std::mem::take(&mut self.open).freeze());
                continue;
            };
            if block.len() > missing {
                self.blocks.push_front(block.split_off(missing));
            }
            missing -= block.len();
            self.length -= block.len();
            taken.push(block);
        }
        taken.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_gives_back_what_went_in() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * BLOCK + 12_345).collect();
        for (piece, part) in [(1000, 5 << 20), (700_001, 100_000), (BLOCK, BLOCK), (bytes.len(), 7)] {
            let mut buffer = Buffer::default();
            bytes.chunks(piece).for_each(|piece| buffer.push(piece));
            assert_eq!(buffer.length, bytes.len());
            let mut back = Vec::new();
            while buffer.length > 0 {
                let payload = buffer.take(part);
                assert_eq!(payload.content_length(), part.min(bytes.len() - back.len()));
                payload.iter().for_each(|block| back.extend_from_slice(block));
            }
            assert!(back == bytes, "{piece} {part}");
        }
        assert_eq!(Buffer::default().take(usize::MAX).content_length(), 0);
    }
}
