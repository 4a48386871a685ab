//! Something small that is done again and again beside long work, for as long as that runs: signs of life.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::Scope;
use std::time::Duration;

/// Goes on until it is dropped. Dropping it does not wait for what is being done; the end of the scope does.
pub struct Repeating {
    _stop: Sender<()>,
}

impl Repeating {
    /// Does it first when one period is over, on a thread of the scope.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        period: Duration,
        mut action: impl FnMut() + Send + 'scope,
    ) -> Repeating {
        let (stop, stopped) = channel::<()>();
        scope.spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                action();
            }
        });
        Repeating { _stop: stop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_until_it_is_dropped() {
        let (told, heard) = channel();
        std::thread::scope(|scope| {
            let often = Repeating::start(scope, Duration::from_millis(1), move || told.send(()).unwrap());
            (0..3).for_each(|_| heard.recv().unwrap());
            drop(often);
            // Its thread has ended when nobody can tell anything any more.
            while heard.recv().is_ok() {}
            let seldom = Repeating::start(scope, Duration::from_secs(3600), || panic!("an hour is not over"));
            drop(seldom);
        });
    }
}
