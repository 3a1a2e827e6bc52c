//! The delta of each list: the pages that have not been sent yet (pure).
//!
//! Files are told apart by device and inode, whatever path leads to them. A
//! file that has changed is still that file, and its pages stay sent: those
//! that the destination has lost are sent again when nothing changes any more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::changes::Activity;
use crate::file::StatKey;
use crate::pagelist::runs::{combine, subtract};
use crate::pagelist::{FileIdentity, HotFile, PageIndexList, RESIDENT, Run};

/// The pages that have been sent.
#[derive(Debug, Default)]
pub(super) struct Delta {
    sent: BTreeMap<StatKey, Sent>,
    /// The file that was sent under a path.
    at: BTreeMap<PathBuf, StatKey>,
}

/// What was sent of a file.
#[derive(Debug)]
struct Sent {
    path: PathBuf,
    /// Size and mtime when its first pages were sent.
    version: (u64, i64),
    /// It has changed since.
    is_stale: bool,
    /// All with one heat, so that they are as few runs as possible.
    pages: Vec<Run>,
}

/// The pages of a round that had not been sent before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Those that are sent now.
    pub(super) new: u64,
    /// Those of files that have changed once, which wait.
    pub(super) settling: u64,
    /// Those of files that keep changing, which wait.
    pub(super) changing: u64,
}

impl Delta {
    /// Leaves in the list the pages that have not been sent, and counts them as
    /// sent. Files that are being written are taken out: they wait.
    pub(super) fn take(
        &mut self,
        list: &mut PageIndexList,
        activity: impl Fn(StatKey) -> Activity,
    ) -> Round {
        let mut round = Round::default();
        list.files.retain_mut(|file| {
            let activity = activity(StatKey::from(&file.identity));
            self.subtract_sent(file);
            match activity {
                Activity::Quiet => {
                    round.new += file.pages();
                    self.add(file);
                    !file.runs.is_empty()
                }
                Activity::Settling => {
                    round.settling += file.pages();
                    false
                }
                Activity::Changing => {
                    round.changing += file.pages();
                    false
                }
            }
        });
        round
    }

    /// Leaves in the list what the destination lacks when nothing changes any
    /// more: the pages that have not been sent, and all pages of files that
    /// have changed since. A file system may have dropped those over there.
    pub(super) fn take_last(&mut self, list: &mut PageIndexList) {
        list.files.retain_mut(|file| {
            let key = StatKey::from(&file.identity);
            let version = version(&file.identity);
            let sent = self.sent.get(&key);
            if sent.is_some_and(|sent| sent.is_stale || sent.version != version) {
                self.sent.remove(&key);
            }
            self.subtract_sent(file);
            self.add(file);
            !file.runs.is_empty()
        });
    }

    /// Leaves in the file what has not been sent of it.
    fn subtract_sent(&mut self, file: &mut HotFile) {
        let identity = &file.identity;
        let key = StatKey::from(identity);
        if let Some(before) = self.at.get(&identity.path).copied()
            && before != key
        {
            // Another file lies there now. The number of this one may be given
            // to the next.
            self.sent.remove(&before);
        }
        if let Some(sent) = self.sent.get_mut(&key) {
            let has_changed = sent.version != version(identity);
            // A new file has got the number of a deleted one, unless it was
            // just renamed.
            if has_changed && sent.path != identity.path {
                self.sent.remove(&key);
            } else {
                sent.is_stale |= has_changed;
                file.runs = subtract(&file.runs, &sent.pages);
            }
        }
    }

    fn add(&mut self, file: &HotFile) {
        if file.runs.is_empty() {
            return;
        }
        let identity = &file.identity;
        let key = StatKey::from(identity);
        let sent = self.sent.entry(key).or_insert_with(|| Sent {
            path: identity.path.clone(),
            version: version(identity),
            is_stale: false,
            pages: Vec::new(),
        });
        sent.pages = combine(&sent.pages, &file.runs, |_, _| RESIDENT);
        self.at.insert(identity.path.clone(), key);
    }
}

