//! Settings that cannot be used.

use std::fmt;
use std::path::PathBuf;

use crate::error::Explain;
use crate::exit_status::Cause;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, `--jobs`.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
    /// A line of the TOML file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// Why the settings cannot be used. Values that may be secret are never quoted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("read configuration file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// The file is no TOML.
    #[error("read configuration file {}:{line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words on one line.
        problem: String,
    },
    /// No setting has this key.
    #[error("unknown setting {key} ({origin})")]
    UnknownKey {
        /// The whole key.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// No setting has this variable.
    #[error("unknown environment variable {name}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// The value does not fit.
    #[error("setting {key} ({origin}): {problem}")]
    Value {
        /// The setting.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// What was expected and, unless it may be secret, what was found.
        problem: String,
    },
    /// Two settings exclude each other.
    #[error("settings {first} ({first_origin}) and {second} ({second_origin}) exclude each other")]
    Exclusive {
        /// One key.
        first: &'static str,
        /// Where it stands.
        first_origin: Origin,
        /// The other key.
        second: &'static str,
        /// Where it stands.
        second_origin: Origin,
    },
}

impl Explain for ConfigError {
    fn exit_cause(&self) -> Cause {
        Cause::Configuration
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            ConfigError::UnknownKey { suggestion, .. } | ConfigError::UnknownVariable { suggestion, .. } => {
                match suggestion {
                    Some(suggestion) => format!("did you mean {suggestion}?"),
                    None => "docs/configuration.md lists every setting; walhold config shows those in effect"
                        .to_owned(),
                }
            }
            ConfigError::Exclusive { .. } => "remove one of them".to_owned(),
            ConfigError::File { .. } => {
                "the file was named by --config or WALHOLD_CONFIG, or is the default file".to_owned()
            }
            ConfigError::Syntax { .. } => {
                "write each setting once: name = \"text\" or name = 4, below its [section]".to_owned()
            }
            ConfigError::Value { .. } => {
                "docs/configuration.md lists every setting with what it takes".to_owned()
            }
        })
    }
}
