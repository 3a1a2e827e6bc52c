//! Which files are being written, by what successive looks at them show (pure).
//!
//! A file that is open for writing may never be written, and a file that is
//! written need not be open for it in the tree. So attributes decide: a file
//! changes when its size, mtime or ctime has moved between two looks.
//!
//! With one look there is only its clock to go by, which on NFS is the
//! server's. Where that is wrong, a file is prefetched while it is written, or
//! sent a little later: both are waste, and harmless.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::file::{StatKey, identity};

/// A file that has not changed for this time is not being written.
pub(super) const RECENT_CHANGE: Duration = Duration::from_secs(4);

/// A file that has changed in this many looks, one after the other, goes on to
/// change.
const CHANGES: u32 = 2;

/// What of a file moves when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    /// `st_size` in bytes.
    pub(super) size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    pub(super) mtime_ns: i64,
    /// `st_ctime` in nanoseconds since the epoch.
    pub(super) ctime_ns: i64,
}

impl From<&Metadata> for Attributes {
    fn from(meta: &Metadata) -> Self {
        let seconds = meta.ctime().saturating_mul(1_000_000_000);
        Self {
            size: meta.len(),
            mtime_ns: identity::mtime_ns(meta),
            ctime_ns: seconds.saturating_add(meta.ctime_nsec()),
        }
    }
}

/// Whether a file is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// It is not.
    Quiet,
    /// It has changed once, and may be quiet soon.
    Settling,
    /// It changes again and again.
    Changing,
}

/// What the looks at files have shown.
#[derive(Debug, Default)]
pub(super) struct Changes {
    files: BTreeMap<StatKey, Seen>,
}

#[derive(Debug)]
struct Seen {
    attributes: Attributes,
    /// When the latest change was seen.
    changed: Option<Instant>,
    /// The number of changes, each within [`RECENT_CHANGE`] of the one before.
    changes: u32,
}

impl Changes {
    /// Takes a look at a file into account. `clock_ns` is this host's clock at
    /// that moment, in nanoseconds since the epoch.
    pub(super) fn look(
        &mut self,
        file: StatKey,
        attributes: Attributes,
        at: Instant,
        clock_ns: i64,
    ) {
        let Some(seen) = self.files.get_mut(&file) else {
            let latest = attributes.mtime_ns.max(attributes.ctime_ns);
            // In the future as well: a server's clock may be ahead a little.
            let is_recent = clock_ns.abs_diff(latest) < RECENT_CHANGE.as_nanos() as u64;
            let seen = Seen {
                attributes,
                changed: is_recent.then_some(at),
                changes: is_recent.into(),
            };
            self.files.insert(file, seen);
            return;
        };
        if seen.attributes != attributes {
            let goes_on = seen.changed.is_some_and(|before| is_within(before, at));
            seen.changes = if goes_on { seen.changes + 1 } else { 1 };
            seen.changed = Some(at);
            seen.attributes = attributes;
        }
    }

    /// Returns whether a file is being written at this moment.
    pub(super) fn activity(&self, file: StatKey, now: Instant) -> Activity {
        match self.files.get(&file) {
            Some(seen) if seen.changed.is_some_and(|changed| is_within(changed, now)) => {
                match seen.changes >= CHANGES {
                    true => Activity::Changing,
                    false => Activity::Settling,
                }
            }
            _ => Activity::Quiet,
        }
    }
}

