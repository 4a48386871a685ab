//! What both ways of writing share: sealing one chunk, and the parts around the chunks.
//!
//! In: plaintext chunks, the index's content, the digest. Out: the bytes of each part as stored.

use std::sync::Arc;

use crate::format::envelope::{
    CHUNK_PREFIX_SIZE, ChunkLengths, ChunkPrefix, Footer, Header, MAX_INDEX_SIZE, MAX_NAME_LENGTH,
    ObjectFacts, TAG_SIZE, chunk_checksum, encode_footer_secret, encode_index, encode_index_frame,
    header_crc,
};
use crate::format::{Digest, ObjectKey};

use super::compress::Compressor;
use super::encode::Encoded;
use super::encrypt::{Domain, ObjectCipher};
use super::{Compression, KeyId, Sealing};

/// Everything that the parts of one object have in common. Cheap to clone: one per thread.
#[derive(Clone)]
pub(super) struct SealPlan {
    compression: Compression,
    header: Arc<[u8]>,
    header_crc: u32,
    cipher: Option<Arc<ObjectCipher>>,
    pub(super) salt: [u8; 32],
    pub(super) key_id: Option<KeyId>,
}

impl SealPlan {
    /// A plan with a fresh salt, so that no nonce is ever used twice under one object key.
    pub(super) fn new(
        facts: &ObjectFacts,
        key: &ObjectKey,
        sealing: &Sealing,
        chunk_size: u32,
    ) -> Result<SealPlan, String> {
        let mut salt = [0; 32];
        if sealing.key.is_some() {
            getrandom::fill(&mut salt)
                .map_err(|error| format!("read random bytes from the system: {error}"))?;
        }
        SealPlan::with_salt(facts, key, sealing, chunk_size, salt)
    }

    /// A plan with a given salt: never twice for one master key, except to test the format.
    pub(super) fn with_salt(
        facts: &ObjectFacts,
        key: &ObjectKey,
        sealing: &Sealing,
        chunk_size: u32,
        salt: [u8; 32],
    ) -> Result<SealPlan, String> {
        let key_id = sealing.key.as_ref().map(|key| key.id());
        let header =
            Header { facts: facts.clone(), compression: sealing.compression, key_id, salt, chunk_size }
                .encode();
        let header = header.ok_or_else(|| {
            format!(
                "its name must have 1 to {MAX_NAME_LENGTH} bytes and its compression level lie in {:?}",
                Compression::LEVELS
            )
        })?;
        let cipher =
            sealing.key.as_ref().map(|master| Arc::new(ObjectCipher::new(master, &salt, &header, key)));
        let header_crc = header_crc(&header);
        let compression = sealing.compression;
        Ok(SealPlan { compression, header: header.into(), header_crc, cipher, salt, key_id })
    }

    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }
}

/// Seals chunks on one thread.
pub(super) struct ChunkSealer {
    plan: SealPlan,
    compressor: Compressor,
}

impl ChunkSealer {
    pub(super) fn new(plan: &SealPlan) -> Result<ChunkSealer, String> {
        Ok(ChunkSealer::with_compressor(plan, Compressor::new(plan.compression)?))
    }

    /// A sealer with the context of an earlier one, which must have been of the same compression.
    pub(super) fn with_compressor(plan: &SealPlan, compressor: Compressor) -> ChunkSealer {
        ChunkSealer { plan: plan.clone(), compressor }
    }

    /// Gives the context back.
    pub(super) fn into_compressor(self) -> Compressor {
        self.compressor
    }

    /// Puts chunk `number` as stored, prefix included, into `stored`, which is cleared first.
    pub(super) fn seal_chunk(
        &mut self,
        number: u32,
        plaintext: &[u8],
        stored: &mut Vec<u8>,
    ) -> Result<(), String> {
        stored.clear();
        stored.extend_from_slice(&[0; CHUNK_PREFIX_SIZE]);
        self.append_payload((Domain::Chunk, number), plaintext, stored)?;
        let (prefix, payload) = stored.split_at_mut(CHUNK_PREFIX_SIZE);
        let payload_length = u32::try_from(payload.len()).map_err(|_| "a chunk above 4 GiB".to_owned())?;
        let checksum = chunk_checksum(self.plan.header_crc, number, payload);
        prefix.copy_from_slice(&ChunkPrefix { payload_length, checksum }.encode());
        Ok(())
    }

    fn append_payload(
        &mut self,
        place: (Domain, u32),
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let begin = out.len();
        self.compressor.append(plaintext, out)?;
        if let (Some(cipher), Some(frame)) = (&self.plan.cipher, out.get_mut(begin..)) {
            let tag = cipher.seal(place, &[], frame)?;
            out.extend_from_slice(&tag);
        }
        Ok(())
    }

    /// Everything after the chunks: index frame and footer.
    pub(super) fn seal_end(
        &mut self,
        layout: &Layout,
        digest: Digest,
        content: &[u8],
    ) -> Result<Vec<u8>, String> {
        let index = encode_index(&layout.chunks, content);
        if index.len() > MAX_INDEX_SIZE {
            return Err(format!("its index has {} bytes; at most {MAX_INDEX_SIZE} are allowed", index.len()));
        }
        let mut payload = Vec::new();
        self.append_payload((Domain::Index, 0), &index, &mut payload)?;
        let mut end = encode_index_frame(&self.plan.header, &payload);
        let mut footer = Footer {
            chunk_count: layout.chunks.len() as u32,
            index_offset: layout.stored_length,
            index_length: end.len() as u32,
            index_plaintext_length: index.len() as u32,
            header_length: self.plan.header.len() as u32,
            header_crc: self.plan.header_crc,
            index_crc: crc32fast::hash(&end),
            secret: encode_footer_secret(layout.plaintext_length, &digest.0),
            tag: [0; TAG_SIZE],
        };
        if let Some(cipher) = &self.plan.cipher {
            footer.tag = cipher.seal((Domain::Footer, 0), &footer.encode_public(), &mut footer.secret)?;
        }
        end.extend_from_slice(&footer.encode());
        Ok(end)
    }
}

/// What has been written of an object so far.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) chunks: Vec<ChunkLengths>,
    pub(super) stored_length: u64,
    pub(super) plaintext_length: u64,
}

impl Layout {
    /// The number of the next chunk.
    pub(super) fn next_number(&self) -> Result<u32, String> {
        u32::try_from(self.chunks.len()).map_err(|_| "it has too many chunks".to_owned())
    }

    /// Records the next chunk.
    pub(super) fn add_chunk(&mut self, stored: usize, plaintext: usize) {
        // Both are bounded by MAX_CHUNK_SIZE.
        self.chunks.push(ChunkLengths { stored: stored as u32, plaintext: plaintext as u32 });
        self.stored_length += stored as u64;
        self.plaintext_length += plaintext as u64;
    }

    /// What became of the object, with its end written.
    pub(super) fn encoded(&self, digest: Digest) -> Encoded {
        Encoded { digest, plaintext_length: self.plaintext_length, stored_length: self.stored_length }
    }
}