fn version(identity: &FileIdentity) -> (u64, i64) {
    (identity.size, identity.mtime_ns)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn file(inode: u64, path: &str, mtime_ns: i64, runs: Vec<Run>) -> HotFile {
        HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 1,
                inode,
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

    /// The pages of each file of a round in which nothing changes.
    fn quiet(delta: &mut Delta, files: Vec<HotFile>) -> Vec<Vec<Run>> {
        let mut list = list(files);
        let round = delta.take(&mut list, |_| Activity::Quiet);
        assert_eq!(round.new, list.pages());
        list.files.into_iter().map(|file| file.runs).collect()
    }

    #[test]
    fn a_round_has_only_what_is_new() {
        let mut delta = Delta::default();
        let first = quiet(&mut delta, vec![file(1, "/a", 1, vec![run(0, 10)])]);
        assert_eq!(first, [[run(0, 10)]]);
        let second = vec![
            file(1, "/a", 1, vec![run(5, 10)]),
            file(2, "/b", 1, vec![run(1, 1)]),
        ];
        let second = quiet(&mut delta, second);
        assert_eq!(second, [[run(10, 5)], [run(1, 1)]]);
        let third = quiet(&mut delta, vec![file(1, "/a", 1, vec![run(0, 15)])]);
        assert!(third.is_empty());
    }

    #[test]
    fn a_changed_file_has_a_delta_until_the_last_list() {
        let mut delta = Delta::default();
        quiet(&mut delta, vec![file(1, "/a", 1, vec![run(0, 10)])]);
        let changed = || file(1, "/a", 2, vec![run(0, 15)]);
        assert_eq!(quiet(&mut delta, vec![changed()]), [[run(10, 5)]]);
        let mut last = list(vec![changed()]);
        delta.take_last(&mut last);
        assert_eq!(last.files[0].runs, [run(0, 15)]);
    }

    #[test]
    fn the_last_list_of_unchanged_files_is_a_delta() {
        let mut delta = Delta::default();
        quiet(&mut delta, vec![file(1, "/a", 1, vec![run(0, 10)])]);
        let mut last = list(vec![file(1, "/a", 1, vec![run(5, 10)])]);
        delta.take_last(&mut last);
        assert_eq!(last.files[0].runs, [run(10, 5)]);
        let mut again = list(vec![file(1, "/a", 1, vec![run(0, 15)])]);
        delta.take_last(&mut again);
        assert!(again.files.is_empty());
    }

    #[test]
    fn what_waits_is_new_later() {
        let mut delta = Delta::default();
        for (activity, settling, changing) in
            [(Activity::Settling, 10, 0), (Activity::Changing, 0, 10)]
        {
            let mut now = list(vec![file(1, "/w", 1, vec![run(0, 10)])]);
            let round = delta.take(&mut now, |_| activity);
            let expected = Round {
                new: 0,
                settling,
                changing,
            };
            assert_eq!(round, expected);
            assert!(now.files.is_empty());
        }
        let later = quiet(&mut delta, vec![file(1, "/w", 2, vec![run(0, 10)])]);
        assert_eq!(later, [[run(0, 10)]]);
        // What was sent does not wait.
        let mut now = list(vec![file(1, "/w", 3, vec![run(0, 12)])]);
        assert_eq!(delta.take(&mut now, |_| Activity::Changing).changing, 2);
    }

    #[test]
    fn a_file_at_the_path_of_another_is_new() {
        let mut delta = Delta::default();
        let at = |inode, mtime| vec![file(inode, "/a", mtime, vec![run(0, 10)])];
        quiet(&mut delta, at(1, 1));
        assert_eq!(quiet(&mut delta, at(2, 2)), [[run(0, 10)]]);
        // The number of the first is given again.
        assert_eq!(quiet(&mut delta, at(1, 3)), [[run(0, 10)]]);
    }

    #[test]
    fn a_renamed_file_is_the_same_and_a_new_one_is_not() {
        let mut delta = Delta::default();
        quiet(&mut delta, vec![file(1, "/a", 1, vec![run(0, 10)])]);
        let renamed = quiet(&mut delta, vec![file(1, "/b", 1, vec![run(0, 10)])]);
        assert!(renamed.is_empty());
        let new = quiet(&mut delta, vec![file(1, "/c", 2, vec![run(0, 10)])]);
        assert_eq!(new, [[run(0, 10)]]);
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
        fn nothing_is_sent_twice_or_never(
            lists in proptest::collection::vec((any_runs(), 0..3_i64, any::<bool>()), 1..6)
        ) {
            let mut delta = Delta::default();
            let mut known = BTreeSet::new();
            for (runs, mtime_ns, waits) in lists {
                let asked = pages(&runs);
                let mut round = list(vec![file(1, "/a", mtime_ns, runs)]);
                let activity = match waits {
                    true => Activity::Changing,
                    false => Activity::Quiet,
                };
                let counts = delta.take(&mut round, |_| activity);
                let new: BTreeSet<u64> = asked.difference(&known).copied().collect();
                prop_assert_eq!(counts.new + counts.changing, new.len() as u64);
                let sent = round.files.first().map(|file| pages(&file.runs)).unwrap_or_default();
                if waits {
                    prop_assert!(sent.is_empty());
                } else {
                    prop_assert_eq!(&sent, &new);
                    known.extend(asked);
                }
            }
        }

        #[test]
        fn after_the_last_list_nothing_is_lacking(
            rounds in proptest::collection::vec((any_runs(), 0..3_i64), 1..6),
            last in any_runs(), last_mtime in 0..3_i64,
        ) {
            let mut delta = Delta::default();
            // Pages at the destination, which drops those of a changed file.
            let (mut there, mut version) = (BTreeSet::new(), None);
            for (runs, mtime_ns) in rounds {
                let mut round = list(vec![file(1, "/a", mtime_ns, runs)]);
                delta.take(&mut round, |_| Activity::Quiet);
                for file in &round.files {
                    if version.replace(mtime_ns).is_some_and(|before| before != mtime_ns) {
                        there.clear();
                    }
                    there.extend(pages(&file.runs));
                }
            }
            let hot = pages(&last);
            let mut list = list(vec![file(1, "/a", last_mtime, last)]);
            delta.take_last(&mut list);
            if version.is_some_and(|before| before != last_mtime) {
                there.clear();
            }
            there.extend(list.files.iter().flat_map(|file| pages(&file.runs)));
            prop_assert!(hot.is_subset(&there));
        }
    }
}
