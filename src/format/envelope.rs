//! The envelope around every object: header, chunks, index, footer. Byte layouts only; `docs/format.md` is the
//! table. Compression and encryption of the parts happen in [`crate::codec`].
//!
//! In: values. Out: bytes, and back; parsing is strict, so that an object has one spelling. Every part is a zstd
//! frame: chunks of unencrypted objects are ordinary ones, all else is skippable, so `zstd -dc` gives the plaintext.
//! All numbers are little-endian. CRC-32 is the one of zlib and gzip.

use crate::codec::{Compression, KeyId};
use crate::pg::{ArchiveFileName, SystemIdentifier, WalSegmentSize};

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ObjectKind {
    /// A complete WAL segment, or a `.partial` one.
    WalSegment,
    /// A `.history` file.
    TimelineHistory,
    /// A `.backup` file.
    BackupHistory,
    /// A pack of data-file chunks.
    Pack,
    /// A backup's manifest.
    Manifest,
}

impl ObjectKind {
    const ALL: [ObjectKind; 5] = [
        ObjectKind::WalSegment,
        ObjectKind::TimelineHistory,
        ObjectKind::BackupHistory,
        ObjectKind::Pack,
        ObjectKind::Manifest,
    ];

    /// What an archived file of this name is stored as.
    pub const fn of(name: ArchiveFileName) -> ObjectKind {
        match name {
            ArchiveFileName::Segment(_) | ArchiveFileName::Partial(_) => ObjectKind::WalSegment,
            ArchiveFileName::TimelineHistory(_) => ObjectKind::TimelineHistory,
            ArchiveFileName::BackupHistory { .. } => ObjectKind::BackupHistory,
        }
    }

    /// The number in the header, fixed for good.
    const fn number(self) -> u8 {
        match self {
            ObjectKind::WalSegment => 0,
            ObjectKind::TimelineHistory => 1,
            ObjectKind::BackupHistory => 2,
            ObjectKind::Pack => 3,
            ObjectKind::Manifest => 4,
        }
    }

    fn from_number(number: u8) -> Option<ObjectKind> {
        ObjectKind::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl std::fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ObjectKind::WalSegment => "WAL segment",
            ObjectKind::TimelineHistory => "timeline history",
            ObjectKind::BackupHistory => "backup history",
            ObjectKind::Pack => "pack",
            ObjectKind::Manifest => "manifest",
        })
    }
}

/// The plaintext facts in an object's header: what it claims to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectFacts {
    /// What it is.
    pub kind: ObjectKind,
    /// The last segment of its key: the file's name, `manifest`, a pack's number.
    pub name: String,
    /// The cluster that it belongs to.
    pub system_identifier: SystemIdentifier,
    /// The cluster's segment size; `None` where it is not known (a `.history` pushed without a server).
    pub segment_size: Option<WalSegmentSize>,
}

impl ObjectFacts {
    /// The facts of an archived file.
    pub fn of_archive_file(
        name: ArchiveFileName,
        system_identifier: SystemIdentifier,
        segment_size: Option<WalSegmentSize>,
    ) -> ObjectFacts {
        ObjectFacts { kind: ObjectKind::of(name), name: name.to_string(), system_identifier, segment_size }
    }
}

/// Plaintext bytes per chunk, except the last: 1 MiB.
pub const CHUNK_SIZE: usize = 1 << 20;
/// The most that a reader accepts.
pub const MAX_CHUNK_SIZE: usize = 4 << 20;
/// The most that a chunk's payload may have: a chunk that does not compress, and a tag.
pub const MAX_PAYLOAD_SIZE: usize = MAX_CHUNK_SIZE + (64 << 10);
/// The most that the index area may have before compression.
pub const MAX_INDEX_SIZE: usize = 64 << 20;
/// The most that an index frame may have: an index that does not compress, a header, a tag.
const MAX_INDEX_FRAME_SIZE: usize = MAX_INDEX_SIZE + (1 << 20);
/// The format version that this module writes, and the newest that it reads.
pub const VERSION: u16 = 1;
/// Longest [`ObjectFacts::name`] in bytes.
pub const MAX_NAME_LENGTH: usize = 255;

