//! Observes a target: source → heat, and the list that comes of it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use migrator_common::access::{CHUNK_PAGES, ChunkBits};
use migrator_common::event::{Counters, Event, HALF_FULL};

use crate::duty::{News, Window};
use crate::file::{InodeKey, Resolver};
use crate::heat::{FileId, HeatMap};
use crate::kernel;
use crate::pagelist::{Heat, HotFile, PageIndexList};
use crate::source::lru::Reason;
use crate::source::mapped;
use crate::source::{self, Choice, Chosen, Refusal, Source};
use crate::target::Target;

const PROC: &str = "/proc";

/// Events that are handled before the access map gets a look again: a program
/// that opens thousands of files must not make it overflow.
const EVENTS_AT_ONCE: usize = 256;

/// A sample that is not older serves a second time: at the end of an epoch,
/// and for what is printed of it.
const FRESH: Duration = Duration::from_millis(100);

/// The same for a look at the processes, which is to miss nothing at the end.
const JUST_NOW: Duration = Duration::from_millis(2);

/// A target under observation.
pub struct Tracker {
    source: Source,
    target: Target,
    resolver: Resolver,
    heat: HeatMap,
    /// What file handles are made of, and whether the inode was used by the
    /// same file all the time.
    generations: HashMap<FileId, u32>,
    /// What samples have shown: the latest of each file, and what the latest
    /// left out.
    sampled: BTreeMap<(u64, u64), HotFile>,
    unsampled: BTreeMap<Reason, u64>,
    sampled_at: Option<Instant>,
    /// When the processes' open and mapped files were looked at.
    looked_at: Option<Instant>,
    /// How many pages of files each process had mapped then.
    mapped: HashMap<i32, u64>,
    /// When the access map was emptied.
    drained_at: Instant,
    /// What the present epoch shows, where somebody wants to know.
    window: Option<Window>,
    /// Since when it is observed; nothing in a pause.
    observing: Option<Instant>,
    /// How long it was before.
    observed: Duration,
}

/// What is known at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The list; hottest file first.
    pub list: PageIndexList,
    /// What stands in no list, by reason.
    pub left_out: BTreeMap<Reason, LeftOut>,
    /// What the kernel side saw and lost.
    pub counters: Counters,
    /// Pages that were forgotten because too many were used.
    pub forgotten: u64,
    /// Uses by anybody that the kernel did not show to the programs.
    pub skipped: u64,
}

impl Snapshot {
    fn new(forgotten: u64) -> Self {
        Self {
            list: PageIndexList {
                page_size: kernel::page_size(),
                files: Vec::new(),
            },
            left_out: BTreeMap::new(),
            counters: Counters::default(),
            forgotten,
            skipped: 0,
        }
    }
}

/// How much was left out for a reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files.
    pub files: u64,
    /// Their pages of the heat asked for, where they are known.
    pub pages: u64,
}

impl Tracker {
    /// Begins to observe. Also gives which source was chosen, and why.
    ///
    /// # Errors
    /// Why no source can be used, or that there is no such target.
    pub fn start(target: Target, choice: Choice) -> Result<(Self, Chosen), Refusal> {
        // First of all, so that a wrong pid is not blamed on the source.
        target.processes(Path::new(PROC)).map_err(Refusal::Target)?;
        let (source, chosen) = source::choose(choice, &target)?;
        let mut tracker = Self {
            source,
            target,
            resolver: Resolver::new(PathBuf::from(PROC)),
            heat: HeatMap::default(),
            generations: HashMap::new(),
            sampled: BTreeMap::new(),
            unsampled: BTreeMap::new(),
            sampled_at: None,
            looked_at: None,
            mapped: HashMap::new(),
            drained_at: Instant::now(),
            window: None,
            observing: Some(Instant::now()),
            observed: Duration::ZERO,
        };
        tracker.look_at_processes();
        Ok((tracker, chosen))
    }

