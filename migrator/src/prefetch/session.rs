//! A prefetch under way: from files to batches in the hands of readers.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::early::Early;
use super::examine::{self, Examination, Examined};
use super::limit::{Held, allow_open_files, make_room};
use super::memory::MemoryWatch;
use super::open::Opener;
use super::pace::Pace;
use super::read::{Job, Part, Shared};
use super::readers::Readers;
use super::tally::Tally;
use super::{ACTIVATE, Options, Reason, Report, StartError};
use crate::kernel;
use crate::pagelist::{HotFile, RESIDENT};
use crate::plan::{self, BATCH, Extent, HOLE, Shape};

/// A prefetch under way.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    /// Whose work it is; none in a dry run.
    readers: Option<Readers>,
    /// Closed when the last reader has ended.
    ended: Receiver<Infallible>,
    jobs: u16,
    held: Held,
    dry_run: bool,
    shape: Shape,
    /// How many pages may still be read, if there is a limit, and what to say
    /// of those beyond it.
    budget: Option<u64>,
    over: Reason,
    pace: Option<Pace>,
    /// Why nothing more is read.
    halted: Option<Reason>,
    memory: MemoryWatch,
    started: Instant,
}

/// Memory is looked at this often, and a request to stop is heard within it.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// How long a reader may take to end after a request to stop: one that hangs
/// in a read from a dead server is left behind.
const GRACE: Duration = Duration::from_secs(2);

/// So many readers at most share what is read with readahead. It takes a while
/// until the kernel makes its largest folios, so each gets as much as possible
/// at once; and some, as one alone would wait for a distant server most of the
/// time.
const STREAMS: u64 = 8;

impl Session {
    /// Starts the readers of a session for pages of `page_size` bytes.
    ///
    /// # Errors
    /// Another page size than this host's, no /proc, too low a limit of open
    /// files (the soft one is raised), or no threads to be had.
    pub fn start(page_size: u32, options: Options) -> Result<Self, StartError> {
        Self::start_for(page_size, options, 0)
    }

    /// The same, where it is known how many files will be given at once.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_for(page_size: u32, options: Options, files: usize) -> Result<Self, StartError> {
        let system = |verb| move |source| StartError::System { verb, source };
        let host = kernel::page_size();
        if page_size != host {
            return Err(StartError::PageSize {
                list: page_size,
                host,
            });
        }
        std::fs::read_dir("/proc/self/fd").map_err(StartError::Proc)?;
        let jobs = options.jobs.max(1);
        let held = allow_open_files(jobs, options.activate)?;
        if files <= held.files {
            make_room(files);
        }

