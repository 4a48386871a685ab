//! The CRC-32C of a WAL record (`ValidXLogRecord`), for records of a few dozen bytes, a hundred thousand to a segment.
//!
//! A whole record goes in, the CRC that its header must carry comes out. The `crc32c` crate is made for long runs of bytes; for these it
//! takes longer to choose its way than to compute.

use super::wal_record::RECORD_HEADER_SIZE;

/// The header's bytes that the CRC covers: all before `xl_crc`.
const HEADER_CRC_BYTES: usize = 20;

/// From so many bytes on the crate's three lanes win.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 512;

/// The CRC of `record`, which is whole: of everything behind the header, then of the header up to `xl_crc`. `None` if it is shorter than
/// its header.
#[inline]
pub fn whole_record_crc(record: &[u8]) -> Option<u32> {
    let (header, body) = record.split_first_chunk::<RECORD_HEADER_SIZE>()?;
    #[cfg(target_arch = "x86_64")]
    if body.len() < LONG && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the function asks nothing of its caller but that the processor has the instruction, which was just seen.
        return Some(unsafe { short_record_crc(header, body) });
    }
    record_crc(header, crc32c::crc32c(body))
}

/// The CRC that the header must carry if everything behind it has the CRC `body_crc`. `None` if `header` has fewer than 24 bytes.
pub fn record_crc(header: &[u8], body_crc: u32) -> Option<u32> {
    let header: &[u8; RECORD_HEADER_SIZE] = header.first_chunk()?;
    Some(crc32c::crc32c_append(body_crc, &header[..HEADER_CRC_BYTES]))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short_record_crc(header: &[u8; RECORD_HEADER_SIZE], body: &[u8]) -> u32 {
    !(feed(feed(u64::from(u32::MAX), body), &header[..HEADER_CRC_BYTES]) as u32)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn feed(mut crc: u64, bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    let mut crc = crc as u32;
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        crc = _mm_crc32_u16(crc, u16::from_le_bytes(*word));
    }
    for byte in rest {
        crc = _mm_crc32_u8(crc, *byte);
    }
    u64::from(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_crc_of_the_body_and_the_header_at_every_length() {
        let bytes: Vec<u8> = (0..2048u32).map(|at| (at * 7 + at / 251) as u8).collect();
        for length in RECORD_HEADER_SIZE..bytes.len() {
            let record = &bytes[..length];
            let (header, body) = record.split_at(RECORD_HEADER_SIZE);
            let wanted = crc32c::crc32c_append(crc32c::crc32c(body), &header[..20]);
            assert_eq!(whole_record_crc(record), Some(wanted), "{length} bytes");
        }
        assert_eq!(whole_record_crc(&bytes[..RECORD_HEADER_SIZE - 1]), None);
    }
}
