//! Names of backups.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pg::WalSegmentName;

/// A backup's name, `20261120T224613Z-00000001-0000000A000000FE`: when it started (UTC), then the timeline and
/// the segment of its start. Text order is time order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup that starts at `started` in segment `start`.
    pub fn new(started: jiff::Timestamp, start: WalSegmentName) -> BackupId {
        let segment = start.to_string();
        let (timeline, position) = segment.split_at(8);
        BackupId(format!("{}-{timeline}-{position}", started.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The id as it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When the backup started, to the second.
    pub fn started(&self) -> jiff::Timestamp {
        parse_started(&self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is not a backup id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a backup id; expected one like 20261120T224613Z-00000001-0000000A000000FE")]
pub struct ParseBackupIdError(pub String);

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let started = parse_started(text)?;
            let (timeline, position) = text.get(17..)?.split_once('-')?;
            let start: WalSegmentName = format!("{timeline}{position}").parse().ok()?;
            Some(BackupId::new(started, start)).filter(|id| id.0 == text)
        };
        parse().ok_or_else(|| ParseBackupIdError(text.to_owned()))
    }
}

fn parse_started(text: &str) -> Option<jiff::Timestamp> {
    let started = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text.get(..16)?).ok()?;
    Some(started.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_one_spelling() {
        let text = "20261120T224613Z-00000001-0000000A000000FE";
        let id: BackupId = text.parse().unwrap();
        assert_eq!((id.as_str(), id.started().to_string().as_str()), (text, "2026-11-20T22:46:13Z"));
        for wrong in
            ["", "20261120T224613Z", "20261320T224613Z-00000001-0000000A000000FE", &text.to_lowercase()]
        {
            assert!(wrong.parse::<BackupId>().is_err(), "{wrong:?} was accepted");
        }
        assert!(format!("{text}x").parse::<BackupId>().is_err());
    }
}
