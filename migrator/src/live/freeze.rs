//! The freeze: stops the tree, dumps it, and sends the last list and the
//! images.
//!
//! The tree stands still from here until it runs on the destination, so all
//! that can overlap does: images go while CRIU writes them, and the list
//! beside them. Until `commit` everything can be undone, and nothing waits
//! without limit: the tree may stand still for `--max-freeze`.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::files;
use super::images;
use super::source::{Options, Outgoing, step, unexpected};
use super::tree;
use super::warmup::{Tree, Watched};
use crate::cgroup::Group;
use crate::child;
use crate::container::{self, DumpHook};
use crate::criu::{self, Job, Work};
use crate::exit::RolledBack;
use crate::handover::journal::{AT_WORK, Freeze, JOURNAL};
use crate::handover::notify::{self, VARIABLE};
use crate::handover::outgoing::executor::Standing;
use crate::handover::recovery::Undecided;
use crate::handover::session::Lock;
use crate::handover::{Decision, Mark, guard};
use crate::process::{self, Process};
use crate::protocol::Message;
use crate::say;

/// Poll interval for everything that may happen during a freeze.
pub(super) const FREEZE_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Between two checks of everything that may have happened.
const ATTEND_INTERVAL: Duration = Duration::from_millis(10);

/// A tree that stands still, or is about to.
pub(super) struct Frozen {
    job: Job,
    pub(super) since: Instant,
    freeze: Freeze,
    attended: Instant,
    /// It ends with its dump.
    releases: bool,
    sending: Option<JoinHandle<anyhow::Result<u64>>>,
    pub(super) image_bytes: u64,
    /// Dropped last: a guard takes over then.
    _leader: Lock,
}

