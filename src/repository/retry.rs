//! How often a failing store is asked again, and when to stop.
//!
//! In: an attempt that says of its failure whether asking again can help. Out: its result, or
//! [`RepositoryError::Unreachable`] with the last failure when the patience is over. What must hold: a failure that
//! cannot pass by itself (permission, no space, damage) is returned at once; nothing waits past the deadline; every
//! repetition is logged once.

use std::time::{Duration, Instant};

use super::{Patience, RepositoryError};
use crate::interrupt;

/// The pause before the second attempt; doubled for each later one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer, unless the store asks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A failed attempt.
#[derive(Debug)]
pub(super) enum Failed {
    /// It may work next time.
    Again {
        /// What happened, in a few words.
        problem: String,
        /// How long the store asked us to stay away (`Retry-After`).
        wait: Option<Duration>,
    },
    /// Asking again cannot help.
    Final(RepositoryError),
}

impl Failed {
    /// A failure that may pass, without a wish of the store's.
    pub(super) fn again(problem: impl Into<String>) -> Failed {
        Failed::Again { problem: problem.into(), wait: None }
    }
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Failed {
        Failed::Final(error)
    }
}

impl Patience {
    /// When a request that begins now must be done.
    pub(super) fn deadline(self) -> Instant {
        match self {
            Patience::Until(deadline) => deadline,
            Patience::PerRequest(time) => Instant::now() + time,
        }
    }
}

/// One request and its repetitions. Blocking and asynchronous callers share the decisions; they wait each in their
/// own way.
#[derive(Debug)]
pub(super) struct Retries {
    verb: &'static str,
    key: String,
    started: Instant,
    deadline: Instant,
    attempts: u32,
    pause: Duration,
}

impl Retries {
    /// A request that begins now.
    pub(super) fn begin(verb: &'static str, key: &str, patience: Patience) -> Retries {
        Retries {
            verb,
            key: key.to_owned(),
            started: Instant::now(),
            deadline: patience.deadline(),
            attempts: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// When everything must be done.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Counts a failed attempt: how long to wait before the next one, or the error that ends the request.
    pub(super) fn after(&mut self, failed: Failed) -> Result<Duration, RepositoryError> {
        self.attempts += 1;
        let (problem, wish) = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Again { problem, wait } => (problem, wait),
        };
        if interrupt::requested().is_some() {
            return Err(self.interrupted());
        }
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        // A wish that reaches past the deadline is not granted: failing late helps nobody.
        let pause = wish.filter(|wish| *wish < remaining).unwrap_or_else(|| jittered(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if pause >= remaining {
            return Err(RepositoryError::Unreachable {
                verb: self.verb,
                key: std::mem::take(&mut self.key),
                problem,
                attempts: self.attempts,
                elapsed: self.started.elapsed(),
            });
        }
        tracing::warn!(
            "{} {}: {problem}; attempt {} follows in {pause:.1?}",
            self.verb,
            self.key,
            self.attempts + 1
        );
        Ok(pause)
    }

    /// The error that ends a request because a signal asks us to end.
    fn interrupted(&mut self) -> RepositoryError {
        RepositoryError::Interrupted { verb: self.verb, key: std::mem::take(&mut self.key) }
    }
}

/// Asks until it works, cannot work, or the patience is over.
pub(super) fn retried<T>(
    verb: &'static str,
    key: &str,
    patience: Patience,
    mut attempt: impl FnMut(Instant) -> Result<T, Failed>,
) -> Result<T, RepositoryError> {
    let mut retries = Retries::begin(verb, key, patience);
    loop {
        match attempt(retries.deadline()) {
            Ok(value) => return Ok(value),
            Err(failed) => {
                let pause = retries.after(failed)?;
                if !interrupt::sleep(pause) {
                    return Err(retries.interrupted());
                }
            }
        }
    }
}

/// Between half of `pause` and all of it, so that many clients of a store that went down do not return together.
fn jittered(pause: Duration) -> Duration {
    // Without randomness the clients return together, which is worse than it should be but not wrong.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_passes_is_retried_and_one_that_stays_is_not() {
        let mut asked = 0;
        let patience = Patience::PerRequest(Duration::from_secs(30));
        let answer = retried("read", "x", patience, |_| {
            asked += 1;
            if asked < 3 { Err(Failed::again("503")) } else { Ok(asked) }
        });
        assert_eq!(answer.unwrap(), 3);
        let denied =
            || RepositoryError::Denied { verb: "read", key: "x".to_owned(), problem: "403".to_owned() };
        let mut asked = 0;
        let answer: Result<(), _> = retried("read", "x", patience, |_| {
            asked += 1;
            Err(denied().into())
        });
        assert_eq!(answer.unwrap_err().to_string(), denied().to_string());
        assert_eq!(asked, 1);
    }

    #[test]
    fn patience_ends_at_the_deadline_and_the_last_failure_is_told() {
        let begun = Instant::now();
        let patience = Patience::Until(begun + Duration::from_millis(400));
        let answer: Result<(), _> =
            retried("read", "main/wal/1", patience, |_| Err(Failed::again("connection refused")));
        assert!(begun.elapsed() < Duration::from_millis(600));
        let error = answer.unwrap_err();
        assert!(matches!(&error, RepositoryError::Unreachable { attempts: 2.., .. }), "{error}");
        assert!(error.to_string().ends_with(": connection refused"), "{error}");
    }

    #[test]
    fn the_store_s_wish_is_granted_unless_it_reaches_past_the_deadline() {
        let wish =
            |seconds| Failed::Again { problem: "429".to_owned(), wait: Some(Duration::from_secs(seconds)) };
        let mut retries = Retries::begin("read", "x", Patience::PerRequest(Duration::from_secs(20)));
        assert_eq!(retries.after(wish(7)).unwrap(), Duration::from_secs(7));
        assert!(retries.after(wish(60)).unwrap() <= Duration::from_millis(200));
    }
}
