//! Carries out what the source's machine says, for `migrator move` as for a
//! process that takes over.
//!
//! Nothing in here returns an error: what fails becomes an event. So no `?` can
//! lead around the machine, and after the commit a [`Standing`] is all that can
//! come of it.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::runtime::Handle;

use super::{Action, Answer, Event, Intent, Notes, State, next};
use crate::cgroup::Group;
use crate::container;
use crate::criu::{self, AtWork, Work};
use crate::handover::journal::{AT_WORK, JOURNAL, Journal, Origin, ROOT, Side};
use crate::handover::{Decision, Identity, Mark, Session, question};
use crate::process::{self, Process};
use crate::protocol::Message;
use crate::say;
use crate::transfer::Peer;

/// How long the destination may take to continue a restored tree.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Poll interval while only the destination has something to say.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Between two questions to a destination that does not know or answer.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// How often a note is tried again that can't be written.
const NOTE_ATTEMPTS: u32 = 50;

/// Between two attempts to write a note.
const NOTE_INTERVAL: Duration = Duration::from_millis(20);

/// How often a decision is tried again that can't be made true.
const FINISH_ATTEMPTS: u32 = 3;

/// How long CRIU may take to end a dump in the decided way.
const CRIU_LIMIT: Duration = Duration::from_secs(10);

/// How long killed processes may take to end, the larger the longer.
const KILLED_LIMIT: Duration = Duration::from_secs(30);

/// How long a runtime may take to end a checkpoint, or to restore it here.
const RESTORE_LIMIT: Duration = Duration::from_secs(600);

/// How long processes that have ended may stay in the process table.
const REAP_LIMIT: Duration = Duration::from_secs(20);

/// How long the destination is tried to be told that no question will follow.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// What a handover has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The source can still roll back, and waits for an event.
    Open,
    /// It is decided and true.
    Ended(Decision),
    /// Whether the tree runs on the destination is not known. It stays stopped
    /// here.
    Undecided,
    /// A note can't be written, or a decision can't be made true, for now.
    Stuck,
}

/// A source's handover in the hands of a process.
pub struct Executor<'a> {
    session: Session,
    journal: Journal,
    state: State,
    /// It belongs to `move`, to which the destination reports.
    leads: bool,
    /// The connection to the destination, if it still stands.
    pub peer: Option<Peer>,
    runtime: Handle,
    /// Whether a signal came, true once for each.
    is_interrupted: &'a dyn Fn() -> bool,
    /// An operator does not want to wait for an answer any more.
    is_impatient: bool,
    /// Called with each action before it is carried out.
    observe: Box<dyn FnMut(Action) + 'a>,
    attempts: u32,
    trouble: String,
}

impl<'a> Executor<'a> {
    /// Begins with a tree that runs here and is about to be frozen.
    pub fn start(
        session: Session,
        journal: Journal,
        peer: Peer,
        runtime: Handle,
        is_interrupted: &'a dyn Fn() -> bool,
        observe: impl FnMut(Action) + 'a,
    ) -> Self {
        Self {
            session,
            journal,
            state: State::Frozen,
            leads: true,
            peer: Some(peer),
            runtime,
            is_interrupted,
            is_impatient: false,
            observe: Box::new(observe),
            attempts: 0,
            trouble: String::new(),
        }
    }

    /// Takes a session over. Returns also what is to be done first.
    ///
    /// # Errors
    /// The notes can't be read, or are none of a source.
    pub fn take_over(
        session: Session,
        runtime: Handle,
        is_interrupted: &'a dyn Fn() -> bool,
    ) -> anyhow::Result<(Self, Vec<Action>)> {
        let journal = session
            .read::<Journal>(JOURNAL)?
            .context("the session has no journal")?;
        if !matches!(journal.side, Side::Source(_)) {
            bail!("the session is not of a source");
        }
        let notes = Notes {
            intent: session.intent()?,
            decision: session.decision()?,
        };
        let (state, actions) = State::of(notes).take_over();
        let executor = Self {
            session,
            journal,
            state,
            leads: false,
            peer: None,
            runtime,
            is_interrupted,
            is_impatient: false,
            observe: Box::new(|_| {}),
            attempts: 0,
            trouble: String::new(),
        };
        Ok((executor, actions))
    }

