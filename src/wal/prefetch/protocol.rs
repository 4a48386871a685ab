//! What wal-fetch and whoever keeps the window say to each other over a Unix socket: one line of text each way, versioned, small.
//!
//! ```text
//! →  walhold-window 1 <binding> take <segment>         hand out a segment
//! →  walhold-window 1 <binding> clear                  remove everything and end
//! ←  wait                                              (any number of times) it is on its way
//! ←  ready <inode> <length> <mtime seconds> <nanoseconds>
//! ←  no                                                ask the archive itself
//! ←  other                                             another configuration, version or question
//! ←  done                                              cleared
//! ```

use std::fmt;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use crate::format::Digest;
use crate::format::digest::from_hex;
use crate::local::lines::next_line;
use crate::pg::WalSegmentName;

/// The first words of every question.
const GREETING: &str = "walhold-window 1";
/// Longer lines are somebody else's.
const LONGEST_LINE: usize = 256;

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// The segment is wanted.
    Take(WalSegmentName),
    /// Recovery is over.
    Clear,
}

/// Which settings, cluster and server the asker has: the window is for the same ones only.
pub type Binding = Digest;

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is on its way; another answer follows.
    Wait,
    /// It lies in the window under its name, and was like this when it was checked.
    Ready(WindowFile),
    /// The window does not have it.
    No,
    /// The window is not for this asker.
    Other,
    /// Everything was removed.
    Done,
}

/// What tells whether a file in the window is still the one that was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowFile {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl WindowFile {
    /// As the system describes it.
    pub fn of(found: &Metadata) -> WindowFile {
        WindowFile { inode: found.ino(), length: found.len(), modified: (found.mtime(), found.mtime_nsec()) }
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// The line for a question.
pub fn question_line(binding: &Binding, question: Question) -> String {
    match question {
        Question::Take(name) => format!("{GREETING} {binding} take {name}\n"),
        Question::Clear => format!("{GREETING} {binding} clear\n"),
    }
}

/// Reads a question; `None` for anything that is not one of ours.
pub fn parse_question(line: &str) -> Option<(Binding, Question)> {
    let rest = line.strip_prefix(GREETING)?.strip_prefix(' ')?;
    let mut words = rest.split(' ');
    let binding = Digest(from_hex(words.next()?)?.try_into().ok()?);
    let question = match (words.next()?, words.next()) {
        ("take", Some(name)) => Question::Take(name.parse().ok()?),
        ("clear", None) => Question::Clear,
        _ => return None,
    };
    words.next().is_none().then_some((binding, question))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Wait => f.write_str("wait"),
            Answer::Ready(file) => {
                let WindowFile { inode, length, modified: (seconds, nanoseconds) } = file;
                write!(f, "ready {inode} {length} {seconds} {nanoseconds}")
            }
            Answer::No => f.write_str("no"),
            Answer::Other => f.write_str("other"),
            Answer::Done => f.write_str("done"),
        }
    }
}

/// Not an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseAnswerError;

impl FromStr for Answer {
    type Err = ParseAnswerError;

    fn from_str(line: &str) -> Result<Answer, ParseAnswerError> {
        let number =
            |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).ok_or(ParseAnswerError);
        let mut words = line.split(' ');
        let answer = match words.next() {
            Some("wait") => Answer::Wait,
            Some("no") => Answer::No,
            Some("other") => Answer::Other,
            Some("done") => Answer::Done,
            Some("ready") => {
                let (inode, length) = (number(words.next())?, number(words.next())?);
                let time =
                    |word: Option<&str>| word.and_then(|word| word.parse().ok()).ok_or(ParseAnswerError);
                let modified = (time(words.next())?, time(words.next())?);
                Answer::Ready(WindowFile { inode, length, modified })
            }
            _ => return Err(ParseAnswerError),
        };
        if words.next().is_some() { Err(ParseAnswerError) } else { Ok(answer) }
    }
}

/// Reads one line without its end; `None` if the other side closed before a whole one came, or says too much.
pub fn read_line(from: &mut impl Read, held: &mut Vec<u8>) -> io::Result<Option<String>> {
    let line = next_line(from, held, 2 * LONGEST_LINE)?;
    Ok(line.and_then(|line| String::from_utf8(line).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let binding = Digest([9; 32]);
        for question in [Question::Take("00000001000000000000000A".parse().unwrap()), Question::Clear] {
            let line = question_line(&binding, question);
            assert_eq!(parse_question(line.trim_end()), Some((binding, question)));
        }
        let file = WindowFile { inode: 1, length: 2, modified: (-3, 4) };
        for answer in [Answer::Wait, Answer::Ready(file), Answer::No, Answer::Other, Answer::Done] {
            assert_eq!(answer.to_string().parse(), Ok(answer));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let binding = Digest([9; 32]);
        for line in ["", "walhold-window 2 x clear", "walhold-window 1 x clear", "GET / HTTP/1.1"] {
            assert_eq!(parse_question(line), None, "{line}");
        }
        assert_eq!(parse_question(&format!("walhold-window 1 {binding} take ../../etc/passwd")), None);
        assert_eq!(parse_question(&format!("walhold-window 1 {binding} clear now")), None);
        for line in ["", "ready", "ready 1 2 3", "ready 1 2 3 4 5", "ready a b c d", "yes"] {
            assert!(line.parse::<Answer>().is_err(), "{line}");
        }
    }

    #[test]
    fn lines_come_whole_or_not_at_all() {
        let mut held = Vec::new();
        let mut bytes: &[u8] = b"one\ntwo\nthr";
        assert_eq!(read_line(&mut bytes, &mut held).unwrap().as_deref(), Some("one"));
        assert_eq!(read_line(&mut bytes, &mut held).unwrap().as_deref(), Some("two"));
        assert_eq!(read_line(&mut bytes, &mut held).unwrap(), None);
        let endless = vec![b'x'; 10_000];
        assert_eq!(read_line(&mut endless.as_slice(), &mut Vec::new()).unwrap(), None);
    }
}
