//! PostgreSQL's clock readings.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds between 1970-01-01 and 2000-01-01 UTC (`POSTGRES_EPOCH_JDATE`).
const EPOCH_OFFSET_MICROSECONDS: i64 = 946_684_800_000_000;

/// `TimestampTz`: microseconds since 2000-01-01 00:00 UTC by the server's clock.
///
/// Printed as UTC with microseconds, `2026-11-20 22:46:13.123456+00`; JSON carries RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    /// The moment `microseconds` after 2000-01-01 00:00 UTC.
    pub const fn new(microseconds: i64) -> PgTimestamp {
        PgTimestamp(microseconds)
    }

    /// Microseconds since 2000-01-01 00:00 UTC.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The same moment as jiff knows it; `None` outside jiff's years -9999 to 9999.
    pub fn to_jiff(self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_microsecond(self.0.checked_add(EPOCH_OFFSET_MICROSECONDS)?).ok()
    }

    /// The moment that jiff knows, cut to microseconds.
    pub fn from_jiff(moment: jiff::Timestamp) -> PgTimestamp {
        PgTimestamp(moment.as_microsecond() - EPOCH_OFFSET_MICROSECONDS)
    }
}

impl fmt::Display for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_jiff() {
            Some(moment) => write!(f, "{}", moment.strftime("%Y-%m-%d %H:%M:%S%.6f+00")),
            None => write!(f, "{} microseconds from 2000-01-01", self.0),
        }
    }
}

impl fmt::Debug for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PgTimestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_jiff() {
            Some(moment) => serializer.collect_str(&moment.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")),
            None => Err(serde::ser::Error::custom("timestamp is outside the years -9999 to 9999")),
        }
    }
}

impl<'de> Deserialize<'de> for PgTimestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let moment: jiff::Timestamp =
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?;
        Ok(PgTimestamp::from_jiff(moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_2000() {
        assert_eq!(PgTimestamp::new(0).to_string(), "2000-01-01 00:00:00.000000+00");
        let later: PgTimestamp = serde_json::from_str("\"2026-11-20T22:46:13.123456Z\"").unwrap();
        assert_eq!(later.to_string(), "2026-11-20 22:46:13.123456+00");
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"2026-11-20T22:46:13.123456Z\"");
    }

    #[test]
    fn survives_any_number() {
        assert!(PgTimestamp::new(i64::MAX).to_string().contains("microseconds"));
        assert!(PgTimestamp::new(i64::MIN).to_jiff().is_none());
    }
}
