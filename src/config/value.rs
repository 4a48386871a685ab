//! Values of settings: text from flags and variables and TOML values in, checked values out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::schema::Kind;
use crate::format::ClusterName;
use crate::output::{bytes_exact, duration_exact};
use crate::repository;

/// A checked value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, a repository's address, or a choice.
    Text(String),
    /// A cluster's name.
    Cluster(ClusterName),
    /// A path.
    Path(PathBuf),
    /// Several paths.
    Paths(Vec<PathBuf>),
    /// A whole number.
    Number(i64),
    /// Bytes.
    Bytes(u64),
    /// A length of time.
    Duration(Duration),
    /// Yes or no.
    Boolean(bool),
}

/// Looks at the zones in the program first: the first question to the system's reads some twenty directories, which every wal-push would wait for.
fn is_time_zone(name: &str) -> bool {
    jiff::tz::TimeZoneDatabase::bundled().get(name).is_ok() || jiff::tz::TimeZone::get(name).is_ok()
}

/// Why a value is refused. The text never quotes what may be secret: that is up to the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The value does not fit [`Kind::allowed`].
    NotAllowed,
    /// The value is not text in UTF-8.
    NotUtf8,
    /// The value is empty.
    Empty,
    /// A value with a problem of its own, which quotes nothing.
    Because(String),
}

impl Kind {
    /// What is allowed, as it stands after "expected".
    pub fn allowed(&self) -> String {
        match *self {
            Kind::Text => "text".to_owned(),
            Kind::RepositoryUrl => {
                "file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
                    .to_owned()
            }
            Kind::ClusterName => {
                "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit".to_owned()
            }
            Kind::Path => "a path".to_owned(),
            Kind::AbsolutePath => "an absolute path".to_owned(),
            Kind::AbsolutePaths => "absolute paths, as a list in TOML or separated by colons".to_owned(),
            Kind::Choice(words) => match words.split_last() {
                Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
                _ => words.join(""),
            },
            Kind::Number(least, greatest) => format!("a whole number from {least} to {greatest}"),
            Kind::Bytes(least, greatest) => format!(
                "a size from {} to {} (units: B, kB, MB, GB, TB)",
                bytes_exact(least),
                bytes_exact(greatest)
            ),
            Kind::Duration(least, greatest) => format!(
                "a duration from {} to {} (units: ms, s, min, h, d)",
                duration_exact(Duration::from_millis(least)),
                duration_exact(Duration::from_millis(greatest))
            ),
            Kind::Boolean => "true or false".to_owned(),
            Kind::TimeZone => "a time zone such as Europe/Berlin or UTC".to_owned(),
        }
    }

    /// Reads a flag's or a variable's text.
    pub fn read_text(&self, text: &OsStr) -> Result<Value, Refusal> {
        if text.is_empty() {
            return Err(Refusal::Empty);
        }
        match self {
            Kind::Path => return Ok(Value::Path(PathBuf::from(text))),
            Kind::AbsolutePath => return absolute(Path::new(text)).map(Value::Path),
            Kind::AbsolutePaths => {
                let parts = text.as_bytes().split(|&byte| byte == b':');
                let paths: Result<_, _> =
                    parts.map(|part| absolute(Path::new(OsStr::from_bytes(part)))).collect();
                return paths.map(Value::Paths);
            }
            _ => {}
        }
        self.read_utf8(text.to_str().ok_or(Refusal::NotUtf8)?)
    }

    fn read_utf8(&self, text: &str) -> Result<Value, Refusal> {
        let allowed = |fits: bool, value: Value| if fits { Ok(value) } else { Err(Refusal::NotAllowed) };
        match *self {
            Kind::RepositoryUrl => match repository::check_address(text) {
                Ok(()) => Ok(Value::Text(text.to_owned())),
                Err(problem) => Err(Refusal::Because(problem)),
            },
            Kind::ClusterName => text.parse().map(Value::Cluster).map_err(|_| Refusal::NotAllowed),
            Kind::Choice(words) => allowed(words.contains(&text), Value::Text(text.to_owned())),
            Kind::Number(least, greatest) => match text.parse::<i64>() {
                Ok(number) => allowed((least..=greatest).contains(&number), Value::Number(number)),
                Err(_) => Err(Refusal::NotAllowed),
            },
            Kind::Bytes(least, greatest) => match parse_bytes(text) {
                Some(bytes) => allowed((least..=greatest).contains(&bytes), Value::Bytes(bytes)),
                None => Err(Refusal::NotAllowed),
            },
            Kind::Duration(least, greatest) => match parse_milliseconds(text) {
                Some(length) => allowed(
                    (least..=greatest).contains(&length),
                    Value::Duration(Duration::from_millis(length)),
                ),
                None => Err(Refusal::NotAllowed),
            },
            Kind::Boolean => match text {
                "true" => Ok(Value::Boolean(true)),
                "false" => Ok(Value::Boolean(false)),
                _ => Err(Refusal::NotAllowed),
            },
            Kind::TimeZone => allowed(is_time_zone(text), Value::Text(text.to_owned())),
            Kind::Text | Kind::Path | Kind::AbsolutePath | Kind::AbsolutePaths => {
                Ok(Value::Text(text.to_owned()))
            }
        }
    }

