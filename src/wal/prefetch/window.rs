//! The window: the next segments, fetched by a few threads, checked and synced, until they are asked for.
//!
//! In: requests in the order of recovery. Out: for each, a file in the window's directory, or the word that there is none. What must hold: only files that this process
//! fetched and checked are handed out, each once and only while unchanged; the count and with it the disk space is bounded; one question's answer never waits for ever.
//!
//! The window begins small and doubles whenever a request finds its segment not there yet, so that it grows to what replay takes and no further; it shrinks slowly while everything waits ready.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::Line;
use super::protocol::WindowFile;
use crate::codec::KeyRing;
use crate::error::Explain;
use crate::format::ClusterName;
use crate::interrupt;
use crate::pg::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::repository::{Patience, Repository};
use crate::wal::absence::Archive;
use crate::wal::fetch::{FIRST_READ, FetchError, fetch_if_stored};

/// Threads that fetch; each holds one object's beginning in memory.
const FETCHERS: usize = 2;
/// An object that is larger than its beginning is read in ranges, some of them ahead: one such at a time is as much memory as two small ones, and keeps the line as busy.
const FETCHERS_OF_LARGE: usize = 1;
/// The window's first size.
const FIRST_SIZE: u64 = 2;
/// The most segments that are ever held, however small they are.
const MOST_SEGMENTS: u64 = 64;
/// After so many requests that found everything ready, the window shrinks by one.
const CALM: u32 = 32;
/// Where the disk has less room than this many segments, nothing is fetched ahead.
const SPARE_SEGMENTS: u64 = 4;
/// How often a thread that waits looks around.
const LOOK: Duration = Duration::from_millis(200);

/// Where segments come from and where they go.
pub struct WindowSettings {
    /// The archive.
    pub repository: Repository,
    /// How long a failing store is asked for one segment.
    pub patience: Duration,
    /// The keys that open it.
    pub keys: KeyRing,
    /// The cluster's name there.
    pub cluster: ClusterName,
    /// The cluster that recovers.
    pub system: SystemIdentifier,
    /// Its segment size.
    pub segment_size: WalSegmentSize,
    /// The directory of the window.
    pub directory: PathBuf,
    /// Bytes that may lie there; one segment may in any case.
    pub disk: u64,
}

impl WindowSettings {
    fn most(&self) -> u64 {
        (self.disk / self.segment_size.bytes()).clamp(1, MOST_SEGMENTS)
    }

    fn has_room(&self) -> bool {
        match nix::sys::statvfs::statvfs(&self.directory) {
            Ok(figures) => {
                let free = figures.blocks_available().saturating_mul(figures.fragment_size());
                free / self.segment_size.bytes() >= SPARE_SEGMENTS
            }
            Err(_) => false,
        }
    }
}

/// What a request gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The file lies in the window's directory under the segment's name; it is the caller's now.
    Ready(WindowFile),
    /// Not here: the archive itself must be asked.
    No,
    /// Not yet: ask again.
    NotYet,
}

/// A window and its threads.
pub struct Window {
    shared: Arc<Shared>,
}

struct Shared {
    settings: WindowSettings,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// `None` until somebody asked, and after a request that was not on the line.
    line: Option<Line>,
    /// The last request: names before it are over.
    last: WalSegmentName,
    /// The first segment number that may be asked for next.
    next: u64,
    size: u64,
    calm: u32,
    slots: BTreeMap<u64, Slot>,
    /// Stored bytes of the last one that was fetched.
    stored: u64,
    /// What was handed out last: if it still lies there, its taker died.
    handed: Option<WalSegmentName>,
    asked: Instant,
    ended: bool,
}

#[derive(Clone, Debug)]
enum Slot {
    /// A thread is at it.
    Fetching,
    /// It was checked and lies there.
    Ready(WalSegmentName, WindowFile),
    /// It is not stored, or could not be had: whoever asks for it finds out why.
    Nothing,
}

