//! What the source says to the destination from the commit on, and what it asks.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::executor::{Executor, Standing};
use super::{Answer, Event, Intent, State};
use crate::handover::{Decision, question};
use crate::process;
use crate::protocol::Message;
use crate::say;

/// How long the destination may take to continue a restored tree.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Poll interval while only the destination has something to say.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Between two questions to a destination that does not know or answer.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the destination is tried to be told that no question will follow.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

impl Executor<'_> {
    /// Tells the destination that it may run the tree.
    pub(super) fn send_resume(&mut self) -> anyhow::Result<()> {
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.clone())
            .unwrap_or_default();
        let root = self.origin().and_then(|origin| origin.root);
        let ids = process::ids_in_namespace_of(root, &stopped);
        let peer = self
            .peer
            .as_mut()
            .context("there is no connection to the destination")?;
        peer.send(Message::Resume(ids))
            .map_err(|error| peer.explain(error))
    }

    /// Waits for the destination's word after the commit.
    pub(super) fn await_answer(&mut self) -> Event {
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
    pub(super) fn ask(&mut self) -> Result<Event, Standing> {
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

    /// Tells the destination that the source rolls back, if it can be told at
    /// once. It comes first: a copy there may hold the locks that the tree
    /// needs here.
    pub(super) fn say_rolled_back(&mut self) {
        let rolls_back = matches!(self.session.intent(), Ok(Some(Intent::RollBack)));
        if let Some(peer) = self.peer.as_ref().filter(|_| rolls_back) {
            // A connection that is lost, or full, says the same.
            _ = peer
                .sender()
                .try_send(Message::Failed(self.trouble.clone()));
        }
    }

    /// Tells the destination that no question will follow.
    pub(super) fn confirm(&mut self) {
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
}
