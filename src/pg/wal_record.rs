//! WAL records: the frame around every record (`src/include/access/xlogrecord.h`).
//!
//! A record's bytes go in, with page headers taken out; its header, block references and main data come out. What the
//! main data of the two resource managers means that matter here is in [`super::wal_event`]. Checks follow
//! `src/backend/access/transam/xlogreader.c` (`ValidXLogRecordHeader`, `ValidXLogRecord`, `DecodeXLogRecord`).

use serde::Serialize;

use super::Lsn;
use super::wal_page::{read_u16, read_u32, read_u64};

/// Bytes in the fixed header (`SizeOfXLogRecord`).
pub const RECORD_HEADER_SIZE: usize = 24;

/// No record is longer: servers assemble one in memory (`XLogRecordMaxSize`, and `MaxAllocSize` before 16).
pub const RECORD_LENGTH_LIMIT: u32 = 1 << 30;

/// `RM_XLOG_ID`: checkpoints, segment switches, restore points, settings.
pub const RMGR_XLOG: u8 = 0;
/// `RM_XACT_ID`: ends of transactions.
pub const RMGR_TRANSACTION: u8 = 1;
/// `RM_SMGR_ID`: relation files that are created and truncated.
pub const RMGR_STORAGE: u8 = 2;
/// `RM_DBASE_ID`: databases' directories.
pub const RMGR_DATABASE: u8 = 4;
/// `RM_TBLSPC_ID`: tablespaces' directories.
pub const RMGR_TABLESPACE: u8 = 5;

/// The most bytes at a record's beginning that block headers can take up: the fixed header, 33 blocks of at most 27 bytes, a
/// replication origin, a top-level transaction and the main data's header.
pub const BLOCK_HEADERS_LIMIT: usize = 1024;

/// The last of PostgreSQL's own resource managers (`RM_LOGICALMSG_ID`, 13 to 18).
const RMGR_LAST_BUILTIN: u8 = 21;
/// The first that an extension may register (`RM_MIN_CUSTOM_ID`, since 15).
const RMGR_FIRST_CUSTOM: u8 = 128;

/// The fixed header of a record (`XLogRecord`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// `xl_tot_len`: bytes of the whole record, this header included.
    pub total_length: u32,
    /// `xl_xid`: the transaction that wrote it; 0 for none.
    pub xid: u32,
    /// `xl_prev`: where the record before begins.
    pub previous: Lsn,
    /// `xl_info`.
    pub info: u8,
    /// `xl_rmid`: the resource manager.
    pub rmgr: u8,
    /// `xl_crc`.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads the fields without judging them; `None` if there are fewer than 24 bytes.
    pub fn read(record: &[u8]) -> Option<RecordHeader> {
        let bytes: &[u8; RECORD_HEADER_SIZE] = record.first_chunk()?;
        Some(RecordHeader {
            total_length: read_u32(bytes, 0)?,
            xid: read_u32(bytes, 4)?,
            previous: Lsn::new(read_u64(bytes, 8)?),
            info: bytes[16],
            rmgr: bytes[17],
            crc: read_u32(bytes, 20)?,
        })
    }

    /// Whether a server of this major version has the resource manager; any is believed of an unknown version.
    pub fn has_known_rmgr(&self, major: Option<u32>) -> bool {
        match major {
            None => true,
            Some(_) if self.rmgr <= RMGR_LAST_BUILTIN => true,
            Some(major) => major >= 15 && self.rmgr >= RMGR_FIRST_CUSTOM,
        }
    }
}

/// A relation's files (`RelFileLocator`, `RelFileNode` before 16).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct RelFileLocator {
    /// The tablespace's oid.
    pub tablespace: u32,
    /// The database's oid; 0 for shared relations.
    pub database: u32,
    /// The number in the file's name (`relNumber`).
    pub relation: u32,
}

/// One of a relation's files (`ForkNumber`): 0 main, 1 free space map, 2 visibility map, 3 init.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct ForkNumber(pub u8);

impl ForkNumber {
    /// The rows themselves.
    pub const MAIN: ForkNumber = ForkNumber(0);
    /// Not fully logged: never trusted to WAL.
    pub const FREE_SPACE_MAP: ForkNumber = ForkNumber(1);
    /// Which pages are all visible or all frozen.
    pub const VISIBILITY_MAP: ForkNumber = ForkNumber(2);
    /// What an unlogged relation is reset to.
    pub const INIT: ForkNumber = ForkNumber(3);
}

/// A block that a record changes (`XLogRecordBlockHeader`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockReference {
    /// Its number among the record's blocks, 0 to 32.
    pub id: u8,
    /// The relation.
    pub relation: RelFileLocator,
    /// The fork.
    pub fork: ForkNumber,
    /// The block in the fork, counted across segment files.
    pub block: u32,
    /// Redo makes the page anew (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// Bytes of data for this block, without the image.
    pub data_length: u16,
    /// The page image, if there is one.
    pub image: Option<BlockImage>,
}

