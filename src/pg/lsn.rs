//! Log sequence numbers: byte positions in the WAL stream.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the WAL (`XLogRecPtr`), printed as PostgreSQL prints it: `0/16B3748`.
///
/// 0 is `InvalidXLogRecPtr`: no WAL record ever starts there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// The greatest position, used as "no upper bound" (an ancestor timeline that was never left).
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// A position of `bytes` from the beginning of the WAL.
    pub const fn new(bytes: u64) -> Lsn {
        Lsn(bytes)
    }

    /// Bytes from the beginning of the WAL.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// False for `InvalidXLogRecPtr`.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position `bytes` later; saturates, because positions from outside may be anything.
    pub const fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` to here; 0 if `earlier` is later.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position; expected two hexadecimal numbers like 0/16B3748")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Accepts what `pg_lsn` accepts: 1 to 8 hexadecimal digits, a slash, 1 to 8 hexadecimal digits
    /// (`src/backend/utils/adt/pg_lsn.c`, `pg_lsn_in_internal`).
    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            Some(Lsn((u64::from(parse_hex_u32(high)?) << 32) | u64::from(parse_hex_u32(low)?)))
        };
        parse().ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// 1 to 8 hexadecimal digits, nothing else (`u32::from_str_radix` would accept a sign).
pub(crate) fn parse_hex_u32(digits: &str) -> Option<u32> {
    let valid = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if valid { u32::from_str_radix(digits, 16).ok() } else { None }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_like_pg_lsn() {
        let lsn = Lsn::new(0x16B_3748);
        assert_eq!(lsn.to_string(), "0/16B3748");
        assert_eq!("0/16B3748".parse(), Ok(lsn));
        assert_eq!("FFFFFFFF/FFFFFFFF".parse(), Ok(Lsn::MAX));
        assert_eq!("a/b".parse::<Lsn>().unwrap().to_string(), "A/B");
    }

    #[test]
    fn refuses_what_pg_lsn_refuses() {
        for text in ["", "/", "1", "1/", "/1", "+1/2", "0/-1", "123456789/0", "0/g", " 0/1", "0/1 "] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was accepted");
        }
    }
}
