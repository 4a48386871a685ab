//! Data page checksums (`src/include/storage/checksum_impl.h`).

/// What a page says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// All zero (`PageIsNew`).
    New,
    /// The stored checksum is the computed one.
    Valid,
    /// It is not.
    Mismatch,
}

/// `pg_checksum_page`: the checksum that block `block_number` (counted from the relation's beginning, across segment
/// files) of these contents must carry. Fast: written so that the compiler vectorises it.
pub fn page_checksum(_page: &[u8], _block_number: u32) -> u16 {
    todo!()
}

/// Checks one page (its length is the block size).
pub fn check_page(_page: &[u8], _block_number: u32) -> PageState {
    todo!()
}

/// `pd_lsn`.
pub fn page_lsn(_page: &[u8]) -> super::Lsn {
    todo!()
}
