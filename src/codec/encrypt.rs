//! AES-256-GCM per chunk, keys derived per object, and the key ring.
//!
//! Each object has a key of its own, from the master key and the object's random salt; under that key every nonce
//! (domain and number) is used once. What is authenticated besides: the header, the object's key in the
//! repository, and for the footer its public fields. `docs/format.md` gives the bytes and test vectors.

use std::fmt;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::base64;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::format::ObjectKey;
use crate::format::digest::to_hex;
use crate::format::envelope::TAG_SIZE;

/// Names a master key without revealing it: the first 8 bytes of a hash of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A 32-byte secret. `Debug` never shows it; memory is wiped on drop.
#[derive(Clone)]
pub struct MasterKey(zeroize::Zeroizing<[u8; 32]>);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterKey({:?})", self.id())
    }
}

impl MasterKey {
    /// A fresh random key.
    pub fn generate() -> Result<MasterKey, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|error| KeyError::Random(error.to_string()))?;
        Ok(MasterKey(bytes))
    }

    /// Parses 64 hexadecimal digits or base64 of 32 bytes, white space around it ignored.
    pub fn parse(text: &str) -> Result<MasterKey, KeyError> {
        let text = text.trim_ascii();
        let digits_only = text.bytes().all(|b| b.is_ascii_hexdigit());
        // Base64 of 32 bytes has 43 or 44 characters, so even digits only are told from hexadecimal by length.
        let bytes =
            if digits_only && text.len().is_multiple_of(2) { decode_hex(text) } else { base64::decode(text) };
        let bytes = bytes.ok_or(KeyError::Encoding)?;
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Length(bytes.len()))?;
        Ok(MasterKey(Zeroizing::new(key)))
    }

    /// As `keygen` prints it: 64 hexadecimal digits.
    pub fn to_hex(&self) -> zeroize::Zeroizing<String> {
        Zeroizing::new(to_hex(self.0.as_slice()))
    }

    /// Names this key.
    pub fn id(&self) -> KeyId {
        KeyId(*self.derive(&[], b"walhold v1 key id"))
    }

    /// HKDF-SHA-256 (RFC 5869).
    fn derive<const N: usize>(&self, salt: &[u8], purpose: &[u8]) -> Zeroizing<[u8; N]> {
        // HKDF's only error is an output above 255 hashes.
        const { assert!(N <= 255 * 32) };
        let mut out = Zeroizing::new([0; N]);
        let _ = Hkdf::<Sha256>::new(Some(salt), self.0.as_slice()).expand(purpose, out.as_mut_slice());
        out
    }
}

fn decode_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.as_bytes().chunks(2) {
        let [high, low] = <[u8; 2]>::try_from(pair).ok()?;
        let digit = |b: u8| char::from(b).to_digit(16);
        bytes.push((digit(high)? << 4 | digit(low)?) as u8);
    }
    Some(bytes)
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes.
    #[error("an encryption key has 32 bytes (64 hexadecimal digits or 44 of base64), this one has {0}")]
    Length(usize),
    /// Neither hexadecimal nor base64.
    #[error("an encryption key is 64 hexadecimal digits or 44 characters of base64")]
    Encoding,
    /// The system gave no randomness.
    #[error("read random bytes from the system: {0}")]
    Random(String),
}

impl Explain for KeyError {
    fn exit_cause(&self) -> Cause {
        Cause::Configuration
    }

    fn hint(&self) -> Option<String> {
        Some("make one with: walhold keygen > FILE; chmod 600 FILE".to_owned())
    }
}

/// The keys that objects may be encrypted with; the first one writes, all read.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Vec<MasterKey>,
}

impl KeyRing {
    /// The first key writes.
    pub fn new(keys: Vec<MasterKey>) -> KeyRing {
        KeyRing { keys }
    }

    /// The key that new objects are encrypted with; `None` for an unencrypted repository.
    pub fn writing_key(&self) -> Option<&MasterKey> {
        self.keys.first()
    }

    /// The key with this id.
    pub fn find(&self, id: KeyId) -> Option<&MasterKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// True if objects must be encrypted: then a plain one is refused, because somebody else put it there.
    pub fn encrypts(&self) -> bool {
        !self.keys.is_empty()
    }
}

/// What a nonce is used for: its first four bytes. Each number of a domain is sealed once per object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Domain {
    /// Chunk 0, 1, 2, …
    Chunk = 0,
    /// The index; number 0.
    Index = 1,
    /// The footer; number 0. It authenticates how many chunks there are, so no chunk needs to be marked as last.
    Footer = 2,
}

/// Seals and opens the parts of one object.
pub(super) struct ObjectCipher {
    cipher: Aes256Gcm,
    associated: Vec<u8>,
}

impl ObjectCipher {
    /// The cipher of the object that has this header frame, salt and key.
    pub(super) fn new(master: &MasterKey, salt: &[u8; 32], header: &[u8], key: &ObjectKey) -> ObjectCipher {
        let object_key: Zeroizing<[u8; 32]> = master.derive(salt, b"walhold v1 object key");
        let cipher = Aes256Gcm::new((&*object_key).into());
        let path = key.as_str().as_bytes();
        let mut associated = Vec::with_capacity(header.len() + path.len());
        associated.extend_from_slice(header);
        associated.extend_from_slice(path);
        ObjectCipher { cipher, associated }
    }

    /// Encrypts `buffer` in place; the tag is to be stored after it. `public` is authenticated too.
    pub(super) fn seal(
        &self,
        (domain, number): (Domain, u32),
        public: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_SIZE], String> {
        let associated = self.associated_with(public);
        let tag =
            self.cipher.encrypt_inout_detached(&nonce(domain, number).into(), &associated, buffer.into());
        tag.map(Into::into).map_err(|_| "AES-GCM refused the input".to_owned())
    }

