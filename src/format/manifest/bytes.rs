//! The few primitives that a manifest's body is made of: varints, byte strings, and a reader that knows where it is.

use super::ParseManifestError;

/// Appends `value` as LEB128: 7 bits per byte, lowest first, the top bit says that more follow.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value, folded so that small magnitudes stay short: 0, -1, 1, -2, … become 0, 1, 2, 3, …
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and that many bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a body front to back. Every error names the offset in the whole body.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Offset in the body of the first byte of `rest`.
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body, offset: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error at the current position.
    pub(super) fn error(&self, problem: impl Into<String>) -> ParseManifestError {
        ParseManifestError { offset: self.offset, problem: problem.into() }
    }

    pub(super) fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], ParseManifestError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.error(format!("{what} is cut off")));
        };
        self.rest = rest;
        self.offset += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ParseManifestError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self, what: &str) -> Result<u8, ParseManifestError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn varint(&mut self, what: &str) -> Result<u64, ParseManifestError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if index == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.take(index + 1, what)?;
                return Ok(value);
            }
        }
        Err(self.error(format!("{what} is not a number")))
    }

    pub(super) fn signed(&mut self, what: &str) -> Result<i64, ParseManifestError> {
        let folded = self.varint(what)?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    /// A number that must fit into a smaller type.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, ParseManifestError> {
        let value = self.varint(what)?;
        T::try_from(value).map_err(|_| self.error(format!("{what} is out of range: {value}")))
    }

    pub(super) fn bytes(&mut self, what: &str) -> Result<&'a [u8], ParseManifestError> {
        let length = self.number(what)?;
        self.take(length, what)
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, ParseManifestError> {
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }

    /// The number of entries that follow, each at least `least` bytes long: a count that the rest of the body
    /// cannot hold is refused before anything is allocated for it.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, ParseManifestError> {
        let count: usize = self.number(what)?;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest.len() => Ok(count),
            _ => Err(self.error(format!("{what}: {count} entries do not fit into the rest of the body"))),
        }
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.offset += self.rest.len();
        std::mem::take(&mut self.rest)
    }

    /// A reader of the next byte string, which this one skips.
    pub(super) fn section(&mut self, what: &str) -> Result<Reader<'a>, ParseManifestError> {
        let length = self.number(what)?;
        let offset = self.offset;
        Ok(Reader { rest: self.take(length, what)?, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let values = [0, 1, 127, 128, 1 << 20, u64::from(u32::MAX), u64::MAX];
        let signed = [0, -1, 1, i64::MIN, i64::MAX];
        let mut body = Vec::new();
        values.iter().for_each(|value| put_varint(&mut body, *value));
        signed.iter().for_each(|value| put_signed(&mut body, *value));
        let mut reader = Reader::new(&body);
        for value in values {
            assert_eq!(reader.varint("value").unwrap(), value);
        }
        for value in signed {
            assert_eq!(reader.signed("value").unwrap(), value);
        }
        assert!(reader.is_empty());
    }

    #[test]
    fn a_number_too_long_or_cut_off_is_refused() {
        for body in
            [&[0x80][..], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], &[]]
        {
            assert!(Reader::new(body).varint("value").is_err(), "{body:?} was accepted");
        }
        assert!(Reader::new(&[0x80, 2]).number::<u8>("value").is_err());
    }
}
