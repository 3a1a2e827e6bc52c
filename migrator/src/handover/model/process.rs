//! A process that runs one of the two machines.

use std::fmt;
use std::hash::Hash;

use super::rules::Rules;
use crate::handover::{Decision, incoming, outgoing};

/// One of the two machines.
pub(super) trait Machine: Copy + Eq + Hash {
    type State: Copy + Eq + fmt::Debug + 'static;
    type Event: Copy + Eq + fmt::Debug + 'static;
    type Action: Copy + Eq + fmt::Debug + 'static;

    /// Each state, as [`Process`] counts them.
    const STATES: &'static [Self::State];
    const EVENTS: &'static [Self::Event];
    /// Each action, as [`Process`] counts them. There are at most 15.
    const ACTIONS: &'static [Self::Action];

    /// Runs the machine without any mutation.
    fn next(state: Self::State, event: Self::Event) -> (Self::State, Vec<Self::Action>);

    /// Runs the machine under the rules of this check.
    fn step(
        rules: &Rules,
        state: Self::State,
        event: Self::Event,
    ) -> (Self::State, Vec<Self::Action>);
}

/// The source's machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Outgoing;

/// The destination's machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Incoming;

impl Machine for Outgoing {
    type State = outgoing::State;
    type Event = outgoing::Event;
    type Action = outgoing::Action;

    const STATES: &'static [outgoing::State] = {
        use outgoing::State::{Committed, Decided, Ended, Frozen};
        &[
            Frozen,
            Committed,
            Decided(Decision::Run),
            Decided(Decision::End),
            Ended(Decision::Run),
            Ended(Decision::End),
        ]
    };
    const EVENTS: &'static [outgoing::Event] = {
        use outgoing::{Answer, Event, Intent};
        &[
            Event::Restored,
            Event::Stopped,
            Event::Failed,
            Event::Noted(Intent::Commit),
            Event::Noted(Intent::RollBack),
            Event::Found(Intent::Commit),
            Event::Found(Intent::RollBack),
            Event::NotNoted,
            Event::Answer(Answer::Running),
            Event::Answer(Answer::NotRunning),
            Event::Answer(Answer::NotKnown),
            Event::DestinationIsDead,
            Event::Decision(Decision::Run),
            Event::Decision(Decision::End),
            Event::Undecided,
            Event::Done,
            Event::NotDone,
        ]
    };
    const ACTIONS: &'static [outgoing::Action] = {
        use outgoing::{Action, Intent};
        &[
            Action::StopTree,
            Action::NoteIntent(Intent::Commit),
            Action::NoteIntent(Intent::RollBack),
            Action::SendResume,
            Action::Ask,
            Action::NoteDecision(Decision::Run),
            Action::NoteDecision(Decision::End),
            Action::RunTree,
            Action::EndTree,
            Action::Confirm,
            Action::Remove,
        ]
    };

    fn next(
        state: outgoing::State,
        event: outgoing::Event,
    ) -> (outgoing::State, Vec<outgoing::Action>) {
        outgoing::next(state, event)
    }

    fn step(
        rules: &Rules,
        state: outgoing::State,
        event: outgoing::Event,
    ) -> (outgoing::State, Vec<outgoing::Action>) {
        rules.outgoing(state, event)
    }
}

impl Machine for Incoming {
    type State = incoming::State;
    type Event = incoming::Event;
    type Action = incoming::Action;

