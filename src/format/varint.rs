//! Numbers of no fixed length, as manifests, WAL indexes and packs' contents hold them: LEB128, 7 bits per byte, lowest first, the top bit
//! says that more follow.
//!
//! Longer forms than a number needs are read, never written. What must hold: nothing is read that 64 bits do not hold.

/// The most bytes that 64 bits take.
pub(super) const LONGEST: usize = 10;

/// Bytes that are not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotANumber {
    /// They end in the middle of one.
    CutOff,
    /// It has too many bytes, or more than 64 bits.
    TooLong,
}

/// Appends `value`.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number of at most `MOST` bytes (no more than [`LONGEST`]) off the front. `rest` stays as it is where there is none.
#[inline]
pub(super) fn take<const MOST: usize>(rest: &mut &[u8]) -> Result<u64, NotANumber> {
    const { assert!(MOST <= LONGEST) };
    let mut value = 0u64;
    for (index, byte) in rest.iter().take(MOST).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if index == LONGEST - 1 && bits > 1 {
            return Err(NotANumber::TooLong);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *rest = rest.get(index + 1..).unwrap_or_default();
            return Ok(value);
        }
    }
    Err(if rest.len() < MOST { NotANumber::CutOff } else { NotANumber::TooLong })
}

/// A signed value, folded so that small magnitudes stay short: 0, -1, 1, -2, … become 0, 1, 2, 3, …
#[inline]
pub(super) fn fold(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// What [`fold`] was given.
#[inline]
pub(super) fn unfold(folded: u64) -> i64 {
    (folded >> 1).cast_signed() ^ -(folded & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 300, 1 << 20, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            bytes.push(7);
            let mut rest = &bytes[..];
            assert_eq!(take::<LONGEST>(&mut rest), Ok(value));
            assert_eq!(rest, [7]);
        }
        let mut bytes = Vec::new();
        put(&mut bytes, 300);
        assert_eq!(bytes, [0xac, 2]);
        for (value, folded) in
            [(0, 0), (-1, 1), (1, 2), (-2, 3), (i64::MAX, u64::MAX - 1), (i64::MIN, u64::MAX)]
        {
            assert_eq!((fold(value), unfold(folded)), (folded, value));
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_left() {
        let nine = [0xff; 9];
        let with_tenth = |byte: u8| [&nine[..], &[byte]].concat();
        for (bytes, problem) in [
            (&[][..], NotANumber::CutOff),
            (&[0x80], NotANumber::CutOff),
            (&nine, NotANumber::CutOff),
            (&with_tenth(2), NotANumber::TooLong),
            (&with_tenth(0x81), NotANumber::TooLong),
        ] {
            let mut rest = bytes;
            assert_eq!(take::<LONGEST>(&mut rest), Err(problem), "{bytes:?}");
            assert_eq!(rest, bytes);
        }
        assert_eq!(take::<LONGEST>(&mut &with_tenth(1)[..]), Ok(u64::MAX));
    }

    #[test]
    fn the_most_bytes_hold_even_for_a_small_number() {
        assert_eq!(take::<5>(&mut &[0x81, 0x80, 0x80, 0x80, 0][..]), Ok(1));
        assert_eq!(take::<5>(&mut &[0x81, 0x80, 0x80, 0x80, 0x80, 0][..]), Err(NotANumber::TooLong));
        assert_eq!(take::<5>(&mut &[0x81, 0x80, 0x80, 0x80][..]), Err(NotANumber::CutOff));
    }
}
