//! zstd frames per chunk.
//!
//! In: a chunk's plaintext. Out: one zstd frame that records its content size, and back. Contexts are reused from
//! chunk to chunk, because setting one up costs as much as compressing a small chunk.

use std::io::Cursor;
use std::ops::RangeInclusive;

use zstd::zstd_safe;

/// How chunks are compressed. Either way every chunk is a zstd frame, so `zstd -dc` opens unencrypted objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Raw zstd blocks.
    None,
    /// A zstd level, -7 to 19.
    Zstd(i32),
}

impl Compression {
    /// The levels of zstd that are allowed: above 19 a decoder would need more memory than zstd grants by default.
    pub const LEVELS: RangeInclusive<i32> = -7..=19;

    /// Bytes that one compressor's context takes for chunks of 1 MiB; a test compares it with what zstd says.
    pub(super) const fn context_size(self) -> usize {
        const MIB: usize = 1 << 20;
        match self {
            Compression::None => 0,
            Compression::Zstd(..=2) => MIB,
            Compression::Zstd(3) => 2 * MIB,
            Compression::Zstd(..=6) => 4 * MIB,
            Compression::Zstd(..=8) => 6 * MIB,
            Compression::Zstd(..=12) => 11 * MIB,
            Compression::Zstd(_) => 18 * MIB,
        }
    }
}

/// Bytes that `length` bytes of plaintext may take at most, as a zstd frame of either kind.
pub(super) fn compressed_bound(length: usize) -> usize {
    zstd_safe::compress_bound(length).max(RAW_HEADER_SIZE + length + 3 * (length / RAW_BLOCK_SIZE + 1))
}

const RAW_HEADER_SIZE: usize = 9;
/// The most that a block of any zstd frame may hold.
const RAW_BLOCK_SIZE: usize = 128 << 10;

type Context = zstd::bulk::Compressor<'static>;

/// Compresses chunks, one frame each.
pub(super) enum Compressor {
    Raw,
    Zstd(Box<Context>),
    /// Tries on a part of each chunk which matches are worth while.
    Trying {
        quick: Box<Context>,
        /// For chunks for which short matches are not, where bytes count more than time.
        thorough: Option<Box<Context>>,
    },
}

/// What counts most where the chunks of a pack are compressed at zstd's fastest level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Time: all of a cluster goes through.
    Quick,
    /// Bytes: there are few, and every incremental backup of the same pages has them once more.
    Thorough,
}

/// The level of zstd whose matches have 7 bytes at least. Pages of a B-tree, whose entries are short and alike, become a third to nearly a half
/// smaller with [`SHORT_MATCH`], for a tenth more of its time; rows become 4 % larger.
const LEVEL_OF_LONG_MATCHES: i32 = 1;
const LONG_MATCH: u32 = 7;
const SHORT_MATCH: u32 = 5;
/// Bytes from the middle of a chunk that are compressed both ways: two pages, 3 % of the time for 1 MiB.
const SAMPLE: usize = 16 << 10;
/// Smaller chunks are not worth the trial.
const TRIED_FROM: usize = 4 * SAMPLE;
/// Short matches are taken if they leave at most so much of the sample, in percent of what the long ones leave.
const WORTH_WHILE_PERCENT: usize = 97;

impl Compressor {
    pub(super) fn new(compression: Compression) -> Result<Compressor, String> {
        match compression {
            Compression::None => Ok(Compressor::Raw),
            Compression::Zstd(level) => {
                let compressor = zstd::bulk::Compressor::new(level).map_err(|error| error.to_string())?;
                Ok(Compressor::Zstd(Box::new(compressor)))
            }
        }
    }

    /// For chunks that differ much from one to the next: pages of rows and of indexes. Its frames are like any others.
    pub(super) fn of_pages(compression: Compression, effort: Effort) -> Result<Compressor, String> {
        match Compressor::new(compression)? {
            Compressor::Zstd(quick) if compression == Compression::Zstd(LEVEL_OF_LONG_MATCHES) => {
                let thorough = match effort {
                    Effort::Quick => None,
                    Effort::Thorough => Some(Box::new(thorough_context()?)),
                };
                Ok(Compressor::Trying { quick, thorough })
            }
            other => Ok(other),
        }
    }

