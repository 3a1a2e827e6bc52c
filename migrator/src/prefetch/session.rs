//! A prefetch under way: from files to batches in the hands of readers.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;

use super::memory::Memory;
use super::open::{OpenFile, Opener, Refusal};
use super::pace::Pace;
use super::read::{Job, Part, Shared, TOGETHER, Target, work};
use super::tally::{Blame, Tally};
use super::{ACTIVATE, Options, Reason, Report, StartError};
use crate::kernel;
use crate::pagelist::HotFile;
use crate::plan::{self, BATCH, Extent, HOLE, Shape};
use crate::residency::{self, Residency};

/// A prefetch under way.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    /// Whose work it is; none in a dry run.
    readers: Option<Readers>,
    /// Closed when the last reader has ended.
    ended: Receiver<Infallible>,
    jobs: u16,
    /// See [`HELD`].
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
    memory_looked_at: Instant,
    started: Instant,
}

/// Memory is looked at this often, and a request to stop is heard within it.
const LOOK: Duration = Duration::from_millis(50);

/// How long a reader may take to end after a request to stop: one that hangs
/// in a read from a dead server is left behind.
const GRACE: Duration = Duration::from_secs(2);

/// So many readers at most share what is read with readahead. It takes a while
/// until the kernel makes its largest folios, so each gets as much as possible
/// at once; and some, as one alone would wait for a distant server most of the
/// time.
const STREAMS: u64 = 8;

/// Of an `add` of so many files at most, they stay open between being looked
/// at and being read, if so many may be open.
const HELD: u64 = 1 << 14;

/// Where few may be open, so many stay so.
const HELD_AT_LEAST: u64 = 64;

/// How many files stay open.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Of an `add` of at most so many.
    files: usize,
    /// Not only until the `add` ends, but until each is read.
    in_jobs: bool,
}

/// So many threads at most look at files.
const LOOKERS: usize = 32;

/// What has so many bytes to be read at most is small.
const SMALL: u32 = 128 << 10;

/// Files that are to be looked at.
struct Looking<I> {
    files: I,
    memory_looked_at: Instant,
    /// Whether small ones may be on their way at once.
    advise: bool,
}

impl<I: Iterator<Item = (usize, HotFile)>> Looking<I> {
    /// The next one, its number, and whether it may be.
    fn next(&mut self) -> Option<(usize, HotFile, bool)> {
        if self.advise && self.memory_looked_at.elapsed() >= LOOK {
            self.memory_looked_at = Instant::now();
            self.advise = !Memory::read(Path::new("/")).is_some_and(Memory::is_short);
        }
        let (number, file) = self.files.next()?;
        Some((number, file, self.advise))
    }
}

