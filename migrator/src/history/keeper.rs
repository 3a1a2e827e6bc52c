//! Writes a tracker's state now and then, and restores it when the next one begins.
//!
//! The list is made in slices, as for whoever asks, and another thread waits for the
//! disk: neither holds up the observation.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{RecvTimeoutError, bounded};

use super::listing::Listing;
use super::request::Wanted;
use super::server::now;
use super::state::{self, Besides, Kept, MAX_AGE, MAX_BYTES, Piece};
use crate::duty;
use crate::format::Optional;
use crate::heat::FileId;
use crate::pagelist::ONCE;
use crate::tracker::Tracker;

/// How often the state is written, unless it is said.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(300);

/// How long the files of a state may take to be found again. A dead server of a
/// network file system does not answer at all.
const FIND_LIMIT: Duration = Duration::from_secs(30);

/// How many pieces of a state are found ahead.
const AHEAD: usize = 64;

/// Keeps a tracker's state in a file.
pub struct Keeper {
    path: PathBuf,
    /// When the last epochs ended, oldest first.
    epochs: Vec<(u32, u64)>,
    /// When files were used last that were not used since the start.
    restored: HashMap<FileId, u64>,
    interval: Duration,
    next: Instant,
    saving: Option<Saving>,
    syncing: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A state that is being written.
struct Saving {
    listing: Listing,
    file: File,
    written: u64,
}

/// What was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// When it was saved, in seconds since the epoch.
    pub saved_at: u64,
    /// How many files are still there.
    pub files: u64,
    /// How many pages they have.
    pub pages: u64,
}

impl Keeper {
    /// Keeps the state at `path`, written every `interval`; nothing is written yet.
    pub fn new(path: PathBuf, interval: Duration) -> Self {
        Self {
            path,
            interval,
            epochs: Vec::new(),
            restored: HashMap::new(),
            next: Instant::now() + interval,
            saving: None,
            syncing: None,
        }
    }

    /// Takes over what an earlier tracker has kept, with heat that has sunk since. Its
    /// epochs took `interval`. `None` if it has kept nothing.
    ///
    /// # Errors
    /// What is there is no state. It is moved aside.
    pub fn restore(
        &mut self,
        tracker: &mut Tracker,
        interval: Duration,
    ) -> anyhow::Result<Option<Restored>> {
        let verified = state::verify(&self.path).map_err(|error| {
            let why = format!("the state {} is of no use", self.path.display());
            match state::set_aside(&self.path) {
                Ok(aside) => error.context(format!("{why}, and now {}", aside.display())),
                Err(stays) => error.context(format!("{why}; {stays:#}")),
            }
        });
        let Some(verified) = verified? else {
            return Ok(None);
        };
        let now = now();
        let saved_at = verified.besides.saved_at;
        let epochs = duty::absence(Duration::from_secs(now.saturating_sub(saved_at)), interval);
        let (give, given) = bounded(AHEAD);
        let deadline = Instant::now() + FIND_LIMIT;
        thread::Builder::new()
            .name("restore".into())
            .spawn(move || {
                let each = verified.each(now, |piece| give.send(piece).is_ok());
                if let Err(error) = each {
                    crate::say!("warning: failed to read the state again: {error:#}");
                }
            })
            .context("failed to start a thread")?;
        let mut restored = Restored {
            saved_at,
            ..Restored::default()
        };
        let mut file = None;
        loop {
            match given.recv_deadline(deadline) {
                Ok(Piece::File { key, path, used_at }) => {
                    let found = tracker.recall(key, path);
                    self.restored.insert(found, used_at);
                    restored.files += 1;
                    file = Some(found);
                }
                Ok(Piece::Runs(runs)) => {
                    if let Some(file) = file {
                        restored.pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
                        tracker.restore(file, &runs, epochs);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    crate::say!(
                        "warning: it takes more than {FIND_LIMIT:?} to find the files of the \
                         state; those that are left are dropped"
                    );
                    break;
                }
            }
        }
        // So that what is used from now on is told from what was restored.
        tracker.skip_epoch();
        Ok(Some(restored))
    }

    /// Goes on writing until about a moment, if it is time for that.
    pub fn work(&mut self, tracker: &mut Tracker, until: Instant) {
        if self.syncing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end_sync();
        }
        if self.saving.is_none() && self.syncing.is_none() && Instant::now() >= self.next {
            self.next = Instant::now() + self.interval;
            self.begin(tracker);
        }
        if self.saving.is_some() {
            self.go_on(tracker, until);
        }
    }

    /// When there is something to be done.
    pub fn deadline(&self) -> Instant {
        match self.saving {
            Some(_) => Instant::now(),
            None => self.next,
        }
    }

