//! Observes a target: source → heat, and the list that comes of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use migrator_common::access::{CHUNK_PAGES, ChunkBits};
use migrator_common::event::{Counters, Event, HALF_FULL};

use crate::duty::{News, Window};
use crate::file::{InodeKey, Resolver, Unresolved, identity};
use crate::format;
use crate::heat::{FileId, HeatMap, Sum};
use crate::kernel;
use crate::memory;
use crate::pagelist::runs::{clip, combine, union};
use crate::pagelist::{FileIdentity, Heat, HotFile, PageIndexList, RESIDENT, Run, with_lru};
use crate::source::lru::{Reason, Sampler};
use crate::source::mapped;
use crate::source::{self, Choice, Chosen, Refusal, Source};
use crate::target::Target;

const PROC: &str = "/proc";

/// Events that are handled before the access map gets a look again: a program
/// that opens thousands of files must not make it overflow.
const EVENTS_AT_ONCE: usize = 256;

/// The access map is emptied no more often, unless there is news.
const FRESH: Duration = Duration::from_millis(100);

/// A look at the processes that is not older serves a second time: at the end of
/// an epoch, and for what is printed of it.
const JUST_NOW: Duration = Duration::from_millis(2);

/// A target under observation.
pub struct Tracker {
    source: Source,
    target: Target,
    resolver: Resolver,
    known: Known,
    /// What file handles are made of, and whether the inode was used by the
    /// same file all the time.
    generations: HashMap<FileId, u32>,
    /// What samples the LRU beside the programs, once it is asked for.
    sampler: Option<Sampler>,
    /// Whether lists hold what the latest sample has shown.
    holds_samples: bool,
    /// What the latest sample left out.
    unsampled: BTreeMap<Reason, u64>,
    /// Whether no time has passed since, so that it serves a second time: at the end
    /// of an epoch, and for what is printed of it.
    is_sampled: bool,
    /// When the processes' open and mapped files were looked at.
    looked_at: Option<Instant>,
    /// The files that they had open and mapped then; of all processes of the host it is
    /// not kept.
    in_use: Vec<FileId>,
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

/// A file, in whatever way its source names it: device and inode number.
pub type FileName = (u64, u64);

/// The pages that are known.
#[derive(Debug, Default)]
pub struct Known {
    heat: HeatMap,
    /// What samples of the LRU have shown: the latest of each file.
    sampled: BTreeMap<FileName, HotFile>,
    /// Pages that are known besides those, by `st_dev` and inode.
    besides: BTreeMap<FileName, HotFile>,
}

/// What is known at one moment, in sum: the pages themselves stay where they are,
/// for a list of all of them can take many times as much memory.
#[derive(Debug)]
pub struct Overview {
    /// The files of which pages are known, hottest first.
    pub files: Vec<Found>,
    /// Pages of less heat are left out.
    pub min_heat: Heat,
    /// What stands in no list, by reason.
    pub left_out: BTreeMap<Reason, LeftOut>,
    /// What is not known.
    pub lost: Lost,
}

/// A file of which pages are known.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub identity: FileIdentity,
    /// Its pages.
    pub sum: Sum,
    /// As heat names it; nothing where no use of it was observed.
    file: Option<FileId>,
}

/// What was seen and is not known, or not even seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lost {
    /// What the kernel side saw and lost.
    pub counters: Counters,
    /// Pages that were forgotten because too many were used.
    pub forgotten: u64,
    /// Uses by anybody that the kernel did not show to the programs.
    pub skipped: u64,
}