/// Bytes of a skippable frame's own header: magic and length.
pub const FRAME_HEADER_SIZE: usize = 8;
/// Bytes before each chunk's payload.
pub const CHUNK_PREFIX_SIZE: usize = 16;
/// Bytes of the footer.
pub const FOOTER_SIZE: usize = 112;
/// Bytes of the footer that its seal authenticates besides header and key.
pub const FOOTER_PUBLIC_SIZE: usize = 52;
/// Bytes of plaintext length and digest, which encryption hides.
pub const FOOTER_SECRET_SIZE: usize = 40;
/// Bytes of an AES-GCM tag.
pub const TAG_SIZE: usize = 16;

/// zstd's skippable frames have magics 0x184D2A50 to 0x184D2A5F; ours tell the parts apart.
const HEADER_MAGIC: u32 = 0x184D_2A57;
const CHUNK_MAGIC: u32 = 0x184D_2A58;
const INDEX_MAGIC: u32 = 0x184D_2A59;
const FOOTER_MAGIC: u32 = 0x184D_2A5A;
const HEADER_SIGNATURE: &[u8; 8] = b"walhold\0";
const FOOTER_SIGNATURE: &[u8; 8] = b"holdwal\0";

/// Header bytes before the name, and the CRC after it.
const HEADER_FIXED_SIZE: usize = 82;
const CRC_SIZE: usize = 4;
/// Longest header.
pub const MAX_HEADER_SIZE: usize = HEADER_FIXED_SIZE + MAX_NAME_LENGTH + CRC_SIZE;

/// Why bytes are not an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Bytes that no walhold wrote so.
    #[error("{0}")]
    Damaged(String),
    /// Intact, and written by a newer walhold.
    #[error("format version {0}")]
    NewerVersion(u16),
}

fn damaged(problem: impl Into<String>) -> EnvelopeError {
    EnvelopeError::Damaged(problem.into())
}

fn check_version(version: u16) -> Result<(), EnvelopeError> {
    match version {
        VERSION => Ok(()),
        version if version > VERSION => Err(EnvelopeError::NewerVersion(version)),
        version => Err(damaged(format!("unknown format version {version}"))),
    }
}