impl Outgoing<'_> {
    /// Stops the tree, dumps it, and sends list and images, until the
    /// destination has restored it.
    ///
    /// # Errors
    /// [`RolledBack`] when the tree was frozen; anything else when not.
    pub(super) fn freeze(&mut self, watched: &mut Option<Watched>) -> anyhow::Result<Frozen> {
        step("freeze");
        let mut frozen = self.start_dump().inspect_err(|error| {
            self.last_words = Some(Message::Failed(format!("{error:#}")));
        })?;
        say::set_urgent(true);
        match self.dump(&mut frozen, watched) {
            Ok(()) => Ok(frozen),
            Err(error) => Err(self.roll_back(error)),
        }
    }

    /// Makes the session and starts CRIU, or nothing.
    fn start_dump(&mut self) -> anyhow::Result<Frozen> {
        let leader = self.session.create(None)?;
        let freeze = Freeze::start(self.options.max_freeze);
        let started = self.start_dump_of(freeze);
        match started {
            Ok(job) => Ok(Frozen {
                job,
                since: Instant::now(),
                freeze,
                attended: Instant::now(),
                releases: false,
                sending: None,
                image_bytes: 0,
                _leader: leader,
            }),
            Err(error) => {
                if let Some(group) = self.executor.journal().group() {
                    group.remove();
                }
                // The guard ends when the session is gone.
                if let Err(more) = self.session.remove() {
                    say!("{more:#}");
                }
                Err(error)
            }
        }
    }

    fn start_dump_of(&mut self, freeze: Freeze) -> anyhow::Result<Job> {
        let processes = process::tree(self.options.root)?;
        let stopped = processes.iter().copied().filter(|it| it.is_stopped());
        let stopped: Vec<Process> = stopped.collect();
        let group = Group::create(&self.session.name());
        self.executor.set_group(group.as_ref());
        self.executor.update(|origin| {
            (origin.processes, origin.stopped) = (processes, stopped);
            origin.freeze = Some(freeze);
        })?;
        self.session.keep_on_disk(self.executor.journal())?;
        guard::start(&self.session)?;
        let images = self.images();
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&images)
            .with_context(|| format!("failed to create {}", images.display()))?;
        let Options {
            subject,
            criu,
            passed,
            ..
        } = self.options;
        let work = Work {
            images: &images,
            storage: self.session.storage(),
            group: group.as_ref(),
            passed: *passed,
            restores_cgroups: false,
        };
        let mark = self.session.directory().join(Mark::Dumped.name());
        let hook = DumpHook {
            mark: &mark,
            variable: (VARIABLE, &self.session.name()),
        };
        let session = self.session.clone();
        let answer = Box::new(move || notify::on_post_dump(&session));
        let job = container::dump(subject, work, criu, hook, answer)?;
        if let Err(error) = self.session.note(AT_WORK, job.at_work()) {
            // No other process knows of it.
            job.at_work().abort_dump();
            return Err(RolledBack(format!("{error:#}")).into());
        }
        Ok(job)
    }

    fn images(&self) -> PathBuf {
        self.executor.journal().images(&self.session)
    }

    fn dump(&mut self, frozen: &mut Frozen, watched: &mut Option<Watched>) -> anyhow::Result<()> {
        // Until it stands still, the tree runs and loses nothing.
        let processes = loop {
            let processes = process::tree(self.options.root)?;
            if processes.iter().all(|process| process.is_held()) {
                break processes;
            }
            self.attend(frozen)?;
            thread::sleep(Duration::from_millis(1));
        };
        frozen.since = Instant::now();
        step("dump");
        frozen.releases =
            container::ends_with_dump(&self.options.subject) || tree::holds_locks(&processes);
        // What was forked since the dump was ordered is known now. A zombie is
        // dumped as one.
        let mut tree = processes.clone();
        tree.retain(|process| process.is_alive());
        self.executor.update(|origin| origin.processes = tree)?;
        frozen.sending = Some(self.send_images(frozen)?);

        let began = Instant::now();
        let limit = self.options.max_freeze;
        let sync = move || files::sync(&processes);
        let written = child::attend("fsync", limit, sync, || self.attend(frozen))??;
        self.clock.ended("fsync", began);
        if watched.is_some() {
            let began = Instant::now();
            self.send_delta(watched, Tree::Frozen { written }, &mut |this| {
                this.attend(frozen)
            })?;
            self.clock.ended("last list", began);
        }
        if frozen.releases {
            // Not before: what has been read and written is asked of the tree.
            self.session.mark(Mark::Release)?;
        }
        let mut dumped = false;
        loop {
            self.attend(frozen)?;
            if !dumped && self.session.has(Mark::Dumped) {
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
            match self.recv(FREEZE_POLL_INTERVAL)? {
                Some(Message::Restored) => {
                    self.attend_now(frozen)?;
                    self.clock.ended("until restored", frozen.since);
                    step("restored");
                    return Ok(());
                }
                Some(message) => return Err(unexpected(&message)),
                None => {}
            }
        }
    }

    /// Sends the images while they are written.
    fn send_images(&mut self, frozen: &Frozen) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
        let (session, messages) = (self.session.clone(), self.peer()?.sender());
        let (directory, shared) = (self.images(), self.options.images.is_some());
        // podman makes an archive of the images when CRIU has ended.
        let archived = container::ends_with_dump(&self.options.subject);
        let at_work = frozen.job.at_work().process;
        let is_complete = move || {
            if session.has(Mark::Dumped) {
                return Ok(!(archived && at_work.is_alive()));
            }
            if !session.exists() || session.intent()?.is_some() {
                bail!("the dump did not come to its end");
            }
            Ok(false)
        };
        let send = move || {
            if !shared {
                return images::send(&directory, &messages, is_complete);
            }
            while !is_complete()? {
                thread::sleep(FREEZE_POLL_INTERVAL);
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

    /// Checks whether anything has happened that ends the migration, every few
    /// milliseconds: CRIU needs the processors.
    fn attend(&mut self, frozen: &mut Frozen) -> anyhow::Result<()> {
        match frozen.attended.elapsed() < ATTEND_INTERVAL {
            true => Ok(()),
            false => self.attend_now(frozen),
        }
    }

    fn attend_now(&mut self, frozen: &mut Frozen) -> anyhow::Result<()> {
        frozen.attended = Instant::now();
        self.check_signals()?;
        if frozen.freeze.is_over(Duration::ZERO) {
            let limit = humantime::format_duration(self.options.max_freeze);
            bail!("the tree would stand still for more than {limit} (--max-freeze)");
        }
        // A guard rolls back where this process has hung for too long.
        if self.session.intent()?.is_some() {
            bail!("the guard has given the migration up");
        }
        if let Some(peer) = &self.executor.peer
            && peer.is_broken()
        {
            // The next message says why.
            let message = self.recv(FREEZE_POLL_INTERVAL)?;
            if let Some(message) = message
                && message != Message::Restored
            {
                return Err(unexpected(&message));
            }
        }
        if let Some(status) = frozen.job.wait(Duration::ZERO)?
            && !(frozen.releases && status.success() && self.session.has(Mark::Dumped))
        {
            let why = criu::complaint(self.session.storage(), "dump");
            bail!("failed to dump: {}: {why}", child::describe(status));
        }
        Ok(())
    }

    /// Lets the tree run here, before the commit.
    pub(super) fn roll_back(&mut self, error: anyhow::Error) -> anyhow::Error {
        let words = format!("{error:#}");
        // Where it can't be told at once.
        self.last_words = Some(Message::Failed(words.clone()));
        let standing = self.executor.fail(&words);
        say::set_urgent(false);
        if standing == Standing::Stuck && !self.session.exists() {
            // Only this process can commit: its guard, to which it seemed to
            // hang, has rolled back.
            return RolledBack(words).into();
        }
        self.conclude(standing, words)
    }

    /// Returns the error for a handover that did not succeed.
    pub(super) fn conclude(&mut self, standing: Standing, words: String) -> anyhow::Error {
        match standing {
            Standing::Ended(Decision::Run) => match self.executor.lost() {
                None => RolledBack(words).into(),
                Some(lost) => anyhow!("{words}; and {lost}"),
            },
            // The guard goes on asking as soon as this process has ended.
            Standing::Undecided => Undecided {
                session: self.session.name(),
                host: self.executor.destination_name(),
            }
            .into(),
            Standing::Ended(Decision::End) => {
                anyhow!("{words}; and it was decided meanwhile that the tree ends here")
            }
            Standing::Open | Standing::Stuck => anyhow!(
                "{words}; and then failed to let the tree run here: {}. The guard tries again; \
                 {} has what is noted",
                self.executor.trouble(),
                self.session.directory().join(JOURNAL).display()
            ),
        }
    }
}
