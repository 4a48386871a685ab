//! How a key becomes the path that an object lies under, and back.
//!
//! Where a store replaces silently, a key that could conflict is followed by `.` and the 32 hexadecimal digits of the
//! plaintext's short digest: another content then has another path, and nothing can be replaced.

use super::{Naming, RepositoryError, StoredObject};
use crate::format::digest::to_hex;
use crate::format::marker::CreateOnly;
use crate::format::{Digest, ObjectKey};

/// Hexadecimal digits in a suffix.
const SUFFIX_DIGITS: usize = 32;

/// The folder of objects that are not published yet. No cluster can have this name: those begin with a letter or a
/// digit.
pub(super) const TEMPORARY_FOLDER: &str = ".walhold-tmp";

impl Naming {
    /// Whether a key of this kind carries a digest on a store of that kind.
    pub(super) fn is_suffixed(self, create_only: CreateOnly) -> bool {
        match (self, create_only) {
            (Naming::AlwaysSuffixed, _) | (Naming::ByStore, CreateOnly::Suffixed) => true,
            (Naming::ByStore, CreateOnly::Enforced) | (Naming::Unique, _) => false,
        }
    }
}

/// The path of an object with this plaintext digest.
pub(super) fn path_of(key: &ObjectKey, naming: Naming, create_only: CreateOnly, digest: &Digest) -> String {
    if naming.is_suffixed(create_only) {
        format!("{key}.{}", digest.short())
    } else {
        key.as_str().to_owned()
    }
}

/// What an object that lies under `path` claims to be.
pub(super) fn key_of(path: &str, create_only: CreateOnly) -> ObjectKey {
    let suffixed = split_suffix(path)
        .filter(|(key, _)| create_only == CreateOnly::Suffixed || key.ends_with(".partial"))
        .map(|(key, _)| key);
    ObjectKey::from_listing(suffixed.unwrap_or(path))
}

/// `path` without its digest, and the digest; `None` if it has none.
pub(super) fn split_suffix(path: &str) -> Option<(&str, &str)> {
    let (key, digits) = path.rsplit_once('.')?;
    let is_digest = digits.len() == SUFFIX_DIGITS
        && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (is_digest && !key.is_empty()).then_some((key, digits))
}

/// Whether a path has a segment that no object of the repository has: temporary objects, and hidden files that
/// people or file systems put there.
pub(super) fn is_hidden(path: &str) -> bool {
    path.split('/').any(|segment| segment.starts_with('.'))
}

/// A stored object as the backends report it, before anybody has looked at its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawObject {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) modified: jiff::Timestamp,
}

impl RawObject {
    /// With the key that its path stands for.
    pub(super) fn named(self, create_only: CreateOnly) -> StoredObject {
        StoredObject {
            key: key_of(&self.path, create_only),
            path: self.path,
            size: self.size,
            modified: self.modified,
        }
    }

    /// With a key that is known.
    pub(super) fn known_as(self, key: &ObjectKey) -> StoredObject {
        StoredObject { key: key.clone(), path: self.path, size: self.size, modified: self.modified }
    }
}

/// 32 random hexadecimal digits, for a name that nobody else takes; the error is that of `verb`.
pub(super) fn random_hex(verb: &'static str, key: &str) -> Result<String, RepositoryError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| RepositoryError::Damaged {
        verb,
        key: key.to_owned(),
        problem: format!("the system gives no randomness: {error}"),
    })?;
    Ok(to_hex(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_back_to_its_key() {
        let digest = Digest::of(b"tail");
        let segment = ObjectKey::from_listing("main/wal/1/000000010000000A000000FE");
        let partial = ObjectKey::from_listing("main/wal/1/000000010000000A000000FE.partial");
        for create_only in [CreateOnly::Enforced, CreateOnly::Suffixed] {
            for (key, naming) in
                [(&segment, Naming::ByStore), (&segment, Naming::Unique), (&partial, Naming::AlwaysSuffixed)]
            {
                let path = path_of(key, naming, create_only, &digest);
                assert_eq!(&key_of(&path, create_only), key, "{path}");
            }
        }
        let plain = path_of(&segment, Naming::ByStore, CreateOnly::Enforced, &digest);
        assert_eq!(plain, segment.as_str());
        let suffixed = path_of(&segment, Naming::ByStore, CreateOnly::Suffixed, &digest);
        assert_eq!(suffixed, format!("{segment}.{}", digest.short()));
    }

    #[test]
    fn only_a_whole_digest_is_a_suffix() {
        let digits = "0123456789abcdef0123456789abcdef";
        let path = format!("a/b.{digits}");
        assert_eq!(split_suffix(&path), Some(("a/b", digits)));
        for text in
            ["a/b".to_owned(), format!("a/b.{}", &digits[1..]), format!("a/b.{}", digits.to_uppercase())]
        {
            assert_eq!(split_suffix(&text), None, "{text}");
        }
        assert_eq!(key_of(&path, CreateOnly::Enforced).as_str(), path);
        assert_eq!(key_of(&path, CreateOnly::Suffixed).as_str(), "a/b");
    }

    #[test]
    fn hidden_names_are_no_objects() {
        assert!(is_hidden(".walhold-tmp/ab") && is_hidden("main/packs/.x.walhold-1-2"));
        assert!(!is_hidden("main/packs/x.y") && !is_hidden("walhold.json"));
    }
}
