//! The end of a migration, one way or the other: the tree runs there and ends
//! here, or goes on here.
//!
//! The destination's word decides, and not this side's: a source that gave up
//! waiting for it could let the tree run twice. `docs/handover.md` has why it
//! runs exactly once.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;

use super::freeze::{FROZEN, Frozen};
use super::report::Arrival;
use super::source::{Host, PATIENT, step};
use crate::exit::RolledBack;
use crate::handover::Decision;
use crate::handover::settle::{self, COMMITTING};
use crate::protocol::{Fault, Message};

/// What came of it.
pub(super) struct Done {
    pub(super) arrival: Arrival,
    pub(super) source: Option<String>,
    pub(super) freeze_seconds: f64,
    pub(super) image_bytes: u64,
}

impl Host<'_> {
    /// The point of no return, and what lies behind it.
    pub(super) fn hand_over(&mut self, mut frozen: Frozen) -> anyhow::Result<Done> {
        match self.commit(&mut frozen) {
            Ok(true) => {}
            Ok(false) => {
                let error = anyhow!("the destination could not let the tree run");
                return Err(self.roll_back(Some(frozen), error));
            }
            // The guard goes on asking as soon as this process has ended.
            Err(error) if error.is::<settle::Undecided>() => return Err(error),
            Err(error) => return Err(self.roll_back(Some(frozen), error)),
        }
        let freeze_seconds = frozen.since.elapsed().as_secs_f64();
        step("running");
        self.session.decide(Decision::End)?;
        wait(&mut frozen);
        settle::finish(&self.session, &self.journal, Decision::End)
            .context("the tree runs on the destination; failed to clean up here")?;
        drop(frozen.leader);

        let began = Instant::now();
        _ = self.peer.say(Message::Ended);
        let arrival = loop {
            match self.hear(PATIENT) {
                Ok(Some(Message::Report(json))) => {
                    break serde_json::from_slice(&json)
                        .context("the destination's report makes no sense")?;
                }
                Ok(_) if self.signals.wait(None, Duration::ZERO)? => {
                    // The tree runs there: this ends the waiting, nothing else.
                    let why = "interrupted: the destination goes on warming";
                    break Arrival {
                        prefetch_error: Some(why.into()),
                        ..Arrival::default()
                    };
                }
                Ok(_) => {}
                Err(error) => {
                    // So that nothing is kept there for us to ask for.
                    if let Some(origin) = &self.journal.source {
                        settle::tell_ended(&self.session, origin);
                    }
                    break Arrival {
                        prefetch_error: Some(format!("{error:#}")),
                        ..Arrival::default()
                    };
                }
            }
        };
        self.clock.ended("warming afterwards", began);
        Ok(Done {
            arrival,
            source: None,
            freeze_seconds,
            image_bytes: frozen.image_bytes,
        })
    }

    /// Lets the destination run the tree. Gives whether it does; not to know
    /// is no result, and so this may take as long as the destination can't be
    /// reached.
    fn commit(&mut self, frozen: &mut Frozen) -> anyhow::Result<bool> {
        self.look(frozen)?;
        self.session.note(COMMITTING, &())?;
        // From now on a CRIU that dies, or an action script that is killed,
        // does not make the tree run: the signal is what it finds first.
        settle::signal(&frozen.processes, Signal::SIGSTOP);
        self.look(frozen)?;
        if !frozen.processes.iter().all(|process| process.is_held()) {
            bail!("a process has been let go of meanwhile");
        }
        step("resume");
        let began = Instant::now();
        let mut answer = self.peer.say(Message::Resume).map(|()| None);
        while let Ok(None) = answer {
            answer = match self.peer.hear(PATIENT) {
                Ok(Some(Message::Running)) => Ok(Some(true)),
                Ok(Some(Message::NotRunning)) => Ok(Some(false)),
                Ok(_) if began.elapsed() < FROZEN => Ok(None),
                Ok(_) => Err(Fault::Silent(FROZEN.as_secs())),
                Err(fault) => Err(fault),
            };
        }
        match answer {
            Ok(runs) => Ok(runs == Some(true)),
            Err(fault) => {
                let error = self.peer.explain(fault);
                eprintln!("migrator: {error:#}; asking whether the tree runs there");
                let is_enough = || self.signals.wait(None, Duration::ZERO).unwrap_or(false);
                let origin = self.journal.source.as_ref();
                let origin = origin.context("a source's journal is a destination's")?;
                let (decision, peer) = settle::decide(&self.session, origin, &is_enough)?;
                if let Some(peer) = peer {
                    self.peer = peer;
                }
                Ok(decision == Decision::End)
            }
        }
    }

    /// Lets the tree go on here.
    pub(super) fn roll_back(
        &mut self,
        frozen: Option<Frozen>,
        error: anyhow::Error,
    ) -> anyhow::Error {
        let Some(mut frozen) = frozen else {
            self.last_words = Some(Message::Failed(format!("{error:#}")));
            return error;
        };
        let decision = self.session.decide(Decision::Run);
        let words = format!("{error:#}");
        let settled = decision.and_then(|decision| {
            if decision == Decision::End {
                bail!("it has been decided that the tree ends here");
            }
            wait(&mut frozen);
            settle::finish(&self.session, &self.journal, decision)
        });
        self.last_words = Some(Message::Failed(words.clone()));
        match settled {
            Ok(()) => RolledBack(words).into(),
            Err(more) => anyhow!("{words}; and then failed to let the tree go on: {more:#}"),
        }
    }
}

/// Waits for CRIU to do as decided.
fn wait(frozen: &mut Frozen) {
    if let Some(mut dump) = frozen.dump.take() {
        // What became of it, the processes tell.
        _ = dump.wait();
    }
}
