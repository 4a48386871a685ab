//! A pack's own table of contents, in its index area: which bytes its chunks are made of, by digest alone.
//!
//! The manifest is what restores read. This is for the time before there is one: when a backup ends early, its packs alone tell the next
//! attempt what is stored already. No file is named, because a digest is all that the next attempt compares.

use super::digest::ShortDigest;
use super::envelope::ChunkLengths;
use super::varint;

/// What the contents begin with; the last byte is the version.
const MAGIC: &[u8; 5] = b"WHPC\x01";

/// A run of bytes that was stored as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredPart {
    /// The chunk that holds it.
    pub chunk: u32,
    /// Where it begins in the chunk's plaintext.
    pub within: u32,
    /// Bytes.
    pub length: u32,
    /// Their digest.
    pub digest: ShortDigest,
}

/// Contents being written, chunk by chunk.
#[derive(Clone, Debug)]
pub struct ContentsWriter {
    encoded: Vec<u8>,
}

impl Default for ContentsWriter {
    fn default() -> Self {
        ContentsWriter { encoded: MAGIC.to_vec() }
    }
}

impl ContentsWriter {
    /// The next chunk is made of these parts, in order, and of nothing else.
    pub fn add_chunk(&mut self, parts: &[(u32, ShortDigest)]) {
        varint::put(&mut self.encoded, parts.len() as u64);
        for (length, digest) in parts {
            varint::put(&mut self.encoded, u64::from(*length));
            self.encoded.extend_from_slice(&digest.0);
        }
    }

    /// What goes into the index area.
    pub fn finish(self) -> Vec<u8> {
        self.encoded
    }
}

/// Reads contents back. `chunks` is the pack's chunk table: the parts must account for every byte of every chunk. Empty if the
/// pack has none (the first walholds wrote none); an error says what is wrong.
pub fn decode(contents: &[u8], chunks: &[ChunkLengths]) -> Result<Vec<StoredPart>, String> {
    if contents.is_empty() {
        return Ok(Vec::new());
    }
    let mut rest =
        contents.strip_prefix(MAGIC).ok_or_else(|| "its contents do not begin as they must".to_owned())?;
    let cut_off = || "its contents are cut off".to_owned();
    let mut parts = Vec::new();
    for (chunk, lengths) in (0u32..).zip(chunks) {
        let count = take_number(&mut rest).ok_or_else(cut_off)?;
        let mut within = 0u32;
        for _ in 0..count {
            let length = take_number(&mut rest).and_then(|length| u32::try_from(length).ok());
            let length = length.filter(|length| *length > 0).ok_or_else(cut_off)?;
            let (digest, after) = rest.split_first_chunk::<16>().ok_or_else(cut_off)?;
            rest = after;
            parts.push(StoredPart { chunk, within, length, digest: ShortDigest(*digest) });
            let end = within.checked_add(length).filter(|end| *end <= lengths.plaintext);
            within = end.ok_or_else(|| format!("the parts of chunk {chunk} are longer than the chunk"))?;
        }
        if within != lengths.plaintext {
            return Err(format!("the parts of chunk {chunk} are shorter than the chunk"));
        }
    }
    if rest.is_empty() { Ok(parts) } else { Err("its contents name more chunks than it has".to_owned()) }
}

/// At most five bytes: nothing here is larger than a chunk.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    varint::take::<5>(rest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(plaintext: u32) -> ChunkLengths {
        ChunkLengths { stored: 100, plaintext }
    }

    fn digest(byte: u8) -> ShortDigest {
        ShortDigest([byte; 16])
    }

    fn written() -> Vec<u8> {
        let mut writer = ContentsWriter::default();
        writer.add_chunk(&[(300, digest(1))]);
        writer.add_chunk(&[(1, digest(2)), (1 << 20, digest(3))]);
        writer.finish()
    }

    #[test]
    fn contents_come_back() {
        let parts = decode(&written(), &[chunk(300), chunk((1 << 20) + 1)]).unwrap();
        let part = |chunk, within, length, byte| StoredPart { chunk, within, length, digest: digest(byte) };
        assert_eq!(parts, [part(0, 0, 300, 1), part(1, 0, 1, 2), part(1, 1, 1 << 20, 3)]);
        assert_eq!(decode(b"", &[chunk(300)]).unwrap(), []);
        // The bytes are an interface between releases.
        let short = {
            let mut writer = ContentsWriter::default();
            writer.add_chunk(&[(300, digest(7))]);
            writer.finish()
        };
        assert_eq!(short, [&b"WHPC\x01\x01\xac\x02"[..], &[7; 16]].concat());
    }

    #[test]
    fn what_does_not_account_for_every_byte_is_refused() {
        let table = [chunk(300), chunk((1 << 20) + 1)];
        let problem = |contents: &[u8], chunks: &[ChunkLengths]| decode(contents, chunks).unwrap_err();
        assert!(problem(&written(), &[chunk(299), table[1]]).contains("chunk 0 are longer"));
        assert!(problem(&written(), &[chunk(301), table[1]]).contains("chunk 0 are shorter"));
        assert!(problem(&written(), &table[..1]).contains("more chunks than it has"));
        assert!(problem(&written(), &[table[0], table[1], chunk(1)]).contains("cut off"));
        assert!(problem(b"WHPC\x02", &[]).contains("do not begin"));
        for length in 1..written().len() {
            assert!(decode(&written()[..length], &table).is_err(), "{length} bytes were accepted");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), lengths in proptest::collection::vec(0u32..5000, 0..4)) {
            let chunks: Vec<ChunkLengths> = lengths.into_iter().map(chunk).collect();
            let _ = decode(&[&MAGIC[..], &bytes].concat(), &chunks);
        }
    }
}
