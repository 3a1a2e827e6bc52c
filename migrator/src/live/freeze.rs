//! The freeze: stops the tree, dumps it, and lets the last list and the
//! images go.
//!
//! The tree stands still from here until it runs on the destination, so all
//! that can overlap does: images go while CRIU writes them, and the list
//! beside them. Until `commit` everything can be undone.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::files;
use super::images;
use super::source::{Host, Options, out_of_turn, step};
use super::tree::{self, Process};
use super::warmup::Watched;
use crate::container;
use crate::criu::Criu;
use crate::handover::session::Leader;
use crate::handover::settle::{self, AT_WORK, DUMPED, JOURNAL, RELEASE};
use crate::protocol::Message;

/// Between two looks at what else may have happened.
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// How long the tree may stand still before it is given up to move it.
pub(super) const FROZEN: Duration = Duration::from_secs(600);

/// How long a tree may take to stand still.
const STOP: Duration = Duration::from_secs(60);

/// A tree that stands still.
pub(super) struct Frozen {
    pub(super) leader: Leader,
    pub(super) dump: Option<Child>,
    pub(super) since: Instant,
    pub(super) processes: Vec<Process>,
    /// It ends with its dump.
    releases: bool,
    sending: Option<JoinHandle<anyhow::Result<u64>>>,
    pub(super) image_bytes: u64,
}

impl Host<'_> {
    /// Stops the tree, dumps it, and lets list and images go.
    pub(super) fn freeze(
        &mut self,
        watched: Option<&mut Watched>,
    ) -> Result<Frozen, (Option<Frozen>, anyhow::Error)> {
        step("freeze");
        let mut frozen = self.stop().map_err(|error| (None, error))?;
        match self.dump(&mut frozen, watched) {
            Ok(()) => Ok(frozen),
            Err(error) => Err((Some(frozen), error)),
        }
    }

    fn stop(&mut self) -> anyhow::Result<Frozen> {
        let leader = self.session.create()?;
        let start = || -> anyhow::Result<Child> {
            self.session.note(JOURNAL, &self.journal)?;
            settle::start(&self.session)?;
            let images = self.images();
            fs::create_dir_all(&images)
                .with_context(|| format!("failed to create {}", images.display()))?;
            let Options {
                subject,
                criu,
                passed,
                ..
            } = self.options;
            let dump = container::dump(subject, &self.session, &images, criu, *passed)?;
            if let Some(process) = Process::of(dump.id() as i32) {
                self.session.note(AT_WORK, &process)?;
            }
            Ok(dump)
        };
        match start() {
            Ok(dump) => Ok(Frozen {
                leader,
                dump: Some(dump),
                since: Instant::now(),
                processes: Vec::new(),
                releases: false,
                sending: None,
                image_bytes: 0,
            }),
            Err(error) => {
                _ = self.session.remove();
                Err(error)
            }
        }
    }

    fn images(&self) -> PathBuf {
        match &self.options.images {
            Some(shared) => shared.join(self.session.name()),
            None => self.session.images(),
        }
    }

    fn dump(&mut self, frozen: &mut Frozen, watched: Option<&mut Watched>) -> anyhow::Result<()> {
        // Until it stands still, the tree runs and loses nothing.
        let ordered = Instant::now();
        loop {
            frozen.processes = tree::processes(self.options.root)?;
            if frozen.processes.iter().all(|process| process.is_held()) {
                break;
            }
            self.look(frozen)?;
            if ordered.elapsed() > STOP {
                bail!("the tree does not stand still");
            }
            thread::sleep(Duration::from_millis(1));
        }
        frozen.since = Instant::now();
        step("dump");
        frozen.releases = container::ends_with_dump(&self.options.subject)
            || tree::holds_locks(&frozen.processes);
        if let Some(origin) = &mut self.journal.source {
            // What was forked since the order was written is known now.
            origin.processes.clone_from(&frozen.processes);
        }
        self.session.note(JOURNAL, &self.journal)?;
        frozen.sending = Some(self.send_images()?);

        let began = Instant::now();
        let written = files::sync(&frozen.processes)?;
        self.clock.ended("fsync", began);
        if let Some(watched) = watched {
            let began = Instant::now();
            self.send_news(watched, &BTreeSet::new(), &written)?;
            self.clock.ended("last list", began);
        }
        if frozen.releases {
            // Not before: what has been read and written is asked of the tree.
            self.session.note(RELEASE, &())?;
        }
        let mut dumped = false;
        loop {
            self.look(frozen)?;
            if !dumped && self.session.has(DUMPED) {
                dumped = true;
                self.clock.ended("dump", frozen.since);
                step("images");
            }
            if frozen.sending.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(sending) = frozen.sending.take()
            {
                let sent = sending.join();
                frozen.image_bytes =
                    sent.map_err(|_| anyhow!("the thread that sends images panicked"))??;
                self.clock.ended("dump and images", frozen.since);
                step("restore");
            }
            match self.hear(LOOK)? {
                Some(Message::Restored) => {
                    self.clock.ended("until restored", frozen.since);
                    step("restored");
                    return Ok(());
                }
                Some(message) => return Err(out_of_turn(&message)),
                None => {}
            }
        }
    }

    /// Sends the images while they are written.
    fn send_images(&self) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
        let (session, messages) = (self.session.clone(), self.peer.sender());
        let (directory, shared) = (self.images(), self.options.images.is_some());
        // podman makes an archive of the images when CRIU has ended.
        let archived = container::ends_with_dump(&self.options.subject);
        let at_work = session.read::<Process>(AT_WORK)?;
        let is_complete = move || {
            if session.has(DUMPED) {
                return Ok(!(archived && at_work.is_some_and(Process::is_alive)));
            }
            if !session.exists() || session.decision().is_some() {
                bail!("the dump did not come to its end");
            }
            Ok(false)
        };
        let send = move || {
            if !shared {
                return images::send(&directory, &messages, is_complete);
            }
            while !is_complete()? {
                thread::sleep(LOOK);
            }
            let end = Message::Images(bytes::Bytes::new());
            messages
                .blocking_send(end)
                .context("the connection is lost")?;
            Ok(0)
        };
        thread::Builder::new()
            .name("images".into())
            .spawn(send)
            .context("failed to start a thread")
    }

    /// Whether something has happened that ends the migration.
    pub(super) fn look(&mut self, frozen: &mut Frozen) -> anyhow::Result<()> {
        if self.signals.wait(None, Duration::ZERO)? {
            bail!("interrupted at the source");
        }
        if frozen.since.elapsed() > FROZEN {
            bail!("the tree has stood still for {} s", FROZEN.as_secs());
        }
        if let Some(dump) = &mut frozen.dump
            && let Some(status) = dump.try_wait().context("failed to wait for CRIU")?
            && !(frozen.releases && status.success() && self.session.has(DUMPED))
        {
            let why = Criu::complaint(&self.session, "dump");
            bail!("failed to dump: {status}: {why}");
        }
        Ok(())
    }
}
