//! Keeps a reader on one CPU between the two reads that activate a page.
//!
//! A page that was just read waits in a batch of the CPU it was read on until
//! it is put onto the LRU list. `folio_mark_accessed` finds it there only on
//! that very CPU; on another one it clears the referenced flag and activates
//! nothing. Left to the scheduler, that befell 1 page in 100 here.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that the calling thread may use.
#[derive(Debug)]
pub(super) struct Cpus(CpuSet);

impl Cpus {
    /// None where they cannot be known (a host with more than 1024 of them).
    pub(super) fn of_this_thread() -> Option<Self> {
        sched_getaffinity(Pid::from_raw(0)).ok().map(Self)
    }

    /// Runs `work` without changing the CPU, where that is possible; the
    /// scheduler is free to move the thread before and after.
    pub(super) fn stay_on_one<T>(&self, work: impl FnOnce() -> T) -> T {
        let pinned = sched_getcpu().and_then(|cpu| {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &one)
        });
        let done = work();
        if pinned.is_ok() {
            // It fails only if all of these CPUs have been taken away, and
            // then the kernel has given the thread others already.
            _ = sched_setaffinity(Pid::from_raw(0), &self.0);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_stays_and_is_free_again() {
        let before = Cpus::of_this_thread().expect("CPUs of this thread");
        before.stay_on_one(|| {
            let Cpus(now) = Cpus::of_this_thread().expect("CPUs of this thread");
            let mine = sched_getcpu().expect("the CPU of this thread");
            for cpu in 0..CpuSet::count() {
                assert_eq!(now.is_set(cpu), Ok(cpu == mine));
            }
        });
        let after = Cpus::of_this_thread().expect("CPUs of this thread");
        assert_eq!(after.0, before.0);
    }
}
