//! Base64 as in RFC 4648 section 4: of keys, which must not stay in memory, and of what stores report.

use zeroize::Zeroizing;

/// The bytes that `text` stands for. Padding is optional; bits that stand for nothing must be zero.
pub(crate) fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let unpadded = text.trim_end_matches('=');
    let padding = text.len() - unpadded.len();
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut bits, mut count) = (0_u32, 0);
    for character in unpadded.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xFFFF;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    let left_over = bits & ((1 << count) - 1);
    if count >= 6 || left_over != 0 { None } else { Some(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_with_or_without_padding() {
        let decoded = |text: &str| decode(text).map(|bytes| bytes.to_vec());
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zg", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("+/+/", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(decoded(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zh==", "Zg=", "Zg===", "Zm9v====", "Zm9v Zm9v", "Zm-_", "Zg==Zg=="] {
            assert_eq!(decoded(text), None, "{text}");
        }
    }
}
