//! Who may run, as the destination decides it (pure).
//!
//! The counterpart of [`outgoing`](super::outgoing): [`next`] is the whole
//! machine, [`answer`] what a host may say of a session it was asked about.

pub mod executor;

use super::Decision;
use super::outgoing::Answer;

/// Where a handover stands on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The order was accepted. Nothing has been restored as a whole.
    Restoring,
    /// CRIU has succeeded: the tree is complete, stopped by SIGSTOP, and held
    /// by nothing else.
    Stopped,
    /// It is decided, and not yet true.
    Decided(Decision),
    /// Each process of the tree was continued.
    Running,
    /// The tree is gone from this host and never ran here.
    Gone,
    /// Nothing is left to do, and no question will come.
    Ended,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// CRIU reports success, and each process is stopped.
    Restored,
    /// The source allows the tree to run.
    Resume,
    /// Anything went wrong: a step, CRIU, the connection, a signal, a leader
    /// that died.
    Failed,
    /// A source that has lost its connection asks.
    Asked,
    /// This decision is noted, whichever process did it.
    Decision(Decision),
    /// No decision can be noted or read.
    Undecided,
    /// The decision is true: each process was continued, or none is left.
    Done,
    /// The decision could not be made true.
    NotDone,
    /// The source will not ask any more.
    Confirmed,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Tell the source that the tree is restored and stopped.
    SayRestored,
    /// Note the decision. That the tree may run is noted on the disk first.
    NoteDecision(Decision),
    /// Continue the tree, children before their parents.
    RunTree,
    /// Kill what was restored, and wait until it is gone.
    KillTree,
    /// Note that it runs.
    NoteRunning,
    /// Tell the source that it runs.
    SayRunning,
    /// Note on the disk that it never ran here and never will.
    NoteTombstone,
    /// Tell the source so.
    SayNotRunning,
    /// Remove images and notes, the tombstone too.
    Remove,
}

/// What a process finds that takes a session over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Notes {
    /// The noted decision.
    pub decision: Option<Decision>,
    /// That the tree runs is noted.
    pub running: bool,
}

impl State {
    /// Returns the state of a session whose notes are these. What was restored
    /// and not decided is never continued by a process that takes over.
    pub fn of(notes: Notes) -> Self {
        match notes.decision {
            Some(Decision::Run) if notes.running => Self::Running,
            Some(decision) => Self::Decided(decision),
            None => Self::Restoring,
        }
    }

    /// Returns what a process does first that takes over in this state.
    pub fn take_over(self) -> (Self, Vec<Action>) {
        match self {
            Self::Decided(decision) => (self, vec![make_true(decision)]),
            Self::Restoring | Self::Stopped => next(self, Event::Failed),
            Self::Running | Self::Gone | Self::Ended => (self, Vec::new()),
        }
    }
}

/// Returns the next state and what to do. An event that means nothing in a
/// state changes nothing.
pub fn next(state: State, event: Event) -> (State, Vec<Action>) {
    use Action::{
        NoteDecision, NoteRunning, NoteTombstone, Remove, SayNotRunning, SayRestored, SayRunning,
    };
    use Decision::{End, Run};
    use State::{Decided, Ended, Gone, Restoring, Running, Stopped};

    let decided = |decision| (Decided(decision), vec![make_true(decision)]);
    match (state, event) {
        (Restoring, Event::Restored) => (Stopped, vec![SayRestored]),
        // A source that resumes what is not restored is not to be trusted.
        (Restoring, Event::Failed | Event::Asked | Event::Resume | Event::Undecided) => {
            (Restoring, vec![NoteDecision(End)])
        }

        (Stopped, Event::Resume) => (Stopped, vec![NoteDecision(Run)]),
        (Stopped, Event::Failed | Event::Asked | Event::Undecided) => {
            (Stopped, vec![NoteDecision(End)])
        }
        (Restoring | Stopped, Event::Decision(decision)) => decided(decision),

        (Decided(Run), Event::Done) => (Running, vec![NoteRunning, SayRunning]),
        (Decided(End), Event::Done) => (Gone, vec![NoteTombstone, SayNotRunning]),
        // A process that is asked does what the leader has not done.
        (Decided(decision), Event::NotDone | Event::Asked) => decided(decision),

        (Running, Event::Asked) => (Running, vec![SayRunning]),
        // A source that missed it, for it was about to commit, resumes.
        (Gone, Event::Asked | Event::Resume) => (Gone, vec![SayNotRunning]),
        (Running | Gone, Event::Confirmed) => (Ended, vec![Remove]),

        (state, _) => (state, Vec::new()),
    }
}