/// What is known at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The list; hottest file first.
    pub list: PageIndexList,
    /// What is not known.
    pub lost: Lost,
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
            known: Known::default(),
            generations: HashMap::new(),
            sampler: None,
            holds_samples: false,
            unsampled: BTreeMap::new(),
            is_sampled: false,
            looked_at: None,
            in_use: Vec::new(),
            mapped: HashMap::new(),
            drained_at: Instant::now(),
            window: None,
            observing: Some(Instant::now()),
            observed: Duration::ZERO,
        };
        tracker.look_at_processes();
        // The kernel's types were read, and are of no use any more.
        memory::give_back();
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
            (0..fades).for_each(|_| self.known.heat.next_epoch());
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

    /// Samples the LRU: what it knows of the files that the target has open or mapped,
    /// or was seen to use, stands in lists from now on, below what was observed. Takes 0.5 s of CPU for a
    /// million pages, so it is not for a tree that stands still. For a whole host it
    /// does nothing.
    ///
    /// # Errors
    /// Why the LRU's state can't be had here.
    pub fn sample_lru(&mut self) -> Result<(), Refusal> {
        if matches!(self.source, Source::Lru(_)) || self.target == Target::All {
            return Ok(());
        }
        let sampler = match self.sampler.take() {
            Some(sampler) => sampler,
            None => source::sampler()?,
        };
        let sampler = self.sampler.insert(sampler);
        let failed = |error: &dyn std::fmt::Display| Refusal::Failed(error.to_string());
        let open = sampler
            .sample(&self.target, &mut self.resolver)
            .map_err(|error| failed(&error))?;
        let sampled: BTreeSet<FileName> = open
            .files
            .iter()
            .map(|file| name_of(&file.identity))
            .collect();
        let closed = self.known.heat.files().filter_map(|file| {
            let generation = self.generations.get(&file).copied().unwrap_or(0);
            let identity = self.resolver.resolve(inode_key(file, generation)).ok()?;
            (!sampled.contains(&name_of(&identity))).then_some(Ok(identity))
        });
        let closed = sampler
            .sample_files(closed)
            .map_err(|error| failed(&error))?;
        self.known.take_sample(open.files);
        self.known.take_sample(closed.files);
        Ok(())
    }

    /// Samples the LRU no more: the target is about to stand still, and lists hold what
    /// the latest sample has shown.
    pub fn hold_samples(&mut self) {
        self.holds_samples = true;
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
    /// [`Self::wakes`] is readable, ten times a second, and at the end.
    ///
    /// # Errors
    /// The source failed.
    pub fn collect(&mut self) -> anyhow::Result<()> {
        self.is_sampled = false;
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
                            window.see(&self.known.heat, file, key.chunk(), bits);
                        }
                        self.known.heat.mark(file, key.chunk(), bits);
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
                self.known.heat.next_epoch();
                self.look_at_processes();
                Ok(())
            }
            Source::Lru(_) => self.sample(),
        }
    }

    /// What is known now of pages of at least `min_heat`.
    ///
    /// # Errors
    /// The source failed.
    pub fn overview(&mut self, min_heat: Heat) -> anyhow::Result<Overview> {
        let mut overview = match &self.source {
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
        self.known.add_unobserved(&mut overview);
        overview.files.sort_unstable_by(|one, other| {
            let by_heat = other.sum.hotness().total_cmp(&one.sum.hotness());
            by_heat.then_with(|| one.identity.path.cmp(&other.identity.path))
        });
        Ok(overview)
    }

    /// The same with the pages.
    ///
    /// # Errors
    /// The source failed.
    pub fn snapshot(&mut self, min_heat: Heat) -> anyhow::Result<Snapshot> {
        let overview = self.overview(min_heat)?;
        let mut list = PageIndexList {
            page_size: kernel::page_size(),
            files: Vec::with_capacity(overview.files.len()),
        };
        for found in overview.files {
            let mut runs = Vec::new();
            let gathered = self.known.each_runs(&found, min_heat, |some| {
                runs.extend_from_slice(some);
                Ok::<_, std::convert::Infallible>(())
            });
            let Ok(()) = gathered;
            let identity = found.identity;
            list.files.push(HotFile { identity, runs });
        }
        Ok(Snapshot {
            list,
            lost: overview.lost,
        })
    }

    /// How many pages of each file are known so far, whatever the file is; without their
    /// heat. What has been mapped since the last epoch, and what is read at this moment, may be
    /// missing.
    pub fn progress(&self, min_heat: Heat) -> Vec<(FileName, Sum)> {
        let Known { heat, sampled, .. } = &self.known;
        let sampled = sampled.iter().map(|(name, file)| {
            let runs = file.runs.iter().filter(|run| run.heat >= min_heat);
            (*name, sum_of(runs))
        });
        let observed = heat.files().map(|file| {
            let name = (file.device.into(), file.inode);
            // The access map fills up meanwhile.
            let (pages, again) = match min_heat {
                0 | 1 => heat.count(file),
                2 => (heat.count(file).1, heat.count(file).1),
                _ => {
                    let sum = heat.sum(file, min_heat, u64::MAX);
                    (sum.pages, sum.again)
                }
            };
            let sum = Sum {
                pages,
                again,
                heat: 0,
            };
            (name, sum)
        });
        sampled.chain(observed).collect()
    }

    /// Where a file is of which pages are known, if that is known.
    pub fn path(&mut self, name: FileName) -> Option<PathBuf> {
        if let Some(file) = self.known.sampled.get(&name) {
            return Some(file.identity.path.clone());
        }
        let file = FileId {
            device: name.0.try_into().ok()?,
            inode: name.1,
        };
        let generation = self.generations.get(&file).copied().unwrap_or(0);
        let found = self.resolver.resolve(inode_key(file, generation));
        found.ok().map(|identity| identity.path)
    }

    /// Goes on from what another tracker knows of files that the target has in use. What
    /// is not used again cools down from now on, as if it had been seen here.
    pub fn go_on_from(&mut self, list: PageIndexList) {
        let mut files = BTreeMap::new();
        if matches!(self.source, Source::Ebpf(_)) {
            for file in self.in_use.clone() {
                if let Ok(identity) = self.identify(file) {
                    files.insert(name_of(&identity), file);
                }
            }
        }
        let PageIndexList {
            page_size,
            files: mut others,
        } = list;
        others.retain(|hot| match files.get(&name_of(&hot.identity)) {
            Some(file) => {
                self.known.heat.restore(*file, &hot.runs, 0);
                false
            }
            None => true,
        });
        self.add_besides(PageIndexList {
            page_size,
            files: others,
        });
    }

    /// Adds pages that were learned elsewhere. They stand in lists as if they had been
    /// seen here; a page that was seen here, too, has the greater heat.
    fn add_besides(&mut self, list: PageIndexList) {
        let besides = &mut self.known.besides;
        for file in list.files {
            let name = (file.identity.device, file.identity.inode);
            match besides.get_mut(&name) {
                Some(known) => known.runs = union(&known.runs, &file.runs),
                None => drop(besides.insert(name, file)),
            }
        }
    }

    /// Returns the files that the target has open and mapped.
    pub fn in_use(&self) -> &[FileId] {
        &self.in_use
    }

    /// Returns the pages that were seen to be used.
    pub fn heat(&self) -> &HeatMap {
        &self.known.heat
    }

    /// Returns when the access map is to be emptied next.
    pub fn is_due_at(&self) -> Instant {
        self.drained_at + FRESH
    }

    /// Returns where a file is now that was seen.
    ///
    /// # Errors
    /// Why there is no such place.
    pub fn identify(&mut self, file: FileId) -> Result<FileIdentity, Unresolved> {
        self.resolver
            .resolve(inode_key(file, self.generation(file)))
    }

    /// Returns the generation of a file's inode; 0 where it is not known.
    pub fn generation(&self, file: FileId) -> u32 {
        self.generations.get(&file).copied().unwrap_or(0)
    }

    /// Takes over where a file is that an earlier tracker has seen.
    pub fn recall(&mut self, key: InodeKey, path: PathBuf) -> FileId {
        let file = file_id(key);
        if key.generation != 0 {
            self.generations.insert(file, key.generation);
        }
        self.resolver.recall(key, path);
        file
    }

    /// Takes over pages of such a file, as [`HeatMap::restore`] does.
    pub fn restore(&mut self, file: FileId, runs: &[Run], epochs: u32) {
        self.known.heat.restore(file, runs, epochs);
    }

    /// Ends an epoch in which nothing was observed.
    pub fn skip_epoch(&mut self) {
        self.known.heat.next_epoch();
    }

    /// Forgets a file.
    pub fn forget(&mut self, file: FileId) {
        self.known.heat.remove(file);
        self.generations.remove(&file);
    }

    /// Returns what is not known.
    pub fn lost(&self) -> Lost {
        let mut lost = Lost {
            forgotten: self.known.heat.forgotten(),
            ..Lost::default()
        };
        if let Source::Ebpf(source) = &self.source {
            lost.counters = source.counters();
            lost.skipped = source.skipped();
        }
        lost
    }

    /// What is known.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// The same; nobody is observed any more.
    pub fn into_known(self) -> Known {
        self.known
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
            self.known.heat.mark_unknown(file, chunk, &bits);
        }
    }

    /// What accesses say.
    fn as_observed(&mut self, min_heat: Heat) -> Overview {
        let mut overview = Overview::new(min_heat);
        overview.lost = self.lost();
        if let Source::Ebpf(source) = &self.source
            && overview.lost.counters.events_lost > 0
        {
            for key in source.files_seen() {
                let file = FileId {
                    device: key.device,
                    inode: key.inode,
                };
                self.generations.entry(file).or_insert(key.generation);
            }
        }
        overview
            .files
            .reserve_exact(self.known.heat.files().count());
        for file in self.known.heat.files() {
            let generation = self.generations.get(&file).copied().unwrap_or(0);
            let found = self.resolver.resolve(inode_key(file, generation));
            let end = found.as_ref().map_or(u64::MAX, end);
            let sum = self.known.heat.sum(file, min_heat, end);
            if sum.pages == 0 {
                continue;
            }
            match found {
                Ok(identity) => overview.files.push(Found {
                    identity,
                    sum,
                    file: Some(file),
                }),
                Err(reason) => {
                    let left_out = overview.left_out.entry(reason.into()).or_default();
                    left_out.files += 1;
                    left_out.pages += sum.pages;
                }
            }
        }
        overview
    }

    /// What samples say.
    fn as_sampled(&self, min_heat: Heat) -> Overview {
        let mut overview = Overview::new(min_heat);
        for file in self.known.sampled.values() {
            let mut found = Found {
                identity: file.identity.clone(),
                sum: Sum::default(),
                file: None,
            };
            found.sum = sum_of(&self.known.runs(&found, min_heat));
            if found.sum.pages > 0 {
                overview.files.push(found);
            }
        }
        for (reason, files) in &self.unsampled {
            overview.left_out.insert(
                *reason,
                LeftOut {
                    files: *files,
                    pages: 0,
                },
            );
        }
        overview
    }

    /// Takes a sample, unless the latest shows what is. What is known of a file that
    /// is closed by now stays.
    fn sample(&mut self) -> anyhow::Result<()> {
        if self.is_sampled || self.holds_samples {
            return Ok(());
        }
        if let Source::Lru(sampler) = &self.source {
            let sample = sampler
                .sample(&self.target, &mut self.resolver)
                .context("failed to read page flags")?;
            self.known.take_sample(sample.files);
            self.unsampled = sample.left_out;
            self.is_sampled = true;
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
        let observed = self.resolver.observe(processes.iter().copied());
        if self.target != Target::All {
            self.in_use = observed.inodes.into_iter().map(file_id).collect();
        }
        if matches!(self.source, Source::Ebpf(_)) {
            self.mark_mapped(&processes);
            self.looked_at = Some(Instant::now());
        }
    }
}

