//! Ahead of the freeze: observes the tree, and sends lists of what it uses
//! while it still runs.
//!
//! Each round reads ahead what the one before left, while the tree goes on
//! using new pages; so the rounds become small, and the last list, for which
//! the tree has to stand still, is a short one. Files that are being written
//! wait for it: a network file system drops their pages at each write.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use super::changes::{Attributes, Changes};
use super::convergence::{self, MIN_ROUND, Next};
use super::delta::{Delta, Round};
use super::files;
use super::report::{ListSize, Precopy};
use super::source::{Cache, Outgoing, step, unexpected};
use crate::child;
use crate::file::StatKey;
use crate::observe::{COLLECT_EVERY, Epochs};
use crate::pagelist::{Heat, HotFile, PageIndexList, REFERENCED, RESIDENT};
use crate::process;
use crate::say;
use crate::tracker::Tracker;
use crate::transfer::write_list;

/// How long files and the connection may take together while the tree runs. A
/// freeze has a limit of its own.
const SERVER_LIMIT: Duration = Duration::from_secs(600);

/// A tracker, and until when its epoch lasts.
pub(super) struct Watched {
    tracker: Tracker,
    pub(super) name: &'static str,
    epochs: Epochs,
    min_heat: Heat,
}

/// What was sent of lists.
#[derive(Default)]
pub(super) struct Lists {
    known: Known,
    pub(super) size: ListSize,
    pub(super) precopy: Precopy,
    /// How many lists were sent, and how many of them the destination has
    /// prefetched.
    sent: u32,
    pub(super) warm: u32,
}

/// What is known of pages and files from one list to the next.
#[derive(Default)]
struct Known {
    delta: Delta,
    changes: Changes,
}

/// What the tree does while a list is made.
pub(super) enum Tree {
    /// It runs, and may write.
    Runs,
    /// It stands still, and these files were synced just now.
    Frozen {
        /// As lists have them.
        written: BTreeSet<StatKey>,
    },
}

impl Outgoing<'_> {
    /// Observes, and sends lists ahead while the tree still runs.
    pub(super) fn watch(
        &mut self,
        cache: &Cache,
        tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
    ) -> anyhow::Result<Watched> {
        let began = Instant::now();
        if cache.warmup.is_some() {
            self.look_at_files()?;
        }
        let (tracker, name) = tracker()?;
        let mut watched = Watched {
            tracker,
            name,
            epochs: Epochs::every(cache.interval),
            min_heat: cache.min_heat,
        };
        step("observe");
        self.let_run(&mut watched, cache.observe, |_, _| false)?;
        if cache.lru {
            watched = self.sample_lru(watched)?;
        }
        self.clock.ended("observe", began);
        let Some(limit) = cache.warmup else {
            return Ok(watched);
        };
        let began = Instant::now();
        let mut watched = Some(watched);
        loop {
            let round =
                self.send_delta(&mut watched, Tree::Runs, &mut |this| this.check_signals())?;
            let precopy = &mut self.lists.precopy;
            precopy.rounds = self.lists.sent;
            precopy.pages += round.new;
            precopy.deferred_pages = round.settling + round.changing;
            let next = convergence::next(round, precopy.pages, began.elapsed(), limit);
            if round != Round::default() {
                step(&describe(self.lists.sent, round));
            }
            let Some(observed) = &mut watched else {
                bail!("the tracker was lost");
            };
            let at_least = match next {
                Next::Continue => MIN_ROUND,
                Next::Freeze(_) => Duration::ZERO,
            };
            let left = limit.saturating_sub(began.elapsed());
            self.let_run(observed, left, |lists, time| {
                lists.warm == lists.sent && time >= at_least
            })?;
            if let Next::Freeze(why) = next {
                step(&format!("warm-up ends: {why}"));
                self.clock.ended("warm-up", began);
                return watched.context("the tracker was lost");
            }
        }
    }

    /// Takes the first look at the files that the tree has open: what differs
    /// in the next one is being written.
    fn look_at_files(&mut self) -> anyhow::Result<()> {
        let processes = process::tree(self.options.root)?;
        // A dead NFS server answers no stat(2).
        let looks = child::attend(
            "open files",
            SERVER_LIMIT,
            move || files::attributes(&processes),
            || self.check_signals(),
        )?;
        self.lists.known.look(looks);
        Ok(())
    }

    /// Adds what the LRU knows of the tree's files, while it still runs.
    fn sample_lru(&mut self, mut watched: Watched) -> anyhow::Result<Watched> {
        let sample = move || {
            let sampled = watched.tracker.sample_lru();
            (watched, sampled)
        };
        let (watched, sampled) =
            child::attend("page flags", SERVER_LIMIT, sample, || self.check_signals())?;
        if let Err(refusal) = sampled {
            say!("warning: only observed uses are listed; the LRU's state is {refusal}");
        }
        Ok(watched)
    }

    /// Observes for a time, or until the lists and the time so far are enough.
    fn let_run(
        &mut self,
        watched: &mut Watched,
        time: Duration,
        is_enough: impl Fn(&Lists, Duration) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(message) = self.recv(Duration::ZERO)? {
                return Err(unexpected(&message));
            }
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() || is_enough(&self.lists, began.elapsed()) {
                return Ok(());
            }
            let wait = left.min(COLLECT_EVERY);
            if watched
                .epochs
                .step(&mut watched.tracker, self.signals, wait)?
            {
                bail!("interrupted at the source");
            }
            if !watched.tracker.is_alive() {
                bail!("process {} has ended", self.options.root);
            }
        }
    }

    /// Sends the pages that have not been sent yet, but those of files that are
    /// being written while the tree runs. Returns how many pages that are.
    ///
    /// Files and the connection may not answer: a thread does it, and `attend`
    /// is called meanwhile. When that fails, the thread keeps the tracker.
    pub(super) fn send_delta(
        &mut self,
        watched: &mut Option<Watched>,
        tree: Tree,
        attend: &mut dyn FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Round> {
        let Some(mut observed) = watched.take() else {
            return Ok(Round::default());
        };
        let mut known = std::mem::take(&mut self.lists.known);
        let messages = self.peer()?.sender();
        let send = move || -> anyhow::Result<_> {
            let min_heat = match &tree {
                // Of the others no use is known: nothing waits for them.
                Tree::Runs => observed.min_heat.max(REFERENCED),
                Tree::Frozen { .. } => {
                    observed.tracker.hold_samples();
                    observed.min_heat
                }
            };
            let mut list = observed.tracker.snapshot(min_heat)?.list;
            let round = known.leave_delta(&mut list, &tree);
            let mut sizes = Vec::new();
            for list in used_first(list) {
                let mut size = ListSize {
                    files: list.files.len() as u64,
                    pages: list.pages(),
                    bytes: 0,
                };
                if size.pages > 0 {
                    size.bytes = write_list(&list, messages.clone())?;
                    sizes.push(size);
                }
            }
            Ok((observed, known, round, sizes))
        };
        let sent = child::attend("list", SERVER_LIMIT, send, || attend(self))?;
        let (observed, known, round, sizes) = sent?;
        *watched = Some(observed);
        self.lists.known = known;
        for size in sizes {
            self.lists.size.pages += size.pages;
            self.lists.size.files += size.files;
            self.lists.size.bytes += size.bytes;
            self.lists.sent += 1;
        }
        Ok(round)
    }
}

