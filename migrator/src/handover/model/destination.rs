//! What the actions of the destination do.

use super::process::{Incoming, Process};
use super::rules::Rule;
use super::step::{Host, OUTCOMES, Outcome, Step, Steps, done, kind};
use super::world::{DestinationTree, GUARD, Message, World};
use crate::handover::Decision;
use crate::handover::incoming::{self, Record};

impl Steps<'_> {
    /// Adds how a process of the destination carries out its first action.
    pub(super) fn act_at_destination(&mut self, place: usize) {
        let Some(process) = self.world.destination.processes[place] else {
            return;
        };
        let Some(action) = process.action() else {
            return;
        };
        if process.paused {
            return;
        }
        for outcome in OUTCOMES {
            let mut world = self.world;
            let acted = self.act(&mut world, place, process, action, outcome);
            let step = Step::Act(Host::Destination, place, outcome);
            match acted {
                Acted::Half => {
                    if let Some(process) = &mut world.destination.processes[place] {
                        process.half = true;
                    }
                }
                Acted::Ends => world.end_at_destination(place),
                Acted::Whole(event) => {
                    if let Some(process) = &mut world.destination.processes[place] {
                        process.pop();
                        if let Some(event) = event {
                            process.feed(self.rules, event);
                        }
                    }
                }
            }
            self.add(step, kind(outcome), world);
        }
    }

    fn act(
        &self,
        world: &mut World,
        place: usize,
        process: Process<Incoming>,
        action: incoming::Action,
        outcome: Outcome,
    ) -> Acted {
        use incoming::{Action, Event};
        let effect = outcome != Outcome::Error;
        let destination = &mut world.destination;
        match action {
            Action::NoteDecision(decision) => {
                let disk_first = self.rules.hold(Rule::DiskKnowsBeforeTheDecision);
                if decision == Decision::Run && process.half != disk_first {
                    if destination.record.is_none() {
                        return Acted::Whole(Some(Event::Undecided));
                    }
                    let tombstone = destination.record == Some(Record::Tombstone)
                        && self.rules.hold(Rule::TombstoneStays);
                    if effect && !tombstone {
                        destination.record = Some(Record::Allowed);
                    }
                    return match (outcome, disk_first) {
                        (Outcome::Done, true) => Acted::Half,
                        (Outcome::Done, false) => {
                            Acted::Whole(destination.decision.map(Event::Decision))
                        }
                        _ => Acted::Whole(Some(Event::Undecided)),
                    };
                }
                if self.ends_with_session(destination.session) {
                    return Acted::Ends;
                }
                if !destination.session {
                    return Acted::Whole(Some(Event::Undecided));
                }
                let noted = match destination.decision {
                    Some(noted) if self.rules.hold(Rule::NotesAreExclusive) => noted,
                    _ => decision,
                };
                if effect {
                    destination.decision = Some(noted);
                }
                match outcome {
                    Outcome::Done if decision == Decision::Run && !disk_first => Acted::Half,
                    Outcome::Done => Acted::Whole(Some(Event::Decision(noted))),
                    _ => Acted::Whole(Some(Event::Undecided)),
                }
            }
            // A tree that is not there has run, and died since.
            Action::RunTree => {
                if effect && destination.tree == DestinationTree::Stopped {
                    destination.tree = DestinationTree::Runs;
                    destination.ran = true;
                }
                Acted::Whole(Some(done(outcome, Event::Done, Event::NotDone)))
            }
            Action::KillTree => {
                if effect {
                    self.kill_tree(world);
                }
                Acted::Whole(Some(done(outcome, Event::Done, Event::NotDone)))
            }
            Action::NoteRunning => {
                destination.running |= effect && destination.session;
                Acted::Whole(None)
            }
            Action::NoteTombstone => {
                let tombstone_first = self.rules.hold(Rule::TombstoneBeforeNotesAreRemoved);
                if process.half != tombstone_first {
                    if destination.record.is_none() {
                        return Acted::Whole(None);
                    }
                    if effect {
                        destination.record = Some(Record::Tombstone);
                    }
                } else if effect {
                    destination.session = false;
                    (destination.decision, destination.running) = (None, false);
                }
                match outcome {
                    Outcome::Done if !process.half => Acted::Half,
                    _ => Acted::Whole(None),
                }
            }
            Action::Remove => {
                if !process.half {
                    if effect {
                        destination.record = None;
                    }
                    return match outcome {
                        Outcome::Done => Acted::Half,
                        _ => Acted::Whole(None),
                    };
                }
                if effect {
                    destination.session = false;
                    (destination.decision, destination.running) = (None, false);
                }
                Acted::Whole(None)
            }
            Action::SayRestored => say(world, place, Message::Restored, outcome),
            Action::SayRunning => say(world, place, Message::Running, outcome),
            Action::SayNotRunning => say(world, place, Message::NotRunning, outcome),
        }
    }

    fn kill_tree(&self, world: &mut World) {
        let tree = world.destination.tree;
        let half_made = matches!(
            tree,
            DestinationTree::Restoring | DestinationTree::Hanging | DestinationTree::HalfMade
        );
        if half_made && !self.rules.hold(Rule::HalfMadeTreeIsKilled) {
            return;
        }
        if matches!(tree, DestinationTree::Restoring | DestinationTree::Hanging)
            && let Some(leader) = &mut world.destination.processes[0]
        {
            leader.failed = true;
        }
        world.destination.tree = DestinationTree::Killed;
    }
}

/// What became of an action of the destination.
enum Acted {
    /// Its first half is carried out.
    Half,
    /// It is carried out, with this event.
    Whole(Option<incoming::Event>),
    /// It ends the process.
    Ends,
}

fn say(world: &mut World, place: usize, message: Message, outcome: Outcome) -> Acted {
    let connected = place != GUARD;
    if connected && let Some(link) = world.link_at_destination(place) {
        match outcome {
            Outcome::Done if link.destination && link.source => link.to_source |= message as u8,
            Outcome::Done => {}
            _ => {
                let number = if place == 0 { 0 } else { place - 1 };
                world.break_link(number);
            }
        }
    }
    Acted::Whole(None)
}
