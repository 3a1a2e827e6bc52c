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

use anyhow::bail;

use super::files;
use super::report::ListSize;
use super::rounds::Rounds;
use super::source::{Cache, Host, out_of_turn, step};
use super::tree;
use crate::observe::{COLLECT_EVERY, Epochs};
use crate::pagelist::{Heat, PageIndexList};
use crate::tracker::Tracker;
use crate::transfer::write_list;

/// A round of fewer pages than this part of all that were sent is the last
/// before the freeze.
const SMALL: f64 = 0.01;

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

impl Host<'_> {
    /// Observes, and lets lists go ahead while the tree still runs.
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
        loop {
            // What the tree may still write waits until it can't.
            let waits = self.written()?;
            let pages = self.send_news(&mut watched, &waits, &BTreeSet::new())?;
            self.lists.ahead = self.lists.sent;
            let enough = (self.lists.size.pages as f64 * SMALL) as u64;
            let left = limit.saturating_sub(began.elapsed());
            if pages > 0 {
                step(&format!(
                    "warm-up, round {}: {pages} pages",
                    self.lists.sent
                ));
                self.let_run(&mut watched, left, |lists| lists.warm == lists.sent)?;
            }
            if pages <= enough || began.elapsed() >= limit {
                self.clock.ended("warm-up", began);
                return Ok(watched);
            }
        }
    }

    /// The files that the tree can write to.
    fn written(&self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let files = files::files(&tree::processes(self.options.root)?);
        let written = files.into_iter().filter(|file| file.writable);
        Ok(written.map(|file| file.path).collect())
    }

    /// Observes for so long, or until it is enough.
    fn let_run(
        &mut self,
        watched: &mut Watched,
        time: Duration,
        is_enough: impl Fn(&Lists) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(message) = self.hear(Duration::ZERO)? {
                return Err(out_of_turn(&message));
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

    /// Sends what is new, but for some files. Gives how many pages that are.
    /// Others were written until just now.
    pub(super) fn send_news(
        &mut self,
        watched: &mut Watched,
        without: &BTreeSet<PathBuf>,
        written: &BTreeSet<PathBuf>,
    ) -> anyhow::Result<u64> {
        let mut list = watched.tracker.snapshot(watched.min_heat)?.list;
        refresh(&mut list, written);
        self.lists.rounds.news(&mut list, without);
        let pages = list.pages();
        if pages == 0 {
            return Ok(0);
        }
        self.lists.size.pages += pages;
        self.lists.size.files += list.files.len() as u64;
        self.lists.size.bytes += write_list(&list, self.peer.sender())?;
        self.lists.sent += 1;
        Ok(pages)
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