    /// Appends one frame to `out`.
    pub(super) fn append(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.reserve(compressed_bound(plaintext.len()));
        match self {
            Compressor::Raw => append_raw_frame(plaintext, out),
            Compressor::Zstd(context) => append_frame(context, plaintext, out),
            Compressor::Trying { quick, thorough } => match (least_match(quick, plaintext, out)?, thorough) {
                (None, Some(thorough)) => append_frame(thorough, plaintext, out),
                (least, _) => {
                    set_least_match(quick, least)?;
                    append_frame(quick, plaintext, out)
                }
            },
        }
    }
}

/// Keeps a long and a short match for each place, which makes rows 1.3 % and some indexes 4 % smaller than the level does, for a fifth more of
/// its time; zstd's next levels take more time for less.
fn thorough_context() -> Result<Context, String> {
    let mut context = Context::new(LEVEL_OF_LONG_MATCHES).map_err(|error| error.to_string())?;
    for parameter in [
        zstd_safe::CParameter::Strategy(zstd_safe::Strategy::ZSTD_dfast),
        zstd_safe::CParameter::MinMatch(6),
        zstd_safe::CParameter::HashLog(15),
        zstd_safe::CParameter::ChainLog(14),
    ] {
        context.set_parameter(parameter).map_err(|error| error.to_string())?;
    }
    Ok(context)
}

fn append_frame(context: &mut Context, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut cursor = Cursor::new(&mut *out);
    cursor.set_position(cursor.get_ref().len() as u64);
    context.compress_to_buffer(plaintext, &mut cursor).map_err(|error| error.to_string())?;
    Ok(())
}

/// `None` is what the level has for as much plaintext.
fn set_least_match(context: &mut Context, least: Option<u32>) -> Result<(), String> {
    let parameter = zstd_safe::CParameter::MinMatch(least.unwrap_or(0));
    context.set_parameter(parameter).map_err(|error| error.to_string())
}

/// What the shortest match of a chunk should be. `out` is as long afterwards as it was.
fn least_match(context: &mut Context, chunk: &[u8], out: &mut Vec<u8>) -> Result<Option<u32>, String> {
    if chunk.len() < TRIED_FROM {
        return Ok(None);
    }
    // Whole pages.
    let middle = (chunk.len() / 2).next_multiple_of(8 << 10);
    let sample = chunk.get(middle..middle + SAMPLE).unwrap_or_default();
    let begin = out.len();
    let mut size_with = |least| {
        set_least_match(context, Some(least))?;
        append_frame(context, sample, out)?;
        let size = out.len() - begin;
        out.truncate(begin);
        Ok::<_, String>(size)
    };
    let (long, short) = (size_with(LONG_MATCH)?, size_with(SHORT_MATCH)?);
    Ok((short * 100 <= long * WORTH_WHILE_PERCENT).then_some(SHORT_MATCH))
}

