//! The rules that can be dropped one at a time.

use super::process::{Incoming, Machine, Outgoing, Process};
use crate::handover::incoming::{self, Found, Record};
use crate::handover::outgoing::{self, Answer};

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    None,
    /// This event changes nothing in this state; or one of its actions is left
    /// out.
    Outgoing(outgoing::State, outgoing::Event, Option<usize>),
    /// As above.
    Incoming(incoming::State, incoming::Event, Option<usize>),
    /// A process that takes over in this state does nothing.
    OutgoingTakeOver(outgoing::State),
    /// As above.
    IncomingTakeOver(incoming::State),
    /// This row of [`incoming::answer`] returns the opposite.
    Answer(Row),
    /// The executors do not follow this rule.
    Rule(Rule),
}

/// A row of [`incoming::answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    OtherHost,
    Notes,
    Tombstone,
    NeverAllowed,
    NotAllowedThisBoot,
    Allowed,
    NoRecord,
}

impl Row {
    const ALL: [Self; 7] = [
        Self::OtherHost,
        Self::Notes,
        Self::Tombstone,
        Self::NeverAllowed,
        Self::NotAllowedThisBoot,
        Self::Allowed,
        Self::NoRecord,
    ];

    fn of(found: Found) -> Self {
        match found.record {
            _ if !found.same_host => Self::OtherHost,
            _ if found.notes => Self::Notes,
            Some(Record::Tombstone) => Self::Tombstone,
            Some(Record::NotAllowed) if !found.same_boot => Self::NeverAllowed,
            Some(Record::NotAllowed) => Self::NotAllowedThisBoot,
            Some(Record::Allowed) => Self::Allowed,
            None => Self::NoRecord,
        }
    }
}

/// A rule that the machines rely on and the executors follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// An intent and a decision are noted once.
    NotesAreExclusive,
    /// The tree has a SIGSTOP when the commit is noted.
    TreeIsStoppedBeforeTheCommit,
    /// That the tree may run is on the disk before it is decided.
    DiskKnowsBeforeTheDecision,
    /// The tombstone is on the disk before the notes are removed.
    TombstoneBeforeNotesAreRemoved,
    /// A tombstone stays when it is noted that the tree may run.
    TombstoneStays,
    /// A question names the host and the boot that accepted the order.
    QuestionNamesTheHost,
    /// A process takes over when the leader is dead or past the deadline.
    LeaderIsLeftAlone,
    /// The notes are read before each question.
    NotesAreReadBeforeAQuestion,
    /// A process ends when its session is gone.
    ProcessEndsWithItsSession,
    /// The source's notes are removed all at once, after the images.
    NotesAreRemovedAtOnce,
    /// No restore starts after the tree was killed.
    KilledTreeIsNotRestored,
    /// A half-made tree is killed as a complete one is.
    HalfMadeTreeIsKilled,
    /// A SIGSTOP that fails to stop the tree is a failure.
    StopIsChecked,
}

impl Rule {
    const ALL: [Self; 13] = [
        Self::NotesAreExclusive,
        Self::TreeIsStoppedBeforeTheCommit,
        Self::DiskKnowsBeforeTheDecision,
        Self::TombstoneBeforeNotesAreRemoved,
        Self::TombstoneStays,
        Self::QuestionNamesTheHost,
        Self::LeaderIsLeftAlone,
        Self::NotesAreReadBeforeAQuestion,
        Self::ProcessEndsWithItsSession,
        Self::NotesAreRemovedAtOnce,
        Self::KilledTreeIsNotRestored,
        Self::HalfMadeTreeIsKilled,
        Self::StopIsChecked,
    ];
}

/// The machines and the rules that the executors follow, less one.
pub(super) struct Rules {
    dropped: Mutation,
    /// See [`ignored`].
    outgoing: Vec<u32>,
    incoming: Vec<u32>,
}

impl Rules {
    /// Returns all rules but one.
    pub(super) fn without(dropped: Mutation) -> Self {
        let mut rules = Self {
            dropped,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        };
        rules.outgoing = ignored::<Outgoing>(&rules);
        rules.incoming = ignored::<Incoming>(&rules);
        rules
    }

    /// Returns whether a process of the source will never act on an event.
    pub(super) fn source_ignores(
        &self,
        process: &Process<Outgoing>,
        event: outgoing::Event,
    ) -> bool {
        ignores(&self.outgoing, process, event)
    }

    /// Returns whether a process of the destination will never act on an event.
    pub(super) fn destination_ignores(
        &self,
        process: &Process<Incoming>,
        event: incoming::Event,
    ) -> bool {
        ignores(&self.incoming, process, event)
    }

    /// Returns whether the executors follow a rule.
    pub(super) fn hold(&self, rule: Rule) -> bool {
        self.dropped != Mutation::Rule(rule)
    }