/// The bytes at a fixed place; parsers below never index.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], EnvelopeError> {
    let field = bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().ok_or_else(|| damaged("it is cut off"))
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, EnvelopeError> {
    array(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, EnvelopeError> {
    array(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, EnvelopeError> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// What a skippable frame is, told from its first eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The header, with the length of the whole frame.
    Header(usize),
    /// A chunk's prefix; its payload follows the frame.
    ChunkPrefix,
    /// The index, with the length of the whole frame.
    Index(usize),
    /// The footer.
    Footer,
}

impl Frame {
    /// Reads a frame's own header, and checks its length against what that part may have.
    pub fn parse(bytes: &[u8; FRAME_HEADER_SIZE]) -> Result<Frame, EnvelopeError> {
        let length = u32_at(bytes, 4)? as usize + FRAME_HEADER_SIZE;
        let frame = match u32_at(bytes, 0)? {
            HEADER_MAGIC => Frame::Header(length),
            CHUNK_MAGIC => Frame::ChunkPrefix,
            INDEX_MAGIC => Frame::Index(length),
            FOOTER_MAGIC => Frame::Footer,
            magic => return Err(damaged(format!("a part begins with {magic:#010x}"))),
        };
        let fits = match frame {
            Frame::Header(_) => {
                (HEADER_FIXED_SIZE + CRC_SIZE + 1..=MAX_HEADER_SIZE.max(4096)).contains(&length)
            }
            Frame::ChunkPrefix => length == CHUNK_PREFIX_SIZE,
            Frame::Index(_) => length <= MAX_INDEX_FRAME_SIZE,
            Frame::Footer => length == FOOTER_SIZE,
        };
        if fits { Ok(frame) } else { Err(damaged(format!("a part claims to have {length} bytes"))) }
    }
}

fn frame_header(magic: u32, length: usize) -> [u8; FRAME_HEADER_SIZE] {
    let mut bytes = [0; FRAME_HEADER_SIZE];
    bytes[..4].copy_from_slice(&magic.to_le_bytes());
    // Callers bound every length far below u32::MAX.
    bytes[4..].copy_from_slice(&((length - FRAME_HEADER_SIZE) as u32).to_le_bytes());
    bytes
}

/// An object's header: facts, and how the chunks are sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the object claims to be.
    pub facts: ObjectFacts,
    /// How chunks are compressed.
    pub compression: Compression,
    /// The key that they are encrypted with.
    pub key_id: Option<KeyId>,
    /// Random for each encrypted object, zeros for others.
    pub salt: [u8; 32],
    /// Plaintext bytes of every chunk but the last: a power of two; 0 if chunks differ.
    pub chunk_size: u32,
}

impl Header {
    /// The frame. `None` if the name is empty or longer than [`MAX_NAME_LENGTH`], or the level no level of zstd's.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let facts = &self.facts;
        let name_length = u16::try_from(facts.name.len()).ok()?;
        if facts.name.is_empty() || facts.name.len() > MAX_NAME_LENGTH {
            return None;
        }
        let (codec, level) = match self.compression {
            Compression::None => (0, 0),
            Compression::Zstd(level) if Compression::LEVELS.contains(&level) => {
                (1, i8::try_from(level).ok()?)
            }
            Compression::Zstd(_) => return None,
        };
        let length = HEADER_FIXED_SIZE + facts.name.len() + CRC_SIZE;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&frame_header(HEADER_MAGIC, length));
        bytes.extend_from_slice(HEADER_SIGNATURE);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[facts.kind.number(), codec]);
        bytes.extend_from_slice(&level.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.key_id.is_some()), 0, 0]);
        bytes.extend_from_slice(&self.chunk_size.to_le_bytes());
        let segment_size = facts.segment_size.map_or(0, |size| size.bytes() as u32);
        bytes.extend_from_slice(&segment_size.to_le_bytes());
        bytes.extend_from_slice(&facts.system_identifier.get().to_le_bytes());
        bytes.extend_from_slice(&self.key_id.map_or([0; 8], |id| id.0));
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&name_length.to_le_bytes());
        bytes.extend_from_slice(facts.name.as_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }

    /// Parses a whole frame. The CRC is checked before the version, so that damage is not taken for progress.
    pub fn parse(bytes: &[u8]) -> Result<Header, EnvelopeError> {
        let crc_offset = bytes.len().saturating_sub(CRC_SIZE);
        let content = bytes.get(..crc_offset).unwrap_or_default();
        if u32_at(bytes, 0)? != HEADER_MAGIC || array(bytes, 8)? != *HEADER_SIGNATURE {
            return Err(damaged("it does not begin with a walhold header"));
        }
        if u32_at(bytes, crc_offset)? != crc32fast::hash(content) {
            return Err(damaged("the header's checksum is wrong"));
        }
        check_version(u16_at(bytes, 16)?)?;
        let header = Header::parse_fields(content)?;
        // Whatever this encoding has no room for (reserved bytes, a salt without a cipher) must not be there.
        if header.encode().as_deref() != Some(bytes) {
            return Err(damaged("the header holds fields that version 1 does not have"));
        }
        Ok(header)
    }

    fn parse_fields(bytes: &[u8]) -> Result<Header, EnvelopeError> {
        let [kind, codec, level, cipher] = array(bytes, 18)?;
        let kind =
            ObjectKind::from_number(kind).ok_or_else(|| damaged(format!("unknown object kind {kind}")))?;
        let compression = match codec {
            0 => Compression::None,
            1 => Compression::Zstd(i32::from(i8::from_le_bytes([level]))),
            _ => return Err(damaged(format!("unknown codec {codec}"))),
        };
        let key_id = match cipher {
            0 => None,
            1 => Some(KeyId(array(bytes, 40)?)),
            _ => return Err(damaged(format!("unknown cipher {cipher}"))),
        };
        let salt = array(bytes, 48)?;
        if key_id.is_none() && salt != [0; 32] {
            return Err(damaged("the header has a salt but no cipher"));
        }
        let chunk_size = u32_at(bytes, 24)?;
        let regular =
            chunk_size.is_power_of_two() && (1 << 10..=MAX_CHUNK_SIZE).contains(&(chunk_size as usize));
        if chunk_size != 0 && !regular {
            return Err(damaged(format!("chunks of {chunk_size} bytes")));
        }
        let segment_size = match u32_at(bytes, 28)? {
            0 => None,
            size => Some(
                WalSegmentSize::new(u64::from(size))
                    .ok_or_else(|| damaged(format!("a WAL segment size of {size} bytes")))?,
            ),
        };
        let name_length = usize::from(u16_at(bytes, 80)?);
        let name = bytes.get(HEADER_FIXED_SIZE..).filter(|name| name.len() == name_length);
        let name = name.ok_or_else(|| damaged("the header's name does not fit"))?;
        let name =
            std::str::from_utf8(name).map_err(|_| damaged("the header's name is not UTF-8"))?.to_owned();
        let system_identifier = SystemIdentifier::new(u64_at(bytes, 32)?);
        let facts = ObjectFacts { kind, name, system_identifier, segment_size };
        Ok(Header { facts, compression, key_id, salt, chunk_size })
    }
}

