//! Who may run, as the source decides it (pure).
//!
//! [`next`] is the whole machine: no I/O, no clock, no process. An executor
//! carries the actions out and feeds their results back as events. `model.rs`
//! checks it together with [`incoming`](super::incoming), and
//! `docs/handover.md` draws it.

mod ask;
pub mod executor;
mod finish;

use super::Decision;

/// What the source has set out to do with a frozen tree. It is noted once, by
/// the first process that notes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Hand over: from here on the destination decides.
    Commit,
    /// Let the tree run here.
    RollBack,
}

/// Where a handover stands on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The dump was ordered. The source can still roll back by itself.
    Frozen,
    /// The commit is noted. Only the destination's answer, or an operator who
    /// knows that the destination is dead, leads on from here.
    Committed,
    /// It is decided, and not yet true.
    Decided(Decision),
    /// It is decided and true.
    Ended(Decision),
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The destination holds the restored tree, complete and stopped.
    Restored,
    /// Each process of the tree has a SIGSTOP and has not run since the dump.
    Stopped,
    /// Anything went wrong: a step, the dump, the connection, a deadline, a
    /// signal, a leader that died.
    Failed,
    /// This intent is noted, by this process.
    Noted(Intent),
    /// This intent was noted before, by another process.
    Found(Intent),
    /// No intent can be noted or read.
    NotNoted,
    /// The destination answers.
    Answer(Answer),
    /// An operator states that the destination is gone for good.
    DestinationIsDead,
    /// This decision is noted, whichever process did it.
    Decision(Decision),
    /// No decision can be noted or read.
    Undecided,
    /// The decision is true: the tree runs here, or has ended here.
    Done,
    /// The decision could not be made true.
    NotDone,
}

/// The destination's answer to whether the tree runs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It runs there.
    Running,
    /// It does not, and never will.
    NotRunning,
    /// That host can't know: it is another one, or has been booted since.
    NotKnown,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send SIGSTOP to the tree and check that none of it was let go.
    StopTree,
    /// Note what the source sets out to do.
    NoteIntent(Intent),
    /// Tell the destination that it may run the tree.
    SendResume,
    /// Ask the destination, over a new connection, whether the tree runs there.
    Ask,
    /// Note the decision.
    NoteDecision(Decision),
    /// Let the tree run here: end the dump, SIGCONT, restore it if it has ended.
    RunTree,
    /// End the tree here and wait until it is gone.
    EndTree,
    /// Tell the destination that no question will follow.
    Confirm,
    /// Remove images and notes.
    Remove,
}

/// What a process finds that takes a session over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Notes {
    /// The noted intent.
    pub intent: Option<Intent>,
    /// The noted decision.
    pub decision: Option<Decision>,
}

impl State {
    /// Returns the state of a session whose notes are these.
    pub fn of(notes: Notes) -> Self {
        match (notes.decision, notes.intent) {
            (Some(decision), _) => Self::Decided(decision),
            (None, Some(Intent::Commit)) => Self::Committed,
            (None, Some(Intent::RollBack)) => Self::Decided(Decision::Run),
            (None, None) => Self::Frozen,
        }
    }

    /// Returns what a process does first that takes over in this state.
    pub fn take_over(self) -> (Self, Vec<Action>) {
        match self {
            Self::Decided(decision) => (self, vec![make_true(decision)]),
            Self::Ended(_) => (self, vec![Action::Remove]),
            Self::Frozen | Self::Committed => next(self, Event::Failed),
        }
    }
}

/// Returns the next state and what to do. An event that means nothing in a
/// state changes nothing.
pub fn next(state: State, event: Event) -> (State, Vec<Action>) {
    use Action::{Ask, Confirm, NoteDecision, NoteIntent, Remove, SendResume, StopTree};
    use Decision::{End, Run};
    use Intent::{Commit, RollBack};
    use State::{Committed, Decided, Ended, Frozen};

    let decided = |decision| (Decided(decision), vec![make_true(decision)]);
    match (state, event) {
        (Frozen, Event::Restored) => (Frozen, vec![StopTree]),
        (Frozen, Event::Stopped) => (Frozen, vec![NoteIntent(Commit)]),
        (Frozen, Event::Noted(Commit)) => (Committed, vec![SendResume]),
        // A process that finds a commit does not know how far it came.
        (Frozen, Event::Found(Commit)) => (Committed, vec![Ask]),
        (Frozen, Event::Noted(RollBack) | Event::Found(RollBack)) => decided(Run),
        (Frozen, Event::Failed | Event::NotNoted | Event::Answer(Answer::NotRunning)) => {
            (Frozen, vec![NoteIntent(RollBack)])
        }

        (Committed, Event::Answer(Answer::Running)) => (Committed, vec![NoteDecision(End)]),
        (Committed, Event::Answer(Answer::NotRunning)) => (Committed, vec![NoteDecision(Run)]),
        (Committed, Event::DestinationIsDead) => (Committed, vec![NoteDecision(Run)]),
        (Committed, Event::Decision(decision)) => decided(decision),
        // Nothing that fails here leads to a roll back.
        (Committed, Event::Failed | Event::Undecided | Event::Answer(Answer::NotKnown)) => {
            (Committed, vec![Ask])
        }

        (Decided(decision), Event::Done) => (Ended(decision), vec![Confirm, Remove]),
        (Decided(decision), Event::NotDone) => decided(decision),

        (state, _) => (state, Vec::new()),
    }
}

fn make_true(decision: Decision) -> Action {
    match decision {
        Decision::Run => Action::RunTree,
        Decision::End => Action::EndTree,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 8] = [
        Event::Restored,
        Event::Stopped,
        Event::Failed,
        Event::NotNoted,
        Event::Undecided,
        Event::Found(Intent::RollBack),
        Event::Answer(Answer::NotKnown),
        Event::NotDone,
    ];

    #[test]
    fn no_error_after_the_commit_leads_to_a_roll_back() {
        for event in EVENTS {
            let (state, actions) = next(State::Committed, event);
            assert_eq!(state, State::Committed, "{event:?}");
            assert!(
                actions.iter().all(|action| *action == Action::Ask),
                "{event:?}: {actions:?}"
            );
        }
    }

    #[test]
    fn only_a_commit_of_its_own_sends_the_resume() {
        let resumes = |event| next(State::Frozen, event).1.contains(&Action::SendResume);
        assert!(resumes(Event::Noted(Intent::Commit)));
        assert!(!resumes(Event::Found(Intent::Commit)));
        assert!(EVENTS.into_iter().all(|event| !resumes(event)));
    }

    #[test]
    fn a_session_is_taken_over_as_its_notes_say() {
        let state = |intent, decision| State::of(Notes { intent, decision });
        assert_eq!(state(None, None), State::Frozen);
        assert_eq!(state(Some(Intent::Commit), None), State::Committed);
        let rolled_back = State::Decided(Decision::Run);
        assert_eq!(state(Some(Intent::RollBack), None), rolled_back);
        let ends = State::Decided(Decision::End);
        assert_eq!(state(Some(Intent::Commit), Some(Decision::End)), ends);
        assert_eq!(State::Committed.take_over().1, [Action::Ask]);
        assert_eq!(
            State::Frozen.take_over().1,
            [Action::NoteIntent(Intent::RollBack)]
        );
    }
}