    /// The source in use.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Readable when `collect` should be called soon; nothing in a pause, where what
    /// a program has told in its last moment can wait.
    pub fn wakes(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Ebpf(source) if !self.is_paused() => Some(source.as_fd()),
            _ => None,
        }
    }

    /// Whether there still is something to observe: the target, or one of the
    /// processes that it left behind.
    pub fn is_alive(&self) -> bool {
        let runs = |process| Target::Process(process).is_alive(Path::new(PROC));
        self.target.is_alive(Path::new(PROC))
            || match &self.source {
                Source::Ebpf(source) => source.processes().into_iter().any(runs),
                Source::Lru(_) => false,
            }
    }

    /// Whether [`Self::pause`] spares anybody anything. Samples cost only when
    /// they are taken.
    pub fn can_pause(&self) -> bool {
        matches!(self.source, Source::Ebpf(_))
    }

    /// Observes nothing until [`Self::resume`], and has nothing of ours run at the
    /// page cache's hooks. What was seen is kept, and counts as if as many epochs
    /// had passed since as `fades` says.
    ///
    /// # Errors
    /// The source failed.
    pub fn pause(&mut self, fades: u32) -> anyhow::Result<()> {
        if let (Source::Ebpf(source), Some(since)) = (&mut self.source, self.observing) {
            source.detach();
            self.collect()?;
            (0..fades).for_each(|_| self.heat.next_epoch());
            self.observed += since.elapsed();
            self.observing = None;
        }
        Ok(())
    }

    /// Goes on to observe; what processes have come to map meanwhile is looked
    /// at as in the beginning.
    ///
    /// # Errors
    /// The kernel does not permit it any more; it is still a pause, then.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        if let (Source::Ebpf(source), None) = (&mut self.source, self.observing) {
            source.attach_again().context("failed to observe again")?;
            self.observing = Some(Instant::now());
            self.look_at_processes();
        }
        Ok(())
    }

    /// Whether it is a pause.
    pub fn is_paused(&self) -> bool {
        self.observing.is_none()
    }

    /// How long it was observed, without the pauses.
    pub fn observed(&self) -> Duration {
        self.observed + self.observing.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// From now on what epochs show is gathered for [`Self::news`].
    pub fn gather_news(&mut self) {
        self.window = Some(Window::default());
    }

    /// What was hot since the last call, where that is gathered.
    pub fn news(&mut self) -> News {
        self.window.as_mut().map(Window::news).unwrap_or_default()
    }

    /// Takes over what the source has seen. Wants to be called whenever
    /// [`Self::wakes`] is readable, and ten times a second.
    ///
    /// # Errors
    /// The source failed.
    pub fn collect(&mut self) -> anyhow::Result<()> {
        let (Source::Ebpf(source), Some(_)) = (&mut self.source, self.observing) else {
            return Ok(());
        };
        loop {
            let events: Vec<Event> = std::iter::from_fn(|| source.next_event())
                .take(EVENTS_AT_ONCE)
                .collect();
            if events.is_empty()
                || events.iter().any(|event| event.kind == HALF_FULL)
                || self.drained_at.elapsed() >= FRESH
            {
                self.drained_at = Instant::now();
                source
                    .drain(|key, bits| {
                        let file = FileId {
                            device: key.device(),
                            inode: key.inode,
                        };
                        if let Some(window) = &mut self.window {
                            window.see(&self.heat, file, key.chunk(), bits);
                        }
                        self.heat.mark(file, key.chunk(), bits);
                    })
                    .context("failed to empty the access map")?;
            }
            if events.is_empty() {
                return Ok(());
            }
            let mut processes: Vec<i32> = events.iter().map(|e| e.process as i32).collect();
            processes.sort_unstable();
            processes.dedup();
            self.resolver.observe(processes);
            for event in events {
                let file = FileId {
                    device: event.device,
                    inode: event.inode,
                };
                self.generations.insert(file, event.generation);
                // The answer is remembered. Later the dentry may be gone.
                let _ = self.resolver.resolve(inode_key(file, event.generation));
            }
        }
    }

    /// Ends an epoch and begins the next.
    ///
    /// # Errors
    /// The source failed.
    pub fn next_epoch(&mut self) -> anyhow::Result<()> {
        match &self.source {
            Source::Ebpf(_) => {
                self.collect()?;
                self.heat.next_epoch();
                self.look_at_processes();
                Ok(())
            }
            Source::Lru(_) => self.sample(),
        }
    }

    /// The list as it is now, of pages of at least `min_heat`.
    ///
    /// # Errors
    /// The source failed.
    pub fn snapshot(&mut self, min_heat: Heat) -> anyhow::Result<Snapshot> {
        let mut snapshot = match &self.source {
            Source::Ebpf(_) => {
                if self.looked_at.is_none_or(|at| at.elapsed() >= JUST_NOW) {
                    self.look_at_processes();
                }
                self.collect()?;
                self.as_observed(min_heat)
            }
            Source::Lru(_) => {
                self.sample()?;
                self.as_sampled(min_heat)
            }
        };
        snapshot.list.hottest_first();
        Ok(snapshot)
    }

    /// Marks what is mapped and has caused no access to be seen: from the
    /// beginning that may be anything, later large folios, of which one fault
    /// maps all. Page tables where nothing was mapped are not read again.
    fn mark_mapped(&mut self, processes: &[i32]) {
        // Gathered first: what many processes map is used once so far.
        let mut found: BTreeMap<(FileId, u32), ChunkBits> = BTreeMap::new();
        let before = std::mem::take(&mut self.mapped);
        for process in processes {
            let directory = Path::new(PROC).join(process.to_string());
            // A process that is gone by now has nothing mapped.
            let Ok(count) = mapped::count(&directory) else {
                continue;
            };
            self.mapped.insert(*process, count);
            if before.get(process) == Some(&count)
                && !mapped::has_huge_folios(&directory).unwrap_or(false)
            {
                continue;
            }
            // A process that is gone by now has nothing mapped.
            let _ = mapped::each(&directory, kernel::page_size(), |mapping, pages| {
                if let Some(key) = self.resolver.mapped(mapping) {
                    let file = file_id(key);
                    for page in pages {
                        let chunk = (page / CHUNK_PAGES) as u32;
                        found.entry((file, chunk)).or_default().mark(page);
                    }
                }
            });
        }
        for ((file, chunk), bits) in found {
            self.heat.mark_unknown(file, chunk, &bits);
        }
    }

    /// What accesses say.
    fn as_observed(&mut self, min_heat: Heat) -> Snapshot {
        let mut snapshot = Snapshot::new(self.heat.forgotten());
        if let Source::Ebpf(source) = &self.source {
            snapshot.counters = source.counters();
            snapshot.skipped = source.skipped();
            if snapshot.counters.events_lost > 0 {
                for key in source.files_seen() {
                    let file = FileId {
                        device: key.device,
                        inode: key.inode,
                    };
                    self.generations.entry(file).or_insert(key.generation);
                }
            }
        }
        for file in self.heat.files() {
            let generation = self.generations.get(&file).copied().unwrap_or(0);
            let found = self.resolver.resolve(inode_key(file, generation));
            let end = match &found {
                Ok(identity) => identity.size.div_ceil(u64::from(kernel::page_size())),
                Err(_) => u64::MAX,
            };
            let runs = self.heat.runs(file, min_heat, end);
            if runs.is_empty() {
                continue;
            }
            match found {
                Ok(identity) => snapshot.list.files.push(HotFile { identity, runs }),
                Err(reason) => {
                    let sum = snapshot.left_out.entry(reason.into()).or_default();
                    sum.files += 1;
                    sum.pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
                }
            }
        }
        snapshot
    }

    /// What samples say.
    fn as_sampled(&self, min_heat: Heat) -> Snapshot {
        let mut snapshot = Snapshot::new(0);
        for file in self.sampled.values() {
            let mut file = file.clone();
            file.runs.retain(|run| run.heat >= min_heat);
            if !file.runs.is_empty() {
                snapshot.list.files.push(file);
            }
        }
        for (reason, files) in &self.unsampled {
            snapshot.left_out.insert(
                *reason,
                LeftOut {
                    files: *files,
                    pages: 0,
                },
            );
        }
        snapshot
    }

    /// Takes a sample, unless the latest is still fresh. What is known of a
    /// file that is closed by now stays.
    fn sample(&mut self) -> anyhow::Result<()> {
        if self.sampled_at.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        if let Source::Lru(sampler) = &self.source {
            let sample = sampler
                .sample(&self.target, &mut self.resolver)
                .context("failed to read page flags")?;
            for file in sample.files {
                let key = (file.identity.device, file.identity.inode);
                self.sampled.insert(key, file);
            }
            self.unsampled = sample.left_out;
            self.sampled_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Finds processes that joined, and remembers what all of them have open
    /// and mapped.
    fn look_at_processes(&mut self) {
        if let Source::Ebpf(source) = &self.source {
            // A target that is gone is `is_alive`'s to tell.
            let _ = source.refresh();
        }
        let mut processes = self.target.processes(Path::new(PROC)).unwrap_or_default();
        if let Source::Ebpf(source) = &self.source {
            processes.extend(source.processes());
            processes.sort_unstable();
            processes.dedup();
        }
        self.resolver.observe(processes.iter().copied());
        if matches!(self.source, Source::Ebpf(_)) {
            self.mark_mapped(&processes);
            self.looked_at = Some(Instant::now());
        }
    }
}

fn file_id(key: InodeKey) -> FileId {
    FileId {
        device: key.major << 20 | key.minor,
        inode: key.inode,
    }
}

fn inode_key(file: FileId, generation: u32) -> InodeKey {
    // The kernel's dev_t: 12 bits major, 20 bits minor (MINORBITS).
    InodeKey {
        major: file.device >> 20,
        minor: file.device & 0xf_ffff,
        inode: file.inode,
        generation,
    }
}