    /// Asks the destination once, and not until it answers.
    pub fn ask_once(&mut self) {
        self.is_impatient = true;
    }

    /// Returns what the session is about.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Remembers which host has accepted the order. It is noted with the next
    /// [`Self::update`].
    pub fn expect(&mut self, identity: &Identity, name: &str) {
        if let Side::Source(origin) = &mut self.journal.side {
            origin.destination = Some(identity.clone());
            origin.destination_name = name.to_owned();
        }
    }

    /// Remembers the cgroup for what is started, as [`Self::expect`] does.
    pub fn set_group(&mut self, group: Option<&Group>) {
        self.journal.group = group.map(|group| group.path().to_owned());
    }

    /// Changes what the source knows, and notes it.
    ///
    /// # Errors
    /// The note can't be written.
    pub fn update(&mut self, change: impl FnOnce(&mut Origin)) -> anyhow::Result<()> {
        if let Side::Source(origin) = &mut self.journal.side {
            change(origin);
        }
        self.session.note(JOURNAL, &self.journal)
    }

    /// Returns the destination's name, for people.
    pub fn destination_name(&self) -> String {
        self.origin()
            .map(|origin| origin.destination_name.clone())
            .unwrap_or_default()
    }

    /// Returns the last thing that went wrong, in words.
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Feeds an event to the machine, and carries out all that follows.
    pub fn run(&mut self, event: Event) -> Standing {
        let (state, actions) = next(self.state, event);
        self.state = state;
        self.carry_out_all(actions)
    }

    /// Carries out actions, and all that follows.
    pub fn carry_out_all(&mut self, actions: Vec<Action>) -> Standing {
        let mut actions = actions;
        loop {
            let mut event = None;
            for action in std::mem::take(&mut actions) {
                event = match self.carry_out(action) {
                    Ok(event) => event.or(event),
                    Err(standing) => return standing,
                };
            }
            let event = match (event, self.state) {
                (Some(event), _) => event,
                (None, State::Committed) => self.await_answer(),
                (None, State::Ended(decision)) => return Standing::Ended(decision),
                (None, State::Frozen | State::Decided(_)) => return Standing::Open,
            };
            (self.state, actions) = next(self.state, event);
        }
    }

    /// Carries out one action. Returns the event that comes of it; or where it
    /// ends for now.
    fn carry_out(&mut self, action: Action) -> Result<Option<Event>, Standing> {
        (self.observe)(action);
        let event = match action {
            Action::StopTree => Some(self.stop_tree()),
            Action::NoteIntent(intent) => Some(match self.session.set_out(intent) {
                Ok((noted, true)) => Event::Noted(noted),
                Ok((found, false)) => Event::Found(found),
                Err(error) => {
                    self.note_failed(&error)?;
                    Event::NotNoted
                }
            }),
            Action::SendResume => self.send_resume().err().map(|error| self.failed(error)),
            Action::Ask => Some(self.ask()?),
            Action::NoteDecision(decision) => Some(match self.session.decide(decision) {
                Ok(decision) => Event::Decision(decision),
                Err(error) => {
                    self.note_failed(&error)?;
                    Event::Undecided
                }
            }),
            Action::RunTree => Some(self.finish(Self::run_tree)?),
            Action::EndTree => Some(self.finish(Self::end_tree)?),
            Action::Confirm => {
                self.confirm();
                None
            }
            Action::Remove => {
                if let Err(error) = self.remove() {
                    say!("session {}: {error:#}", self.session.name());
                }
                None
            }
        };
        Ok(event)
    }

    fn failed(&mut self, error: anyhow::Error) -> Event {
        self.trouble = format!("{error:#}");
        Event::Failed
    }

    fn note_failed(&mut self, error: &anyhow::Error) -> Result<(), Standing> {
        self.trouble = format!("{error:#}");
        if !self.session.exists() {
            self.trouble = "another process has recovered the session".into();
            return Err(Standing::Stuck);
        }
        self.attempts += 1;
        if self.attempts > NOTE_ATTEMPTS {
            self.attempts = 0;
            return Err(match self.state {
                State::Committed => Standing::Undecided,
                _ => Standing::Stuck,
            });
        }
        thread::sleep(NOTE_INTERVAL);
        Ok(())
    }

