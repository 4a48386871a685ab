//! What uploads hold in memory: bytes in blocks that are shared, not copied, when they are sent and sent again.
//!
//! Blocks go from one upload to the next, so that a stream of uploads neither asks the system for memory again and again nor leaves holes behind
//! that make the process larger than what it holds.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::PutPayload;

/// The pieces that a body is held and sent in; progress is seen from one to the next.
const BLOCK: usize = 256 << 10;

/// The blocks of one store's uploads.
#[derive(Default)]
pub(super) struct Blocks {
    state: Mutex<BlocksState>,
}

#[derive(Default)]
struct BlocksState {
    spare: Vec<Vec<u8>>,
    in_use: usize,
}

impl Blocks {
    fn take(self: &Arc<Self>) -> Block {
        let spare = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.in_use += 1;
            state.spare.pop()
        };
        Block { bytes: spare.unwrap_or_else(|| Vec::with_capacity(BLOCK)), blocks: Arc::clone(self) }
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_use -= 1;
        if state.in_use > 0 {
            state.spare.push(bytes);
        } else {
            // Nobody uploads any more: what was needed at the busiest moment is not kept for the next one.
            state.spare = Vec::new();
        }
    }
}

/// A block in use; it goes back when its last holder is done with it.
struct Block {
    bytes: Vec<u8>,
    blocks: Arc<Blocks>,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.blocks.give_back(std::mem::take(&mut self.bytes));
    }
}

/// Bytes that were not sent yet.
pub(super) struct Buffer {
    source: Arc<Blocks>,
    full: VecDeque<Bytes>,
    open: Option<Block>,
    pub(super) length: usize,
}

impl Buffer {
    /// An empty one.
    pub(super) fn new(source: &Arc<Blocks>) -> Buffer {
        Buffer { source: Arc::clone(source), full: VecDeque::new(), open: None, length: 0 }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let open = self.open.get_or_insert_with(|| self.source.take());
            let (now, later) = bytes.split_at((BLOCK - open.bytes.len()).min(bytes.len()));
            open.bytes.extend_from_slice(now);
            bytes = later;
            if open.bytes.len() == BLOCK {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.full.push_back(Bytes::from_owner(open));
        }
    }

    /// The first `length` bytes, or all there are.
    pub(super) fn take(&mut self, length: usize) -> PutPayload {
        if length >= self.length {
            self.close();
        }
        let (mut taken, mut missing) = (Vec::new(), length.min(self.length));
        while missing > 0 {
            let Some(mut block) = self.full.pop_front() else {
                // What is open is needed too.
                self.close();
                continue;
            };
            if block.len() > missing {
                self.full.push_front(block.split_off(missing));
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
        let blocks = Arc::default();
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * BLOCK + 12_345).collect();
        for (piece, part) in [(1000, 5 << 20), (700_001, 100_000), (BLOCK, BLOCK), (bytes.len(), 7)] {
            let mut buffer = Buffer::new(&blocks);
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
        assert_eq!(Buffer::new(&blocks).take(usize::MAX).content_length(), 0);
        assert_eq!(blocks.state.lock().unwrap().in_use, 0);
    }

    #[test]
    fn blocks_go_from_one_upload_to_the_next() {
        let blocks: Arc<Blocks> = Arc::default();
        let spare = || blocks.state.lock().unwrap().spare.len();
        let mut one = Buffer::new(&blocks);
        one.push(&[1; 3 * BLOCK]);
        let sent = one.take(usize::MAX);
        let mut other = Buffer::new(&blocks);
        other.push(&[2; 10]);
        let sent_again = sent.clone();
        drop(sent);
        assert_eq!(spare(), 0, "somebody may send them again");
        drop(sent_again);
        assert_eq!(spare(), 3);
        other.push(&[2; 3 * BLOCK]);
        assert_eq!(spare(), 0);
        let payload = other.take(usize::MAX);
        assert!(payload.iter().all(|block| block.iter().all(|byte| *byte == 2)));
        drop((one, other, payload));
        assert_eq!(spare(), 0, "nothing is kept when nobody uploads");
    }
}
