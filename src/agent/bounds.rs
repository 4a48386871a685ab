//! What keeps the agent's use of threads, cores and memory within bounds, over all clusters.
//!
//! Encoding takes a kit, and there are as many as cores: each file is encoded on one thread, several at once, because then no chunk changes hands. A file that nothing else competes with
//! takes all of them and is encoded by a whole crew, which is done sooner. Encoded bytes that wait for a store take room: who begins to encode reserves half of what recent files took, because room becomes free while it grows, and waits
//! for more when it has become larger.

use std::collections::BTreeSet;
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
    state: Mutex<KitsState>,
    changed: Condvar,
}

#[derive(Default)]
struct KitsState {
    spare: Vec<EncodeKit>,
    /// Who waits, first the one whose turn it is.
    waiting: BTreeSet<Place>,
    come: u64,
}

/// A place in the queue: whoever has somebody waiting for him, then in the order of coming. Without it a file could be overtaken by all that follow it, while PostgreSQL waits for it.
type Place = (Hurry, u64);

/// Whether somebody waits for a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hurry {
    /// PostgreSQL does.
    Asked,
    /// Nobody yet.
    Ahead,
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
        Kits { all, state: Mutex::new(KitsState { spare, ..KitsState::default() }), changed: Condvar::new() }
    }

    /// Waits for one.
    pub fn one(&self, hurry: Hurry) -> Taken<'_> {
        let mut state = locked(&self.state);
        let place = (hurry, state.come);
        state.come += 1;
        state.waiting.insert(place);
        loop {
            if state.waiting.first() == Some(&place)
                && let Some(kit) = state.spare.pop()
            {
                state.waiting.remove(&place);
                // There may be another one for the next.
                self.changed.notify_all();
                return Taken { kits: self, taken: vec![kit] };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All of them if none is in use or wanted, and without what they hold: a crew has its own.
    pub fn all_if_idle(&self) -> Option<Taken<'_>> {
        let mut state = locked(&self.state);
        if state.spare.len() < self.all || !state.waiting.is_empty() {
            return None;
        }
        let taken = state.spare.drain(..).map(|_| EncodeKit::default()).collect();
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
        locked(&self.kits.state).spare.append(&mut self.taken);
        self.kits.changed.notify_all();
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
    /// What a file takes in the end: neighbours are alike.
    usual: u64,
    /// Files that are encoded and on their way: their room will be free again whatever else happens.
    on_their_way: usize,
    /// Files that have become larger and wait: they come before those that have not been begun.
    growing: usize,
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

    /// Waits until there is room for half of what another file may take, and reserves that; `None` if `is_over` before that.
    pub fn reserve(&self, is_over: impl Fn() -> bool) -> Option<Held<'_>> {
        let mut state = locked(&self.state);
        while state.held > 0 && (state.growing > 0 || state.held + state.usual / 2 > self.limit) {
            if is_over() {
                return None;
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let bytes = (state.usual / 2).max(1);
        state.held += bytes;
        Some(Held { room: self, bytes, on_its_way: false })
    }
}

impl Held<'_> {
    /// The file has become this large. Waits for room, as long as some will become free by itself, and not when `is_over`.
    pub fn grow(&mut self, bytes: u64, is_over: impl Fn() -> bool) {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return };
        let mut state = locked(&self.room.state);
        state.growing += 1;
        while state.held + more > self.room.limit && state.on_their_way > 0 && !is_over() {
            let waited = self.room.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.growing -= 1;
        state.held += more;
        self.bytes = bytes;
        drop(state);
        self.room.changed.notify_all();
    }

    /// The file is encoded, takes this much, and is on its way.
    pub fn settle(&mut self, bytes: u64) {
        let mut state = locked(&self.room.state);
        state.held = state.held - self.bytes + bytes;
        state.usual = (state.usual + bytes) / 2;
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
            let waiting = scope.spawn(|| kits.one(Hurry::Ahead).single().is_some());
            drop(all);
            assert!(waiting.join().unwrap());
        });
        let one = kits.one(Hurry::Ahead);
        assert!(kits.all_if_idle().is_none());
        let _other = kits.one(Hurry::Ahead);
        drop(one);
        assert!(
            Kits::new(1).one(Hurry::Asked).single().is_none(),
            "with one core there is only the crew of one"
        );
    }

    #[test]
    fn kits_are_given_in_the_order_of_asking_and_first_to_whom_somebody_waits_for() {
        let kits = Kits::new(1);
        let first = kits.one(Hurry::Ahead);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (count, hurry) in [(1, Hurry::Ahead), (2, Hurry::Ahead), (3, Hurry::Asked)] {
                let (kits, order) = (&kits, &order);
                scope.spawn(move || {
                    let _kit = kits.one(hurry);
                    locked(order).push(count);
                });
                while locked(&kits.state).waiting.len() < count {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*locked(&order), [3, 1, 2]);
    }

    #[test]
    fn room_is_bounded_and_the_first_always_fits() {
        let room = Room::new(100);
        let over = || true;
        let mut first = room.reserve(over).unwrap();
        first.settle(90);
        assert!(room.reserve(over).is_none(), "90 held, and half of what is usual by now is 22");
        drop(first);
        let mut second = room.reserve(over).unwrap();
        second.settle(500);
        assert!(room.reserve(over).is_none());
        drop(second);
        for _ in 0..20 {
            room.reserve(over).unwrap().settle(10);
        }
        let held: Vec<_> = (0..40).map_while(|_| room.reserve(over)).collect();
        assert!((16..=25).contains(&held.len()), "{} of which each takes 5 or 6 at first", held.len());
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