/// A full-page image (`XLogRecordBlockImageHeader`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockImage {
    /// Bytes in the record.
    pub length: u16,
    /// Whether they are compressed.
    pub compressed: bool,
    /// Replay restores the page from it; false for an image that is only there to check replay.
    pub restored: bool,
}

/// A record taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodedRecord<'a> {
    /// The fixed header.
    pub header: RecordHeader,
    /// The blocks, by rising id.
    pub blocks: Vec<BlockReference>,
    /// The replication origin (`XLR_BLOCK_ID_ORIGIN`); 0 for none.
    pub origin: u16,
    /// The top-level transaction of the subtransaction that wrote the record, where it is said.
    pub top_level_xid: Option<u32>,
    /// What the resource manager wrote; cut short if only the record's beginning was given.
    pub main_data: &'a [u8],
    /// Length of the main data in the record, whether given or not.
    pub main_data_length: u32,
}

/// A record whose inside is not as `DecodeXLogRecord` expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeRecordError(pub &'static str);

const TOO_SHORT: DecodeRecordError = DecodeRecordError("record headers exceed the record");

/// Takes a record apart. `major` decides how image flags are read: 15 gave them new meanings; unknown versions are read
/// like the newest.
///
/// `record` may be only the beginning of the record, for a record too long to keep: then the block headers must be
/// complete and `main_data` is what there is of it.
pub fn decode_record(record: &[u8], major: Option<u32>) -> Result<DecodedRecord<'_>, DecodeRecordError> {
    let header = RecordHeader::read(record).ok_or(TOO_SHORT)?;
    let total = usize::try_from(header.total_length).map_err(|_| TOO_SHORT)?;
    let mut cursor =
        Cursor { rest: record.get(RECORD_HEADER_SIZE..total.min(record.len())).ok_or(TOO_SHORT)? };
    let mut decoded = DecodedRecord {
        header,
        blocks: Vec::new(),
        origin: 0,
        top_level_xid: None,
        main_data: &[],
        main_data_length: 0,
    };
    let remaining = total.checked_sub(RECORD_HEADER_SIZE).ok_or(TOO_SHORT)?;
    let blocks = &mut decoded.blocks;
    let rest = cursor.headers(remaining, major, |block| blocks.push(*block))?;
    let announced = rest.block_data;
    let remaining = rest.remaining;
    (decoded.origin, decoded.top_level_xid) = (rest.origin, rest.top_level_xid);
    decoded.main_data_length = rest.main_data_length;
    let main_length = usize::try_from(decoded.main_data_length).map_err(|_| TOO_SHORT)?;
    if announced.checked_add(main_length) != Some(remaining) {
        return Err(DecodeRecordError("lengths in the record do not add up"));
    }
    decoded.main_data = cursor.rest.get(announced..).unwrap_or_default();
    Ok(decoded)
}

/// Calls `visit` with every block that the record changes, by rising id: what [`decode_record`] finds, without keeping
/// anything. Like there, `record` may be only the record's beginning.
pub fn visit_blocks(
    record: &[u8],
    major: Option<u32>,
    visit: impl FnMut(&BlockReference),
) -> Result<(), DecodeRecordError> {
    let total = usize::try_from(read_u32(record, 0).ok_or(TOO_SHORT)?).map_err(|_| TOO_SHORT)?;
    let mut cursor =
        Cursor { rest: record.get(RECORD_HEADER_SIZE..total.min(record.len())).ok_or(TOO_SHORT)? };
    let remaining = total.checked_sub(RECORD_HEADER_SIZE).ok_or(TOO_SHORT)?;
    let found = cursor.headers(remaining, major, visit)?;
    let main_length = usize::try_from(found.main_data_length).map_err(|_| TOO_SHORT)?;
    if found.block_data.checked_add(main_length) != Some(found.remaining) {
        return Err(DecodeRecordError("lengths in the record do not add up"));
    }
    Ok(())
}

/// Reads the unaligned headers one after another.
struct Cursor<'a> {
    rest: &'a [u8],
}

/// What a record's headers say besides its blocks.
#[derive(Default)]
struct Headers {
    origin: u16,
    top_level_xid: Option<u32>,
    main_data_length: u32,
    /// Bytes of images and block data.
    block_data: usize,
    /// Bytes of the record behind the headers.
    remaining: usize,
}