fn is_within(changed: Instant, now: Instant) -> bool {
    now.saturating_duration_since(changed) < RECENT_CHANGE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: StatKey = StatKey {
        device: 1,
        inode: 2,
    };
    const SECOND: i64 = 1_000_000_000;
    /// The host's clock at the first look, in seconds.
    const CLOCK: i64 = 1_000_000;

    /// The activity after each look: when it was, in seconds since the first,
    /// and the file's size, mtime and ctime in seconds.
    fn after(looks: &[(u64, (u64, i64, i64))]) -> Vec<Activity> {
        let began = Instant::now();
        let mut changes = Changes::default();
        let mut activities = Vec::new();
        for (second, (size, mtime, ctime)) in looks {
            let at = began + Duration::from_secs(*second);
            let attributes = Attributes {
                size: *size,
                mtime_ns: mtime * SECOND,
                ctime_ns: ctime * SECOND,
            };
            let clock_ns = (CLOCK + *second as i64) * SECOND;
            changes.look(FILE, attributes, at, clock_ns);
            activities.push(changes.activity(FILE, at));
        }
        activities
    }

    use Activity::{Changing, Quiet, Settling};

    #[test]
    fn an_old_file_is_quiet_at_once() {
        let old = (1, CLOCK - 60, CLOCK - 60);
        assert_eq!(after(&[(0, old), (5, old)]), [Quiet, Quiet]);
    }

    #[test]
    fn a_file_that_was_just_written_settles() {
        let new = (1, CLOCK - 1, CLOCK - 1);
        let looks = [(0, new), (2, new), (5, new)];
        assert_eq!(after(&looks), [Settling, Settling, Quiet]);
        // A copy that keeps its mtime (`cp -a`) is as new as its ctime.
        let copied = (1, CLOCK - 600, CLOCK - 1);
        assert_eq!(after(&[(0, copied)]), [Settling]);
    }

    #[test]
    fn a_file_that_changes_again_keeps_changing() {
        let at = |second: i64| (1, CLOCK + second, CLOCK + second);
        let looks = [(0, at(0)), (3, at(3)), (4, at(4)), (9, at(4))];
        assert_eq!(after(&looks), [Settling, Changing, Changing, Quiet]);
    }

    #[test]
    fn each_attribute_counts() {
        let old = (1, 5, 5);
        for new in [(2, 5, 5), (1, 6, 5), (1, 5, 6)] {
            assert_eq!(after(&[(0, old), (5, new)]), [Quiet, Settling]);
        }
    }

    #[test]
    fn the_clock_of_the_file_system_may_be_wrong() {
        // An hour behind and an hour ahead: two looks decide.
        for skew in [-3600, 3600] {
            let at = |second: i64| (1, CLOCK + skew + second, CLOCK + skew + second);
            let looks = [(0, at(0)), (1, at(1)), (2, at(2)), (3, at(2)), (6, at(2))];
            assert_eq!(after(&looks), [Quiet, Settling, Changing, Changing, Quiet]);
        }
    }

    #[test]
    fn changes_far_apart_do_not_add_up() {
        let at = |second: i64| (1, CLOCK + second, CLOCK + second);
        let looks = [(0, (1, 0, 0)), (10, at(10)), (60, at(60)), (120, at(120))];
        assert_eq!(after(&looks), [Quiet, Settling, Settling, Settling]);
    }

    #[test]
    fn a_file_that_was_never_looked_at_is_quiet() {
        assert_eq!(Changes::default().activity(FILE, Instant::now()), Quiet);
    }

    proptest! {
        #[test]
        fn what_stays_the_same_becomes_quiet(
            looks in proptest::collection::vec((0..20_u64, 0..3_u64), 1..20)
        ) {
            // Steps in seconds, and a size.
            let mut second = 0;
            let looks: Vec<_> = looks.into_iter().map(|(step, size)| {
                second += step;
                (second, (size, 0, 0))
            }).collect();
            let activities = after(&looks);
            for (index, activity) in activities.iter().enumerate() {
                // The latest change that a look has shown.
                let changed = looks[..=index].windows(2).rev()
                    .find(|pair| pair[0].1 != pair[1].1)
                    .map(|pair| pair[1].0);
                let is_recent = changed.is_some_and(|at| {
                    Duration::from_secs(looks[index].0 - at) < RECENT_CHANGE
                });
                prop_assert_eq!(*activity != Quiet, is_recent);
            }
        }
    }
}
