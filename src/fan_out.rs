//! The same small piece of work on many items, some at once: reads and deletions, where what costs is the way there.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// `work` on every item, on at most `threads` threads; the results are in the items' order.
pub fn map<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 || threads < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// [`map`] for work that may fail: after a failure nothing more is begun. Of several that fail at once, the first item's error is told.
pub fn try_map<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let failed = AtomicBool::new(false);
    let results = map(items, threads, |item| {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let result = work(item);
        if result.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        Some(result)
    });
    // What was not begun has no result; then another one has an error.
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..500).collect();
        let squares = map(&items, 7, |item| {
            std::thread::sleep(std::time::Duration::from_micros(item % 3));
            item * item
        });
        assert!(squares.iter().enumerate().all(|(at, square)| *square == (at * at) as u64));
        assert!(map(&Vec::<u64>::new(), 7, |item| *item).is_empty());
    }

    #[test]
    fn after_a_failure_nothing_is_begun() {
        let items: Vec<u64> = (0..500).collect();
        assert_eq!(try_map(&items, 7, |item| Ok::<_, ()>(*item)).as_ref(), Ok(&items));
        for threads in [1, 7] {
            let begun = AtomicUsize::new(0);
            let failed = try_map(&items, threads, |item| {
                begun.fetch_add(1, Ordering::Relaxed);
                if *item >= 10 { Err(*item) } else { Ok(()) }
            });
            assert_eq!(failed, Err(10));
            // One of each thread may have been under way.
            assert!(begun.into_inner() < 10 + 2 * threads);
        }
    }
}
