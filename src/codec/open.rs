//! What all ways of reading share: accepting a header, opening one chunk, checking an object's end.
//!
//! In: bytes that may be anything. Out: bytes that were checked, or an error; never a panic, and no allocation
//! above what the format allows for a part.

use std::sync::Arc;

use crate::format::envelope::{
    CHUNK_PREFIX_SIZE, ChunkLengths, ChunkPrefix, EnvelopeError, FOOTER_SIZE, FRAME_HEADER_SIZE, Footer,
    Frame, Header, MAX_CHUNK_SIZE, ObjectFacts, TAG_SIZE, chunk_checksum, header_crc, parse_footer_secret,
    parse_index,
};
use crate::format::{Digest, ObjectKey};

use super::KeyRing;
use super::compress::Decompressor;
use super::decode::{DecodeError, Expected};
use super::encrypt::{Domain, ObjectCipher};

/// What is wrong with bytes that lie under a key.
pub(super) fn refuse(key: &ObjectKey, error: EnvelopeError) -> DecodeError {
    let key = key.to_string();
    match error {
        EnvelopeError::Damaged(problem) => DecodeError::Damaged { key, problem },
        EnvelopeError::NewerVersion(version) => DecodeError::NewerVersion { key, version },
    }
}

pub(super) fn damaged(key: &ObjectKey, problem: impl Into<String>) -> DecodeError {
    DecodeError::Damaged { key: key.to_string(), problem: problem.into() }
}

/// Something that says nothing about the object failed.
pub(super) fn codec_failed(key: &ObjectKey, problem: impl Into<String>) -> DecodeError {
    DecodeError::Codec { key: key.to_string(), problem: problem.into() }
}

/// Everything that the parts of one object have in common. Cheap to clone: one per thread.
#[derive(Clone)]
pub(super) struct OpenPlan {
    pub(super) header: Header,
    encoded: Arc<[u8]>,
    header_crc: u32,
    cipher: Option<Arc<ObjectCipher>>,
}

impl OpenPlan {
    /// Parses a header frame, and refuses an object that is not the expected one.
    pub(super) fn new(
        encoded: &[u8],
        expected: &Expected<'_>,
        keys: &KeyRing,
    ) -> Result<OpenPlan, DecodeError> {
        let header = Header::parse(encoded).map_err(|error| refuse(expected.key, error))?;
        compare_facts(&header.facts, expected)?;
        OpenPlan::with_header(header, encoded, expected.key, keys)
    }

    /// The plan for a header that is known to be right.
    pub(super) fn with_header(
        header: Header,
        encoded: &[u8],
        key: &ObjectKey,
        keys: &KeyRing,
    ) -> Result<OpenPlan, DecodeError> {
        let cipher = match header.key_id {
            None if keys.encrypts() => return Err(DecodeError::NotEncrypted { key: key.to_string() }),
            None => None,
            Some(id) => {
                let master = keys.find(id).ok_or_else(|| DecodeError::KeyMissing {
                    key: key.to_string(),
                    key_id: id.to_string(),
                })?;
                Some(Arc::new(ObjectCipher::new(master, &header.salt, encoded, key)))
            }
        };
        Ok(OpenPlan { header, encoded: encoded.into(), header_crc: header_crc(encoded), cipher })
    }

    /// The chunk size if all chunks but the last have it.
    pub(super) fn regular_chunk_size(&self) -> Option<usize> {
        (self.header.chunk_size > 0).then_some(self.header.chunk_size as usize)
    }

    fn chunk_limit(&self) -> usize {
        self.regular_chunk_size().unwrap_or(MAX_CHUNK_SIZE)
    }
}

fn compare_facts(facts: &ObjectFacts, expected: &Expected<'_>) -> Result<(), DecodeError> {
    let other = |problem| Err(DecodeError::OtherObject { key: expected.key.to_string(), problem });
    let wanted = expected.facts;
    if facts.kind != wanted.kind {
        return other(format!("it is a {}, not a {}", facts.kind, wanted.kind));
    }
    if facts.name != wanted.name {
        return other(format!("it holds {:?}, not {:?}", facts.name, wanted.name));
    }
    if facts.system_identifier != wanted.system_identifier {
        return Err(DecodeError::OtherCluster {
            key: expected.key.to_string(),
            problem: format!(
                "its system identifier is {}, not {}",
                facts.system_identifier, wanted.system_identifier
            ),
        });
    }
    match (facts.segment_size, wanted.segment_size) {
        (Some(is), Some(should)) if is != should => {
            other(format!("its WAL segment size is {} bytes, not {}", is.bytes(), should.bytes()))
        }
        _ => Ok(()),
    }
}

/// Opens chunks on one thread.
pub(super) struct PartOpener {
    plan: OpenPlan,
    decompressor: Decompressor,
    /// A decrypted frame.
    frame: Vec<u8>,
}

impl PartOpener {
    pub(super) fn new(plan: &OpenPlan, key: &ObjectKey) -> Result<PartOpener, DecodeError> {
        let decompressor = Decompressor::new().map_err(|problem| codec_failed(key, problem))?;
        Ok(PartOpener { plan: plan.clone(), decompressor, frame: Vec::new() })
    }

    /// Opens chunk `number` into `plaintext`, which is cleared first.
    pub(super) fn open_chunk(
        &mut self,
        number: u32,
        prefix: ChunkPrefix,
        payload: &[u8],
        plaintext: &mut Vec<u8>,
    ) -> Result<(), String> {
        plaintext.clear();
        let checksum = chunk_checksum(self.plan.header_crc, number, payload);
        if payload.len() != prefix.payload_length as usize || checksum != prefix.checksum {
            return Err(format!("the checksum of chunk {number} is wrong"));
        }
        let limit = self.plan.chunk_limit();
        self.open_payload((Domain::Chunk, number), payload, limit, plaintext)
            .map_err(|problem| format!("chunk {number} {problem}"))
    }

