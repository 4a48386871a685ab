//! Lines from another process on this machine, over a socket whose reads may time out in the middle of one.

use std::io::{self, Read};

/// The next whole line, without its end. What came of the one after it, or of a line whose rest did not come in time, stays in `held` for
/// the next call. `None` if the other side closed before a whole line came, or says more than `longest` bytes.
pub fn next_line(from: &mut impl Read, held: &mut Vec<u8>, longest: usize) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = held.drain(..=end).collect();
            line.pop();
            return Ok(Some(line));
        }
        let mut buffer = [0; 4096];
        let length = from.read(&mut buffer)?;
        if length == 0 || held.len() + length > longest {
            return Ok(None);
        }
        held.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
}
