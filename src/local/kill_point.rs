//! Named places where a test lets the process die as `kill -9` would, or stand still until it is told to go on.
//!
//! Debug builds only: in a release build nothing of this is left.

/// The variable that names the place.
pub const KILL_POINT_VARIABLE: &str = "WALHOLD_TEST_KILL_AT";
/// The variable that names a place to stop at.
pub const STOP_POINT_VARIABLE: &str = "WALHOLD_TEST_STOP_AT";

/// Dies here by SIGKILL, or stops by SIGSTOP, if a test asked for it.
#[cfg(debug_assertions)]
pub fn kill_point(place: &str) {
    use nix::sys::signal::{Signal, raise};
    for (variable, signal) in [(KILL_POINT_VARIABLE, Signal::SIGKILL), (STOP_POINT_VARIABLE, Signal::SIGSTOP)]
    {
        if std::env::var_os(variable).is_some_and(|wanted| wanted == place) {
            let _ = raise(signal);
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn kill_point(_place: &str) {}

/// A number that a test wants instead of the usual one.
#[cfg(debug_assertions)]
pub fn test_number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn test_number(_variable: &str) -> Option<u64> {
    None
}