    /// Decrypts `sealed` into `plaintext`, both of one length. `false` if anything about it was changed.
    pub(super) fn open(
        &self,
        (domain, number): (Domain, u32),
        public: &[u8],
        sealed: &[u8],
        tag: &[u8; TAG_SIZE],
        plaintext: &mut [u8],
    ) -> bool {
        let associated = self.associated_with(public);
        let nonce = nonce(domain, number).into();
        InOutBuf::new(sealed, plaintext).is_ok_and(|buffer| {
            self.cipher.decrypt_inout_detached(&nonce, &associated, buffer, tag.into()).is_ok()
        })
    }

    fn associated_with(&self, public: &[u8]) -> std::borrow::Cow<'_, [u8]> {
        if public.is_empty() {
            self.associated.as_slice().into()
        } else {
            [&self.associated, public].concat().into()
        }
    }
}

/// Four bytes of domain, eight of number.
fn nonce(domain: Domain, number: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(domain as u32).to_le_bytes());
    nonce[4..].copy_from_slice(&u64::from(number).to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_key_is_written_in_hexadecimal_or_base64() {
        let key = MasterKey::parse(HEX).unwrap();
        assert_eq!(*key.to_hex(), HEX);
        let spellings = [
            "  000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F\n",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        ];
        for text in spellings {
            assert_eq!(*MasterKey::parse(text).unwrap().to_hex(), HEX, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let problem = |text: &str| MasterKey::parse(text).unwrap_err().to_string();
        let length = |n| {
            format!(
                "an encryption key has 32 bytes (64 hexadecimal digits or 44 of base64), this one has {n}"
            )
        };
        assert_eq!(problem(&HEX[2..]), length(31));
        assert_eq!(problem(&format!("{HEX}00")), length(33));
        assert_eq!(problem("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg=="), length(31));
        assert_eq!(problem(""), length(0));
        for text in [
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8==",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh-=",
            "AAECAwQFBgcICQoL DA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "key",
            "A",
            "\u{e9}",
        ] {
            assert_eq!(
                problem(text),
                "an encryption key is 64 hexadecimal digits or 44 characters of base64",
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_key_never_shows_itself() {
        let key = MasterKey::parse(HEX).unwrap();
        assert_eq!(format!("{key:?}"), format!("MasterKey({})", key.id()));
        assert!(!format!("{:?}", KeyRing::new(vec![key])).contains("0001020304"));
        let (one, other) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        assert!(*one.to_hex() != *other.to_hex() && one.id() != other.id());
    }

    #[test]
    fn keys_are_derived_as_the_format_says() {
        let master = MasterKey::parse(HEX).unwrap();
        assert_eq!(master.id().to_string(), "5b8e413aeab06fb9");
        let salt: [u8; 32] = std::array::from_fn(|n| 0x20 + n as u8);
        let object_key: Zeroizing<[u8; 32]> = master.derive(&salt, b"walhold v1 object key");
        assert_eq!(to_hex(&*object_key), "b1445236acc441721b7c69c147e55e10c5ec998b9777acce4aa3ee2aaae961f2");
    }

    #[test]
    fn a_ring_reads_with_every_key_and_writes_with_the_first() {
        let keys = [MasterKey::generate().unwrap(), MasterKey::generate().unwrap()];
        let ring = KeyRing::new(keys.to_vec());
        assert_eq!(ring.writing_key().unwrap().id(), keys[0].id());
        assert_eq!(*ring.find(keys[1].id()).unwrap().to_hex(), *keys[1].to_hex());
        assert!(ring.find(KeyId([0; 8])).is_none());
        assert!(ring.encrypts() && !KeyRing::default().encrypts());
    }

    #[test]
    fn a_part_opens_only_where_it_was_sealed() {
        let master = MasterKey::parse(HEX).unwrap();
        let key = ObjectKey::from_listing("main/wal/1");
        let cipher = ObjectCipher::new(&master, &[7; 32], b"header", &key);
        let mut sealed = b"plaintext".to_vec();
        let tag = cipher.seal((Domain::Chunk, 1), b"public", &mut sealed).unwrap();
        let opens = |cipher: &ObjectCipher, place, public: &[u8]| {
            let mut plaintext = [0; 9];
            cipher.open(place, public, &sealed, &tag, &mut plaintext) && plaintext == *b"plaintext"
        };
        assert!(opens(&cipher, (Domain::Chunk, 1), b"public"));
        assert!(!opens(&cipher, (Domain::Chunk, 2), b"public"));
        assert!(!opens(&cipher, (Domain::Index, 1), b"public"));
        assert!(!opens(&cipher, (Domain::Chunk, 1), b""));
        let moved = ObjectKey::from_listing("main/wal/2");
        assert!(!opens(
            &ObjectCipher::new(&master, &[7; 32], b"header", &moved),
            (Domain::Chunk, 1),
            b"public"
        ));
        assert!(!opens(
            &ObjectCipher::new(&master, &[8; 32], b"header", &key),
            (Domain::Chunk, 1),
            b"public"
        ));
        assert!(!opens(
            &ObjectCipher::new(&master, &[7; 32], b"Header", &key),
            (Domain::Chunk, 1),
            b"public"
        ));
        let other = MasterKey::generate().unwrap();
        assert!(!opens(&ObjectCipher::new(&other, &[7; 32], b"header", &key), (Domain::Chunk, 1), b"public"));
    }
}