impl Window {
    /// Begins to fetch what follows `last`.
    pub fn start(settings: WindowSettings, last: WalSegmentName) -> std::io::Result<Window> {
        let number = last.number(settings.segment_size).map_or(0, |number| number.get());
        let state = State {
            line: None,
            last,
            next: number + 1,
            size: FIRST_SIZE.min(settings.most()),
            calm: 0,
            slots: BTreeMap::new(),
            stored: 0,
            handed: None,
            asked: Instant::now(),
            ended: false,
        };
        let shared = Arc::new(Shared { settings, state: Mutex::new(state), changed: Condvar::new() });
        for _ in 0..FETCHERS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("prefetch".to_owned())
                .spawn(move || shared.fetch_until_ended())?;
        }
        Ok(Window { shared })
    }

    /// Hands out a segment, waiting up to `patience` for one that is on its way.
    pub fn take(&self, name: WalSegmentName, patience: Duration) -> Taken {
        let shared = &self.shared;
        let until = Instant::now() + patience;
        let mut state = shared.lock();
        state.asked = Instant::now();
        if let Some(handed) = state.handed.take_if(|handed| *handed != name) {
            let _ = std::fs::remove_file(shared.path(handed));
        }
        let Some(number) = name.number(shared.settings.segment_size).map(|number| number.get()) else {
            return Taken::No;
        };
        if !state.expects(name, number) {
            shared.begin_anew(&mut state, name, number);
            return Taken::No;
        }
        let mut has_waited = false;
        loop {
            match state.slots.get(&number) {
                Some(Slot::Fetching) => {
                    if !std::mem::replace(&mut has_waited, true) {
                        state.grow(shared.settings.most());
                    }
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || state.ended {
                        return if state.ended { Taken::No } else { Taken::NotYet };
                    }
                    shared.changed.notify_all();
                    state = shared.wait(state, left.min(LOOK));
                }
                Some(Slot::Ready(ready, file)) if *ready == name => {
                    let file = *file;
                    shared.hand_out(&mut state, name, number);
                    shared.changed.notify_all();
                    return match std::fs::symlink_metadata(shared.path(name)) {
                        Ok(found) if WindowFile::of(&found) == file => Taken::Ready(file),
                        _ => Taken::No,
                    };
                }
                Some(Slot::Ready(..)) => {
                    // Another timeline's: this one is not stored, or recovery goes another way.
                    shared.begin_anew(&mut state, name, number);
                    return Taken::No;
                }
                Some(Slot::Nothing) => {
                    // It stays: at the end of the archive a standby asks again and again.
                    state.last = name;
                    return Taken::No;
                }
                None => {
                    state.grow(shared.settings.most());
                    shared.hand_out(&mut state, name, number);
                    state.handed = None;
                    shared.changed.notify_all();
                    return Taken::No;
                }
            }
        }
    }

    /// How long nobody has asked.
    pub fn idle(&self) -> Duration {
        self.shared.lock().asked.elapsed()
    }

    /// Segments that lie ready, and the window's size.
    pub fn figures(&self) -> (usize, u64) {
        let state = self.shared.lock();
        (state.slots.values().filter(|slot| matches!(slot, Slot::Ready(..))).count(), state.size)
    }
}