    fn open_payload(
        &mut self,
        place: (Domain, u32),
        payload: &[u8],
        limit: usize,
        plaintext: &mut Vec<u8>,
    ) -> Result<(), String> {
        let frame = match &self.plan.cipher {
            None => payload,
            Some(cipher) => {
                let (sealed, tag) = payload.split_last_chunk::<TAG_SIZE>().ok_or("is cut off")?;
                self.frame.resize(sealed.len(), 0);
                if !cipher.open(place, &[], sealed, tag, &mut self.frame) {
                    return Err("does not open: it was changed, or stored under another name".to_owned());
                }
                &self.frame
            }
        };
        let opened = self.decompressor.decompress(frame, limit, plaintext);
        opened.map_err(|problem| format!("does not decompress: {problem}"))
    }

    /// Checks an object's end, and that it belongs to this header.
    pub(super) fn open_end(
        &mut self,
        index_frame: &[u8],
        footer: &Footer,
    ) -> Result<ObjectEnd, EnvelopeError> {
        let problem = |problem: &str| EnvelopeError::Damaged(problem.to_owned());
        let header = self.plan.encoded.len();
        if footer.header_crc != self.plan.header_crc || footer.header_length as usize != header {
            return Err(problem("its two ends belong to different objects"));
        }
        if crc32fast::hash(index_frame) != footer.index_crc {
            return Err(problem("the index's checksum is wrong"));
        }
        let content = index_frame.get(FRAME_HEADER_SIZE..).unwrap_or_default();
        let payload = content.strip_prefix(&*self.plan.encoded);
        let payload = payload.ok_or_else(|| problem("its two headers differ"))?;

        let mut index = Vec::new();
        self.open_payload((Domain::Index, 0), payload, footer.index_plaintext_length as usize, &mut index)
            .map_err(|error| EnvelopeError::Damaged(format!("the index {error}")))?;
        if index.len() != footer.index_plaintext_length as usize {
            return Err(problem("the index is shorter than the footer says"));
        }
        let (chunks, content) = parse_index(index)?;
        let (plaintext_length, digest) = self.open_footer(footer)?;
        let end = ObjectEnd { digest: Digest(digest), plaintext_length, chunks, content };
        end.check_table(footer)?;
        Ok(end)
    }

    fn open_footer(&self, footer: &Footer) -> Result<(u64, [u8; 32]), EnvelopeError> {
        let Some(cipher) = &self.plan.cipher else {
            if footer.tag != [0; TAG_SIZE] {
                return Err(EnvelopeError::Damaged("the footer has a tag but no cipher".to_owned()));
            }
            return parse_footer_secret(&footer.secret);
        };
        let mut secret = footer.secret;
        let place = (Domain::Footer, 0);
        if !cipher.open(place, &footer.encode_public(), &footer.secret, &footer.tag, &mut secret) {
            let problem = "the footer does not open: it was changed, or stored under another name";
            return Err(EnvelopeError::Damaged(problem.to_owned()));
        }
        parse_footer_secret(&secret)
    }
}

/// What an object's end says about it.
pub(super) struct ObjectEnd {
    pub(super) digest: Digest,
    pub(super) plaintext_length: u64,
    pub(super) chunks: Vec<ChunkLengths>,
    pub(super) content: Vec<u8>,
}

impl ObjectEnd {
    /// The table must account for every byte, stored and plain.
    fn check_table(&self, footer: &Footer) -> Result<(), EnvelopeError> {
        let sum = |length: fn(&ChunkLengths) -> u32| -> u64 {
            self.chunks.iter().map(|chunk| u64::from(length(chunk))).sum()
        };
        let fits = self.chunks.len() == footer.chunk_count as usize
            && u64::from(footer.header_length) + sum(|chunk| chunk.stored) == footer.index_offset
            && sum(|chunk| chunk.plaintext) == self.plaintext_length;
        if fits { Ok(()) } else { Err(EnvelopeError::Damaged("the chunk table does not add up".to_owned())) }
    }
}

/// Splits a stored chunk into its prefix and payload.
pub(super) fn split_chunk(stored: &[u8]) -> Result<(ChunkPrefix, &[u8]), EnvelopeError> {
    let (prefix, payload) = stored
        .split_first_chunk::<CHUNK_PREFIX_SIZE>()
        .ok_or_else(|| EnvelopeError::Damaged("a chunk is cut off".to_owned()))?;
    Ok((ChunkPrefix::parse(prefix)?, payload))
}

/// Checks the footer's and the index frame's own form, given an object's last bytes from the index frame on.
pub(super) fn split_end(end: &[u8], stored_length: u64) -> Result<(&[u8], Footer), EnvelopeError> {
    let cut_off = || EnvelopeError::Damaged("it is cut off".to_owned());
    let (index_frame, footer) = end.split_last_chunk::<FOOTER_SIZE>().ok_or_else(cut_off)?;
    let footer = Footer::parse(footer, stored_length)?;
    let first = index_frame.first_chunk::<FRAME_HEADER_SIZE>().ok_or_else(cut_off)?;
    let whole = Frame::Index(index_frame.len());
    if Frame::parse(first)? != whole || footer.index_length as usize != index_frame.len() {
        return Err(EnvelopeError::Damaged("the index does not lie where the footer says".to_owned()));
    }
    Ok((index_frame, footer))
}
