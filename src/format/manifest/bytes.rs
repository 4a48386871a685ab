//! The few primitives that a manifest's body is made of: varints, byte strings, and a reader that knows where it is.

use super::ParseManifestError;
use crate::format::varint;
pub(super) use crate::format::varint::put as put_varint;

/// Appends a signed value.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, varint::fold(value));
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
        let before = self.rest.len();
        let value = varint::take::<{ varint::LONGEST }>(&mut self.rest)
            .map_err(|_| self.error(format!("{what} is not a number")))?;
        self.offset += before - self.rest.len();
        Ok(value)
    }

    pub(super) fn signed(&mut self, what: &str) -> Result<i64, ParseManifestError> {
        self.varint(what).map(varint::unfold)
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
