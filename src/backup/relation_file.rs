//! Page checksums of a relation file's bytes as they pass.
//!
//! A page that does not fit its checksum is damaged, or was being written while we read it. The second kind is read
//! again; if it still does not fit but its LSN is at or after the backup's start, replay writes it anew (the first change
//! after a checkpoint logs the whole page), so it does no harm. An LSN beyond the backup's stop cannot be true, which is
//! known only later: such pages are noted and judged then.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::pg::Lsn;
use crate::pg::page_checksum::{PageState, check_page, page_lsn};

/// Pauses before a page that does not fit is read again.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(20), Duration::from_millis(100)];

/// How a cluster's pages are checked.
#[derive(Clone, Copy, Debug)]
pub struct PageRules {
    /// Bytes in a page.
    pub block_size: usize,
    /// Pages in a relation segment file.
    pub segment_blocks: u32,
    /// The backup's start.
    pub start_lsn: Lsn,
}

/// A page that does not fit its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuspectPage {
    /// Its block number, counted from the relation's beginning.
    pub block: u32,
    /// `None` for damage; for a page in motion, its LSN.
    pub in_motion: Option<Lsn>,
}

impl PageRules {
    /// Checks the whole pages of `bytes`, which lie at `offset` of a relation's segment file; `offset` is a multiple of
    /// the page size. Pages that were read again are replaced in `bytes`.
    pub fn check(&self, file: &File, segment: u32, offset: u64, bytes: &mut [u8]) -> Vec<SuspectPage> {
        let mut suspects = Vec::new();
        let first = offset / self.block_size as u64;
        for (index, page) in bytes.chunks_exact_mut(self.block_size).enumerate() {
            let in_segment = first + index as u64;
            // Files of impossible names or sizes only give impossible block numbers.
            let block = segment.wrapping_mul(self.segment_blocks).wrapping_add(in_segment as u32);
            if check_page(page, block) == PageState::Mismatch {
                suspects.extend(self.look_again(file, in_segment * self.block_size as u64, block, page));
            }
        }
        suspects
    }

    fn look_again(&self, file: &File, offset: u64, block: u32, page: &mut [u8]) -> Option<SuspectPage> {
        for pause in PAUSES {
            std::thread::sleep(pause);
            let mut again = vec![0; page.len()];
            // Truncated meanwhile: replay truncates it too. Other errors show where the file is read on.
            if file.read_exact_at(&mut again, offset).is_err() {
                return None;
            }
            page.copy_from_slice(&again);
            if check_page(page, block) != PageState::Mismatch {
                return None;
            }
        }
        let lsn = page_lsn(page);
        Some(SuspectPage { block, in_motion: (lsn >= self.start_lsn).then_some(lsn) })
    }
}

/// Whether all bytes are zero; usually decided by the first few.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| *block == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::page_checksum::page_checksum;
    use std::io::Write;

    const BLOCK: usize = 8192;

    fn page(seed: u8, lsn: u64, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..BLOCK).map(|index| (index as u8).wrapping_mul(seed)).collect();
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        // pd_upper must not be zero: such a page counts as new.
        page[14..16].copy_from_slice(&8000u16.to_le_bytes());
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn check(segment: u32, stored: &[u8], read: &mut [u8]) -> Vec<SuspectPage> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(stored).unwrap();
        let rules = PageRules { block_size: BLOCK, segment_blocks: 131_072, start_lsn: Lsn::new(1000) };
        rules.check(&file, segment, 0, read)
    }

    #[test]
    fn sound_and_new_pages_pass() {
        let mut bytes = [page(3, 10, 131_072), vec![0; BLOCK], page(5, 2000, 131_074)].concat();
        assert_eq!(check(1, &bytes.clone(), &mut bytes), []);
        // The same bytes are wrong in another segment.
        assert_eq!(check(0, &bytes.clone(), &mut bytes).len(), 2);
    }

    #[test]
    fn a_torn_page_is_read_again() {
        let stored = page(3, 10, 0);
        let mut read = stored.clone();
        read[5000] ^= 1;
        assert_eq!(check(0, &stored, &mut read), []);
        assert_eq!(read, stored);
    }

    #[test]
    fn damage_is_told_from_motion_by_the_lsn() {
        let mut bytes = [page(3, 999, 0), page(3, 1000, 1)].concat();
        bytes[5000] ^= 1;
        bytes[BLOCK + 5000] ^= 1;
        let expected = [
            SuspectPage { block: 0, in_motion: None },
            SuspectPage { block: 1, in_motion: Some(Lsn::new(1000)) },
        ];
        assert_eq!(check(0, &bytes.clone(), &mut bytes), expected);
    }

    #[test]
    fn zeros_are_zero_whatever_the_length() {
        for length in [0, 1, 63, 64, 65, 200] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
