//! Worker threads that take jobs in any order and give results in the order of the jobs.
//!
//! In: jobs from the calling thread. Out: their results, to the calling thread. Threads are started only when
//! there is work for them, so an object of one chunk starts none. At most [`Crew::window`] jobs are under way: with
//! the buffers that each carries, that bounds the memory of an object of any size.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

/// What a worker does; made once per thread, so that it can keep a context.
pub(super) trait Worker<J, R> {
    fn work(&mut self, job: J) -> R;
}

/// No worker could be started, or one died.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct CrewError(String);

/// `None` in a result's place: the worker died.
type Numbered<R> = (u64, Option<R>);

pub(super) struct Crew<'scope, 'env, J, R, F> {
    scope: &'scope Scope<'scope, 'env>,
    make_worker: F,
    limit: usize,
    started: usize,
    jobs: Sender<(u64, J)>,
    queue: Arc<Mutex<Receiver<(u64, J)>>>,
    results: Receiver<Numbered<R>>,
    report: Sender<Numbered<R>>,
    submitted: u64,
    taken: u64,
    /// Results that came before their turn; the front one is number `taken`.
    waiting: VecDeque<Option<R>>,
}

impl<'scope, 'env, J, R, F, W> Crew<'scope, 'env, J, R, F>
where
    J: Send + 'scope,
    R: Send + 'scope,
    W: Worker<J, R> + 'scope,
    F: Fn() -> W + Clone + Send + 'scope,
{
    /// A crew of up to `limit` threads, none of them started yet.
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, limit: usize, make_worker: F) -> Self {
        let (jobs, queue) = channel();
        let (report, results) = channel();
        Crew {
            scope,
            make_worker,
            limit: limit.max(1),
            started: 0,
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            results,
            report,
            submitted: 0,
            taken: 0,
            waiting: VecDeque::new(),
        }
    }

    /// How many jobs may be under way: one in each worker's hands, and two so that none waits for the caller.
    pub(super) fn window(&self) -> usize {
        window(self.limit)
    }

    /// Jobs whose results have not been taken.
    pub(super) fn under_way(&self) -> usize {
        (self.submitted - self.taken) as usize
    }

    /// True until the first job is submitted: the caller may as well do it alone.
    pub(super) fn is_idle(&self) -> bool {
        self.submitted == 0
    }

    pub(super) fn submit(&mut self, job: J) -> Result<(), CrewError> {
        if self.started < self.limit && self.under_way() >= self.started {
            match self.start_worker() {
                Ok(()) => self.started += 1,
                // Fewer threads are slower, not wrong.
                Err(_) if self.started > 0 => self.limit = self.started,
                Err(error) => return Err(CrewError(format!("start a thread: {error}"))),
            }
        }
        self.submitted += 1;
        self.jobs
            .send((self.submitted - 1, job))
            .map_err(|_| CrewError("the worker threads ended".to_owned()))
    }

    fn start_worker(&self) -> std::io::Result<()> {
        let (make_worker, queue, report) =
            (self.make_worker.clone(), Arc::clone(&self.queue), self.report.clone());
        Builder::new().name("codec".to_owned()).spawn_scoped(self.scope, move || {
            let mut worker = make_worker();
            loop {
                // Poisoning can't leave a receiver half-used.
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((number, job)) = job else { return };
                // A panic here must reach the caller as a result, or the caller would wait for ever. The worker is
                // dropped right after it, so nothing half-done is seen again.
                let result = catch_unwind(AssertUnwindSafe(|| worker.work(job))).ok();
                let alive = result.is_some();
                if report.send((number, result)).is_err() || !alive {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// The next result in the order of the jobs; waits for it. Call it only while a job is under way.
    pub(super) fn take(&mut self) -> Result<R, CrewError> {
        loop {
            if let Some(Some(_)) = self.waiting.front() {
                self.taken += 1;
                return self.waiting.pop_front().flatten().ok_or_else(died);
            }
            let (number, result) = self.results.recv().map_err(|_| died())?;
            let result = result.ok_or_else(died)?;
            let place = (number - self.taken) as usize;
            while self.waiting.len() <= place {
                self.waiting.push_back(None);
            }
            if let Some(slot) = self.waiting.get_mut(place) {
                *slot = Some(result);
            }
        }
    }
}

fn died() -> CrewError {
    CrewError("a worker thread died".to_owned())
}

/// See [`Crew::window`].
pub(super) const fn window(workers: usize) -> usize {
    workers + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slow;

    impl Worker<u64, u64> for Slow {
        fn work(&mut self, job: u64) -> u64 {
            std::thread::sleep(std::time::Duration::from_micros(job * 7919 % 300));
            assert!(job != 1_000_000, "told to die");
            job * 2
        }
    }

    #[test]
    fn results_come_in_order() {
        std::thread::scope(|scope| {
            let mut crew = Crew::new(scope, 4, || Slow);
            let mut results = Vec::new();
            for job in 0..200 {
                if crew.under_way() >= crew.window() {
                    results.push(crew.take().unwrap());
                }
                crew.submit(job).unwrap();
            }
            while crew.under_way() > 0 {
                results.push(crew.take().unwrap());
            }
            assert_eq!(results, (0..200).map(|job| job * 2).collect::<Vec<u64>>());
            assert_eq!(crew.started, 4);
        });
    }

    #[test]
    fn a_dead_worker_is_an_error_not_a_hang() {
        std::thread::scope(|scope| {
            let mut crew = Crew::new(scope, 2, || Slow);
            crew.submit(1).unwrap();
            assert_eq!(crew.take().unwrap(), 2);
            crew.submit(1_000_000).unwrap();
            assert_eq!(crew.take().unwrap_err().to_string(), "a worker thread died");
        });
    }
}