        let memory = MemoryWatch::new(Path::new("/"));
        let room = memory
            .memory()
            .map(|memory| memory.room(options.budget.is_some()));
        let (budget, over) = match (options.budget, room) {
            (Some(budget), Some(room)) if budget > room => (Some(room), Reason::MemoryPressure),
            (Some(budget), _) => (Some(budget), Reason::OverBudget),
            (None, room) => (room, Reason::MemoryPressure),
        };
        let shared = Arc::new(Shared {
            opener: Opener {
                maps: options.maps,
                allow: options.allow,
                accepts: options.accepts,
                is_foreign: options.is_foreign,
                root: options.root,
                twice: options.activate,
                file_systems: Mutex::default(),
            },
            tally: Tally::default(),
            stop: options.stop,
            progress: options.progress,
            at_once: options.at_once,
            reading: AtomicU16::new(0),
        });
        let (ending, ended) = bounded(0);
        let readers = match options.dry_run {
            true => None,
            false => {
                let readers = Readers::start(&shared, jobs, page_size, ending);
                Some(readers.map_err(system("start a reading thread"))?)
            }
        };
        let now = Instant::now();
        Ok(Self {
            shared,
            readers,
            ended,
            jobs,
            held,
            dry_run: options.dry_run,
            shape: Shape {
                page_size,
                touch: options.activate.then_some(ACTIVATE),
            },
            budget: budget.map(|bytes| bytes / u64::from(page_size)),
            over,
            pace: options.bandwidth.map(|rate| Pace::new(rate, now)),
            halted: None,
            memory,
            started: now,
        })
    }

    /// Takes files: looks at them, plans their pages hottest first across all
    /// of them, and returns when the last batch has been handed to a reader
    /// or waits in the queue.
    ///
    /// Files that are given one by one are read in the order they come; the
    /// budget goes to those that come first.
    pub fn add(&mut self, files: Vec<HotFile>) {
        self.look();
        let mut examined = self.examine(files);
        let mut extents = Vec::new();
        for (number, file) in (0_u32..).zip(&mut examined) {
            for extent in &mut file.extents {
                extent.file = number;
            }
            extents.append(&mut file.extents);
        }
        let target = |extent: &Extent| &examined[extent.file as usize].target;
        let page_size = self.shape.page_size;
        let hole = |file: u32| match examined[file as usize].target.is_remote {
            // There a page takes its time on the network, and nobody waits for the
            // answer to one request before the next is sent.
            true => 0,
            false if self.is_one_by_one() => 0,
            false => HOLE,
        };
        let (kept, dropped) = plan::order(extents, page_size, self.budget, hole);
        for extent in dropped {
            let over = match extent.heat {
                // Wanted only as far as there is memory for them.
                ..=RESIDENT => Reason::OverBudget,
                _ => self.over,
            };
            let target = target(&extent);
            self.shared
                .skip(target, over, extent.pages, &over.to_string());
        }
        let (mut span, mut pages) = (0, 0);
        for extent in kept.iter().filter(|extent| !extent.resident) {
            span += extent.span;
            pages += extent.pages;
        }
        self.budget = self.budget.map(|left| left.saturating_sub(span));
        self.shared.tally.planned.fetch_add(pages, Relaxed);
        if self.readers.is_some() {
            let span: u64 = kept.iter().map(|extent| extent.span).sum();
            let bytes = span.saturating_mul(u64::from(page_size));
            self.shared.progress.add_planned(bytes);
            // How many extents of each file are left.
            let mut left = vec![0_u32; examined.len()];
            for extent in &kept {
                left[extent.file as usize] += 1;
            }
            let mut waiting = None;
            for extent in &kept {
                let number = extent.file as usize;
                self.hand_out(&examined[number], extent, &mut waiting);
                left[number] -= 1;
                if left[number] == 0 && self.held.in_jobs {
                    // Its readers close it, many files at a time: over a network each
                    // takes a round trip.
                    examined[number].held = None;
                }
            }
            if let Some(job) = waiting {
                self.send(job);
            }
        }
        examine::close(examined);
    }

    /// Waits until all is read, and reports.
    ///
    /// After a request to stop, readers that hang in a read are left behind.
    pub fn finish(mut self) -> Report {
        self.readers = None;
        let mut deadline = None;
        while self.ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if self.shared.stop.load(Relaxed)
                && Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + GRACE)
            {
                break;
            }
        }
        self.shared
            .tally
            .report(self.shape.page_size, self.started.elapsed(), self.dry_run)
    }

    /// Looks at files. Where all of them fit, small ones are read meanwhile.
    fn examine(&mut self, files: Vec<HotFile>) -> Vec<Examined> {
        let pages = files.iter().map(|file| file.pages());
        let pages = pages.fold(0, u64::saturating_add);
        let fit = self.held.in_jobs && self.budget.is_none_or(|budget| pages <= budget);
        let is_one_by_one = self.is_one_by_one();
        let readers = self.readers.as_mut().filter(|_| fit && !is_one_by_one);
        let early = readers.map(|readers| Early::new(&self.shared, readers));
        let examination = Examination {
            shared: &self.shared,
            shape: self.shape,
            at_a_time: self.jobs.into(),
            hold: files.len() <= self.held.files,
            early: early.as_ref(),
            memory: self.memory.clone(),
            halted: self.halted,
        };
        let examined = examination.of(files);
        let span = early.map_or(0, Early::finish);
        self.budget = self.budget.map(|left| left.saturating_sub(span));
        examined
    }

    /// Whether each batch is a job of its own, and only what was asked for is read:
    /// because pages have to be read twice on one CPU, or slowly.
    fn is_one_by_one(&self) -> bool {
        self.shape.touch.is_some() || self.pace.is_some()
    }

    /// Hands the batches of an extent to the readers, or counts as skipped
    /// what must not be read any more. A small one waits for others in a job.
    fn hand_out(&mut self, file: &Examined, extent: &Extent, waiting: &mut Option<Job>) {
        let target = &file.target;
        let page_size = self.shape.page_size;
        let end = (extent.first + extent.span).saturating_mul(u64::from(page_size));
        let bytes = extent.span.saturating_mul(u64::from(page_size));
        // Reading ahead brings nothing that is not wanted where all that
        // follows in the file is asked for. A small file is not worth it.
        let streams = end >= target.size
            && bytes > u64::from(BATCH)
            && extent.pages == extent.span
            && !self.is_one_by_one();
        let limit = match &self.pace {
            _ if streams => stripe(bytes),
            Some(pace) => pace.batch_limit().min(BATCH),
            None => BATCH,
        };
        let mut left = extent.pages;
        for batch in extent.batches(target.size, page_size, limit) {
            if !extent.resident {
                self.wait_turn(batch.len);
            }
            self.look();
            if self.halted.is_some() {
                break;
            }
            left -= u64::from(batch.pages);
            let part = Part {
                target: Arc::clone(target),
                open: file.held.clone().filter(|_| self.held.in_jobs),
                batch,
            };
            let next = Job {
                parts: Vec::new(),
                heat: extent.heat,
                resident: extent.resident,
                streams,
                is_advised: false,
            };
            if let Some(before) = Job::gather(waiting, part, next) {
                self.send(before);
            }
            if self.is_one_by_one()
                && let Some(job) = waiting.take()
            {
                self.send(job);
            }
        }
        if left > 0 {
            let bytes = left.saturating_mul(u64::from(page_size));
            let asked = if extent.resident { 0 } else { left };
            let reason = match self.halted.unwrap_or(Reason::Interrupted) {
                Reason::MemoryPressure if extent.heat <= RESIDENT => Reason::OverBudget,
                reason => reason,
            };
            self.shared.give_up(target, reason, asked, bytes);
        }
    }

    /// Waits until the bandwidth has room for so many bytes.
    fn wait_turn(&mut self, bytes: u32) {
        let Some(pace) = &mut self.pace else {
            return;
        };
        let now = Instant::now();
        let turn = now + pace.wait(bytes, now);
        while self.halted.is_none() {
            match turn.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return,
                left => thread::sleep(left.min(LOOK)),
            }
            self.look();
        }
    }

    /// Puts a job into the queue, waiting for room, unless nothing more is to be read.
    fn send(&mut self, job: Job) {
        if let Some(mut readers) = self.readers.take() {
            readers.send(job, || {
                self.look();
                self.halted
            });
            self.readers = Some(readers);
        }
    }

    /// Finds out whether to read on.
    fn look(&mut self) {
        if self.halted.is_some() {
            return;
        }
        self.halted = self.shared.stopped();
        if self.memory.finds_short(LOOK) {
            self.halted = Some(Reason::MemoryPressure);
        }
    }
}

/// How many bytes each reader gets of so many that are read with readahead.
fn stripe(bytes: u64) -> u32 {
    let least = 4 * u64::from(BATCH);
    let most = 1024 * u64::from(BATCH);
    let fair = bytes.div_ceil(STREAMS).next_multiple_of(u64::from(BATCH));
    fair.clamp(least, most) as u32
}
