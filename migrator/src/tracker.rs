//! Observes a target: source → heat, and the list that comes of it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use migrator_common::event::{Counters, HALF_FULL};

use crate::cli::SourceChoice;
use crate::file::{InodeKey, Resolver, Unresolved};
use crate::heat::{FileId, HeatMap};
use crate::kernel;
use crate::pagelist::{Heat, HotFile, PageIndexList};
use crate::source::{self, Chosen, Refusal, Source};
use crate::target::Target;

const PROC: &str = "/proc";

/// Events that are handled before the access map gets a look again: a program
/// that opens thousands of files must not make it overflow.
const EVENTS_AT_ONCE: usize = 256;

/// A target under observation.
pub struct Tracker {
    source: Source,
    target: Target,
    resolver: Resolver,
    heat: HeatMap,
    /// What file handles are made of, and whether the inode was used by the
    /// same file all the time.
    generations: HashMap<FileId, u32>,
}

/// What is known at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The list; hottest file first.
    pub list: PageIndexList,
    /// What stands in no list, by reason.
    pub left_out: BTreeMap<Unresolved, LeftOut>,
    /// What the kernel side saw and lost.
    pub counters: Counters,
    /// Pages that were forgotten because too many were used.
    pub forgotten: u64,
}

/// How much was left out for a reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files.
    pub files: u64,
    /// Their pages of the heat asked for.
    pub pages: u64,
}

impl Tracker {
    /// Begins to observe. Also gives which source was chosen, and why.
    ///
    /// # Errors
    /// Why no source can be used, or that there is no such target.
    pub fn start(target: Target, choice: SourceChoice) -> Result<(Self, Chosen), Refusal> {
        // First of all, so that a wrong pid is not blamed on the source.
        target.processes(Path::new(PROC)).map_err(Refusal::Target)?;
        let (source, chosen) = source::choose(choice, &target)?;
        let mut tracker = Self {
            source,
            target,
            resolver: Resolver::new(PathBuf::from(PROC)),
            heat: HeatMap::default(),
            generations: HashMap::new(),
        };
        tracker.look_at_processes();
        Ok((tracker, chosen))
    }

    /// The source in use.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Readable when `collect` should be called soon.
    pub fn wakes(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Ebpf(source) => Some(source.as_fd()),
        }
    }

    /// Whether there still is something to observe.
    pub fn is_alive(&self) -> bool {
        self.target.is_alive(Path::new(PROC))
    }

    /// Takes over what the source has seen. Wants to be called whenever the
    /// source's descriptor is readable, and ten times a second.
    ///
    /// # Errors
    /// The source failed.
    pub fn collect(&mut self) -> anyhow::Result<()> {
        match &mut self.source {
            Source::Ebpf(source) => loop {
                let mut events = Vec::new();
                let mut half_full = false;
                while events.len() < EVENTS_AT_ONCE
                    && let Some(event) = source.next_event()
                {
                    half_full |= event.kind == HALF_FULL;
                    events.push(event);
                }
                if half_full || events.is_empty() {
                    source.drain(|key, bits| {
                        let file = FileId {
                            device: key.device(),
                            inode: key.inode,
                        };
                        self.heat.mark(file, key.chunk(), bits);
                    })?;
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
            },
        }
        Ok(())
    }

    /// Ends an epoch and begins the next.
    ///
    /// # Errors
    /// The source failed.
    pub fn next_epoch(&mut self) -> anyhow::Result<()> {
        self.collect()?;
        self.heat.next_epoch();
        self.look_at_processes();
        Ok(())
    }

    /// The list as it is now, of pages of at least `min_heat`.
    ///
    /// # Errors
    /// The source failed.
    pub fn snapshot(&mut self, min_heat: Heat) -> anyhow::Result<Snapshot> {
        self.collect()?;
        let mut left_out: BTreeMap<Unresolved, LeftOut> = BTreeMap::new();
        let mut files = Vec::new();
        let mut counters = Counters::default();
        if let Source::Ebpf(source) = &self.source {
            counters = source.counters();
            if counters.events_lost > 0 {
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
            match self.resolver.resolve(inode_key(file, generation)) {
                Ok(identity) => {
                    let end = identity.size.div_ceil(u64::from(kernel::page_size()));
                    let runs = self.heat.runs(file, min_heat, end);
                    if !runs.is_empty() {
                        files.push(HotFile { identity, runs });
                    }
                }
                Err(reason) => {
                    let runs = self.heat.runs(file, min_heat, u64::MAX);
                    if !runs.is_empty() {
                        let sum = left_out.entry(reason).or_default();
                        sum.files += 1;
                        sum.pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
                    }
                }
            }
        }
        files.sort_by(|a, b| {
            hotness(b)
                .total_cmp(&hotness(a))
                .then(a.identity.path.cmp(&b.identity.path))
        });
        Ok(Snapshot {
            list: PageIndexList {
                page_size: kernel::page_size(),
                files,
            },
            left_out,
            counters,
            forgotten: self.heat.forgotten(),
        })
    }

    /// Finds processes that joined, and remembers what all of them have open.
    fn look_at_processes(&mut self) {
        if let Source::Ebpf(source) = &self.source {
            // A target that is gone is `is_alive`'s to tell.
            let _ = source.refresh();
        }
        let processes = self.target.processes(Path::new(PROC)).unwrap_or_default();
        self.resolver.observe(processes);
    }
}

/// Mean heat of a file's pages.
fn hotness(file: &HotFile) -> f64 {
    let heat: u64 = file
        .runs
        .iter()
        .map(|run| u64::from(run.pages) * u64::from(run.heat))
        .sum();
    heat as f64 / file.pages().max(1) as f64
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
