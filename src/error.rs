//! What every failure can tell: a line that names the object and the cause, a hint, and a [`Cause`].
//!
//! Each module has its own `thiserror` enum that implements [`Explain`]; commands turn any of them into a
//! [`Failure`], and `main` turns that into text and exit status, in one place.

use std::fmt;

use crate::exit_status::Cause;

/// An error that an operator can act on. `Display` is one line: what failed, on what object, why.
pub trait Explain: std::error::Error {
    /// Decides the exit status.
    fn exit_cause(&self) -> Cause;

    /// The next step, without the word `HINT`; `None` where the message says it all.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// A failed command: everything that `main` needs to end it.
#[derive(Debug)]
pub struct Failure {
    /// Decides the exit status.
    pub cause: Cause,
    /// One line.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure that no module's error describes.
    pub fn new(cause: Cause, message: impl Into<String>) -> Failure {
        Failure { cause, message: message.into(), hint: None }
    }

    /// The same with a next step.
    pub fn with_hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " HINT: {hint}"),
            None => Ok(()),
        }
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { cause: error.exit_cause(), message: error.to_string(), hint: error.hint() }
    }
}
