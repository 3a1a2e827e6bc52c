//! Carries out what the destination's machine says, for `migrator receive` as
//! for a process that takes over or answers a question.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Action, Event, Notes, State, next};
use crate::cgroup::{self, Group};
use crate::container::{self, Subject};
use crate::criu::AtWork;
use crate::handover::journal::{AT_WORK, JOURNAL, Journal, ROOT, STAYS_STOPPED, Side, Target};
use crate::handover::{Decision, Mark, Session};
use crate::process::{self, Process};
use crate::protocol::Message;
use crate::say;
use crate::transfer::Peer;

/// How often a note is tried again that can't be written.
const NOTE_ATTEMPTS: u32 = 50;

/// Between two attempts to write a note.
const NOTE_INTERVAL: Duration = Duration::from_millis(20);

/// How often a decision is tried again that can't be made true.
const FINISH_ATTEMPTS: u32 = 3;

/// How long another process may take to make a decision true.
const OTHER_LIMIT: Duration = Duration::from_secs(45);

/// Poll interval for that.
const OTHER_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long killed processes may take to end, the larger the longer.
const KILLED_LIMIT: Duration = Duration::from_secs(30);

/// A destination's handover in the hands of a process.
pub struct Executor {
    session: Session,
    journal: Option<Journal>,
    state: State,
    /// The connection to the source, if it still stands.
    pub peer: Option<Peer>,
    is_confirmed: bool,
    attempts: u32,
    trouble: String,
}

impl Executor {
    /// Begins with an order that was accepted.
    pub fn start(session: Session, journal: Journal, peer: Peer) -> Self {
        Self {
            session,
            journal: Some(journal),
            state: State::Restoring,
            peer: Some(peer),
            is_confirmed: false,
            attempts: 0,
            trouble: String::new(),
        }
    }

    /// Goes on where the notes say that the session is.
    ///
    /// # Errors
    /// They can't be read.
    pub fn resume(session: Session) -> anyhow::Result<Self> {
        let notes = Notes {
            decision: session.decision()?,
            running: session.has(Mark::Running),
        };
        Ok(Self {
            journal: session.read(JOURNAL)?,
            state: State::of(notes),
            peer: None,
            is_confirmed: session.has(Mark::Confirmed),
            attempts: 0,
            trouble: String::new(),
            session,
        })
    }

    /// Takes a session over whose leader has died. Returns the state that it
    /// has come to.
    pub fn take_over(&mut self) -> State {
        let (state, actions) = self.state.take_over();
        self.state = state;
        self.carry_out_all(actions)
    }

    /// Remembers that the source has said that no question will follow.
    pub fn set_confirmed(&mut self) {
        self.is_confirmed = true;
        // For a process that takes over; without it a note stays for a while.
        _ = self.session.mark(Mark::Confirmed);
    }

    /// Returns whether the source has said that no question will follow.
    pub fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// Returns the state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the last thing that went wrong, in words.
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Feeds an event to the machine and carries out all that follows. Returns
    /// the state that it has come to.
    pub fn run(&mut self, event: Event) -> State {
        let (state, actions) = next(self.state, event);
        self.state = state;
        self.carry_out_all(actions)
    }