impl Known {
    /// Writes the pages to a file, as [`format::write_atomically`] does.
    ///
    /// # Errors
    /// As there.
    pub fn write_atomically(&self, path: &Path, overview: &Overview) -> anyhow::Result<()> {
        format::write_atomically_with(path, kernel::page_size(), |writer| {
            for found in &overview.files {
                writer.begin(&found.identity)?;
                self.each_runs(found, overview.min_heat, |runs| writer.runs(runs))?;
            }
            Ok(())
        })
    }

    /// Takes over what a sample of the LRU has shown.
    fn take_sample(&mut self, files: Vec<HotFile>) {
        for file in files {
            self.sampled.insert(name_of(&file.identity), file);
        }
    }

    /// Counts in pages of which no use was observed: those of files that are in the
    /// overview, and files that are not.
    fn add_unobserved(&self, overview: &mut Overview) {
        let mut listed = BTreeSet::new();
        for found in &mut overview.files {
            let name = name_of(&found.identity);
            listed.insert(name);
            if found.file.is_some() && self.has_unobserved(name) {
                found.sum = sum_of(&self.runs(found, overview.min_heat));
            }
        }
        for (name, file) in self.sampled.iter().chain(&self.besides) {
            if !listed.insert(*name) {
                continue;
            }
            // Deleted or replaced since.
            let Some(identity) = identity::now(&file.identity) else {
                continue;
            };
            let mut found = Found {
                identity,
                sum: Sum::default(),
                file: None,
            };
            found.sum = sum_of(&self.runs(&found, overview.min_heat));
            if found.sum.pages > 0 {
                overview.files.push(found);
            }
        }
    }