/// What precedes a chunk's payload, so that a reader needs no table first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkPrefix {
    /// Bytes of payload.
    pub payload_length: u32,
    /// See [`chunk_checksum`].
    pub checksum: u32,
}

impl ChunkPrefix {
    /// The frame.
    pub fn encode(self) -> [u8; CHUNK_PREFIX_SIZE] {
        let mut bytes = [0; CHUNK_PREFIX_SIZE];
        bytes[..8].copy_from_slice(&frame_header(CHUNK_MAGIC, CHUNK_PREFIX_SIZE));
        bytes[8..12].copy_from_slice(&self.payload_length.to_le_bytes());
        bytes[12..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Parses a whole frame.
    pub fn parse(bytes: &[u8; CHUNK_PREFIX_SIZE]) -> Result<ChunkPrefix, EnvelopeError> {
        if bytes[..8] != frame_header(CHUNK_MAGIC, CHUNK_PREFIX_SIZE) {
            return Err(damaged("a chunk does not begin where it should"));
        }
        let payload_length = u32_at(bytes, 8)?;
        if payload_length as usize > MAX_PAYLOAD_SIZE {
            return Err(damaged(format!("a chunk claims to have {payload_length} bytes")));
        }
        Ok(ChunkPrefix { payload_length, checksum: u32_at(bytes, 12)? })
    }
}

/// CRC-32 over the header's CRC, the chunk's number and its payload: a chunk in another place, or in an object
/// with another header, is noticed without encryption too.
pub fn chunk_checksum(header_crc: u32, number: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header_crc.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A header frame's own CRC: its last four bytes.
pub fn header_crc(header: &[u8]) -> u32 {
    u32_at(header, header.len().saturating_sub(CRC_SIZE)).unwrap_or(0)
}

/// One row of the chunk table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkLengths {
    /// Stored bytes, prefix included.
    pub stored: u32,
    /// Plaintext bytes.
    pub plaintext: u32,
}

/// The index area before compression: the chunk table, then what the writer put there.
pub fn encode_index(chunks: &[ChunkLengths], content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + chunks.len() * 8 + content.len());
    bytes.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    for chunk in chunks {
        bytes.extend_from_slice(&chunk.stored.to_le_bytes());
        bytes.extend_from_slice(&chunk.plaintext.to_le_bytes());
    }
    bytes.extend_from_slice(content);
    bytes
}

/// The inverse of [`encode_index`].
pub fn parse_index(mut bytes: Vec<u8>) -> Result<(Vec<ChunkLengths>, Vec<u8>), EnvelopeError> {
    let count = u32_at(&bytes, 0)? as usize;
    let end = count.checked_mul(8).and_then(|length| length.checked_add(4));
    let table = end.and_then(|end| bytes.get(4..end)).ok_or_else(|| damaged("the chunk table is cut off"))?;
    let lengths = |row: &[u8]| Ok(ChunkLengths { stored: u32_at(row, 0)?, plaintext: u32_at(row, 4)? });
    let chunks = table.chunks_exact(8).map(lengths).collect::<Result<Vec<_>, EnvelopeError>>()?;
    bytes.drain(..4 + count * 8);
    Ok((chunks, bytes))
}

/// The index frame: a copy of the header (so that an object's end alone tells what it is) and the payload.
pub fn encode_index_frame(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = FRAME_HEADER_SIZE + header.len() + payload.len();
    let mut bytes = Vec::with_capacity(length + FOOTER_SIZE);
    bytes.extend_from_slice(&frame_header(INDEX_MAGIC, length));
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    bytes
}

/// The fixed-size end of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Chunks in the object.
    pub chunk_count: u32,
    /// Where the index frame begins.
    pub index_offset: u64,
    /// Bytes of the index frame.
    pub index_length: u32,
    /// Bytes of the index area before compression.
    pub index_plaintext_length: u32,
    /// Bytes of the header.
    pub header_length: u32,
    /// The header's CRC: ties the two ends together.
    pub header_crc: u32,
    /// CRC-32 of the whole index frame.
    pub index_crc: u32,
    /// Plaintext length and digest; ciphertext if the object is encrypted.
    pub secret: [u8; FOOTER_SECRET_SIZE],
    /// The tag that authenticates `secret` and all fields before it; zeros if the object is not encrypted.
    pub tag: [u8; TAG_SIZE],
}

