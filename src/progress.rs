//! How far long work has come: a bar on a terminal, plain log lines every ten seconds elsewhere.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::output::{human_duration, human_size};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The bar on the terminal, so that log lines can step around it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Runs `write` while no bar is drawn.
pub fn hidden_while(write: impl FnOnce()) {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Work that moves bytes. Shared by threads; dropped unfinished, it takes its bar away.
pub struct Progress {
    title: String,
    total: Option<u64>,
    done: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` at which the next plain line is due.
    next_line: AtomicU64,
    message: Mutex<String>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Work with this name and, if known, this many bytes ahead.
    pub fn new(title: impl Into<String>, total_bytes: impl Into<Option<u64>>) -> Progress {
        let title = title.into();
        let total = total_bytes.into();
        let bar = std::io::stderr().is_terminal().then(|| new_bar(&title, total));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = bar.clone();
        Progress {
            title,
            total,
            done: AtomicU64::new(0),
            started: Instant::now(),
            next_line: AtomicU64::new(milliseconds(LINE_EVERY)),
            message: Mutex::new(String::new()),
            bar,
        }
    }

    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.bar {
            // More than was announced, such as a segment that was read twice, is no more than all.
            Some(bar) => bar.set_position(self.total.map_or(done, |total| done.min(total))),
            None => self.write_line_if_due(done),
        }
    }

    /// What is being done just now.
    pub fn set_message(&self, message: impl Into<String>) {
        let message = message.into();
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message,
        }
    }

    /// Bytes done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the work and says in one line how much it was and how long it took, if there was any.
    pub fn finish(self) {
        let (title, done, elapsed) = (self.title.clone(), self.done(), self.started.elapsed());
        drop(self);
        if done == 0 {
            return;
        }
        let rate = human_size(rate(done, elapsed));
        tracing::info!("{title}: {} in {}, {rate}/s", human_size(done), human_duration(elapsed));
    }

    fn write_line_if_due(&self, done: u64) {
        let elapsed = self.started.elapsed();
        let due = self.next_line.load(Ordering::Relaxed);
        let now = milliseconds(elapsed);
        if now < due {
            return;
        }
        let next = now + milliseconds(LINE_EVERY);
        // Whoever moves the mark writes the line; other threads go on.
        if self.next_line.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let message = self.message.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tracing::info!("{}", line(&self.title, &message, done, self.total, elapsed));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

fn new_bar(title: &str, total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{prefix} [{bar:30}] {done} of {all}, {rate}/s, {eta} left {wide_msg}",
        None => "{prefix} {spinner} {done}, {rate}/s, {elapsed} {wide_msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        // Sizes as everywhere else: PostgreSQL's units.
        let size = |bytes: u64, to: &mut dyn fmt::Write| {
            let _ = to.write_str(&human_size(bytes));
        };
        let style = style
            .with_key("done", move |state: &ProgressState, to: &mut dyn fmt::Write| size(state.pos(), to))
            .with_key("all", move |state: &ProgressState, to: &mut dyn fmt::Write| {
                size(state.len().unwrap_or_default(), to);
            })
            .with_key("rate", move |state: &ProgressState, to: &mut dyn fmt::Write| {
                size(state.per_sec() as u64, to);
            });
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// `backup: 512 MB of 1.7 GB (29 %), 210 MB/s, 6 s left, reading base/5/16384`
fn line(title: &str, message: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = rate(done, elapsed);
    let done = total.map_or(done, |total| done.min(total));
    let mut line = format!("{title}: {}", human_size(done));
    if let Some(total) = total.filter(|total| *total > 0) {
        let percent = u128::from(done) * 100 / u128::from(total);
        line.push_str(&format!(" of {} ({percent} %)", human_size(total)));
    }
    line.push_str(&format!(", {}/s", human_size(rate)));
    if let Some(left) = total.and_then(|total| total.saturating_sub(done).checked_div(rate)) {
        line.push_str(&format!(", {} left", human_duration(Duration::from_secs(left))));
    }
    if !message.is_empty() {
        line.push_str(&format!(", {message}"));
    }
    line
}

/// Bytes per second.
fn rate(done: u64, elapsed: Duration) -> u64 {
    let milliseconds = elapsed.as_millis().max(1);
    u64::try_from(u128::from(done) * 1_000 / milliseconds).unwrap_or(u64::MAX)
}

fn milliseconds(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_how_far_it_is() {
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("backup", "", 512 << 20, Some(1 << 30), ten),
            "backup: 512 MB of 1.0 GB (50 %), 51.2 MB/s, 10 s left"
        );
        assert_eq!(line("restore", "base/1/2", 10 << 20, None, ten), "restore: 10.0 MB, 1.0 MB/s, base/1/2");
        assert_eq!(line("restore", "", 0, Some(5), ten), "restore: 0 B of 5 B (0 %), 0 B/s");
    }

    #[test]
    fn threads_share_it() {
        let progress = Progress::new("test", 4_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| progress.add(1)));
            }
        });
        assert_eq!(progress.done(), 4_000);
        progress.finish();
    }
}