    /// Reads a value of the TOML file. Types are not converted: `"4"` is no number.
    pub fn read_toml(&self, value: &DeValue<'_>) -> Result<Value, Refusal> {
        match (self, value) {
            (Kind::AbsolutePaths, DeValue::Array(items)) => {
                if items.is_empty() {
                    return Err(Refusal::Empty);
                }
                let path = |item: &DeValue<'_>| match item {
                    DeValue::String(text) => absolute(Path::new(text.as_ref())),
                    _ => Err(Refusal::NotAllowed),
                };
                let paths: Result<_, _> = items.iter().map(|item| path(item.get_ref())).collect();
                paths.map(Value::Paths)
            }
            // A colon may stand in a path; only variables have no other way to write a list.
            (Kind::AbsolutePaths, DeValue::String(text)) if !text.is_empty() => {
                absolute(Path::new(text.as_ref())).map(|path| Value::Paths(vec![path]))
            }
            (Kind::Number(..), DeValue::Integer(number)) if number.radix() == 10 => {
                self.read_utf8(number.as_str())
            }
            (Kind::Bytes(..), DeValue::Integer(number)) if number.radix() == 10 => {
                self.read_utf8(number.as_str())
            }
            (Kind::Boolean, DeValue::Boolean(yes)) => Ok(Value::Boolean(*yes)),
            (Kind::Number(..) | Kind::Boolean, _) => Err(Refusal::NotAllowed),
            (_, DeValue::String(text)) => self.read_text(OsStr::new(text.as_ref())),
            _ => Err(Refusal::NotAllowed),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    if path.is_absolute() { Ok(path.to_owned()) } else { Err(Refusal::NotAllowed) }
}

/// Splits `50MB` into 50 and `MB`.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

/// Bytes with PostgreSQL's units, in which kB is 1,024.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Milliseconds with PostgreSQL's units. A bare number is refused: nobody knows whether 10 means seconds.
fn parse_milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

impl Value {
    /// As it would be written in a variable.
    pub fn to_text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Cluster(name) => name.to_string(),
            Value::Path(path) => path.display().to_string(),
            Value::Paths(paths) => {
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
            }
            Value::Number(number) => number.to_string(),
            Value::Bytes(bytes) => bytes_exact(*bytes),
            Value::Duration(length) => duration_exact(*length),
            Value::Boolean(yes) => yes.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: Kind, text: &str) -> Result<String, Refusal> {
        kind.read_text(OsStr::new(text)).map(|value| value.to_text())
    }

    #[test]
    fn sizes_have_postgresql_units() {
        let kind = Kind::Bytes(1 << 10, 1 << 40);
        assert_eq!(text(kind, "50MB").unwrap(), "50MB");
        assert_eq!(text(kind, "1024").unwrap(), "1kB");
        assert_eq!(text(kind, "1000000").unwrap(), "1000000B");
        for wrong in ["50mb", "50M", "1.5GB", "-1", "MB", "1023", "2TB", "99999999999999999999", "1 MB x"] {
            assert_eq!(text(kind, wrong), Err(Refusal::NotAllowed), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        let kind = Kind::Duration(1_000, 86_400_000);
        assert_eq!(text(kind, "90s").unwrap(), "90s");
        assert_eq!(text(kind, "60s").unwrap(), "1min");
        assert_eq!(text(kind, "10 min").unwrap(), "10min");
        assert_eq!(text(kind, "1500ms").unwrap(), "1500ms");
        for wrong in ["60", "0s", "25h", "1m", "forever", "1.5h"] {
            assert_eq!(text(kind, wrong), Err(Refusal::NotAllowed), "{wrong}");
        }
    }

    #[test]
    fn addresses_need_a_known_scheme_and_no_credentials() {
        for good in ["file:///srv/walhold", "s3://bucket", "s3://bucket/a/b", "gs://b/p", "az://c/p"] {
            assert_eq!(text(Kind::RepositoryUrl, good).as_deref(), Ok(good));
        }
        for wrong in ["/srv/walhold", "file://srv/walhold", "s3:///prefix", "ftp://host/x", "s3:bucket"] {
            assert!(matches!(text(Kind::RepositoryUrl, wrong), Err(Refusal::Because(_))), "{wrong}");
        }
        for secret in ["s3://AKIA:geheim@bucket/x", "az://c/p?sig=geheim"] {
            match text(Kind::RepositoryUrl, secret) {
                Err(Refusal::Because(problem)) => assert!(!problem.contains("geheim"), "{problem}"),
                other => panic!("{secret}: {:?}", other.err()),
            }
        }
    }

    #[test]
    fn key_files_are_absolute() {
        assert_eq!(text(Kind::AbsolutePaths, "/a:/b").unwrap(), "/a:/b");
        assert_eq!(text(Kind::AbsolutePaths, "/a:b"), Err(Refusal::NotAllowed));
        assert_eq!(text(Kind::AbsolutePaths, "/a:"), Err(Refusal::NotAllowed));
    }
}