    fn origin(&self) -> Option<&Origin> {
        match &self.journal.side {
            Side::Source(origin) => Some(origin),
            Side::Destination(_) => None,
        }
    }

    fn processes(&self) -> Vec<Process> {
        self.origin()
            .map(|origin| origin.processes.clone())
            .unwrap_or_default()
    }

    /// Stops what CRIU holds, so that it stays stopped when CRIU dies. What is
    /// traced afterwards was never let go of: CRIU traces a process once.
    fn stop_tree(&mut self) -> Event {
        let processes = self.processes();
        if let Err(error) = process::signal(&processes, Signal::STOP) {
            return self.failed(anyhow::anyhow!("failed to stop the tree: {error}"));
        }
        let releases = self.session.has(Mark::Release);
        let is_kept = |process: &Process| match process.is_alive() {
            true => process.is_traced(),
            false => releases || process.is_there(),
        };
        match processes.iter().all(is_kept) {
            true => Event::Stopped,
            false => self.failed(anyhow::anyhow!("CRIU let go of a process")),
        }
    }

    fn send_resume(&mut self) -> anyhow::Result<()> {
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.clone())
            .unwrap_or_default();
        let root = self.processes().first().copied();
        let ids = process::ids_in_namespace_of(root, &stopped);
        let peer = self
            .peer
            .as_mut()
            .context("there is no connection to the destination")?;
        peer.send(Message::Resume(ids))
            .map_err(|error| peer.explain(error))
    }

    /// Waits for the destination's word after the commit.
    fn await_answer(&mut self) -> Event {
        let began = Instant::now();
        loop {
            if (self.is_interrupted)() {
                self.is_impatient = true;
                return self.failed(anyhow::anyhow!("interrupted at the source"));
            }
            let Some(peer) = &mut self.peer else {
                return Event::Failed;
            };
            match peer.recv(ANSWER_POLL_INTERVAL) {
                Ok(Some(Message::Running)) => return Event::Answer(Answer::Running),
                Ok(Some(Message::NotRunning)) => return Event::Answer(Answer::NotRunning),
                Ok(_) if began.elapsed() < ANSWER_LIMIT => {}
                Ok(_) => {
                    let limit = ANSWER_LIMIT.as_secs();
                    let error = anyhow::anyhow!("no answer from the destination for {limit} s");
                    return self.failed(error);
                }
                Err(error) => {
                    let error = peer.explain(error);
                    self.peer = None;
                    return self.failed(error);
                }
            }
        }
    }

    /// Asks once.
    fn ask(&mut self) -> Result<Event, Standing> {
        // An operator, or another process, may have decided meanwhile.
        if let Some(event) = self.decided_by_another()? {
            return Ok(event);
        }
        if self.attempts == 0 && !self.trouble.is_empty() {
            say!(
                "{}; asking the destination whether the tree runs there",
                self.trouble
            );
        }
        if self.attempts > 0 {
            if self.is_impatient || self.is_interrupted_within(ASK_INTERVAL) {
                return Err(Standing::Undecided);
            }
            if let Some(event) = self.decided_by_another()? {
                return Ok(event);
            }
        }
        self.attempts += 1;
        let Some(origin) = self.origin() else {
            return Err(Standing::Stuck);
        };
        let is_cancelled = Cell::new(false);
        let cancel = || {
            is_cancelled.set(is_cancelled.get() || (self.is_interrupted)());
            is_cancelled.get()
        };
        let asked = question::ask(&self.session, origin, &self.runtime, &cancel);
        let trouble = match asked {
            Ok((Answer::NotKnown, _)) => format!(
                "{} does not know the session, or was booted since it was told to run the tree",
                origin.to
            ),
            Ok((answer, peer)) => {
                self.peer = Some(peer);
                self.attempts = 0;
                return Ok(Event::Answer(answer));
            }
            Err(error) => format!("{error:#}"),
        };
        let is_cancelled = is_cancelled.get();
        if trouble != self.trouble || self.attempts == 1 {
            say!(
                "session {}: {trouble}. It is not known whether the tree runs there, so it \
                 stays stopped here; asking again until there is an answer",
                self.session.name()
            );
            self.trouble = trouble;
        }
        match is_cancelled {
            true => Err(Standing::Undecided),
            false => Ok(Event::Answer(Answer::NotKnown)),
        }
    }

    fn decided_by_another(&mut self) -> Result<Option<Event>, Standing> {
        if !self.session.exists() {
            self.trouble = "another process has recovered the session".into();
            return Err(Standing::Stuck);
        }
        Ok(self.session.decision().ok().flatten().map(Event::Decision))
    }

    fn is_interrupted_within(&self, time: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < time {
            if (self.is_interrupted)() {
                return true;
            }
            thread::sleep(ANSWER_POLL_INTERVAL);
        }
        false
    }

    /// Makes a decision true, under the lock that only one process has.
    fn finish(
        &mut self,
        make_true: fn(&mut Self) -> anyhow::Result<()>,
    ) -> Result<Event, Standing> {
        self.attempts += 1;
        if self.attempts > FINISH_ATTEMPTS {
            self.attempts = 0;
            return Err(Standing::Stuck);
        }
        let lock = match self.session.finish() {
            Ok(Some(lock)) => lock,
            // Another process is at it, and removes the session.
            Ok(None) => {
                self.trouble = "another process recovers this session".into();
                self.attempts -= 1;
                thread::sleep(ASK_INTERVAL / 10);
                return Ok(Event::NotDone);
            }
            Err(_) if !self.session.exists() => return Ok(Event::Done),
            Err(error) => {
                self.trouble = format!("{error:#}");
                thread::sleep(NOTE_INTERVAL);
                return Ok(Event::NotDone);
            }
        };
        // What another process has done must not be done again: a tree that was
        // restored here would be restored twice.
        let made = match self.session.has(Mark::Finished) {
            true => Ok(()),
            false => make_true(self).and_then(|()| self.session.mark(Mark::Finished).map(drop)),
        };
        drop(lock);
        match made {
            Ok(()) => {
                self.attempts = 0;
                Ok(Event::Done)
            }
            Err(error) => {
                self.trouble = format!("{error:#}");
                Ok(Event::NotDone)
            }
        }
    }

    /// Lets the tree run here.
    fn run_tree(&mut self) -> anyhow::Result<()> {
        let processes = self.processes();
        let is_dumped = self.session.has(Mark::Dumped);
        if let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? {
            // CRIU ends a complete dump as is decided; an incomplete one would
            // be written to its end first.
            let is_killing = is_dumped && self.session.has(Mark::Release);
            match is_dumped {
                false => at_work.abort_dump(),
                // podman writes its archive; killed in between, it would not
                // know of the checkpoint.
                true if is_killing => _ = at_work.wait(RESTORE_LIMIT),
                true => {
                    // One that is not stopped needs none.
                    _ = at_work.process.signal(Signal::CONT);
                    _ = at_work.wait(CRIU_LIMIT);
                }
            }
            if at_work.process.is_alive() {
                at_work.kill();
            }
        }
        let end = Instant::now() + CRIU_LIMIT;
        while processes.iter().any(|it| it.is_traced()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        if let Some(process) = processes.iter().find(|it| it.is_traced()) {
            bail!("process {} is still traced", process.pid);
        }
        let left: Vec<Process> = processes
            .iter()
            .copied()
            .filter(|it| it.is_alive())
            .collect();
        let has_ended = left.len() < processes.len()
            && self.session.has(Mark::Release)
            && self.session.has(Mark::Dumped);
        if has_ended {
            // A dump that was killed while it ended the tree leaves a part.
            let stuck = process::kill(&left, KILLED_LIMIT);
            if let Some(process) = stuck.first() {
                bail!("process {} does not end", process.pid);
            }
            return self.restore_here();
        }
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.clone())
            .unwrap_or_default();
        let mut runs = process::children_first(&processes);
        runs.retain(|process| !stopped.contains(process));
        process::resume_all(&runs)
    }

    /// Makes a tree that has ended with its dump run again, from its images.
    fn restore_here(&mut self) -> anyhow::Result<()> {
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.iter().map(|it| it.pid).collect::<Vec<_>>())
            .unwrap_or_default();
        // A plain tree has its own ids again.
        let stays = |process: &Process| stopped.contains(&process.pid);
        if let Some(root) = self.session.read::<Process>(ROOT)?
            && root.is_alive()
        {
            // A process that has died has restored it.
            return process::resume(root, stays);
        }
        let processes = self.processes();
        self.kill_half_made(&processes)?;
        // Their parents have to reap them before their ids are free.
        let began = Instant::now();
        while processes.iter().any(|it| it.is_there()) && began.elapsed() < REAP_LIMIT {
            thread::sleep(Duration::from_millis(10));
        }
        let images = self.journal.images(&self.session);
        let group = Group::create(&self.session.name());
        let work = Work {
            images: &images,
            storage: self.session.storage(),
            group: group.as_ref(),
            passed: self.journal.passed(),
            restores_cgroups: true,
        };
        let subject = &self.journal.subject;
        let mut job = container::restore_here(subject, work, &self.journal.criu())?;
        // Known to a process that takes over in the middle.
        let noted = self.session.note(AT_WORK, job.at_work());
        let restored = noted.and_then(|()| match job.wait(RESTORE_LIMIT)? {
            Some(status) if status.success() => {
                let root = job.restored_root()?;
                self.session.note(ROOT, &root)?;
                Ok(root)
            }
            Some(status) => bail!(
                "{}: {}",
                crate::child::describe(status),
                criu::complaint(self.session.storage(), "restore")
            ),
            None => bail!("timed out after {} s", RESTORE_LIMIT.as_secs()),
        });
        let root = match restored {
            Ok(root) => root,
            Err(error) => {
                job.kill();
                self.kill_half_made(&processes)?;
                return Err(error).with_context(|| {
                    format!(
                        "failed to restore {} from {}, where its images stay",
                        container::describe(subject),
                        images.display()
                    )
                });
            }
        };
        process::resume(root, stays)?;
        if let Some(group) = group {
            group.dissolve();
        }
        Ok(())
    }

    /// Kills what a restore on this host has left that did not come to its end.
    fn kill_half_made(&self, processes: &[Process]) -> anyhow::Result<()> {
        let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? else {
            return Ok(());
        };
        at_work.kill();
        let ids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        let stuck = process::kill(&process::half_made(&ids, at_work.process), KILLED_LIMIT);
        match stuck.first() {
            Some(process) => bail!("process {} does not end", process.pid),
            None => Ok(()),
        }
    }

    /// Ends the tree here.
    fn end_tree(&mut self) -> anyhow::Result<()> {
        if let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? {
            // One that is not stopped needs none.
            _ = at_work.process.signal(Signal::CONT);
            // CRIU kills the tree, and a runtime tidies up after it.
            if !at_work.wait(CRIU_LIMIT) {
                at_work.kill();
            }
        }
        let stuck = process::kill(&self.processes(), KILLED_LIMIT);
        if let Some(process) = stuck.first() {
            bail!("process {} does not end", process.pid);
        }
        container::forget(&self.journal.subject)
    }

    fn confirm(&mut self) {
        // A destination that was not told to run the tree is told why not.
        if !matches!(self.session.intent(), Ok(Some(Intent::Commit))) {
            return;
        }
        let reports = self.leads && self.state == State::Ended(Decision::End);
        if let Some(peer) = self.peer.as_mut().filter(|_| reports) {
            // The report that follows is its receipt.
            match peer.send(Message::Confirmed) {
                Ok(()) => return,
                Err(_) => self.peer = None,
            }
        }
        self.confirm_anew();
    }

    /// Tells the destination over a new connection that no question will
    /// follow, so that it keeps no note for one.
    pub fn confirm_anew(&self) {
        let Some(origin) = self.origin() else {
            return;
        };
        let began = Instant::now();
        let is_cancelled = Cell::new(false);
        let is_enough = || {
            is_cancelled.set(is_cancelled.get() || (self.is_interrupted)());
            is_cancelled.get() || began.elapsed() > CONFIRM_LIMIT
        };
        if let Err(error) = question::confirm(&self.session, origin, &self.runtime, &is_enough) {
            let name = self.session.name();
            say!("session {name}: the destination keeps a note of it: {error:#}");
        }
    }

    fn remove(&self) -> anyhow::Result<()> {
        if let Some(group) = self.journal.group() {
            group.remove();
        }
        if let Some(shared) = &self.journal.images {
            match std::fs::remove_dir_all(shared.join(self.session.name())) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("failed to remove the shared images");
                }
                _ => {}
            }
        }
        self.session.remove()
    }
}
