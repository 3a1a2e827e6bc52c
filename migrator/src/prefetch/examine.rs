//! Looks at the files of a list before anything is read: which are the ones meant, and
//! which of their pages are missing.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::early::Early;
use super::memory::MemoryWatch;
use super::open::{OpenFile, Refusal};
use super::read::{Part, Shared, Target};
use super::session::LOOK;
use super::tally::Blame;
use super::{Reason, lock};
use crate::pagelist::HotFile;
use crate::plan::{self, Extent, Shape};
use crate::residency::{self, Residency};

/// So many threads at most look at files.
pub(super) const LOOKERS: usize = 32;

/// What has so many bytes to be read at most is small.
const SMALL: u32 = 128 << 10;

/// Files that are to be looked at.
struct Looking<I> {
    files: I,
    memory: MemoryWatch,
    /// Whether small ones may be read at once.
    early: bool,
}

impl<I: Iterator<Item = (usize, HotFile)>> Looking<I> {
    /// The next one, its number, and whether it may be.
    fn next(&mut self) -> Option<(usize, HotFile, bool)> {
        self.early = self.early && !self.memory.finds_short(LOOK);
        let (number, file) = self.files.next()?;
        Some((number, file, self.early))
    }
}

/// How to look at files.
pub(super) struct Examination<'a, 'b> {
    pub(super) shared: &'a Shared,
    pub(super) shape: Shape,
    /// So many at a time.
    pub(super) at_a_time: usize,
    /// Files stay open.
    pub(super) hold: bool,
    /// Where small ones go, if they may be read at once.
    pub(super) early: Option<&'a Early<'b>>,
    pub(super) memory: MemoryWatch,
    /// Why nothing is looked at.
    pub(super) halted: Option<Reason>,
}

/// A file that was looked at and found good.
pub(super) struct Examined {
    number: usize,
    pub(super) target: Arc<Target>,
    pub(super) extents: Vec<Extent>,
    /// Where the file stays open until it is read.
    pub(super) held: Option<Arc<OpenFile>>,
}

impl Examination<'_, '_> {
    /// Looks at files, several at a time: on a network file system each takes
    /// round trips. Gives those found good in the order of the list.
    pub(super) fn of(&self, files: Vec<HotFile>) -> Vec<Examined> {
        let threads = files.len().min(LOOKERS).min(self.at_a_time);
        let files = Mutex::new(Looking {
            files: files.into_iter().enumerate(),
            memory: self.memory.clone(),
            early: self.early.is_some(),
        });
        let found = Mutex::new(Vec::new());
        let next = || lock(&files).next();
        let look_at_some = || {
            while let Some((number, file, early)) = next() {
                let early = self.early.filter(|_| early);
                if let Some(examined) = self.of_one(number, file, early) {
                    lock(&found).push(examined);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // Without the help of another thread this one does it all.
                _ = thread::Builder::new().spawn_scoped(scope, look_at_some);
            }
            look_at_some();
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_unstable_by_key(|examined| examined.number);
        found
    }

    fn of_one(&self, number: usize, file: HotFile, early: Option<&Early<'_>>) -> Option<Examined> {
        let tally = &self.shared.tally;
        let skip = |reason, detail: String| {
            let pages = file.pages();
            tally.asked.fetch_add(pages, Relaxed);
            let path = &file.identity.path;
            tally.skip(path, &Blame::default(), reason, pages, || detail);
        };
        if let Some(reason) = self.halted.or_else(|| self.shared.stopped()) {
            skip(reason, reason.to_string());
            return None;
        }
        let open = match self.shared.opener.open(&file.identity) {
            Ok(open) => Arc::new(open),
            Err(Refusal { reason, detail }) => {
                skip(reason, detail);
                return None;
            }
        };
        // The file's own: the list's may be older.
        let size = open.size;
        if let Some(change) = open.change {
            tally.change(&file.identity.path, change);
        }
        let asked = plan::pages(size, &file.runs, self.shape.page_size);
        // Where the answer fails, it is as if it was not permitted: the pages
        // are read, and those that are resident are found in the cache.
        let resident = match residency::resident(&open.first, &asked) {
            Ok(Residency::Known(resident)) => resident,
            Ok(Residency::Unknown) | Err(_) => {
                tally.residency_unknown_files.fetch_add(1, Relaxed);
                Vec::new()
            }
        };
        let plan = plan::extents(0, size, &file.runs, &resident, self.shape);
        tally.asked.fetch_add(plan.asked, Relaxed);
        tally.resident.fetch_add(plan.resident, Relaxed);
        let target = Arc::new(Target::new(file.identity, &open));
        if plan.beyond_end > 0 {
            let detail = format!("beyond the end of the file: its size is {size}");
            self.shared
                .skip(&target, Reason::BeyondEnd, plan.beyond_end, &detail);
        }
        let page_size = self.shape.page_size;
        if let ([extent], Some(early)) = (&plan.extents[..], early)
            && extent.span <= u64::from(SMALL / page_size)
            && let Some(batch) = extent.batches(size, page_size, SMALL).next()
            && self.shared.advise(&open, batch)
        {
            let part = Part {
                target,
                open: Some(open),
                batch,
            };
            early.take(part, extent);
            return None;
        }
        (!plan.extents.is_empty()).then_some(Examined {
            number,
            target,
            extents: plan.extents,
            held: self.hold.then_some(open),
        })
    }
}

/// Closes what is still open, several at a time: over a network each takes a round trip.
pub(super) fn close(files: Vec<Examined>) {
    let (remote, _local): (Vec<_>, Vec<_>) = files
        .into_iter()
        .filter_map(|file| file.held)
        .partition(|open| open.is_remote);
    let threads = remote.len().min(LOOKERS);
    let remote = Mutex::new(remote);
    let next = || lock(&remote).pop();
    let close_some = || while next().is_some() {};
    thread::scope(|scope| {
        for _ in 1..threads {
            // As above.
            _ = thread::Builder::new().spawn_scoped(scope, close_some);
        }
        close_some();
    });
}
