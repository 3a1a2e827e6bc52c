//! Ahead of the freeze: observes the tree, and sends lists of what it uses
//! while it still runs.
//!
//! Each round reads ahead what the one before left, while the tree goes on
//! using new pages; so the rounds become small, and the last list, for which
//! the tree has to stand still, is a short one.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::files;
use super::report::ListSize;
use super::rounds::Rounds;
use super::source::{Cache, Outgoing, step, unexpected};
use crate::child;
use crate::observe::{COLLECT_EVERY, Epochs};
use crate::pagelist::{Heat, PageIndexList};
use crate::process;
use crate::tracker::Tracker;
use crate::transfer::write_list;

/// A round of fewer pages than this part of all that were sent is the last
/// before the freeze.
const SMALL: f64 = 0.01;

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
    rounds: Rounds,
    pub(super) size: ListSize,
    /// How many lists were sent, how many of them before the freeze, and how
    /// many the destination has prefetched.
    sent: u32,
    pub(super) ahead: u32,
    pub(super) warm: u32,
}

impl Outgoing<'_> {
    /// Observes, and sends lists ahead while the tree still runs.
    pub(super) fn watch(
        &mut self,
        cache: &Cache,
        tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
    ) -> anyhow::Result<Watched> {
        let began = Instant::now();
        let (tracker, name) = tracker()?;
        let mut watched = Watched {
            tracker,
            name,
            epochs: Epochs::every(cache.interval),
            min_heat: cache.min_heat,
        };
        step("observe");
        self.let_run(&mut watched, cache.observe, |_| false)?;
        self.clock.ended("observe", began);
        let Some(limit) = cache.warmup else {
            return Ok(watched);
        };
        let began = Instant::now();
        let mut watched = Some(watched);
        loop {
            // What the tree may still write waits until it can't.
            let waits = self.written()?;
            let pages = self.send_delta(&mut watched, waits, BTreeSet::new(), &mut |this| {
                this.check_signals()
            })?;
            self.lists.ahead = self.lists.sent;
            let enough = (self.lists.size.pages as f64 * SMALL) as u64;
            let left = limit.saturating_sub(began.elapsed());
            let Some(observed) = &mut watched else {
                bail!("the tracker was lost");
            };
            if pages > 0 {
                step(&format!(
                    "warm-up, round {}: {pages} pages",
                    self.lists.sent
                ));
                self.let_run(observed, left, |lists| lists.warm == lists.sent)?;
            }
            if pages <= enough || began.elapsed() >= limit {
                self.clock.ended("warm-up", began);
                return watched.context("the tracker was lost");
            }
        }
    }

    /// Returns the files that the tree can write to.
    fn written(&mut self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let processes = process::tree(self.options.root)?;
        // A dead NFS server answers no stat(2).
        let files = child::attend(
            "open files",
            SERVER_LIMIT,
            move || files::files(&processes),
            || self.check_signals(),
        )?;
        let written = files.into_iter().filter(|file| file.writable);
        Ok(written.map(|file| file.path).collect())
    }

    /// Observes for a time, or until it is enough.
    fn let_run(
        &mut self,
        watched: &mut Watched,
        time: Duration,
        is_enough: impl Fn(&Lists) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(message) = self.recv(Duration::ZERO)? {
                return Err(unexpected(&message));
            }
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() || is_enough(&self.lists) {
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

    /// Sends the pages that are new, but for those of some files; others were
    /// written until just now. Returns how many pages that are.
    ///
    /// Files and the connection may not answer: a thread does it, and `attend`
    /// is called meanwhile. When that fails, the thread keeps the tracker.
    pub(super) fn send_delta(
        &mut self,
        watched: &mut Option<Watched>,
        without: BTreeSet<PathBuf>,
        written: BTreeSet<PathBuf>,
        attend: &mut dyn FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let Some(mut observed) = watched.take() else {
            return Ok(0);
        };
        let mut rounds = std::mem::take(&mut self.lists.rounds);
        let messages = self.peer()?.sender();
        let send = move || -> anyhow::Result<_> {
            let mut list = observed.tracker.snapshot(observed.min_heat)?.list;
            refresh(&mut list, &written);
            rounds.news(&mut list, &without);
            let mut size = ListSize {
                files: list.files.len() as u64,
                pages: list.pages(),
                bytes: 0,
            };
            if size.pages > 0 {
                size.bytes = write_list(&list, messages)?;
            }
            Ok((observed, rounds, size))
        };
        let sent = child::attend("list", SERVER_LIMIT, send, || attend(self))?;
        let (observed, rounds, size) = sent?;
        *watched = Some(observed);
        self.lists.rounds = rounds;
        if size.pages > 0 {
            self.lists.size.pages += size.pages;
            self.lists.size.files += size.files;
            self.lists.size.bytes += size.bytes;
            self.lists.sent += 1;
        }
        Ok(size.pages)
    }
}

/// Takes size and time of each file as they are now: what was written since
/// its path was found has changed them. Of those written until just now the
/// server knows more than this host: NFS asks it when a file is opened.
fn refresh(list: &mut PageIndexList, written: &BTreeSet<PathBuf>) {
    for file in &mut list.files {
        let identity = &mut file.identity;
        let path = &identity.path;
        let meta = match written.contains(path) {
            true => fs::File::open(path).and_then(|file| file.metadata()),
            false => fs::symlink_metadata(path),
        };
        let Ok(meta) = meta else { continue };
        if (meta.is_file(), inode(&meta)) == (true, identity.inode) {
            let now = super::order::OpenedFile::new(PathBuf::new(), &meta, false);
            (identity.size, identity.mtime_ns) = (now.size, now.mtime_ns);
        }
    }
}

fn inode(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}