/// A frame of raw blocks (RFC 8878, section 3.1.1): single segment, content size in four bytes.
fn append_raw_frame(plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let length = u32::try_from(plaintext.len()).map_err(|_| "a chunk above 4 GiB".to_owned())?;
    out.extend_from_slice(&0xFD2F_B528_u32.to_le_bytes());
    out.push(0b1010_0000);
    out.extend_from_slice(&length.to_le_bytes());
    let mut blocks = plaintext.chunks(RAW_BLOCK_SIZE).peekable();
    if blocks.peek().is_none() {
        // Even an empty frame has a last block.
        out.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = (block.len() as u32) << 3 | last;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    Ok(())
}

/// Decompresses frames of either kind.
pub(super) struct Decompressor {
    context: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    pub(super) fn new() -> Result<Decompressor, String> {
        let context = zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?;
        Ok(Decompressor { context })
    }

    /// Puts the content of `frame` into `plaintext`, which is cleared first. Refuses, before it allocates, a frame
    /// that claims more than `limit` bytes.
    pub(super) fn decompress(
        &mut self,
        frame: &[u8],
        limit: usize,
        plaintext: &mut Vec<u8>,
    ) -> Result<(), String> {
        plaintext.clear();
        let length = match zstd_safe::get_frame_content_size(frame) {
            Ok(Some(length)) => length,
            Ok(None) | Err(_) => return Err("the zstd frame does not record its size".to_owned()),
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= limit);
        let length = length.ok_or("the zstd frame claims to hold more than it may")?;
        plaintext.reserve_exact(length);
        let written =
            self.context.decompress_to_buffer(frame, plaintext).map_err(|error| error.to_string())?;
        if written == length { Ok(()) } else { Err("the zstd frame is shorter than it claims".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_no_larger_than_the_memory_budget_thinks() {
        let chunk: Vec<u8> =
            (0..1_u32 << 18).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
        for level in [-7, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17, 18, 19] {
            let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
            compressor.compress(&chunk).unwrap();
            let size = compressor.context_mut().sizeof();
            let budgeted = Compression::Zstd(level).context_size();
            assert!(size <= budgeted, "level {level} takes {size} bytes, budgeted {budgeted}");
            assert!(budgeted <= size * 2, "level {level} takes {size} bytes, budgeted {budgeted}: too many");
        }
    }

    fn random(n: u32) -> [u8; 8] {
        let n = u64::from(n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (n ^ (n >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_be_bytes()
    }

    /// Entries as an index has them: five bytes that neighbours share, and three that differ.
    fn entries(count: u32) -> Vec<u8> {
        (0..count).flat_map(|n| [&random(n / 50)[..5], &random(n)[..3]].concat()).collect()
    }

    /// Text without a pattern.
    fn text(length: u32) -> Vec<u8> {
        (0..length).map(|n| b'a' + random(n)[0] % 16).collect()
    }

    /// Text of a few hundred words, each with a number behind it: what rows are like.
    fn words(count: u32) -> Vec<u8> {
        let word = |n: u32| format!("{:x?} {} ", &random(u32::from(random(n)[0]) * 8)[..5], random(n)[1]);
        (0..count).flat_map(|n| word(n).into_bytes()).collect()
    }

    #[test]
    fn the_trial_finds_what_makes_chunks_smaller() {
        let size = |compressor: &mut Compressor, chunk: &[u8]| {
            let mut stored = Vec::new();
            compressor.append(chunk, &mut stored).unwrap();
            let mut back = Vec::new();
            Decompressor::new().unwrap().decompress(&stored, chunk.len(), &mut back).unwrap();
            assert!(back == chunk);
            stored.len()
        };
        let level = Compression::Zstd(LEVEL_OF_LONG_MATCHES);
        let mut trying = Compressor::of_pages(level, Effort::Quick).unwrap();
        let mut thorough = Compressor::of_pages(level, Effort::Thorough).unwrap();
        let mut plain = Compressor::new(level).unwrap();
        let (index, rows, words) = (entries(120_000), text(900_000), words(150_000));
        // One after the other in one context: what is found for a chunk is forgotten with the next.
        for _ in 0..2 {
            assert!(size(&mut trying, &index) * 10 < size(&mut plain, &index) * 9);
            assert_eq!(size(&mut thorough, &index), size(&mut trying, &index));
            assert_eq!(size(&mut trying, &rows), size(&mut plain, &rows));
            assert!(size(&mut thorough, &words) * 100 < size(&mut trying, &words) * 99);
            let small = &index[..TRIED_FROM - 1];
            assert_eq!(size(&mut trying, small), size(&mut plain, small));
            let least = &index[..TRIED_FROM];
            assert!(size(&mut trying, least) <= size(&mut plain, least));
        }
        let other = Compressor::of_pages(Compression::Zstd(3), Effort::Thorough).unwrap();
        assert!(matches!(other, Compressor::Zstd(_)));
    }

    #[test]
    fn frames_come_back() {
        for compression in [Compression::None, Compression::Zstd(1)] {
            for length in [0, 1, 255, 256, RAW_BLOCK_SIZE - 1, RAW_BLOCK_SIZE, RAW_BLOCK_SIZE + 1, 300_000] {
                let plaintext: Vec<u8> = (0..length).map(|n| (n / 7) as u8).collect();
                let mut stored = b"before".to_vec();
                let mut compressor = Compressor::of_pages(compression, Effort::Thorough).unwrap();
                compressor.append(&plaintext, &mut stored).unwrap();
                assert!(stored.len() - 6 <= compressed_bound(length));
                let mut back = vec![9; 3];
                let mut decompressor = Decompressor::new().unwrap();
                decompressor.decompress(&stored[6..], length, &mut back).unwrap();
                assert!(back == plaintext, "{compression:?} {length}");
                if length > 0 {
                    assert!(decompressor.decompress(&stored[6..], length - 1, &mut back).is_err());
                }
            }
        }
    }
}