impl Window {
    /// Stops fetching and removes what lies ready.
    pub fn end(&self) {
        let mut state = self.shared.lock();
        state.ended = true;
        self.shared.remove_files(&mut state);
        if let Some(handed) = state.handed.take() {
            let _ = std::fs::remove_file(self.shared.path(handed));
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    fn grow(&mut self, most: u64) {
        self.calm = 0;
        if self.slots.len() as u64 >= self.size {
            self.size = (self.size * 2).min(most);
        }
    }

    /// Whether `name` is what this window was made for.
    fn expects(&self, name: WalSegmentName, number: u64) -> bool {
        let ahead = self.next.checked_add(self.size).is_some_and(|end| (self.next..end).contains(&number));
        let on_line = match &self.line {
            Some(line) => line.leads_through(name),
            None => name.timeline == self.last.timeline,
        };
        ahead && on_line
    }

    /// The slots up to this one, which are over.
    fn hand_out(&mut self, name: WalSegmentName, number: u64) -> BTreeMap<u64, Slot> {
        self.calm += 1;
        if self.calm >= CALM {
            self.calm = 0;
            let all_ready = self.slots.values().all(|slot| matches!(slot, Slot::Ready(..)));
            if all_ready && self.slots.len() as u64 >= self.size {
                self.size = (self.size - 1).max(FIRST_SIZE.min(self.size));
            }
        }
        self.next = number + 1;
        self.last = name;
        self.handed = Some(name);
        let following = self.slots.split_off(&self.next);
        std::mem::replace(&mut self.slots, following)
    }

    /// The next segment to fetch: the first without a slot, unless something before it is missing.
    fn wanted(&self) -> Option<u64> {
        let most = if self.stored > FIRST_READ as u64 { FETCHERS_OF_LARGE } else { FETCHERS };
        if self.slots.values().filter(|slot| matches!(slot, Slot::Fetching)).count() >= most {
            return None;
        }
        for number in self.next..self.next.saturating_add(self.size) {
            match self.slots.get(&number) {
                None => return Some(number),
                Some(Slot::Nothing) => return None,
                Some(Slot::Fetching | Slot::Ready(..)) => {}
            }
        }
        None
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn path(&self, name: WalSegmentName) -> PathBuf {
        self.settings.directory.join(name.to_string())
    }

    /// Whoever asks for a segment asks for none before it any more: one that was had another way, because the keeper did not listen yet or
    /// was too slow, must not lie here until the window ends.
    fn hand_out(&self, state: &mut State, name: WalSegmentName, number: u64) {
        for slot in state.hand_out(name, number).into_values() {
            if let Slot::Ready(passed, _) = slot
                && passed != name
            {
                let _ = std::fs::remove_file(self.path(passed));
            }
        }
    }

    /// Forgets everything: recovery is elsewhere.
    fn begin_anew(&self, state: &mut State, name: WalSegmentName, number: u64) {
        self.remove_files(state);
        state.line = None;
        state.last = name;
        state.next = number + 1;
        state.size = FIRST_SIZE.min(self.settings.most());
        self.changed.notify_all();
    }

    fn remove_files(&self, state: &mut State) {
        for slot in std::mem::take(&mut state.slots).into_values() {
            if let Slot::Ready(name, _) = slot {
                let _ = std::fs::remove_file(self.path(name));
            }
        }
    }

    fn fetch_until_ended(&self) {
        loop {
            let mut state = self.lock();
            if state.ended || interrupt::requested().is_some() {
                return;
            }
            let Some(number) = state.wanted() else {
                drop(self.wait(state, LOOK));
                continue;
            };
            state.slots.insert(number, Slot::Fetching);
            let (line, last) = (state.line.clone(), state.last);
            drop(state);
            let (line, slot) = self.fetch(line, last, number);
            let mut state = self.lock();
            // Still wanted? Recovery may have jumped, and another thread may be at the same number for it.
            let is_ours = matches!(state.slots.get(&number), Some(Slot::Fetching)) && !state.ended;
            let on_line = state.line.as_ref().is_none_or(|known| *known == line);
            if is_ours && on_line && state.last.timeline == last.timeline {
                state.line = Some(line);
                state.slots.insert(number, slot);
            } else {
                if is_ours {
                    state.slots.remove(&number);
                }
                let wanted = |name: &WalSegmentName| {
                    state.slots.values().any(|slot| matches!(slot, Slot::Ready(other, _) if other == name))
                };
                if let Slot::Ready(name, _) = slot
                    && !wanted(&name)
                {
                    let _ = std::fs::remove_file(self.path(name));
                }
            }
            self.changed.notify_all();
        }
    }

    /// Fetches a segment under whichever name recovery will ask for first.
    fn fetch(&self, line: Option<Line>, last: WalSegmentName, number: u64) -> (Line, Slot) {
        let settings = &self.settings;
        let repository =
            settings.repository.with_patience(Patience::Until(Instant::now() + settings.patience));
        let archive = Archive {
            repository: &repository,
            keys: &settings.keys,
            cluster: &settings.cluster,
            system: settings.system,
            segment_size: settings.segment_size,
        };
        let line = line.map_or_else(|| Line::find(&archive, last), Ok);
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                tracing::debug!("not fetched ahead: {error}");
                return (Line::single(last.timeline, settings.segment_size), Slot::Nothing);
            }
        };
        if !settings.has_room() {
            return (line, Slot::Nothing);
        }
        for name in line.names(number, last.timeline) {
            match fetch_one(&archive, name, &settings.directory) {
                Ok(Some((file, stored))) => {
                    self.lock().stored = stored;
                    return (line, Slot::Ready(name, file));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("{name} was not fetched ahead: {error} ({})", error.exit_cause().name());
                    return (line, Slot::Nothing);
                }
            }
        }
        (line, Slot::Nothing)
    }
}

fn fetch_one(
    archive: &Archive<'_>,
    name: WalSegmentName,
    directory: &Path,
) -> Result<Option<(WindowFile, u64)>, FetchError> {
    let path = directory.join(name.to_string());
    let Some(tail) = fetch_if_stored(archive, name, &path)? else { return Ok(None) };
    let found = std::fs::symlink_metadata(&path).ok();
    Ok(found.map(|found| (WindowFile::of(&found), tail.stored_length)))
}
