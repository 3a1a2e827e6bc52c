//! Small files are read while others are still looked at.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::lock;
use super::read::{Job, Part, Shared};
use super::readers::Readers;
use crate::plan::Extent;

/// Takes small files from those who look at files to those who read them, many at a
/// time. The kernel has been told of each, so that its pages are on their way when its
/// reader comes to it.
pub(super) struct Early<'a> {
    shared: &'a Shared,
    readers: Mutex<&'a mut Readers>,
    waiting: Mutex<Option<Job>>,
    /// Pages that are read, with those that lie between.
    span: AtomicU64,
}

impl<'a> Early<'a> {
    pub(super) fn new(shared: &'a Shared, readers: &'a mut Readers) -> Self {
        Self {
            shared,
            readers: Mutex::new(readers),
            waiting: Mutex::default(),
            span: AtomicU64::new(0),
        }
    }

    /// Takes the only extent of a file, in one part.
    pub(super) fn take(&self, part: Part, extent: &Extent) {
        self.span.fetch_add(extent.span, Relaxed);
        self.shared.tally.planned.fetch_add(extent.pages, Relaxed);
        self.shared.progress.add_planned(part.batch.len.into());
        let next = Job {
            parts: Vec::new(),
            heat: extent.heat,
            resident: false,
            streams: false,
            is_advised: true,
        };
        // Others go on while this one waits for room in the queue.
        let full = Job::gather(&mut lock(&self.waiting), part, next);
        if let Some(job) = full {
            self.send(job);
        }
    }

    /// Hands out what still waits. Gives how many pages were handed out in all.
    pub(super) fn finish(self) -> u64 {
        if let Some(job) = lock(&self.waiting).take() {
            self.send(job);
        }
        self.span.into_inner()
    }

    fn send(&self, job: Job) {
        lock(&self.readers).send(job, || self.shared.stopped());
    }
}