fn make_true(decision: Decision) -> Action {
    match decision {
        Decision::Run => Action::RunTree,
        Decision::End => Action::KillTree,
    }
}

/// What the disk of a host holds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record {
    /// The tree was never allowed to run here.
    NotAllowed,
    /// It was allowed to run here.
    Allowed,
    /// It never ran here and never will.
    Tombstone,
}

/// What a host finds when it is asked about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Found {
    /// The question names this host's identity.
    pub same_host: bool,
    /// This host was not booted since it accepted the order.
    pub same_boot: bool,
    /// The notes of this boot are there.
    pub notes: bool,
    /// What the disk holds.
    pub record: Option<Record>,
}

/// Returns what a host can answer without touching the session; `None` where
/// the session's notes decide, by [`Event::Asked`].
///
/// "Not running" needs proof: notes, or a record on this very host's disk that
/// excludes it. Everything else is "not known".
pub fn answer(found: Found) -> Option<Answer> {
    if !found.same_host {
        return Some(Answer::NotKnown);
    }
    match (found.notes, found.record) {
        (true, _) => None,
        (false, Some(Record::Tombstone)) => Some(Answer::NotRunning),
        // A boot has ended whatever was restored. Without one, the notes were
        // removed under a leader that may still be at work.
        (false, Some(Record::NotAllowed)) if !found.same_boot => Some(Answer::NotRunning),
        (false, _) => Some(Answer::NotKnown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_is_never_said_without_proof() {
        for same_host in [false, true] {
            for same_boot in [false, true] {
                for record in [
                    None,
                    Some(Record::NotAllowed),
                    Some(Record::Allowed),
                    Some(Record::Tombstone),
                ] {
                    let said = answer(Found {
                        same_host,
                        same_boot,
                        notes: false,
                        record,
                    });
                    let proof = same_host
                        && (record == Some(Record::Tombstone)
                            || record == Some(Record::NotAllowed) && !same_boot);
                    let expected = match proof {
                        true => Answer::NotRunning,
                        false => Answer::NotKnown,
                    };
                    assert_eq!(said, Some(expected), "{same_host} {same_boot} {record:?}");
                }
            }
        }
    }

    #[test]
    fn only_a_resume_allows_it_to_run() {
        let run = Action::NoteDecision(Decision::Run);
        for state in [State::Restoring, State::Stopped] {
            for event in [
                Event::Restored,
                Event::Failed,
                Event::Asked,
                Event::Undecided,
            ] {
                assert!(!next(state, event).1.contains(&run), "{state:?} {event:?}");
            }
        }
        assert!(!next(State::Restoring, Event::Resume).1.contains(&run));
        assert_eq!(next(State::Stopped, Event::Resume).1, [run]);
    }

    #[test]
    fn a_process_that_takes_over_never_continues_what_was_not_decided() {
        let (state, actions) = State::of(Notes::default()).take_over();
        assert_eq!(state, State::Restoring);
        assert_eq!(actions, [Action::NoteDecision(Decision::End)]);
        let allowed = Notes {
            decision: Some(Decision::Run),
            running: false,
        };
        assert_eq!(State::of(allowed).take_over().1, [Action::RunTree]);
    }
}
