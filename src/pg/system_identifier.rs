//! The number that tells two clusters apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `system_identifier` of `pg_control` and of every long WAL page header: made by initdb, shared by a primary
/// and its standbys, different for any two clusters that were not copied from each other.
///
/// JSON carries it as a string, because most readers lose digits above 2^53.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// The identifier with this value.
    pub const fn new(value: u64) -> SystemIdentifier {
        SystemIdentifier(value)
    }

    /// The value as PostgreSQL stores it.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Text that is not a system identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a system identifier; expected a decimal number")]
pub struct ParseSystemIdentifierError(pub String);

impl FromStr for SystemIdentifier {
    type Err = ParseSystemIdentifierError;

    /// Decimal digits only, without a sign or leading zeros: one identifier has one spelling, because it is
    /// part of object keys.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        match text.parse() {
            Ok(value) if canonical => Ok(SystemIdentifier(value)),
            _ => Err(ParseSystemIdentifierError(text.to_owned())),
        }
    }
}

impl Serialize for SystemIdentifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_one_spelling() {
        assert_eq!("7371".parse(), Ok(SystemIdentifier::new(7371)));
        for text in ["", "+1", "01", "-1", "18446744073709551616", "1 "] {
            assert!(text.parse::<SystemIdentifier>().is_err(), "{text:?} was accepted");
        }
    }
}
