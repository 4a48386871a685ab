//! A stored object read once, front to back, in large ranges, one of them ahead of the reader.
//!
//! In: an [`ObjectSource`]. Out: pieces of any length, in order. A piece shares the range that it lies in, so
//! nothing is copied but what straddles two ranges. At most two ranges are in memory: one is not read before all
//! pieces of the last but one are gone. Lengths are checked against what is left of the object before anything is
//! allocated.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};

use super::decode::{DecodeError, ObjectSource};
use super::encode::SinkError;

/// Ranges in memory: one whose chunks are being decoded, one on its way.
const RANGES: usize = 2;

/// Consecutive bytes of an object.
pub(super) struct Piece {
    block: Arc<Block>,
    begin: usize,
    end: usize,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.bytes.get(self.begin..self.end).unwrap_or_default()
    }
}

/// Why no piece could be had.
pub(super) enum StreamError {
    Source(SinkError),
    /// The object ends, or a part of it, before it should.
    Short,
    Thread(String),
}

impl StreamError {
    pub(super) fn into_decode_error(self, key: &crate::format::ObjectKey) -> DecodeError {
        match self {
            StreamError::Source(error) => DecodeError::Source(error),
            StreamError::Short => super::open::damaged(key, "it is cut off"),
            StreamError::Thread(problem) => super::open::codec_failed(key, problem),
        }
    }
}

/// A range in memory.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    /// Where the memory goes with the last piece: it lets the next range be read.
    spare: Option<Sender<Vec<u8>>>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(spare) = &self.spare {
            // The reading thread may have ended, and then needs none.
            let _ = spare.send(std::mem::take(&mut self.bytes));
        }
    }
}

type ReadResult = Result<Vec<u8>, SinkError>;

enum Blocks<'env> {
    /// Read when asked for: objects of one range.
    Direct(&'env dyn ObjectSource),
    /// Read ahead by a thread, as memory comes back to it.
    Ahead { ranges: Receiver<ReadResult>, spare: Sender<Vec<u8>> },
}

/// See the module.
pub(super) struct StoredStream<'env> {
    blocks: Blocks<'env>,
    read_size: usize,
    current: Arc<Block>,
    position: usize,
    /// The range after `current`, if it was seen to be there.
    arrived: Option<ReadResult>,
    /// Bytes after `current`.
    unread: u64,
}

impl<'env> StoredStream<'env> {
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        source: &'env dyn ObjectSource,
    ) -> Result<StoredStream<'env>, StreamError> {
        let (length, read_size) = (source.stored_length(), source.read_size().max(1));
        let blocks = if length <= read_size as u64 {
            Blocks::Direct(source)
        } else {
            let (sender, ranges) = channel::<ReadResult>();
            let (spare, spares) = channel();
            for _ in 0..RANGES {
                let _ = spare.send(Vec::new());
            }
            let read_ahead = move || {
                let mut offset = 0;
                while offset < length {
                    let Ok(spare) = spares.recv() else { return };
                    let size = (length - offset).min(read_size as u64) as usize;
                    let block = source.read_range_reusing(offset, size, spare);
                    let failed = block.is_err();
                    if sender.send(block).is_err() || failed {
                        return;
                    }
                    offset += size as u64;
                }
            };
            let spawned = Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, read_ahead);
            spawned.map_err(|error| StreamError::Thread(format!("start a thread: {error}")))?;
            Blocks::Ahead { ranges, spare }
        };
        Ok(StoredStream {
            blocks,
            read_size,
            current: Arc::default(),
            position: 0,
            arrived: None,
            unread: length,
        })
    }

    /// Bytes of the object that were not taken yet.
    pub(super) fn remaining(&self) -> u64 {
        self.here().len() as u64 + self.unread
    }

    /// What is left of the current range.
    fn here(&self) -> &[u8] {
        self.current.bytes.get(self.position..).unwrap_or_default()
    }

    /// The next `N` bytes without taking them, if they lie in one range that is here.
    pub(super) fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.here().first_chunk()
    }

    /// True if taking the next `length` bytes means waiting for the store.
    pub(super) fn must_wait(&mut self, length: usize) -> bool {
        if self.here().len() >= length || self.unread == 0 {
            return false;
        }
        if let (Blocks::Ahead { ranges, .. }, None) = (&self.blocks, &self.arrived) {
            self.arrived = ranges.try_recv().ok();
        }
        self.arrived.is_none()
    }

    /// The next `length` bytes, contiguous.
    pub(super) fn take(&mut self, length: usize) -> Result<Piece, StreamError> {
        if length as u64 > self.remaining() {
            return Err(StreamError::Short);
        }
        if self.here().is_empty() && length > 0 {
            self.next_block()?;
        }
        if self.here().len() >= length {
            let begin = self.position;
            self.position += length;
            return Ok(Piece { block: Arc::clone(&self.current), begin, end: begin + length });
        }
        let mut joined = Vec::with_capacity(length);
        while joined.len() < length {
            if self.here().is_empty() {
                self.next_block()?;
            }
            let rest = self.here();
            let part = rest.get(..length - joined.len()).unwrap_or(rest);
            joined.extend_from_slice(part);
            self.position += part.len();
        }
        Ok(Piece { block: Arc::new(Block { bytes: joined, spare: None }), begin: 0, end: length })
    }

    /// The next `N` bytes by value.
    pub(super) fn take_array<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let piece = self.take(N)?;
        piece.first_chunk().copied().ok_or(StreamError::Short)
    }

    fn next_block(&mut self) -> Result<(), StreamError> {
        let size = self.unread.min(self.read_size as u64) as usize;
        // The memory of the range that was used up must be on its way back before the next one is waited for.
        self.current = Arc::default();
        self.position = 0;
        let bytes = match (self.arrived.take(), &self.blocks) {
            (Some(bytes), _) => bytes,
            (None, Blocks::Direct(source)) => source.read_range(0, size),
            (None, Blocks::Ahead { ranges, .. }) => {
                ranges.recv().map_err(|_| StreamError::Thread("the reading thread died".to_owned()))?
            }
        };
        let bytes = bytes.map_err(StreamError::Source)?;
        if bytes.len() != size || size == 0 {
            return Err(StreamError::Short);
        }
        let spare = match &self.blocks {
            Blocks::Direct(_) => None,
            Blocks::Ahead { spare, .. } => Some(spare.clone()),
        };
        self.unread -= size as u64;
        self.current = Arc::new(Block { bytes, spare });
        Ok(())
    }
}
