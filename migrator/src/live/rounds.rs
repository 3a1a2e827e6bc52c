//! What the destination knows already, so that each round tells it only what
//! is new (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::pagelist::{HotFile, PageIndexList, Run};

/// The pages that have been sent.
#[derive(Debug, Default)]
pub struct Rounds {
    sent: BTreeMap<PathBuf, Sent>,
}

#[derive(Debug)]
struct Sent {
    size: u64,
    mtime_ns: i64,
    /// Sorted, without overlaps.
    pages: Vec<(u64, u64)>,
}

impl Rounds {
    /// Leaves in the list what has not been sent yet, nor is of these files,
    /// and takes it for sent. A file that has changed is all new: the
    /// destination has dropped its pages, or has to.
    pub fn news(&mut self, list: &mut PageIndexList, without: &BTreeSet<PathBuf>) {
        list.files.retain_mut(|file| {
            if without.contains(&file.identity.path) {
                return false;
            }
            self.news_of(file);
            !file.runs.is_empty()
        });
    }

    fn news_of(&mut self, file: &mut HotFile) {
        let identity = &file.identity;
        let sent = self
            .sent
            .entry(identity.path.clone())
            .or_insert_with(|| Sent {
                size: identity.size,
                mtime_ns: identity.mtime_ns,
                pages: Vec::new(),
            });
        if (sent.size, sent.mtime_ns) != (identity.size, identity.mtime_ns) {
            (sent.size, sent.mtime_ns) = (identity.size, identity.mtime_ns);
            sent.pages.clear();
        }
        file.runs = subtract(&file.runs, &sent.pages);
        let new = file.runs.iter().map(|run| (run.index, run.end()));
        sent.pages = union(sent.pages.iter().copied().chain(new).collect());
    }
}

/// The pages of `runs` that are not in `taken`; both are sorted.
fn subtract(runs: &[Run], taken: &[(u64, u64)]) -> Vec<Run> {
    let mut left = Vec::new();
    let mut next = 0;
    for run in runs {
        let mut index = run.index;
        while taken.get(next).is_some_and(|(_, end)| *end <= index) {
            next += 1;
        }
        let mut keep = |from: u64, to: u64| {
            if from < to {
                left.push(Run {
                    index: from,
                    // Part of a run, whose pages fit.
                    pages: (to - from) as u32,
                    heat: run.heat,
                });
            }
        };
        for &(start, end) in taken[next..]
            .iter()
            .take_while(|(start, _)| *start < run.end())
        {
            keep(index, start.max(index));
            index = index.max(end);
        }
        keep(index, run.end());
    }
    left
}

/// The same pages in as few pieces as possible, sorted.
fn union(mut pieces: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pieces.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in pieces {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pagelist::FileIdentity;

    fn file(path: &str, mtime_ns: i64, runs: Vec<Run>) -> HotFile {
        HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 1,
                inode: 1,
                size: 1 << 30,
                mtime_ns,
            },
            runs,
        }
    }

    fn list(files: Vec<HotFile>) -> PageIndexList {
        PageIndexList {
            page_size: 4096,
            files,
        }
    }

    fn run(index: u64, pages: u32) -> Run {
        Run {
            index,
            pages,
            heat: 3,
        }
    }

    fn pages(runs: &[Run]) -> BTreeSet<u64> {
        runs.iter().flat_map(|run| run.index..run.end()).collect()
    }

    #[test]
    fn a_round_has_only_what_is_new() {
        let mut rounds = Rounds::default();
        let none = BTreeSet::new();
        let mut first = list(vec![file("/a", 1, vec![run(0, 10)])]);
        rounds.news(&mut first, &none);
        assert_eq!(first.files[0].runs, [run(0, 10)]);
        let mut second = list(vec![
            file("/a", 1, vec![run(5, 10)]),
            file("/b", 1, vec![run(1, 1)]),
        ]);
        rounds.news(&mut second, &none);
        assert_eq!(second.files[0].runs, [run(10, 5)]);
        assert_eq!(second.files[1].runs, [run(1, 1)]);
        let mut third = list(vec![file("/a", 1, vec![run(0, 15)])]);
        rounds.news(&mut third, &none);
        assert!(third.files.is_empty());
        let mut changed = list(vec![file("/a", 2, vec![run(0, 15)])]);
        rounds.news(&mut changed, &none);
        assert_eq!(changed.files[0].runs, [run(0, 15)]);
    }

    #[test]
    fn what_waits_is_new_later() {
        let mut rounds = Rounds::default();
        let waits = BTreeSet::from([PathBuf::from("/w")]);
        let written = || list(vec![file("/w", 1, vec![run(0, 10)])]);
        let mut now = written();
        rounds.news(&mut now, &waits);
        assert!(now.files.is_empty());
        let mut later = written();
        rounds.news(&mut later, &BTreeSet::new());
        assert_eq!(later.pages(), 10);
    }

    fn any_runs() -> impl Strategy<Value = Vec<Run>> {
        proptest::collection::vec((0..20_u64, 1..20_u32), 0..20).prop_map(|gaps| {
            let mut end = 0;
            gaps.into_iter()
                .map(|(gap, pages)| {
                    let run = run(end + gap, pages);
                    end = run.end();
                    run
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn nothing_is_sent_twice_or_never(lists in proptest::collection::vec(any_runs(), 1..6)) {
            let mut rounds = Rounds::default();
            let mut known = BTreeSet::new();
            for runs in lists {
                let asked = pages(&runs);
                let mut round = list(vec![file("/a", 1, runs)]);
                rounds.news(&mut round, &BTreeSet::new());
                let news = round.files.first().map(|file| pages(&file.runs)).unwrap_or_default();
                prop_assert_eq!(&news, &asked.difference(&known).copied().collect());
                known.extend(asked);
            }
        }
    }
}
