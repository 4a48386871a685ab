//! AES-256-GCM per chunk, keys derived per object, and the key ring.

use crate::error::Explain;
use crate::exit_status::Cause;

/// Names a master key without revealing it: the first 8 bytes of a hash of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyId(pub [u8; 8]);

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
        todo!()
    }

    /// Parses 64 hexadecimal digits or base64 of 32 bytes, white space around it ignored.
    pub fn parse(_text: &str) -> Result<MasterKey, KeyError> {
        todo!()
    }

    /// As `keygen` prints it: 64 hexadecimal digits.
    pub fn to_hex(&self) -> zeroize::Zeroizing<String> {
        todo!()
    }

    /// Names this key.
    pub fn id(&self) -> KeyId {
        todo!()
    }
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