    fn has_unobserved(&self, name: FileName) -> bool {
        self.sampled.contains_key(&name) || self.besides.contains_key(&name)
    }

    /// Gives the pages of a file, some runs at a time.
    fn each_runs<E>(
        &self,
        found: &Found,
        min_heat: Heat,
        mut each: impl FnMut(&[Run]) -> Result<(), E>,
    ) -> Result<(), E> {
        let identity = &found.identity;
        match found.file {
            Some(file) if !self.has_unobserved(name_of(identity)) => {
                self.heat.each_runs(file, min_heat, end(identity), each)
            }
            _ => each(&self.runs(found, min_heat)),
        }
    }

    /// Returns the pages of a file, whoever knows them.
    fn runs(&self, found: &Found, min_heat: Heat) -> Vec<Run> {
        let name = name_of(&found.identity);
        let end = end(&found.identity);
        let of = |files: &BTreeMap<FileName, HotFile>| {
            let runs = files.get(&name).map(|file| clip(&file.runs, end));
            runs.unwrap_or_default()
        };
        let observed = found.file.map(|file| self.heat.runs(file, RESIDENT, end));
        let observed = union(&observed.unwrap_or_default(), &of(&self.besides));
        let mut runs = match self.sampled.contains_key(&name) {
            true => combine(&observed, &of(&self.sampled), with_lru),
            false => observed,
        };
        runs.retain(|run| run.heat >= min_heat);
        runs
    }
}