    fn carry_out_all(&mut self, mut actions: Vec<Action>) -> State {
        loop {
            let mut event = None;
            for action in std::mem::take(&mut actions) {
                match self.carry_out(action) {
                    Ok(more) => event = more.or(event),
                    // It stays where it is, for a guard or another question.
                    Err(Stuck) => return self.state,
                }
            }
            let Some(event) = event else {
                return self.state;
            };
            (self.state, actions) = next(self.state, event);
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Option<Event>, Stuck> {
        let event = match action {
            Action::SayRestored => self.say_restored().err().map(|error| {
                self.trouble = format!("{error:#}");
                Event::Failed
            }),
            Action::NoteDecision(decision) => Some(match self.decide(decision) {
                Ok(decision) => Event::Decision(decision),
                Err(error) => {
                    self.note_failed(&error)?;
                    Event::Undecided
                }
            }),
            Action::RunTree => Some(self.finish(Self::run_tree)?),
            Action::KillTree => Some(self.finish(Self::kill_tree)?),
            Action::NoteRunning => {
                while let Err(error) = self.session.mark(Mark::Running) {
                    self.note_failed(&error)?;
                }
                None
            }
            Action::SayRunning => {
                self.send(Message::Running);
                None
            }
            Action::NoteTombstone => {
                while let Err(error) = self.note_tombstone() {
                    self.note_failed(&error)?;
                }
                None
            }
            Action::SayNotRunning => {
                if self.session.has(Mark::Restored) {
                    self.send(Message::NotRunning);
                }
                None
            }
            Action::Remove => {
                if let Err(error) = self.session.remove() {
                    say!("session {}: {error:#}", self.session.name());
                }
                None
            }
        };
        Ok(event)
    }

    /// Sends a message. Where this fails, the source asks.
    fn send(&mut self, message: Message) {
        if let Some(peer) = &self.peer {
            _ = peer.send(message);
        }
    }

    /// Notes it first: from here on the source may ask.
    fn say_restored(&mut self) -> anyhow::Result<()> {
        self.session.mark(Mark::Restored)?;
        let peer = self
            .peer
            .as_mut()
            .context("there is no connection to the source")?;
        peer.send(Message::Restored)
            .map_err(|error| peer.explain(error))
    }

    fn decide(&self, decision: Decision) -> anyhow::Result<Decision> {
        if decision == Decision::Run {
            self.session.record_allowed()?;
        }
        self.session.decide(decision)
    }

    fn note_tombstone(&self) -> anyhow::Result<()> {
        match self.session.has(Mark::Restored) {
            true => self.session.record_tombstone(),
            // The source can't have been told to ask.
            false => Ok(()),
        }
    }

    fn note_failed(&mut self, error: &anyhow::Error) -> Result<(), Stuck> {
        self.trouble = format!("{error:#}");
        if !self.session.exists() {
            self.trouble = "another process has dealt with the session".into();
            return Err(Stuck);
        }
        self.attempts += 1;
        if self.attempts > NOTE_ATTEMPTS {
            self.attempts = 0;
            return Err(Stuck);
        }
        thread::sleep(NOTE_INTERVAL);
        Ok(())
    }

    fn target(&self) -> Option<&Target> {
        match &self.journal.as_ref()?.side {
            Side::Destination(target) => Some(target),
            Side::Source(_) => None,
        }
    }

    /// Makes a decision true, under the lock that only one process has.
    fn finish(&mut self, make_true: fn(&mut Self) -> anyhow::Result<()>) -> Result<Event, Stuck> {
        self.attempts += 1;
        if self.attempts > FINISH_ATTEMPTS {
            return Err(Stuck);
        }
        let began = Instant::now();
        let lock = loop {
            match self.session.finish() {
                Ok(Some(lock)) => break lock,
                Ok(None) if began.elapsed() < OTHER_LIMIT => thread::sleep(OTHER_POLL_INTERVAL),
                Ok(None) => {
                    self.trouble = "another process is at it, and does not end".into();
                    return Err(Stuck);
                }
                // Another process has done it, and removed the session.
                Err(_) if !self.session.exists() => return Ok(Event::Done),
                Err(error) => {
                    self.trouble = format!("{error:#}");
                    thread::sleep(NOTE_INTERVAL);
                    return Ok(Event::NotDone);
                }
            }
        };
        let made = make_true(self);
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

    /// Continues what was restored. A tree that has ended meanwhile has ended
    /// as one that runs may end.
    fn run_tree(&mut self) -> anyhow::Result<()> {
        if self.session.has(Mark::Running) {
            return Ok(());
        }
        let Some(root) = self.session.read::<Process>(ROOT)? else {
            bail!("the session does not name the restored process");
        };
        let stay: Vec<u32> = self.session.read(STAYS_STOPPED)?.unwrap_or_default();
        if root.is_alive() {
            process::resume(root, |process| {
                let id = process::ids_in_namespace_of(Some(root), &[*process]);
                id.first().is_some_and(|id| stay.contains(id))
            })?;
        }
        if let Some(group) = self.group() {
            group.dissolve();
        }
        Ok(())
    }

    fn group(&self) -> Option<Group> {
        self.journal.as_ref().and_then(Journal::group)
    }

    /// Kills what was restored, whole or half-made, and what restores it.
    fn kill_tree(&mut self) -> anyhow::Result<()> {
        let at_work = self.session.read::<AtWork>(AT_WORK)?;
        let root = self.session.read::<Process>(ROOT)?;
        // The tree before CRIU, which holds it.
        if let Some(root) = root.filter(|root| root.is_alive()) {
            let tree = process::tree(root.pid).unwrap_or_else(|_| vec![root]);
            process::end(&tree, KILLED_LIMIT)?;
        }
        if let Some(at_work) = &at_work {
            if !at_work.kill() {
                bail!("what CRIU has restored does not end");
            }
            self.kill_half_made(at_work.process);
        }
        if let Some(journal) = &self.journal
            && at_work.is_some()
        {
            container::discard(&journal.subject)?;
        }
        if let Some(group) = self.group() {
            group.remove();
        }
        if let Some(cgroup) = self.target().and_then(|target| target.cgroup.as_ref()) {
            cgroup::remove(cgroup);
        }
        Ok(())
    }

    /// Kills what a CRIU that was killed has left of a tree outside of its
    /// cgroup, if it had one.
    fn kill_half_made(&self, criu: Process) {
        let is_plain = self
            .journal
            .as_ref()
            .is_some_and(|journal| matches!(journal.subject, Subject::Process { .. }));
        if let Some(target) = self.target()
            && is_plain
        {
            let left = process::half_made(&target.pids, criu);
            process::kill(&left, KILLED_LIMIT);
        }
    }

    /// Removes what is not needed any more. The record stays where the source
    /// may still ask, and notes stay where the tree runs.
    ///
    /// # Errors
    /// What can't be removed.
    pub fn tidy(&self) -> anyhow::Result<()> {
        let may_be_asked = self.session.has(Mark::Restored)
            && !self.is_confirmed
            && !self.session.has(Mark::Confirmed);
        match self.state {
            State::Gone if may_be_asked => self.session.bury(),
            State::Running if may_be_asked => self.session.remove_images(),
            State::Gone | State::Running | State::Ended => self.session.remove(),
            State::Restoring | State::Stopped | State::Decided(_) => Ok(()),
        }
    }
}

/// It goes no further for now.
struct Stuck;

/// Notes that the source will not ask, and removes the session unless a leader
/// still has use for it.
///
/// # Errors
/// The session can't be read, written or removed.
pub fn confirm(session: &Session) -> anyhow::Result<()> {
    if !session.exists() {
        return session.remove();
    }
    session.mark(Mark::Confirmed)?;
    remove_confirmed(session)
}

/// Removes a session that is confirmed and has no leader. A leader calls this
/// after it has let go of its lock, for the confirmation may come right before.
///
/// # Errors
/// The session can't be removed.
pub fn remove_confirmed(session: &Session) -> anyhow::Result<()> {
    if !session.exists() || !session.has(Mark::Confirmed) {
        return Ok(());
    }
    match session.lead()? {
        Some(_leader) => session.remove(),
        None => Ok(()),
    }
}
