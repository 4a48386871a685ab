//! Being asked to end in the middle of the work.

use nix::sys::signal::Signal;

use crate::codec::encode::SinkError;
use crate::error::Explain;
use crate::exit_status::Cause;
use crate::interrupt;

/// A signal asked us to end; nothing was left half done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("interrupted by {}", .0.as_str())]
pub struct Interrupted(pub Signal);

impl Explain for Interrupted {
    fn exit_cause(&self) -> Cause {
        Cause::Interrupted
    }
}

/// Between two chunks: an error if a signal came.
pub fn stop_if_asked() -> Result<(), SinkError> {
    match interrupt::requested() {
        Some(signal) => Err(Box::new(Interrupted(signal))),
        None => Ok(()),
    }
}