    /// Runs the source's machine, less what is dropped.
    pub(super) fn outgoing(
        &self,
        state: outgoing::State,
        event: outgoing::Event,
    ) -> (outgoing::State, Vec<outgoing::Action>) {
        match self.dropped {
            Mutation::Outgoing(in_state, on_event, action)
                if (in_state, on_event) == (state, event) =>
            {
                drop_from::<Outgoing>(state, event, action)
            }
            _ => outgoing::next(state, event),
        }
    }

    /// Runs the destination's machine, less what is dropped.
    pub(super) fn incoming(
        &self,
        state: incoming::State,
        event: incoming::Event,
    ) -> (incoming::State, Vec<incoming::Action>) {
        match self.dropped {
            Mutation::Incoming(in_state, on_event, action)
                if (in_state, on_event) == (state, event) =>
            {
                drop_from::<Incoming>(state, event, action)
            }
            _ => incoming::next(state, event),
        }
    }

    /// Returns what a process of the source does that takes over.
    pub(super) fn take_over_source(
        &self,
        notes: outgoing::Notes,
    ) -> (outgoing::State, Vec<outgoing::Action>) {
        match outgoing::State::of(notes) {
            state if self.dropped == Mutation::OutgoingTakeOver(state) => (state, Vec::new()),
            state => state.take_over(),
        }
    }

    /// Returns what a process of the destination does that takes over.
    pub(super) fn take_over_destination(
        &self,
        notes: incoming::Notes,
    ) -> (incoming::State, Vec<incoming::Action>) {
        match incoming::State::of(notes) {
            state if self.dropped == Mutation::IncomingTakeOver(state) => (state, Vec::new()),
            state => state.take_over(),
        }
    }

    /// Returns a host's answer; `None` where the notes decide.
    pub(super) fn answer(&self, found: Found) -> Option<Answer> {
        let answer = incoming::answer(found);
        match self.dropped {
            Mutation::Answer(row) if row == Row::of(found) => match answer {
                Some(Answer::NotKnown) | None => Some(Answer::NotRunning),
                Some(Answer::Running | Answer::NotRunning) => Some(Answer::NotKnown),
            },
            _ => answer,
        }
    }
}

/// Returns for each state a bit for each event that changes nothing in it, nor in
/// any state that can follow.
fn ignored<M: Machine>(rules: &Rules) -> Vec<u32> {
    let mut ignored = vec![u32::MAX; M::STATES.len()];
    loop {
        let before = ignored.clone();
        for (place, state) in M::STATES.iter().enumerate() {
            for (bit, event) in M::EVENTS.iter().enumerate() {
                let (then, actions) = M::step(rules, *state, *event);
                if then != *state || !actions.is_empty() {
                    ignored[place] &= !(1 << bit);
                }
                let then = M::STATES.iter().position(|state| *state == then);
                ignored[place] &= then.map_or(0, |then| before[then]);
            }
        }
        if ignored == before {
            return ignored;
        }
    }
}

fn ignores<M: Machine>(ignored: &[u32], process: &Process<M>, event: M::Event) -> bool {
    let bit = M::EVENTS.iter().position(|other| *other == event);
    bit.is_some_and(|bit| ignored[process.place()] & 1 << bit != 0)
}

fn drop_from<M: Machine>(
    state: M::State,
    event: M::Event,
    action: Option<usize>,
) -> (M::State, Vec<M::Action>) {
    match action {
        None => (state, Vec::new()),
        Some(place) => {
            let (state, mut actions) = M::next(state, event);
            actions.remove(place);
            (state, actions)
        }
    }
}

/// Returns each mutation: every state and event that lead to something, as a
/// whole and without each of its actions; what is done on a take-over; each row
/// of the answers; each rule of the executors.
pub(super) fn mutations() -> Vec<Mutation> {
    let mut all = Vec::new();
    each::<Outgoing>(&mut |state, event, action| {
        all.push(Mutation::Outgoing(state, event, action));
    });
    each::<Incoming>(&mut |state, event, action| {
        all.push(Mutation::Incoming(state, event, action));
    });
    let acts = |state: &outgoing::State| !state.take_over().1.is_empty();
    let states = Outgoing::STATES.iter().copied().filter(acts);
    all.extend(states.map(Mutation::OutgoingTakeOver));
    let acts = |state: &incoming::State| !state.take_over().1.is_empty();
    let states = Incoming::STATES.iter().copied().filter(acts);
    all.extend(states.map(Mutation::IncomingTakeOver));
    all.extend(Row::ALL.map(Mutation::Answer));
    all.extend(Rule::ALL.map(Mutation::Rule));
    all
}

fn each<M: Machine>(push: &mut dyn FnMut(M::State, M::Event, Option<usize>)) {
    for state in M::STATES {
        for event in M::EVENTS {
            let (then, actions) = M::next(*state, *event);
            if then != *state || !actions.is_empty() {
                push(*state, *event, None);
            }
            // Without its only action, a state that stays is the case above.
            if then != *state || actions.len() > 1 {
                (0..actions.len()).for_each(|place| push(*state, *event, Some(place)));
            }
        }
    }
}
