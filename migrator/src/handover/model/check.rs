//! What must be true.

use super::process::{Outgoing, Process};
use super::world::{DestinationTree, OPERATOR, Power, SourceTree, World};
use crate::handover::Decision;
use crate::handover::incoming::Record;
use crate::handover::outgoing::{self, Intent};

impl World {
    /// Returns what is wrong in this very state.
    pub(super) fn violation(&self) -> Option<&'static str> {
        let (source, destination) = (&self.source, &self.destination);
        let runs = source.tree == SourceTree::Runs;
        let committed =
            source.session && source.intent == Some(Intent::Commit) && source.decision.is_none();
        let rules = [
            (
                runs && destination.tree == DestinationTree::Runs,
                "both copies run",
            ),
            (
                source.moved_on && destination.ran && !source.stated,
                "both copies have run since the dump",
            ),
            (
                committed && runs,
                "the source's copy runs after the commit and before a decision",
            ),
            (
                source.tree == SourceTree::Dead && !destination.ran,
                "the source has removed the only copy",
            ),
            (
                destination.tree == DestinationTree::Killed && destination.ran,
                "the destination has killed a copy that ran",
            ),
            (
                destination.record == Some(Record::Tombstone)
                    && !matches!(
                        destination.tree,
                        DestinationTree::None | DestinationTree::Killed
                    ),
                "a tombstone names a copy that is not gone",
            ),
        ];
        let violated = rules.into_iter().find(|(violated, _)| *violated);
        violated.map(|(_, name)| name)
    }

    /// Returns whether the source waits for an operator: it has committed, and
    /// the destination is off, or was booted after it was allowed to run the
    /// tree, or has lost its disk.
    pub(super) fn waits(&self) -> bool {
        let (source, destination) = (&self.source, &self.destination);
        let can_not_know = match destination.record {
            Some(Record::Allowed) => destination.power == Power::Booted,
            None => destination.wiped,
            Some(Record::NotAllowed | Record::Tombstone) => false,
        };
        source.session
            && source.intent == Some(Intent::Commit)
            && source.decision.is_none()
            && !self.operator_acts()
            && (destination.power == Power::Off || !destination.session && can_not_know)
    }

    /// Returns whether an operator's statement is on its way. When it could not be
    /// noted, its process asks like others, and waits for another statement.
    fn operator_acts(&self) -> bool {
        let asks = |process: &Process<Outgoing>| {
            process.action() == Some(outgoing::Action::Ask) || self.asks(OPERATOR)
        };
        self.source.processes[OPERATOR].is_some_and(|process| !asks(&process))
    }

    /// Returns whether a process has a question without an answer.
    pub(super) fn asks(&self, place: usize) -> bool {
        self.links[1..]
            .iter()
            .any(|link| link.source && !link.answered && usize::from(link.process) == place)
    }

    /// Returns whether everything has come to a proper end, or waits for an
    /// operator. A paused process may stay paused.
    pub(super) fn settled(&self) -> bool {
        if self.waits() {
            return true;
        }
        let (source, destination) = (&self.source, &self.destination);
        let paused = [
            source.processes[0].is_none_or(|process| process.paused),
            destination.processes[0].is_none_or(|process| process.paused),
        ];
        let done = paused == [true, true]
            && source.processes[1..].iter().all(Option::is_none)
            && destination.processes[1..].iter().all(Option::is_none);
        let one_runs = match (source.tree, destination.tree) {
            (SourceTree::Runs, DestinationTree::Runs) => false,
            (SourceTree::Runs, other) => matches!(
                other,
                DestinationTree::None | DestinationTree::Killed | DestinationTree::Lost
            ),
            (SourceTree::Dead | SourceTree::Lost, DestinationTree::Runs) => true,
            // The host that held it lost its power.
            (SourceTree::Lost, DestinationTree::None | DestinationTree::Killed) => true,
            (SourceTree::Dead | SourceTree::Lost, DestinationTree::Lost) => true,
            _ => false,
        };
        let notes_removed = match (destination.session, destination.decision) {
            (true, Some(Decision::Run)) => destination.ran,
            // What `Remove` has left when it failed.
            (true, Some(Decision::End)) => destination.record.is_none(),
            (true, None) => false,
            (false, _) => {
                matches!(destination.record, None | Some(Record::Tombstone))
                    || destination.power != Power::On
            }
        };
        let all_removed = !destination.session && destination.record.is_none();
        done && one_runs && notes_removed && (all_removed || self.unconfirmed) && !source.session
    }
}