    /// Writes the state now, and waits for it.
    pub fn save(&mut self, tracker: &mut Tracker) {
        self.end_sync();
        // One that was begun has what was known then.
        self.saving = None;
        self.begin(tracker);
        while self.saving.is_some() {
            self.go_on(tracker, Instant::now() + SAVE_INTERVAL);
        }
        self.end_sync();
    }

    fn begin(&mut self, tracker: &Tracker) {
        let now = now();
        self.epochs.push((tracker.heat().epoch(), now));
        self.epochs
            .retain(|(_, at)| at.saturating_add(MAX_AGE) >= now);
        let temporary = temporary(&self.path);
        let saving = Listing::new(tracker, Wanted::All, ONCE)
            .map_err(anyhow::Error::from)
            .and_then(|listing| {
                let file = create(&temporary)?;
                Ok(Saving {
                    listing,
                    file,
                    written: 0,
                })
            });
        match saving {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => self.warn(&error),
        }
    }

    fn go_on(&mut self, tracker: &mut Tracker, until: Instant) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        if let Err(error) = self.try_go_on(saving, tracker, until) {
            self.warn(&error);
            _ = fs::remove_file(temporary(&self.path));
        }
    }

    fn try_go_on(
        &mut self,
        mut saving: Saving,
        tracker: &mut Tracker,
        until: Instant,
    ) -> anyhow::Result<()> {
        let is_whole = saving.listing.step(tracker, until)?;
        let some = saving.listing.take();
        saving.written += some.len() as u64;
        saving.file.write_all(&some)?;
        if !is_whole && saving.written < MAX_BYTES {
            self.saving = Some(saving);
            return Ok(());
        }
        let Saving {
            listing, mut file, ..
        } = saving;
        // They would only take the place of others.
        for deleted in listing.deleted() {
            tracker.forget(*deleted);
            self.restored.remove(deleted);
        }
        let besides = self.besides(tracker, &listing);
        let rest = listing.finish(Some((Optional::Tracked, &besides.encode())))?;
        file.write_all(&rest)?;
        let path = self.path.clone();
        let sync = move || -> anyhow::Result<()> {
            file.sync_all()?;
            fs::rename(temporary(&path), &path)?;
            Ok(())
        };
        let thread = thread::Builder::new().name("save".into()).spawn(sync);
        self.syncing = Some(thread.context("failed to start a thread")?);
        Ok(())
    }

    fn besides(&self, tracker: &Tracker, listing: &Listing) -> Besides {
        let saved_at = now();
        let files = listing.listed().iter().map(|listed| {
            let restored = self.restored.get(&listed.file);
            Kept {
                generation: tracker.generation(listed.file),
                used_at: used_at(&self.epochs, listed.newest, restored, saved_at),
            }
        });
        Besides {
            saved_at,
            files: files.collect(),
        }
    }

    /// Waits until what was written is on the disk.
    fn end_sync(&mut self) {
        let Some(syncing) = self.syncing.take() else {
            return;
        };
        let ended = syncing.join().unwrap_or_else(|_| {
            let why = "the thread that waits for the disk has panicked";
            Err(anyhow::anyhow!(why))
        });
        if let Err(error) = ended {
            self.warn(&error);
            _ = fs::remove_file(temporary(&self.path));
        }
    }

    fn warn(&self, error: &anyhow::Error) {
        crate::say!(
            "warning: failed to keep the state in {}: {error:#}; observing goes on",
            self.path.display()
        );
    }
}

/// Returns when a file was used last, whose latest epoch is this. In epoch 0 nothing was
/// observed yet.
fn used_at(epochs: &[(u32, u64)], newest: u32, restored: Option<&u64>, now: u64) -> u64 {
    match (newest, restored) {
        (0, Some(restored)) => *restored,
        _ => {
            let ended = epochs.iter().find(|(epoch, _)| *epoch >= newest);
            ended.map_or(now, |(_, at)| *at)
        }
    }
}

/// What is written before it takes the place of the state. Only the tracker that holds
/// the lock writes it.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn create(path: &Path) -> io::Result<File> {
    // What a tracker that was killed has left.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_file_was_used_last_is_known_to_a_save() {
        let epochs = [(10, 1000), (20, 1300), (30, 1600)];
        let at = |newest, restored: Option<u64>| used_at(&epochs, newest, restored.as_ref(), 1700);
        assert_eq!(at(5, None), 1000);
        assert_eq!(at(10, None), 1000);
        assert_eq!(at(11, None), 1300);
        assert_eq!(at(31, None), 1700);
        assert_eq!(at(0, Some(7)), 7);
        assert_eq!(at(0, None), 1000);
        // It was used since, whatever was known.
        assert_eq!(at(15, Some(7)), 1300);
    }
}
