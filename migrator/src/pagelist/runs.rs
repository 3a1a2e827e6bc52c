//! The algebra of runs: sorted, not overlapping, as few as possible (pure).
//!
//! Each function takes runs of one file that are sorted and do not overlap, and
//! returns such runs, of which no two could be joined.

use super::{Heat, Run};

/// Collects runs in their order and joins those that touch.
#[derive(Debug, Default)]
pub struct Joined(Vec<Run>);

impl Joined {
    /// Adds the pages from `index` to before `end`, which lie behind all others.
    pub fn push(&mut self, index: u64, end: u64, heat: Heat) {
        let mut index = index;
        if let Some(last) = self.0.last_mut()
            && last.end() == index
            && last.heat == heat
        {
            let more = end
                .saturating_sub(index)
                .min((u32::MAX - last.pages).into());
            last.pages += more as u32;
            index += more;
        }
        while index < end {
            let pages = (end - index).min(u32::MAX.into()) as u32;
            self.0.push(Run { index, pages, heat });
            index += u64::from(pages);
        }
    }

    /// Returns the runs.
    pub fn into_runs(self) -> Vec<Run> {
        self.0
    }
}

/// Returns the pages of both; a page that is in both has the greater heat.
pub fn union(one: &[Run], other: &[Run]) -> Vec<Run> {
    combine(one, other, Heat::max)
}

/// Returns the pages of all; a page that is in several has the greatest heat. Takes
/// time for each run as often as the number of parts can be halved.
pub fn union_all(mut parts: Vec<Vec<Run>>) -> Vec<Run> {
    while parts.len() > 1 {
        let mut pairs = parts.into_iter();
        let mut halved = Vec::with_capacity(pairs.len().div_ceil(2));
        while let Some(one) = pairs.next() {
            halved.push(match pairs.next() {
                Some(other) => union(&one, &other),
                None => one,
            });
        }
        parts = halved;
    }
    parts.pop().unwrap_or_default()
}

/// Returns the pages of both, with a heat that `heat` makes of theirs; 0 stands for a
/// page that is not there, and leaves a page out.
pub fn combine(one: &[Run], other: &[Run], heat: impl Fn(Heat, Heat) -> Heat) -> Vec<Run> {
    let mut joined = Joined::default();
    sweep(one, other, |index, end, a, b| {
        let both = heat(a, b);
        if both > 0 {
            joined.push(index, end, both);
        }
    });
    joined.into_runs()
}

/// Calls `each` for the pages that are in either, from the first to the last: with the
/// first index, the index behind the last, and the heat of both in `one` and in `other`,
/// 0 where they are not there.
pub fn sweep(one: &[Run], other: &[Run], mut each: impl FnMut(u64, u64, Heat, Heat)) {
    let (mut one, mut other) = (Cursor::new(one), Cursor::new(other));
    let mut index = 0;
    loop {
        let (a, end_a) = one.at(index);
        let (b, end_b) = other.at(index);
        let end = end_a.min(end_b);
        if a > 0 || b > 0 {
            each(index, end, a, b);
        }
        if end == u64::MAX {
            return;
        }
        index = end;
    }
}

/// Returns the pages of `runs` that are not in `taken`.
pub fn subtract(runs: &[Run], taken: &[Run]) -> Vec<Run> {
    combine(runs, taken, |heat, taken| if taken == 0 { heat } else { 0 })
}

/// Returns the pages of `runs` that are in `kept`, too.
pub fn intersect(runs: &[Run], kept: &[Run]) -> Vec<Run> {
    combine(runs, kept, |heat, kept| if kept == 0 { 0 } else { heat })
}

/// Returns the pages before page `end`.
pub fn clip(runs: &[Run], end: u64) -> Vec<Run> {
    let mut joined = Joined::default();
    for run in runs.iter().take_while(|run| run.index < end) {
        joined.push(run.index, run.end().min(end), run.heat);
    }
    joined.into_runs()
}

/// Walks over the pages of a file from the first to the last.
struct Cursor<'a>(&'a [Run]);

impl<'a> Cursor<'a> {
    fn new(runs: &'a [Run]) -> Self {
        Self(runs)
    }

    /// Returns the heat of the page at `index`, 0 if it is in no run, and the index
    /// up to which that holds. The indexes asked for must not fall.
    fn at(&mut self, index: u64) -> (Heat, u64) {
        while let [first, rest @ ..] = self.0 {
            match first {
                first if first.end() <= index => self.0 = rest,
                first if first.index <= index => return (first.heat, first.end()),
                first => return (0, first.index),
            }
        }
        (0, u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Pages = BTreeMap<u64, Heat>;

    fn pages(runs: &[Run]) -> Pages {
        let each = |run: &Run| {
            (run.index..run.end())
                .map(|page| (page, run.heat))
                .collect()
        };
        runs.iter()
            .flat_map(|run| -> Vec<_> { each(run) })
            .collect()
    }

    fn is_minimal(runs: &[Run]) -> bool {
        runs.windows(2)
            .all(|two| two[0].end() <= two[1].index && two[0].join(two[1]).is_none())
    }

    fn any_runs() -> impl Strategy<Value = Vec<Run>> {
        let run = (0..6_u64, 1..6_u32, 1..4_u8);
        proptest::collection::vec(run, 0..20).prop_map(|gaps| {
            let mut end = 0;
            let run = |(gap, pages, heat)| {
                let run = Run {
                    index: end + gap,
                    pages,
                    heat,
                };
                end = run.end();
                run
            };
            gaps.into_iter().map(run).collect()
        })
    }

    #[test]
    fn a_run_has_no_more_pages_than_fit() {
        let mut joined = Joined::default();
        joined.push(5, 10, 1);
        joined.push(10, 10 + u64::from(u32::MAX), 1);
        let runs = joined.into_runs();
        let lengths: Vec<_> = runs.iter().map(|run| (run.index, run.pages)).collect();
        assert_eq!(lengths, [(5, u32::MAX), (5 + u64::from(u32::MAX), 5)]);
    }

    proptest! {
        #[test]
        fn runs_are_sets_of_pages(one in any_runs(), other in any_runs(), end in 0..100_u64) {
            let (a, b) = (pages(&one), pages(&other));
            let mut all = a.clone();
            for (page, heat) in &b {
                let known = all.entry(*page).or_default();
                *known = (*heat).max(*known);
            }
            let only = |keep: &dyn Fn(u64) -> bool| -> Pages {
                a.iter().filter(|(page, _)| keep(**page)).map(|(page, heat)| (*page, *heat)).collect()
            };
            for (got, wanted) in [
                (union(&one, &other), all.clone()),
                (union_all(vec![Vec::new(), one.clone(), other.clone()]), all),
                (subtract(&one, &other), only(&|page| !b.contains_key(&page))),
                (intersect(&one, &other), only(&|page| b.contains_key(&page))),
                (clip(&one, end), only(&|page| page < end)),
            ] {
                prop_assert!(is_minimal(&got), "{got:?}");
                prop_assert_eq!(pages(&got), wanted);
            }
        }
    }
}
