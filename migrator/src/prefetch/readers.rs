//! The threads that read, started as they are needed.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use super::Reason;
use super::read::{Job, Part, Shared, work};
use super::session::LOOK;

/// The reading threads: as many as have something to do, which they end with when this
/// is dropped.
#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
    page_size: u32,
    queue: Sender<Job>,
    jobs: Receiver<Job>,
    ending: Sender<Infallible>,
    started: u16,
    most: u16,
}

impl Readers {
    /// Starts the first of at most so many.
    pub(super) fn start(
        shared: &Arc<Shared>,
        most: u16,
        page_size: u32,
        ending: Sender<Infallible>,
    ) -> io::Result<Self> {
        // A second job for each reader waits, so that none of them does.
        let (queue, jobs) = bounded(2 * usize::from(most));
        let mut readers = Self {
            shared: Arc::clone(shared),
            page_size,
            queue,
            jobs,
            ending,
            started: 0,
            most,
        };
        readers.add()?;
        Ok(readers)
    }

    /// Puts a job into the queue, waiting for room, or counts its pages as skipped where
    /// nothing more is to be read, which is asked for again and again.
    pub(super) fn send(&mut self, mut job: Job, mut halted: impl FnMut() -> Option<Reason>) {
        let (job, reason) = loop {
            if let Some(reason) = halted() {
                break (job, reason);
            }
            match self.give(job) {
                Ok(()) => return,
                Err(SendTimeoutError::Timeout(back)) => job = back,
                // No reader is left, though none of them ends before the queue.
                Err(SendTimeoutError::Disconnected(back)) => break (back, Reason::Interrupted),
            }
        };
        for Part { target, batch, .. } in &job.parts {
            let asked = if job.resident { 0 } else { batch.pages };
            let (pages, bytes) = (asked.into(), batch.len.into());
            self.shared.give_up(target, reason, pages, bytes);
        }
    }

    /// Puts a job into the queue, if there is room soon.
    fn give(&mut self, job: Job) -> Result<(), SendTimeoutError<Job>> {
        if self.started < self.most && !self.queue.is_empty() {
            // Without another one it takes longer.
            _ = self.add();
        }
        self.queue.send_timeout(job, LOOK)
    }

    fn add(&mut self) -> io::Result<()> {
        let (shared, jobs) = (Arc::clone(&self.shared), self.jobs.clone());
        let (ending, page_size) = (self.ending.clone(), self.page_size);
        thread::Builder::new()
            .name("reader".into())
            .spawn(move || {
                work(&jobs, &shared, page_size);
                drop(ending);
            })?;
        self.started += 1;
        Ok(())
    }
}
