//! At most so many stored bytes per second, for all jobs together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::codec::encode::{ObjectSink, SinkError};
use crate::interrupt;

/// Hands out the right to write. Whoever asks waits until all that was handed out before is worth the time that passed.
pub struct RateLimit {
    bytes_per_second: u64,
    /// When the bytes handed out so far may have been written.
    free_at: Mutex<Instant>,
}

impl RateLimit {
    /// A limit that is counted from now on.
    pub fn new(bytes_per_second: u64) -> RateLimit {
        RateLimit { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may be written; returns early if a signal asks us to end.
    pub fn wait_for(&self, bytes: usize) {
        let now = Instant::now();
        let begin = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free_at).max(now);
            *free_at = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            begin
        };
        interrupt::sleep(begin.saturating_duration_since(now));
    }
}

/// A sink that keeps to a limit.
pub struct Limited<'a, K> {
    /// Where the bytes go.
    pub sink: K,
    /// `None` for no limit.
    pub limit: Option<&'a RateLimit>,
}

impl<K: ObjectSink> ObjectSink for Limited<'_, K> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if let Some(limit) = self.limit {
            limit.wait_for(bytes.len());
        }
        self.sink.write(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_limit() {
        let limit = RateLimit::new(1_000_000);
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut sink = Limited { sink: Vec::new(), limit: Some(&limit) };
                    (0..5).for_each(|_| sink.write(&[0; 10_000]).unwrap());
                });
            }
        });
        // The last of 20 pieces begins when the first 19 are worth 190 ms.
        assert!(began.elapsed() >= Duration::from_millis(185), "{:?}", began.elapsed());
    }
}