impl Known {
    fn look(&mut self, looks: Vec<(StatKey, Attributes)>) {
        let now = Instant::now();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock_ns = clock.map_or(0, |time| time.as_nanos() as i64);
        for (file, attributes) in looks {
            self.changes.look(file, attributes, now, clock_ns);
        }
    }

    /// Looks at the files of the list, and leaves in it what is to be sent.
    fn leave_delta(&mut self, list: &mut PageIndexList, tree: &Tree) -> Round {
        match tree {
            Tree::Runs => {
                self.look(refresh(list, &BTreeSet::new()));
                let (changes, now) = (&self.changes, Instant::now());
                self.delta.take(list, |file| changes.activity(file, now))
            }
            Tree::Frozen { written } => {
                refresh(list, written);
                self.delta.take_last(list);
                Round {
                    new: list.pages(),
                    ..Round::default()
                }
            }
        }
    }
}

/// Returns the pages that are known to have been used, and those that are merely
/// resident: the destination prefetches one list after the other.
fn used_first(mut list: PageIndexList) -> [PageIndexList; 2] {
    let mut resident = PageIndexList {
        page_size: list.page_size,
        files: Vec::new(),
    };
    for file in &mut list.files {
        let (merely, used) = file.runs.iter().partition(|run| run.heat <= RESIDENT);
        file.runs = used;
        if !Vec::is_empty(&merely) {
            resident.files.push(HotFile {
                identity: file.identity.clone(),
                runs: merely,
            });
        }
    }
    list.files.retain(|file| !file.runs.is_empty());
    [list, resident]
}

/// Takes size and time of each file as they are now: what was written since
/// its path was found has changed them. Of those written until just now the
/// server knows more than this host: NFS asks it when a file is opened.
///
/// Returns what it has seen.
fn refresh(list: &mut PageIndexList, written: &BTreeSet<StatKey>) -> Vec<(StatKey, Attributes)> {
    let mut looks = Vec::with_capacity(list.files.len());
    for file in &mut list.files {
        let identity = &mut file.identity;
        if written.contains(&StatKey::from(&*identity)) {
            // What fails here is seen below.
            _ = fs::File::open(&identity.path);
        }
        if let Some((key, now)) = files::attributes_of(identity) {
            (identity.size, identity.mtime_ns) = (now.size, now.mtime_ns);
            looks.push((key, now));
        }
    }
    looks
}

/// Describes a round, for whoever waits.
fn describe(number: u32, round: Round) -> String {
    let deferred = round.settling + round.changing;
    match (round.new, deferred) {
        (new, 0) => format!("warm-up, round {number}: {new} pages"),
        (0, deferred) => {
            format!("warm-up: {deferred} pages of files that are being written wait")
        }
        (new, deferred) => format!(
            "warm-up, round {number}: {new} pages; {deferred} of files that are being written wait"
        ),
    }
}
