//! An object's end, read alone: what it holds, and where its chunks lie, with a request or two.

use super::decode::{DecodeError, Expected, ObjectSource};
use super::encode::ChunkLocation;
use super::open::{OpenPlan, PartOpener, damaged, refuse, split_end};
use super::{Compression, KeyId, KeyRing};
use crate::format::Digest;
use crate::format::envelope::{ChunkLengths, FOOTER_SIZE, FRAME_HEADER_SIZE, Footer, ObjectFacts};

/// An object's end, read and checked: what it holds, without its chunks.
#[derive(Clone, Debug)]
pub struct ObjectTail {
    /// What the object says it is.
    pub facts: ObjectFacts,
    /// BLAKE3 of the plaintext.
    pub digest: Digest,
    /// Bytes of plaintext.
    pub plaintext_length: u64,
    /// Bytes as stored.
    pub stored_length: u64,
    /// The key that it is encrypted with.
    pub key_id: Option<KeyId>,
    /// What the writer put into the index (a WAL index, a manifest's summary, a pack's contents); may be empty.
    pub index: Vec<u8>,
    /// How its chunks are stored.
    pub layout: StoredLayout,
}

impl ObjectTail {
    /// Whether the object's plaintext is this one.
    pub fn is_of(&self, digest: Digest, plaintext_length: u64) -> bool {
        self.digest == digest && self.plaintext_length == plaintext_length
    }
}

/// How an object's chunks are stored: with this, and the object's facts, each can be opened alone.
#[derive(Clone, Debug)]
pub struct StoredLayout {
    /// How they are compressed.
    pub compression: Compression,
    /// The salt of the object's key; zeros without one.
    pub salt: [u8; 32],
    /// Stored bytes before the first chunk.
    pub header_length: u64,
    /// The chunks, which follow each other.
    pub chunks: Vec<ChunkLengths>,
}

impl StoredLayout {
    /// Where each chunk lies.
    pub fn locations(&self) -> impl Iterator<Item = ChunkLocation> + '_ {
        let begin = |offset: &mut u64, chunk: &ChunkLengths| {
            let at = *offset;
            *offset += u64::from(chunk.stored);
            Some((at, *chunk))
        };
        let placed = self.chunks.iter().scan(self.header_length, begin);
        (0..).zip(placed).map(|(number, (offset, chunk))| ChunkLocation {
            number,
            offset,
            stored_length: chunk.stored,
            plaintext_length: chunk.plaintext,
        })
    }
}

/// Bytes of an object's end that are read at first: they hold most indexes.
const TAIL_READ_SIZE: u64 = 64 << 10;

/// Reads header, index and footer of an object with at most three small range reads (one for objects below 64 KiB).
///
/// The header is the copy that lies in the index frame; the chunks, and the header in front of them, are not read.
pub fn read_tail(
    source: &dyn ObjectSource,
    expected: &Expected<'_>,
    keys: &KeyRing,
) -> Result<ObjectTail, DecodeError> {
    let stored_length = source.stored_length();
    let tail_length = stored_length.min(TAIL_READ_SIZE);
    let tail_offset = stored_length - tail_length;
    let read = |offset, length| -> Result<Vec<u8>, DecodeError> {
        let bytes = source.read_range(offset, length).map_err(DecodeError::Source)?;
        if bytes.len() == length { Ok(bytes) } else { Err(damaged(expected.key, "it is cut off")) }
    };
    let mut tail = read(tail_offset, tail_length as usize)?;
    let footer =
        tail.last_chunk::<FOOTER_SIZE>().ok_or_else(|| damaged(expected.key, cut_off(stored_length)))?;
    let footer = Footer::parse(footer, stored_length).map_err(|error| refuse(expected.key, error))?;
    let end = match footer.index_offset.checked_sub(tail_offset) {
        Some(begin) => tail.split_off(begin as usize),
        None => {
            // The footer's lengths were checked: this is the whole end, and bounded.
            let missing = read(footer.index_offset, (tail_offset - footer.index_offset) as usize)?;
            [missing, std::mem::take(&mut tail)].concat()
        }
    };
    let (index_frame, footer) =
        split_end(&end, stored_length).map_err(|error| refuse(expected.key, error))?;
    let header = index_frame.get(FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + footer.header_length as usize);
    let header = header.ok_or_else(|| damaged(expected.key, "the index is cut off"))?;
    let plan = OpenPlan::new(header, expected, keys)?;
    if tail_offset == 0 && !tail.starts_with(header) {
        return Err(damaged(expected.key, "its two headers differ"));
    }
    let mut opener = PartOpener::new(&plan, expected.key)?;
    let end = opener.open_end(index_frame, &footer).map_err(|error| refuse(expected.key, error))?;
    Ok(ObjectTail {
        facts: plan.header.facts,
        digest: end.digest,
        plaintext_length: end.plaintext_length,
        stored_length,
        key_id: plan.header.key_id,
        index: end.content,
        layout: StoredLayout {
            compression: plan.header.compression,
            salt: plan.header.salt,
            header_length: u64::from(footer.header_length),
            chunks: end.chunks,
        },
    })
}

/// Why an object cannot even have an end.
pub(super) fn cut_off(stored_length: u64) -> &'static str {
    if stored_length == 0 { "it is empty" } else { "it is cut off" }
}
