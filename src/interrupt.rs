//! Signals that ask us to end: engines look at [`requested`], clean up and return; `main` ends the process.
//!
//! The first signal is noted, the second of the same kind ends the process at once, as if nobody had listened.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};

/// Nothing was asked.
const NOTHING: i32 = 0;

static REQUESTED: AtomicI32 = AtomicI32::new(NOTHING);

/// The signals that ask us to end. PostgreSQL sends SIGTERM to end its own children, and SIGQUIT to end them fast.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

extern "C" fn note(number: i32) {
    REQUESTED.store(number, Ordering::Relaxed);
}

/// Begins to listen.
pub fn install() {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    for number in SIGNALS {
        // SAFETY: `note` only stores into an atomic, which is async-signal-safe, and it lives as long as the
        // process. SA_RESETHAND restores the default action, so that the second signal ends us. A signal that was
        // ignored when we were started (nohup) is put back below.
        let before = unsafe { signal::sigaction(number, &action) };
        if let Ok(before) = before
            && matches!(before.handler(), SigHandler::SigIgn)
        {
            // SAFETY: this installs what was there before, and no function of ours.
            let _ = unsafe { signal::sigaction(number, &before) };
        }
    }
}

/// The signal that asked us to end, if one came.
pub fn requested() -> Option<Signal> {
    match REQUESTED.load(Ordering::Relaxed) {
        NOTHING => None,
        number => Signal::try_from(number).ok(),
    }
}

/// Sleeps, but not through a signal: true if the whole time passed, false if we are asked to end.
pub fn sleep(length: Duration) -> bool {
    let until = Instant::now() + length;
    loop {
        if requested().is_some() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// Ends the process by a signal, so that whoever waits for it sees that signal: PostgreSQL takes a
/// `restore_command` that *died* by SIGTERM for part of its own shutdown, but one that *exits* with 143 for a
/// failure. Returns only if the signal cannot end us.
pub fn die_by(number: Signal) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: this installs the default action, and no function of ours.
    let _ = unsafe { signal::sigaction(number, &default) };
    let mut blocked = SigSet::empty();
    blocked.add(number);
    let _ = blocked.thread_unblock();
    let _ = signal::raise(number);
}
