//! What keeps the agent's use of threads, cores and memory within bounds, over all clusters.
//!
//! Encoding takes a kit, and there are as many as cores: each file is encoded on one thread, several at once, because then no chunk changes hands. A file that nothing else competes with
//! takes all of them and is encoded by a whole crew, which is done sooner. Encoded bytes that wait for a store take room: who begins to encode reserves as much as recent files took, and whose file becomes larger waits for room again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::codec::encode::EncodeKit;

/// How often a wait looks around.
const LOOK: Duration = Duration::from_millis(200);

/// A thread that panics leaves nothing half changed behind the agent's locks.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many do something at once.
pub struct Seats {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// One of them, until this is dropped: in whatever way its thread ends.
pub struct Seat(Arc<AtomicUsize>);

impl Seats {
    /// At most so many.
    pub fn new(most: usize) -> Seats {
        Seats { most, taken: Arc::default() }
    }

    /// One, if any is free.
    pub fn take(&self) -> Option<Seat> {
        let before = self.taken.fetch_add(1, Ordering::SeqCst);
        let seat = Seat(Arc::clone(&self.taken));
        (before < self.most).then_some(seat)
    }

    /// How many are taken now.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The kits.
pub struct Kits {
    all: usize,
    spare: Mutex<Vec<EncodeKit>>,
    freed: Condvar,
}

/// One kit, or all of them; they come back when this is dropped.
pub struct Taken<'a> {
    kits: &'a Kits,
    taken: Vec<EncodeKit>,
}

impl Kits {
    /// So many, empty at first.
    pub fn new(all: usize) -> Kits {
        let all = all.max(1);
        let spare = (0..all).map(|_| EncodeKit::default()).collect();
        Kits { all, spare: Mutex::new(spare), freed: Condvar::new() }
    }

    /// Waits for one.
    pub fn one(&self) -> Taken<'_> {
        let mut spare = locked(&self.spare);
        loop {
            if let Some(kit) = spare.pop() {
                return Taken { kits: self, taken: vec![kit] };
            }
            spare = self.freed.wait(spare).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All of them if none is in use, and without what they hold: a crew has its own.
    pub fn all_if_idle(&self) -> Option<Taken<'_>> {
        let mut spare = locked(&self.spare);
        if spare.len() < self.all {
            return None;
        }
        let taken = spare.drain(..).map(|_| EncodeKit::default()).collect();
        Some(Taken { kits: self, taken })
    }
}

impl Taken<'_> {
    /// The kit; `None` stands for a whole crew.
    pub fn single(&mut self) -> Option<&mut EncodeKit> {
        match self.taken.as_mut_slice() {
            [kit] if self.kits.all > 1 => Some(kit),
            _ => None,
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        locked(&self.kits.spare).append(&mut self.taken);
        self.kits.freed.notify_all();
    }
}

/// Room for encoded bytes.
pub struct Room {
    limit: u64,
    state: Mutex<RoomState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoomState {
    held: u64,
    /// What the next file is expected to take: neighbours are alike.
    expected: u64,
    /// Files that are encoded and on their way: their room will be free again whatever else happens.
    on_their_way: usize,
}

/// Room that is taken; it is given back when this is dropped.
pub struct Held<'a> {
    room: &'a Room,
    bytes: u64,
    on_its_way: bool,
}

impl Room {
    /// Room for so many bytes; for one file in any case.
    pub fn new(limit: u64) -> Room {
        Room { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until another file fits, and reserves what it may take; `None` if `is_over` before that.
    pub fn reserve(&self, is_over: impl Fn() -> bool) -> Option<Held<'_>> {
        let mut state = locked(&self.state);
        while state.held > 0 && state.held + state.expected > self.limit {
            if is_over() {
                return None;
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let bytes = state.expected.max(1);
        state.held += bytes;
        Some(Held { room: self, bytes, on_its_way: false })
    }
}

impl Held<'_> {
    /// The file has become this large. Waits for room, as long as some will become free by itself, and not when `is_over`.
    pub fn grow(&mut self, bytes: u64, is_over: impl Fn() -> bool) {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return };
        let mut state = locked(&self.room.state);
        while state.held + more > self.room.limit && state.on_their_way > 0 && !is_over() {
            let waited = self.room.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.held += more;
        self.bytes = bytes;
    }

    /// The file is encoded, takes this much, and is on its way.
    pub fn settle(&mut self, bytes: u64) {
        let mut state = locked(&self.room.state);
        state.held = state.held - self.bytes + bytes;
        state.expected = (state.expected + bytes) / 2;
        state.on_their_way += usize::from(!self.on_its_way);
        self.on_its_way = true;
        self.bytes = bytes;
        drop(state);
        self.room.changed.notify_all();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.room.state);
        state.held -= self.bytes;
        state.on_their_way -= usize::from(self.on_its_way);
        drop(state);
        self.room.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_free_again_when_its_thread_panics() {
        let seats = Seats::new(1);
        let seat = seats.take().unwrap();
        assert!(seats.take().is_none());
        assert_eq!(seats.taken(), 1, "who finds none leaves none taken");
        let thread = std::thread::spawn(move || {
            let _seat = seat;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(seats.take().is_some());
    }

    #[test]
    fn kits_go_round() {
        let kits = Kits::new(2);
        let mut all = kits.all_if_idle().unwrap();
        assert!(all.single().is_none() && kits.all_if_idle().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| kits.one().single().is_some());
            drop(all);
            assert!(waiting.join().unwrap());
        });
        let one = kits.one();
        assert!(kits.all_if_idle().is_none());
        let _other = kits.one();
        drop(one);
        assert!(Kits::new(1).one().single().is_none(), "with one core there is only the crew of one");
    }

    #[test]
    fn room_is_bounded_and_the_first_always_fits() {
        let room = Room::new(100);
        let over = || true;
        let mut first = room.reserve(over).unwrap();
        first.settle(80);
        assert!(room.reserve(over).is_none(), "80 held and 40 expected");
        drop(first);
        let mut second = room.reserve(over).unwrap();
        second.settle(500);
        assert!(room.reserve(over).is_none());
        drop(second);
        for _ in 0..20 {
            room.reserve(over).unwrap().settle(10);
        }
        let held: Vec<_> = (0..20).map_while(|_| room.reserve(over)).collect();
        assert!(held.len() >= 8, "{} of 10 bytes fit into 100", held.len());
    }

    #[test]
    fn who_grows_waits_for_those_on_their_way_and_for_nobody_else() {
        let room = Room::new(100);
        let mut first = room.reserve(|| true).unwrap();
        let mut second = room.reserve(|| true).unwrap();
        // Two that are being encoded would wait for each other.
        first.grow(90, || panic!("nothing will become free"));
        second.grow(30, || panic!("nothing will become free"));
        first.settle(90);
        std::thread::scope(|scope| {
            let growing = scope.spawn(move || {
                second.grow(40, || false);
                second
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!growing.is_finished());
            drop(first);
            assert_eq!(growing.join().unwrap().bytes, 40);
        });
        assert_eq!(locked(&room.state).held, 0);
    }
}
