//! Timeline history files from any text: positions and timelines are as the type promises, and every question has an answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::pg::{Lsn, TimelineHistory, TimelineId};

fuzz_target!(|input: (u32, u64, &str)| {
    let (timeline, position, text) = input;
    let Some(timeline) = TimelineId::new(timeline) else { return };
    let Ok(history) = TimelineHistory::parse(timeline, text) else { return };
    let at = history.timeline_at(Lsn::new(position));
    let (begins, left) = (history.begins_at(at), history.left_at(at));
    assert!(begins.is_some_and(|begins| begins <= Lsn::new(position)));
    assert!(left.is_some_and(|left| Lsn::new(position) < left || left == Lsn::MAX));
    assert_eq!(history.timelines().count(), history.ancestors.len() + 1);
});
