//! What the actions of the source do.

use super::rules::Rule;
use super::step::{Host, Kind, OUTCOMES, Outcome, Step, Steps, done, kind};
use super::world::{ANSWERS, Dump, Link, Message, Power, SourceTree, World};
use crate::handover::outgoing::{self, Intent};
use crate::handover::{Decision, outgoing::State};

impl Steps<'_> {
    /// Adds how a process of the source carries out its first action.
    pub(super) fn act_at_source(&mut self, place: usize) {
        let Some(process) = self.world.source.processes[place] else {
            return;
        };
        let Some(action) = process.action() else {
            return;
        };
        if process.paused {
            return;
        }
        if action == outgoing::Action::Ask {
            return self.ask(place);
        }
        for outcome in OUTCOMES {
            let mut world = self.world;
            let kind = kind(outcome);
            let step = Step::Act(Host::Source, place, outcome);
            // Without an event in the first place, the process ends.
            let event = match action {
                outgoing::Action::StopTree => Some(Some(self.stop_tree(&mut world, outcome))),
                outgoing::Action::NoteIntent(intent) => {
                    self.note_intent(&mut world, intent, outcome).map(Some)
                }
                outgoing::Action::NoteDecision(decision) => {
                    self.note_decision(&mut world, decision, outcome).map(Some)
                }
                outgoing::Action::SendResume => {
                    let sent = place == 0 && world.links[0].source && outcome == Outcome::Done;
                    if sent {
                        world.links[0].to_destination |= Message::Resume as u8;
                    }
                    Some((!sent).then_some(outgoing::Event::Failed))
                }
                outgoing::Action::RunTree => self.run_tree(&mut world, outcome).map(Some),
                outgoing::Action::EndTree => {
                    if outcome != Outcome::Error {
                        end_source_tree(&mut world);
                    }
                    let event = done(outcome, outgoing::Event::Done, outgoing::Event::NotDone);
                    Some(Some(event))
                }
                outgoing::Action::Confirm => {
                    if outcome == Outcome::Done {
                        confirm(&mut world, place);
                    }
                    Some(None)
                }
                outgoing::Action::Remove if outcome == Outcome::Done => {
                    self.remove(place);
                    continue;
                }
                outgoing::Action::Remove | outgoing::Action::Ask => Some(None),
            };
            let Some(event) = event else {
                world.end_at_source(place);
                self.add(step, kind, world);
                continue;
            };
            if let Some(process) = &mut world.source.processes[place] {
                process.pop();
                if let Some(event) = event {
                    process.feed(self.rules, event);
                }
            }
            self.add(step, kind, world);
        }
    }

    /// Returns whether a process ends because its session is gone.
    pub(super) fn ends_with_session(&self, session: bool) -> bool {
        !session && self.rules.hold(Rule::ProcessEndsWithItsSession)
    }

    /// Stops the tree, and checks that CRIU has held it until then.
    fn stop_tree(&self, world: &mut World, outcome: Outcome) -> outgoing::Event {
        let stops = match world.source.tree {
            SourceTree::Held => true,
            SourceTree::Stopped | SourceTree::Images => false,
            SourceTree::Runs | SourceTree::Dead | SourceTree::Lost => {
                return match self.rules.hold(Rule::StopIsChecked) {
                    true => outgoing::Event::Failed,
                    false => outgoing::Event::Stopped,
                };
            }
        };
        let rule = self.rules.hold(Rule::TreeIsStoppedBeforeTheCommit);
        if stops && rule && outcome != Outcome::Error {
            world.source.tree = SourceTree::Stopped;
        }
        done(outcome, outgoing::Event::Stopped, outgoing::Event::Failed)
    }

    /// Lets the tree run; `None` ends the process.
    fn run_tree(&self, world: &mut World, outcome: Outcome) -> Option<outgoing::Event> {
        match world.source.tree {
            SourceTree::Dead if self.ends_with_session(world.source.session) => return None,
            SourceTree::Dead | SourceTree::Lost => return Some(outgoing::Event::NotDone),
            _ if outcome != Outcome::Error => world.run_source_tree(),
            _ => {}
        }
        Some(done(
            outcome,
            outgoing::Event::Done,
            outgoing::Event::NotDone,
        ))
    }

    /// Notes an intent; `None` ends the process.
    fn note_intent(
        &self,
        world: &mut World,
        intent: Intent,
        outcome: Outcome,
    ) -> Option<outgoing::Event> {
        let source = &mut world.source;
        if self.ends_with_session(source.session) {
            return None;
        }
        if !source.session {
            return Some(outgoing::Event::NotNoted);
        }
        let noted = match source.intent {
            Some(noted) if self.rules.hold(Rule::NotesAreExclusive) => Some(noted),
            _ => None,
        };
        if noted.is_none() && outcome != Outcome::Error {
            source.intent = Some(intent);
        }
        Some(match (outcome, noted) {
            (Outcome::Done, Some(noted)) => outgoing::Event::Found(noted),
            (Outcome::Done, None) => outgoing::Event::Noted(intent),
            _ => outgoing::Event::NotNoted,
        })
    }

    /// Notes a decision; `None` ends the process.
    fn note_decision(
        &self,
        world: &mut World,
        decision: Decision,
        outcome: Outcome,
    ) -> Option<outgoing::Event> {
        let source = &mut world.source;
        if self.ends_with_session(source.session) {
            return None;
        }
        if !source.session {
            return Some(outgoing::Event::Undecided);
        }
        let noted = match source.decision {
            Some(noted) if self.rules.hold(Rule::NotesAreExclusive) => noted,
            _ => decision,
        };
        if outcome != Outcome::Error {
            source.decision = Some(noted);
        }
        Some(match outcome {
            Outcome::Done => outgoing::Event::Decision(noted),
            _ => outgoing::Event::Undecided,
        })
    }

    /// Adds a question, unless the notes have its answer. An error of it equals a
    /// lost connection.
    fn ask(&mut self, place: usize) {
        let step = Step::Act(Host::Source, place, Outcome::Done);
        let mut world = self.world;
        let Some(process) = &mut world.source.processes[place] else {
            return;
        };
        process.pop();
        if self.rules.hold(Rule::NotesAreReadBeforeAQuestion) {
            if self.ends_with_session(world.source.session) {
                world.end_at_source(place);
                return self.add(step, Kind::Progress, world);
            }
            if let Some(decision) = world.source.decision {
                process.feed(self.rules, outgoing::Event::Decision(decision));
                return self.add(step, Kind::Progress, world);
            }
        }
        if process.state() != State::Committed || world.asks(place) {
            return self.add(step, Kind::Progress, world);
        }
        // It tries again until the destination can be reached.
        if world.destination.power == Power::Off {
            return;
        }
        for link in &mut world.links[1..] {
            if usize::from(link.process) == place {
                link.source = false;
            }
        }
        world.tidy(self.rules);
        let free = (1..world.links.len()).find(|number| {
            world.links[*number] == Link::default()
                && world.destination.processes[ANSWERS + number - 1].is_none()
        });
        // Another question is being answered.
        let Some(number) = free else {
            return;
        };
        world.links[number] = Link {
            process: place as u8,
            source: true,
            destination: true,
            to_destination: Message::Ask as u8,
            ..Link::default()
        };
        self.add(step, Kind::Progress, world);
        self.ask_another_host(place, world, number);
    }

    /// Removes the images first, then all notes in one step.
    fn remove(&mut self, place: usize) {
        let step = Step::Act(Host::Source, place, Outcome::Done);
        let mut world = self.world;
        let Some(process) = &mut world.source.processes[place] else {
            return;
        };
        let at_once = self.rules.hold(Rule::NotesAreRemovedAtOnce);
        if !process.half {
            process.half = true;
            match at_once {
                true if world.source.tree == SourceTree::Images => {
                    world.source.tree = SourceTree::Dead;
                }
                true => {}
                false => (world.source.intent, world.source.decision) = (None, None),
            }
            return self.add(step, Kind::Progress, world);
        }
        world.end_at_source(place);
        let source = &mut world.source;
        if source.tree == SourceTree::Images {
            source.tree = SourceTree::Dead;
        }
        source.session = false;
        (source.intent, source.decision) = (None, None);
        self.add(step, Kind::Progress, world);
    }
}

/// Ends the tree.
fn end_source_tree(world: &mut World) {
    let source = &mut world.source;
    source.dump = Dump::Ended;
    source.tree = match source.tree {
        SourceTree::Dead | SourceTree::Lost => source.tree,
        _ if source.dumped => SourceTree::Images,
        _ => SourceTree::Dead,
    };
}

/// Sends the confirmation where the answer came from, else over the main
/// connection.
fn confirm(world: &mut World, place: usize) {
    let own = |link: &&mut Link| link.source && usize::from(link.process) == place;
    if let Some(link) = world.links.iter_mut().rev().find(own) {
        link.to_destination |= Message::Confirm as u8;
    } else {
        world.unconfirmed = true;
    }
}
