//! Named places where a test lets the process die as `kill -9` would.
//!
//! Debug builds only: in a release build nothing of this is left.

/// The variable that names the place.
pub const KILL_POINT_VARIABLE: &str = "WALHOLD_TEST_KILL_AT";

/// Dies here by SIGKILL if a test asked for it.
#[cfg(debug_assertions)]
pub fn kill_point(place: &str) {
    use nix::sys::signal::{Signal, raise};
    if std::env::var_os(KILL_POINT_VARIABLE).is_some_and(|wanted| wanted == place) {
        let _ = raise(Signal::SIGKILL);
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