/// A file that was looked at and found good.
struct Examined {
    number: usize,
    target: Arc<Target>,
    extents: Vec<Extent>,
    /// Where the file stays open until it is read.
    held: Option<Arc<OpenFile>>,
    /// The kernel has been told of its pages.
    is_advised: bool,
}

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

        let memory = Memory::read(Path::new("/"));
        let room = memory.map(|memory| memory.room(options.budget.is_some()));
        let (budget, over) = match (options.budget, room) {
            (Some(budget), Some(room)) if budget > room => (Some(room), Reason::MemoryPressure),
            (Some(budget), _) => (Some(budget), Reason::OverBudget),
            (None, room) => (room, Reason::MemoryPressure),
        };
        let shared = Arc::new(Shared {
            opener: Opener {
                maps: options.maps,
                allow: options.allow,
                any_version: options.any_version,
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
            memory_looked_at: now,
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
            self.shared.skip(
                target(&extent),
                self.over,
                extent.pages,
                &self.over.to_string(),
            );
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
            let mut waiting = None;
            for extent in &kept {
                let file = &examined[extent.file as usize];
                self.hand_out(file, extent, &mut waiting);
            }
            if let Some(job) = waiting {
                self.send(job);
            }
        }
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

    /// Looks at files, several at a time: on a network file system each takes
    /// round trips. Gives those found good in the order of the list.
    ///
    /// Where all of them fit, the pages of small ones are on their way from then on.
    fn examine(&self, files: Vec<HotFile>) -> Vec<Examined> {
        let hold = files.len() <= self.held.files;
        let pages = files.iter().map(|file| file.pages());
        let pages = pages.fold(0, u64::saturating_add);
        let advise = hold
            && !self.dry_run
            && !self.is_one_by_one()
            && self.halted.is_none()
            && self.budget.is_none_or(|budget| pages <= budget);
        let threads = files.len().min(LOOKERS).min(usize::from(self.jobs));
        let files = Mutex::new(Looking {
            files: files.into_iter().enumerate(),
            memory_looked_at: self.memory_looked_at,
            advise,
        });
        let found = Mutex::new(Vec::new());
        let next = || lock(&files).next();
        let look_at_some = || {
            while let Some((number, file, advise)) = next() {
                if let Some(examined) = self.examine_one(number, file, hold, advise) {
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

    fn examine_one(
        &self,
        number: usize,
        file: HotFile,
        hold: bool,
        advise: bool,
    ) -> Option<Examined> {
        let tally = &self.shared.tally;
        let skip = |reason, detail: String| {
            let pages = file.pages();
            tally.asked.fetch_add(pages, Relaxed);
            let path = &file.identity.path;
            tally.skip(path, &Blame::default(), reason, pages, || detail);
        };
        if let Some(reason) = self.halted.or_else(|| self.stopped()) {
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
        let size = file.identity.size;
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
        let is_advised = match plan.extents[..] {
            [extent] if advise && extent.span <= u64::from(SMALL / page_size) => extent
                .batches(size, page_size, SMALL)
                .all(|batch| self.shared.advise(&open, batch)),
            _ => false,
        };
        (!plan.extents.is_empty()).then_some(Examined {
            number,
            target,
            extents: plan.extents,
            held: hold.then_some(open),
            is_advised,
        })
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
        let streams = end >= target.identity.size
            && bytes > u64::from(BATCH)
            && extent.pages == extent.span
            && !self.is_one_by_one();
        let limit = match &self.pace {
            _ if streams => stripe(bytes),
            Some(pace) => pace.batch_limit().min(BATCH),
            None => BATCH,
        };
        let mut left = extent.pages;
        for batch in extent.batches(target.identity.size, page_size, limit) {
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
                is_advised: file.is_advised,
                batch,
            };
            match waiting {
                Some(job) if !streams && job.takes(&part) => job.parts.push(part),
                _ => {
                    let job = Job {
                        parts: vec![part],
                        heat: extent.heat,
                        resident: extent.resident,
                        streams,
                    };
                    if let Some(before) = waiting.replace(job) {
                        self.send(before);
                    }
                }
            }
            if self.is_one_by_one()
                && let Some(job) = waiting.take()
            {
                self.send(job);
            }
        }
        if left > 0 {
            let bytes = left.saturating_mul(u64::from(page_size));
            self.give_up(target, left, extent.resident, bytes);
        }
    }

    /// Counts pages that must not be read any more.
    fn give_up(&self, target: &Target, pages: u64, are_resident: bool, bytes: u64) {
        let reason = self.halted.unwrap_or(Reason::Interrupted);
        self.shared.progress.add_done(bytes);
        if !are_resident {
            self.shared.skip(target, reason, pages, &reason.to_string());
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

    /// Puts the job into the queue, waiting for room, or counts its pages as skipped
    /// if nothing more is to be read.
    fn send(&mut self, mut job: Job) {
        loop {
            self.look();
            let Some(readers) = self.readers.as_mut().filter(|_| self.halted.is_none()) else {
                for Part { target, batch, .. } in &job.parts {
                    let pages = batch.pages.into();
                    self.give_up(target, pages, job.resident, batch.len.into());
                }
                return;
            };
            match readers.give(job) {
                Ok(()) => return,
                Err(SendTimeoutError::Timeout(back)) => job = back,
                // No reader is left, though none of them ends before the queue.
                Err(SendTimeoutError::Disconnected(back)) => {
                    self.halted = Some(Reason::Interrupted);
                    job = back;
                }
            }
        }
    }

    /// Finds out whether to read on.
    fn look(&mut self) {
        if self.halted.is_some() {
            return;
        }
        self.halted = self.stopped();
        if self.memory_looked_at.elapsed() >= LOOK {
            self.memory_looked_at = Instant::now();
            if Memory::read(Path::new("/")).is_some_and(Memory::is_short) {
                self.halted = Some(Reason::MemoryPressure);
            }
        }
    }

    fn stopped(&self) -> Option<Reason> {
        let stop = self.shared.stop.load(Relaxed);
        stop.then_some(Reason::Interrupted)
    }
}

/// How many bytes each reader gets of so many that are read with readahead.
fn stripe(bytes: u64) -> u32 {
    let least = 4 * u64::from(BATCH);
    let most = 1024 * u64::from(BATCH);
    let fair = bytes.div_ceil(STREAMS).next_multiple_of(u64::from(BATCH));
    fair.clamp(least, most) as u32
}

/// The reading threads: as many as have something to do, which they end with when this
/// is dropped.
#[derive(Debug)]
struct Readers {
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
    fn start(
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

/// Raises the soft limit of open files to what the jobs need; gives how many files
/// may stay open besides.
fn allow_open_files(jobs: u16, twice: bool) -> Result<Held, StartError> {
    let system = |verb| {
        move |error: nix::Error| StartError::System {
            verb,
            source: error.into(),
        }
    };
    let limit = Resource::RLIMIT_NOFILE;
    let (soft, hard) = getrlimit(limit).map_err(system("get the limit of open files"))?;
    // Three each: the O_PATH descriptor, while a file is being opened, and two
    // for reading. A reader's drain takes three more, and its own of the file. And
    // some for the rest of the program.
    let jobs_need = 7 * u64::from(jobs) + 3 * LOOKERS as u64 + 64;
    if jobs_need > hard {
        return Err(StartError::OpenFiles {
            jobs,
            need: jobs_need,
            limit: hard,
        });
    }
    // What is held of an `add` may stay so while the next is looked at, in jobs.
    let each = if twice { 2 } else { 1 };
    let left = (hard - jobs_need) / each;
    let in_jobs = 4 * u64::from(jobs) * TOGETHER as u64;
    let held = match left.checked_sub(in_jobs + HELD_AT_LEAST) {
        Some(more) => HELD.min(HELD_AT_LEAST + more),
        None => HELD_AT_LEAST.min(left),
    };
    let is_ample = left >= in_jobs + held;
    let wanted = jobs_need + each * (held + in_jobs);
    if wanted.min(hard) > soft {
        setrlimit(limit, wanted.min(hard), hard)
            .map_err(system("raise the limit of open files"))?;
    }
    Ok(Held {
        files: held as usize,
        in_jobs: is_ample,
    })
}

/// Has the kernel make its table of our open files large enough for so many at once,
/// while there is one thread: with more, it waits for all CPUs each time that it makes
/// the table twice as large (`expand_fdtable` in fs/file.c), 0.1 s in sum.
fn make_room(files: usize) {
    if let (Ok(null), Ok(number)) = (File::open("/dev/null"), i32::try_from(files))
        && let Ok(high) = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(number))
    {
        // It was opened a moment ago; and if it stays open, it harms nobody.
        _ = close(high);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