fn name_of(identity: &FileIdentity) -> FileName {
    (identity.device, identity.inode)
}

impl Overview {
    fn new(min_heat: Heat) -> Self {
        Self {
            files: Vec::new(),
            min_heat,
            left_out: BTreeMap::new(),
            lost: Lost::default(),
        }
    }

    /// How many pages are known.
    pub fn pages(&self) -> u64 {
        self.files.iter().map(|file| file.sum.pages).sum()
    }
}

/// The page that a file ends before.
fn end(identity: &FileIdentity) -> u64 {
    identity.size.div_ceil(u64::from(kernel::page_size()))
}

fn sum_of<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Sum {
    let mut sum = Sum::default();
    for run in runs {
        sum.add(run.pages.into(), run.heat);
    }
    sum
}

/// Returns an inode as heat names it.
pub fn file_id(key: InodeKey) -> FileId {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::pagelist::{ACTIVE, AGAIN, ONCE, REFERENCED};

    const SEEN: FileId = FileId {
        device: 1,
        inode: 2,
    };

    /// A file of so many pages.
    fn file(directory: &Path, name: &str, pages: u64) -> FileIdentity {
        let path = directory.join(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(pages * u64::from(kernel::page_size()))
            .unwrap();
        let meta = file.metadata().unwrap();
        FileIdentity {
            path,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: identity::mtime_ns(&meta),
        }
    }

    fn hot(identity: &FileIdentity, index: u64, pages: u32, heat: Heat) -> HotFile {
        let runs = vec![Run { index, pages, heat }];
        HotFile {
            identity: identity.clone(),
            runs,
        }
    }

    /// What is known of a file that was seen, of which page 0 was used once and page 1
    /// again.
    fn known(identity: &FileIdentity, besides: Vec<HotFile>) -> (Known, Overview) {
        let mut known = Known::default();
        let mut bits = ChunkBits::default();
        (bits.words[0].used, bits.words[0].again) = (0b11, 0b10);
        known.heat.mark(SEEN, 0, &bits);
        let name = |file: &HotFile| (file.identity.device, file.identity.inode);
        known.besides = besides
            .into_iter()
            .map(|file| (name(&file), file))
            .collect();
        let mut overview = Overview::new(1);
        overview.files.push(Found {
            identity: identity.clone(),
            sum: known.heat.sum(SEEN, 1, u64::MAX),
            file: Some(SEEN),
        });
        known.add_unobserved(&mut overview);
        (known, overview)
    }

    fn runs(known: &Known, found: &Found, min_heat: Heat) -> Vec<(u64, u32, Heat)> {
        let mut runs = Vec::new();
        let gathered = known.each_runs(found, min_heat, |some| {
            runs.extend(some.iter().map(|run| (run.index, run.pages, run.heat)));
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = gathered;
        runs
    }

    #[test]
    fn what_is_known_besides_is_in_the_overview_and_in_the_runs() {
        let directory = tempfile::tempdir().unwrap();
        let seen = file(directory.path(), "seen", 4);
        let other = file(directory.path(), "other", 2);
        // Beyond their ends there are no pages any more.
        let besides = vec![hot(&seen, 0, 9, ACTIVE), hot(&other, 1, 9, ACTIVE)];
        let (known, overview) = known(&seen, besides);
        let [first, second] = &overview.files[..] else {
            panic!("{overview:?}");
        };
        assert_eq!((first.sum.pages, first.sum.again), (4, 4));
        let found = runs(&known, first, 1);
        assert!(matches!(found[0], (0, 1, ACTIVE)), "{found:?}");
        assert!(matches!(found[1], (1, 1, AGAIN..)), "{found:?}");
        assert!(matches!(found[2], (2, 2, ACTIVE)), "{found:?}");
        assert_eq!(runs(&known, first, AGAIN), found[1..2]);
        assert_eq!((second.sum.pages, &second.identity), (1, &other));
        assert_eq!(runs(&known, second, 1), [(1, 1, ACTIVE)]);
    }

    #[test]
    fn the_lru_ranks_below_what_was_observed_and_raises_it() {
        let directory = tempfile::tempdir().unwrap();
        let seen = file(directory.path(), "seen", 8);
        let other = file(directory.path(), "other", 2);
        let mut known = known(&seen, Vec::new()).0;
        let mut sampled = hot(&seen, 0, 3, ACTIVE);
        let (index, pages, heat) = (6, 1, REFERENCED);
        sampled.runs.push(Run { index, pages, heat });
        known.take_sample(vec![sampled, hot(&other, 0, 1, RESIDENT)]);
        let mut overview = Overview::new(RESIDENT);
        overview.files.push(Found {
            identity: seen.clone(),
            sum: Sum::default(),
            file: Some(SEEN),
        });
        known.add_unobserved(&mut overview);
        let found = runs(&known, &overview.files[0], RESIDENT);
        // Page 0 was used once, page 1 again.
        assert_eq!(found[0], (0, 1, AGAIN));
        assert!(
            matches!(found[1], (1, 1, heat) if heat > AGAIN),
            "{found:?}"
        );
        assert_eq!(found[2..], [(2, 1, ACTIVE), (6, 1, REFERENCED)]);
        assert_eq!(overview.files[0].sum.pages, 4);
        assert_eq!(runs(&known, &overview.files[0], ACTIVE).len(), 3);
        assert_eq!(
            runs(&known, &overview.files[1], RESIDENT),
            [(0, 1, RESIDENT)]
        );
    }

    #[test]
    fn a_file_that_was_replaced_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let seen = file(directory.path(), "seen", 4);
        let gone = file(directory.path(), "gone", 4);
        let mut old = file(directory.path(), "old", 4);
        old.inode = gone.inode;
        fs::remove_file(&gone.path).unwrap();
        let (_, overview) = known(&seen, vec![hot(&old, 0, 1, ONCE)]);
        assert_eq!(overview.files.len(), 1, "{overview:?}");
    }

    #[test]
    fn without_anything_besides_runs_are_those_of_heat() {
        let directory = tempfile::tempdir().unwrap();
        let seen = file(directory.path(), "seen", 4);
        let (known, overview) = known(&seen, Vec::new());
        assert_eq!(overview.files[0].sum.pages, 2);
        assert_eq!(runs(&known, &overview.files[0], 1)[0], (0, 1, ONCE));
    }
}