impl Cursor<'_> {
    /// Reads all headers of a record that has `remaining` bytes from here on.
    #[inline(always)]
    fn headers(
        &mut self,
        mut remaining: usize,
        major: Option<u32>,
        mut visit: impl FnMut(&BlockReference),
    ) -> Result<Headers, DecodeRecordError> {
        let mut found = Headers::default();
        let mut last: Option<BlockReference> = None;
        // Sizes of data announced by the headers so far: headers go on until only announced data remains.
        while remaining > found.block_data {
            let before = self.rest.len();
            let id = self.u8()?;
            match id {
                255 => found.main_data_length = u32::from(self.u8()?),
                254 => found.main_data_length = self.u32()?,
                253 => found.origin = self.u16()?,
                252 => found.top_level_xid = Some(self.u32()?),
                0..=32 => {
                    let block = self.block(id, last.as_ref(), major)?;
                    let image = block.image.map_or(0, |image| usize::from(image.length));
                    found.block_data += usize::from(block.data_length) + image;
                    visit(&block);
                    last = Some(block);
                }
                _ => return Err(DecodeRecordError("unknown block id")),
            }
            remaining = remaining.checked_sub(before - self.rest.len()).ok_or(TOO_SHORT)?;
            // The main data's header is always the last one.
            if id >= 254 {
                break;
            }
        }
        found.remaining = remaining;
        Ok(found)
    }

    #[inline(always)]
    fn skip(&mut self, bytes: usize) -> Result<(), DecodeRecordError> {
        self.rest = self.rest.get(bytes..).ok_or(TOO_SHORT)?;
        Ok(())
    }

    #[inline(always)]
    fn u8(&mut self) -> Result<u8, DecodeRecordError> {
        let value = *self.rest.first().ok_or(TOO_SHORT)?;
        self.skip(1)?;
        Ok(value)
    }

    #[inline(always)]
    fn u16(&mut self) -> Result<u16, DecodeRecordError> {
        let value = read_u16(self.rest, 0).ok_or(TOO_SHORT)?;
        self.skip(2)?;
        Ok(value)
    }

    #[inline(always)]
    fn u32(&mut self) -> Result<u32, DecodeRecordError> {
        let value = read_u32(self.rest, 0).ok_or(TOO_SHORT)?;
        self.skip(4)?;
        Ok(value)
    }

    #[inline(always)]
    fn block(
        &mut self,
        id: u8,
        last: Option<&BlockReference>,
        major: Option<u32>,
    ) -> Result<BlockReference, DecodeRecordError> {
        if last.is_some_and(|last| last.id >= id) {
            return Err(DecodeRecordError("block ids do not rise"));
        }
        let flags = self.u8()?;
        let data_length = self.u16()?;
        if (flags & 0x20 != 0) != (data_length != 0) {
            return Err(DecodeRecordError("a block's flags and its data length contradict each other"));
        }
        let image = if flags & 0x10 != 0 { Some(self.image(major)?) } else { None };
        let relation = if flags & 0x80 == 0 {
            RelFileLocator { tablespace: self.u32()?, database: self.u32()?, relation: self.u32()? }
        } else {
            last.ok_or(DecodeRecordError("a block refers to a relation before it, but there is none"))?
                .relation
        };
        Ok(BlockReference {
            id,
            relation,
            fork: ForkNumber(flags & 0x0F),
            block: self.u32()?,
            will_init: flags & 0x40 != 0,
            data_length,
            image,
        })
    }

    #[inline(always)]
    fn image(&mut self, major: Option<u32>) -> Result<BlockImage, DecodeRecordError> {
        let length = self.u16()?;
        let _hole_offset = self.u16()?;
        let info = self.u8()?;
        // BKPIMAGE_IS_COMPRESSED 0x02 and BKPIMAGE_APPLY 0x04 became BKPIMAGE_APPLY 0x02 and one bit per method in 15.
        let (compressed_bits, restored_bit) =
            if major.is_some_and(|major| major < 15) { (0x02, 0x04) } else { (0x1C, 0x02) };
        let compressed = info & compressed_bits != 0;
        if compressed && info & 0x01 != 0 {
            let _hole_length = self.u16()?;
        }
        Ok(BlockImage { length, compressed, restored: info & restored_bit != 0 })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::record_crc::record_crc;
    use super::*;

    /// A record of these headers and data with a valid CRC.
    pub(crate) fn record(xid: u32, previous: u64, info: u8, rmgr: u8, rest: &[u8]) -> Vec<u8> {
        let mut record = ((RECORD_HEADER_SIZE + rest.len()) as u32).to_le_bytes().to_vec();
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&previous.to_le_bytes());
        record.extend_from_slice(&[info, rmgr, 0, 0, 0, 0, 0, 0]);
        record.extend_from_slice(rest);
        let crc = record_crc(&record, crc32c::crc32c(rest)).unwrap();
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        record
    }

    fn block(id: u8, flags: u8, data_length: u16, image: &[u8], relation: &[u32], block: u32) -> Vec<u8> {
        let mut bytes = vec![id, flags];
        bytes.extend_from_slice(&data_length.to_le_bytes());
        bytes.extend_from_slice(image);
        for number in relation {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes
    }

    #[test]
    fn takes_a_record_apart() {
        // Block 0 with a compressed image with a hole and 3 bytes of data, block 2 of the same relation's map.
        let mut rest = block(0, 0x30, 3, &[5, 0, 40, 0, 0x07, 9, 0], &[1663, 5, 16384], 7);
        rest.extend(block(2, 0xC2, 0, &[], &[], 1));
        rest.extend([253, 3, 0, 252, 9, 0, 0, 0, 255, 4]);
        rest.extend_from_slice(b"imageabcmain");
        let bytes = record(77, 0x1000, 0x51, 10, &rest);
        let decoded = decode_record(&bytes, Some(15)).unwrap();
        assert_eq!(decoded.main_data, b"main");
        assert_eq!((decoded.origin, decoded.top_level_xid, decoded.main_data_length), (3, Some(9), 4));
        assert_eq!(
            (decoded.header.xid, decoded.header.previous, decoded.header.rmgr),
            (77, Lsn::new(0x1000), 10)
        );
        let relation = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
        assert_eq!(decoded.blocks[0].relation, relation);
        assert_eq!(decoded.blocks[1].relation, relation);
        assert_eq!((decoded.blocks[0].block, decoded.blocks[1].block), (7, 1));
        assert_eq!((decoded.blocks[0].fork, decoded.blocks[1].fork), (ForkNumber(0), ForkNumber(2)));
        assert_eq!((decoded.blocks[0].will_init, decoded.blocks[1].will_init), (false, true));
        let image = BlockImage { length: 5, compressed: true, restored: true };
        assert_eq!((decoded.blocks[0].image, decoded.blocks[1].image), (Some(image), None));
    }

    #[test]
    fn image_flags_changed_their_meaning_in_15() {
        let rest = |info| {
            let mut rest = block(0, 0x10, 0, &[4, 0, 0, 0, info], &[1663, 5, 1], 7);
            rest.extend_from_slice(b"page");
            record(1, 0, 0, 10, &rest)
        };
        let image = |info, major| decode_record(&rest(info), major).unwrap().blocks[0].image.unwrap();
        assert_eq!(image(0x02, Some(14)), BlockImage { length: 4, compressed: true, restored: false });
        assert_eq!(image(0x02, Some(15)), BlockImage { length: 4, compressed: false, restored: true });
        assert_eq!(image(0x04, Some(14)), BlockImage { length: 4, compressed: false, restored: true });
        assert_eq!(image(0x04, None), BlockImage { length: 4, compressed: true, restored: false });
    }

    #[test]
    fn long_main_data_may_be_cut_short() {
        let mut rest = vec![254];
        rest.extend_from_slice(&1000u32.to_le_bytes());
        rest.extend(vec![7; 1000]);
        let bytes = record(1, 0, 0, 1, &rest);
        let decoded = decode_record(&bytes[..100], None).unwrap();
        assert_eq!((decoded.main_data.len(), decoded.main_data_length), (100 - 24 - 5, 1000));
        assert_eq!(decode_record(&bytes, None).unwrap().main_data.len(), 1000);
    }

    #[test]
    fn refuses_contradictions_and_never_panics() {
        let refused = |rest: &[u8]| decode_record(&record(1, 0, 0, 1, rest), Some(15)).unwrap_err().0;
        assert_eq!(refused(&[255]), TOO_SHORT.0);
        assert_eq!(refused(&[255, 5, 1]), "lengths in the record do not add up");
        assert_eq!(refused(&[100, 0]), "unknown block id");
        assert_eq!(
            refused(&block(0, 0x80, 0, &[], &[], 1)),
            "a block refers to a relation before it, but there is none"
        );
        assert_eq!(
            refused(&block(0, 0x20, 0, &[], &[1, 1, 1], 1)),
            "a block's flags and its data length contradict each other"
        );
        let twice = [block(1, 0, 0, &[], &[1, 1, 1], 1), block(1, 0, 0, &[], &[1, 1, 1], 1)].concat();
        assert_eq!(refused(&twice), "block ids do not rise");
        assert_eq!(decode_record(&[0; 24], None).unwrap_err(), TOO_SHORT);
        let rest = block(0, 0x30, 3, &[5, 0, 40, 0, 0x07, 9, 0], &[1663, 5, 16384], 7);
        let whole = record(1, 0, 0, 10, &rest);
        for length in 0..whole.len() {
            assert!(decode_record(&whole[..length], Some(15)).is_err());
        }
    }
}