    const STATES: &'static [incoming::State] = {
        use incoming::State::{Decided, Ended, Gone, Restoring, Running, Stopped};
        &[
            Restoring,
            Stopped,
            Decided(Decision::Run),
            Decided(Decision::End),
            Running,
            Gone,
            Ended,
        ]
    };
    const EVENTS: &'static [incoming::Event] = {
        use incoming::Event;
        &[
            Event::Restored,
            Event::Resume,
            Event::Failed,
            Event::Asked,
            Event::Decision(Decision::Run),
            Event::Decision(Decision::End),
            Event::Undecided,
            Event::Done,
            Event::NotDone,
            Event::Confirmed,
        ]
    };
    const ACTIONS: &'static [incoming::Action] = {
        use incoming::Action;
        &[
            Action::SayRestored,
            Action::NoteDecision(Decision::Run),
            Action::NoteDecision(Decision::End),
            Action::RunTree,
            Action::KillTree,
            Action::NoteRunning,
            Action::SayRunning,
            Action::NoteTombstone,
            Action::SayNotRunning,
            Action::Remove,
        ]
    };

    fn next(
        state: incoming::State,
        event: incoming::Event,
    ) -> (incoming::State, Vec<incoming::Action>) {
        incoming::next(state, event)
    }

    fn step(
        rules: &Rules,
        state: incoming::State,
        event: incoming::Event,
    ) -> (incoming::State, Vec<incoming::Action>) {
        rules.incoming(state, event)
    }
}

/// A process: the state of its machine and the actions it has yet to carry out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process<M> {
    /// The place in [`Machine::STATES`].
    state: u8,
    /// Four bits for each action, the first one lowest: one more than its place
    /// in [`Machine::ACTIONS`].
    queue: u32,
    /// A connection, a child or a signal has failed it, and it has not looked.
    pub(super) failed: bool,
    /// Its CRIU has succeeded, and it has not looked.
    pub(super) finished: bool,
    /// It is stopped by SIGSTOP.
    pub(super) paused: bool,
    /// The first half of the first action is carried out.
    pub(super) half: bool,
    machine: std::marker::PhantomData<M>,
}

impl<M: Machine> Process<M> {
    /// Returns a process in this state with these actions to carry out.
    pub(super) fn new((state, actions): (M::State, Vec<M::Action>)) -> Self {
        let mut process = Self {
            state: 0,
            queue: 0,
            failed: false,
            finished: false,
            paused: false,
            half: false,
            machine: std::marker::PhantomData,
        };
        process.follow((state, actions));
        process
    }

    /// Returns the state of the machine.
    pub(super) fn state(&self) -> M::State {
        M::STATES[self.place()]
    }

    /// Returns the place of the state in [`Machine::STATES`].
    pub(super) fn place(&self) -> usize {
        usize::from(self.state)
    }

    /// Returns the action to carry out first.
    pub(super) fn action(&self) -> Option<M::Action> {
        match self.queue & 15 {
            0 => None,
            code => Some(M::ACTIONS[code as usize - 1]),
        }
    }

    /// Removes the action that [`Self::action`] returns.
    pub(super) fn pop(&mut self) {
        self.queue >>= 4;
        self.half = false;
    }

    /// Runs the machine for one event.
    pub(super) fn feed(&mut self, rules: &Rules, event: M::Event) {
        self.follow(M::step(rules, self.state(), event));
    }

    fn follow(&mut self, (state, actions): (M::State, Vec<M::Action>)) {
        if self.state() != state {
            let place = M::STATES.iter().position(|other| *other == state);
            self.state = place.expect("each state is listed") as u8;
        }
        for action in actions {
            let place = M::ACTIONS.iter().position(|other| *other == action);
            let code = place.expect("each action is listed") as u32 + 1;
            let length = (32 - self.queue.leading_zeros()).div_ceil(4);
            assert!(length < 8, "a queue holds at most 8 actions: {self:?}");
            self.queue |= code << (4 * length);
        }
    }
}

impl<M: Machine> fmt::Debug for Process<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())?;
        let mut rest = *self;
        while let Some(action) = rest.action() {
            write!(f, " {action:?}")?;
            rest.pop();
        }
        let flags = [
            (self.half, "half"),
            (self.failed, "failed"),
            (self.finished, "finished"),
            (self.paused, "paused"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            write!(f, " ({name})")?;
        }
        Ok(())
    }
}
