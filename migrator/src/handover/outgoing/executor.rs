//! Carries out what the source's machine says, for `migrator move` as for a
//! process that takes over.
//!
//! Nothing in here returns an error: what fails becomes an event. So no `?` can
//! lead around the machine, and after the commit a [`Standing`] is all that can
//! come of it.

use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::runtime::Handle;

use super::{Action, Event, Notes, State, next};
use crate::cgroup::Group;
use crate::handover::journal::{JOURNAL, Journal, Origin, Side};
use crate::handover::{Decision, Identity, Mark, Session};
use crate::process::Process;
use crate::say;
use crate::transfer::Peer;

/// How often a note is tried again that can't be written.
const NOTE_ATTEMPTS: u32 = 50;

/// Between two attempts to write a note.
const NOTE_INTERVAL: Duration = Duration::from_millis(20);

/// Poll interval while another process makes the decision true.
const OTHER_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often a decision is tried again that can't be made true.
const FINISH_ATTEMPTS: u32 = 3;

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
    pub(super) session: Session,
    pub(super) journal: Journal,
    pub(super) state: State,
    /// It belongs to `move`, to which the destination reports.
    pub(super) leads: bool,
    /// The connection to the destination, if it still stands.
    pub peer: Option<Peer>,
    pub(super) runtime: Handle,
    /// Whether a signal came, true once for each.
    pub(super) is_interrupted: &'a dyn Fn() -> bool,
    /// An operator does not want to wait for an answer any more.
    pub(super) is_impatient: bool,
    /// Called with each action before it is carried out.
    observe: Box<dyn FnMut(Action) + 'a>,
    pub(super) attempts: u32,
    pub(super) trouble: String,
    pub(super) lost: Option<String>,
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
            lost: None,
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
            lost: None,
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

    /// Returns why a tree that was let run here does not, if that is so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Returns the last thing that went wrong, in words.
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Feeds it that something went wrong, which is said to the destination.
    pub fn fail(&mut self, words: &str) -> Standing {
        self.trouble = words.to_owned();
        self.run(Event::Failed)
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

    pub(super) fn failed(&mut self, error: anyhow::Error) -> Event {
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

    pub(super) fn origin(&self) -> Option<&Origin> {
        match &self.journal.side {
            Side::Source(origin) => Some(origin),
            Side::Destination(_) => None,
        }
    }

    pub(super) fn processes(&self) -> Vec<Process> {
        self.origin()
            .map(|origin| origin.processes.clone())
            .unwrap_or_default()
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
                thread::sleep(OTHER_POLL_INTERVAL);
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
}
