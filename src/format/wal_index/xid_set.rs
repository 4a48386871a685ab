//! A set of transaction ids that stays small.

use serde::Serialize;

/// The most runs that a set holds; 256 KiB.
pub(super) const RUN_LIMIT: usize = 1 << 15;

/// A set of transaction ids: sorted, disjoint, inclusive runs with at least one id between them. Ids of one segment lie
/// close together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct XidSet {
    runs: Vec<(u32, u32)>,
}

impl XidSet {
    /// Makes a set of ids in any order.
    pub fn from_ids(mut ids: Vec<u32>) -> XidSet {
        ids.sort_unstable();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for id in ids {
            match runs.last_mut() {
                Some((_, end)) if id <= end.saturating_add(1) => *end = id.max(*end),
                _ => runs.push((id, id)),
            }
        }
        XidSet { runs }
    }

    /// `None` unless the runs are as the type promises and not too many.
    pub(super) fn from_runs(runs: Vec<(u32, u32)>) -> Option<XidSet> {
        let ordered = runs.iter().all(|(start, end)| start <= end);
        let apart = runs.windows(2).all(|pair| match pair {
            [(_, end), (start, _)] => end.checked_add(1).is_some_and(|after| after < *start),
            _ => true,
        });
        (ordered && apart && runs.len() <= RUN_LIMIT).then_some(XidSet { runs })
    }

    /// Adds an id. False if the set had to take in ids nearby that were not added, to stay small.
    #[must_use]
    pub fn insert(&mut self, id: u32) -> bool {
        let after = self.runs.partition_point(|(start, _)| *start <= id);
        let before = after.checked_sub(1);
        if let Some((_, end)) = before.and_then(|at| self.runs.get_mut(at)) {
            if id <= *end {
                return true;
            }
            if *end + 1 == id {
                *end = id;
                self.join(after);
                return true;
            }
        }
        match self.runs.get_mut(after) {
            Some((start, _)) if *start - 1 == id => *start = id,
            _ => self.runs.insert(after, (id, id)),
        }
        let small = self.runs.len() <= RUN_LIMIT;
        if !small {
            self.widen();
        }
        small
    }

    /// Joins the run at `at` to the one before it if they touch now.
    fn join(&mut self, at: usize) {
        let Some((start, end)) = self.runs.get(at).copied() else { return };
        if let Some((_, before)) = at.checked_sub(1).and_then(|before| self.runs.get_mut(before))
            && before.saturating_add(1) == start
        {
            *before = end;
            self.runs.remove(at);
        }
    }

    /// Halves the number of runs by closing the narrowest gaps.
    fn widen(&mut self) {
        let gap = |pair: &[(u32, u32)]| match pair {
            [(_, end), (start, _)] => start - end,
            _ => 0,
        };
        let mut gaps: Vec<u32> = self.runs.windows(2).map(gap).collect();
        let middle = gaps.len() / 2;
        let (_, median, _) = gaps.select_nth_unstable(middle);
        let widest = *median;
        self.runs.dedup_by(|later, earlier| {
            let close = later.0 - earlier.1 <= widest;
            if close {
                earlier.1 = later.1;
            }
            close
        });
    }

    /// Whether `xid` is in the set.
    pub fn contains(&self, xid: u32) -> bool {
        let after = self.runs.partition_point(|(start, _)| *start <= xid);
        after.checked_sub(1).and_then(|at| self.runs.get(at)).is_some_and(|(_, end)| xid <= *end)
    }

    /// The runs, sorted, both ends inclusive.
    pub fn runs(&self) -> &[(u32, u32)] {
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserting_in_any_order_makes_the_same_set() {
        let mut ids: Vec<u32> = (0..2000).map(|n: u32| n.wrapping_mul(2_654_435_761) % 3000).collect();
        ids.extend([u32::MAX, 0, u32::MAX - 1]);
        let mut set = XidSet::default();
        for id in &ids {
            assert!(set.insert(*id));
        }
        assert_eq!(set, XidSet::from_ids(ids.clone()));
        assert_eq!(XidSet::from_runs(set.runs().to_vec()), Some(set.clone()));
        for id in 0..3100 {
            assert_eq!(set.contains(id), ids.contains(&id), "{id}");
        }
    }

    #[test]
    fn a_set_of_scattered_ids_widens_but_loses_none() {
        let mut set = XidSet::default();
        let ids: Vec<u32> = (0..100_000).map(|n| n * 3 + (n % 7)).collect();
        let exact = ids.iter().fold(true, |exact, id| exact & set.insert(*id));
        assert!(!exact);
        assert!(set.runs().len() <= RUN_LIMIT);
        assert!(ids.iter().all(|id| set.contains(*id)));
        assert!(XidSet::from_runs(set.runs().to_vec()).is_some());
    }

    #[test]
    fn refuses_runs_that_overlap_or_touch() {
        for runs in [vec![(2, 1)], vec![(1, 2), (3, 4)], vec![(1, 5), (3, 9)], vec![(5, 6), (1, 2)]] {
            assert_eq!(XidSet::from_runs(runs), None);
        }
    }
}
