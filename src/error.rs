//! What every failure can tell: a line that names the object and the cause, a hint, and a [`Cause`].
//!
//! Each module has its own `thiserror` enum that implements [`Explain`]; commands turn any of them into a
//! [`Failure`], and `main` turns that into text and exit status, in one place.

use std::fmt;
use std::io;

use crate::exit_status::Cause;

/// An error that an operator can act on. `Display` is one line: what failed, on what object, why.
pub trait Explain: std::error::Error {
    /// Decides the exit status.
    fn exit_cause(&self) -> Cause;

    /// The next step, without the word `HINT`; `None` where the message says it all.
    fn hint(&self) -> Option<String> {
        None
    }

    /// True if the reader of our standard output went away: then the command ends without a word.
    fn is_reader_gone(&self) -> bool {
        false
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
    /// See [`Explain::is_reader_gone`].
    pub reader_gone: bool,
}

impl Failure {
    /// A failure that no module's error describes.
    pub fn new(cause: Cause, message: impl Into<String>) -> Failure {
        Failure { cause, message: message.into(), hint: None, reader_gone: false }
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
        Failure {
            cause: error.exit_cause(),
            message: error.to_string(),
            hint: error.hint(),
            reader_gone: error.is_reader_gone(),
        }
    }
}

/// The system's words for an error, without the number that Rust appends.
pub fn system_words(error: &io::Error) -> String {
    let words = error.to_string();
    match words.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => words,
    }
}

/// The text on one line: line ends become spaces, other control characters are escaped, so that nothing that came
/// from outside can forge a line of PostgreSQL's log or drive a terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.trim_end().chars() {
        match letter {
            '\n' | '\r' | '\t' => line.push(' '),
            _ if letter.is_control() => line.extend(letter.escape_default()),
            _ => line.push(letter),
        }
    }
    line
}