impl Footer {
    /// The first bytes of the frame: everything that is not secret.
    pub fn encode_public(&self) -> [u8; FOOTER_PUBLIC_SIZE] {
        let mut bytes = [0; FOOTER_PUBLIC_SIZE];
        bytes[..8].copy_from_slice(&frame_header(FOOTER_MAGIC, FOOTER_SIZE));
        bytes[8..16].copy_from_slice(FOOTER_SIGNATURE);
        bytes[16..18].copy_from_slice(&VERSION.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.chunk_count.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.index_length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.index_plaintext_length.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.header_length.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.header_crc.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.index_crc.to_le_bytes());
        bytes
    }

    /// The frame.
    pub fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        bytes[..52].copy_from_slice(&self.encode_public());
        bytes[52..92].copy_from_slice(&self.secret);
        bytes[92..108].copy_from_slice(&self.tag);
        let crc = crc32fast::hash(&bytes[..108]);
        bytes[108..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Parses a whole frame, and checks the lengths that an object of `stored_length` bytes can have.
    pub fn parse(bytes: &[u8; FOOTER_SIZE], stored_length: u64) -> Result<Footer, EnvelopeError> {
        if bytes[..8] != frame_header(FOOTER_MAGIC, FOOTER_SIZE) || bytes[8..16] != *FOOTER_SIGNATURE {
            return Err(damaged(
                "it does not end with a walhold footer: it is cut off, or something follows it",
            ));
        }
        if u32_at(bytes, 108)? != crc32fast::hash(&bytes[..108]) {
            return Err(damaged("the footer's checksum is wrong"));
        }
        check_version(u16_at(bytes, 16)?)?;
        let footer = Footer {
            chunk_count: u32_at(bytes, 20)?,
            index_offset: u64_at(bytes, 24)?,
            index_length: u32_at(bytes, 32)?,
            index_plaintext_length: u32_at(bytes, 36)?,
            header_length: u32_at(bytes, 40)?,
            header_crc: u32_at(bytes, 44)?,
            index_crc: u32_at(bytes, 48)?,
            secret: array(bytes, 52)?,
            tag: array(bytes, 92)?,
        };
        if footer.encode() != *bytes {
            return Err(damaged("the footer holds fields that version 1 does not have"));
        }
        footer.check_lengths(stored_length)?;
        Ok(footer)
    }

    fn check_lengths(&self, stored_length: u64) -> Result<(), EnvelopeError> {
        let end = self.index_offset.checked_add(u64::from(self.index_length) + FOOTER_SIZE as u64);
        let header = self.header_length as usize;
        let fits = end == Some(stored_length)
            && (HEADER_FIXED_SIZE + CRC_SIZE..=MAX_HEADER_SIZE).contains(&header)
            && u64::from(self.header_length) <= self.index_offset
            && self.index_length as usize >= FRAME_HEADER_SIZE + header
            && self.index_length as usize <= MAX_INDEX_FRAME_SIZE
            && self.index_plaintext_length as usize <= MAX_INDEX_SIZE;
        if fits { Ok(()) } else { Err(damaged("the footer's lengths do not fit the object's size")) }
    }
}

/// Plaintext length and digest as the footer holds them.
pub fn encode_footer_secret(plaintext_length: u64, digest: &[u8; 32]) -> [u8; FOOTER_SECRET_SIZE] {
    let mut bytes = [0; FOOTER_SECRET_SIZE];
    bytes[..8].copy_from_slice(&plaintext_length.to_le_bytes());
    bytes[8..].copy_from_slice(digest);
    bytes
}

/// The inverse of [`encode_footer_secret`].
pub fn parse_footer_secret(bytes: &[u8; FOOTER_SECRET_SIZE]) -> Result<(u64, [u8; 32]), EnvelopeError> {
    Ok((u64_at(bytes, 0)?, array(bytes, 8)?))
}
