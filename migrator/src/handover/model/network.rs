//! What the network does.

use super::process::Process;
use super::rules::Rule;
use super::step::{Kind, Step, Steps};
use super::world::{
    ANSWERS, DestinationTree, Link, Message, Power, TO_DESTINATION, TO_SOURCE, World,
};
use crate::handover::incoming::{self, Found};
use crate::handover::outgoing::Answer;

impl Steps<'_> {
    /// Adds the arrival of each message, once or twice, and the loss of the
    /// connection with all of them.
    pub(super) fn arrive(&mut self, number: usize) {
        let link = self.world.links[number];
        if link == Link::default() {
            return;
        }
        for message in TO_SOURCE {
            if link.to_source & message as u8 != 0 {
                let mut world = self.world;
                if self.arrive_at_source(&mut world, number, message) {
                    self.add(Step::ArriveTwice(number, message), Kind::Fault, world);
                    world.links[number].to_source &= !(message as u8);
                    self.add(Step::Arrive(number, message), Kind::Progress, world);
                }
            }
        }
        for message in TO_DESTINATION {
            if link.to_destination & message as u8 != 0 {
                let mut world = self.world;
                if self.arrive_at_destination(&mut world, number, message) {
                    if message != Message::Ask {
                        self.add(Step::ArriveTwice(number, message), Kind::Fault, world);
                    }
                    world.links[number].to_destination &= !(message as u8);
                    self.add(Step::Arrive(number, message), Kind::Progress, world);
                }
            }
        }
        self.change(Step::ConnectionLost(number), Kind::Fault, |world| {
            world.break_link(number);
        });
    }

    /// Returns whether the message arrives: its process is there and runs.
    fn arrive_at_source(&self, world: &mut World, number: usize, message: Message) -> bool {
        let place = usize::from(world.links[number].process);
        let Some(process) = &mut world.source.processes[place] else {
            return false;
        };
        if process.paused {
            return false;
        }
        process.feed(self.rules, message.event_at_source());
        if number > 0 {
            world.links[number].answer_arrives(message);
        }
        true
    }

    /// Returns whether the message arrives: its process is there and runs.
    fn arrive_at_destination(&self, world: &mut World, number: usize, message: Message) -> bool {
        if message == Message::Ask {
            self.answer(world, number);
            return true;
        }
        let place = if number == 0 { 0 } else { number + 1 };
        let Some(process) = &mut world.destination.processes[place] else {
            return false;
        };
        if process.paused {
            return false;
        }
        match message {
            Message::Images if process.state() == incoming::State::Restoring => {
                match world.destination.tree {
                    DestinationTree::None => world.destination.tree = DestinationTree::Restoring,
                    DestinationTree::Killed if self.rules.hold(Rule::KilledTreeIsNotRestored) => {
                        process.failed = true;
                    }
                    DestinationTree::Killed => world.destination.tree = DestinationTree::Restoring,
                    _ => {}
                }
            }
            Message::Resume => process.feed(self.rules, incoming::Event::Resume),
            Message::Confirm => {
                let late = matches!(
                    process.state(),
                    incoming::State::Running | incoming::State::Gone | incoming::State::Ended
                );
                world.unconfirmed |= !late;
                process.feed(self.rules, incoming::Event::Confirmed);
            }
            _ => {}
        }
        true
    }

    /// Starts a process that answers a question.
    fn answer(&self, world: &mut World, number: usize) {
        let found = Found {
            same_host: true,
            same_boot: world.destination.power != Power::Booted,
            notes: world.destination.session,
            record: world.destination.record,
        };
        let link = &mut world.links[number];
        let process = match self.rules.answer(found) {
            Some(answer) => {
                link.to_source |= message_of(answer) as u8;
                // It waits until the tombstone is confirmed.
                (answer == Answer::NotRunning)
                    .then(|| Process::new((incoming::State::Gone, Vec::new())))
            }
            None => {
                let state = incoming::State::of(world.destination_notes());
                let mut process = Process::new((state, Vec::new()));
                process.feed(self.rules, incoming::Event::Asked);
                Some(process)
            }
        };
        world.links[number].destination = process.is_some();
        world.destination.processes[ANSWERS + number - 1] = process;
    }

    /// Adds that another host answers a question. It has the same disk (a copy, or
    /// over the network), no notes and another boot.
    pub(super) fn ask_another_host(&mut self, place: usize, mut world: World, number: usize) {
        let answer = self.rules.answer(Found {
            same_host: !self.rules.hold(Rule::QuestionNamesTheHost),
            same_boot: false,
            notes: false,
            record: world.destination.record,
        });
        if let Some(answer) = answer {
            world.links[number].to_destination = 0;
            world.links[number].destination = false;
            world.links[number].to_source = message_of(answer) as u8;
            self.add(Step::AskAnotherHost(place), Kind::Fault, world);
        }
    }
}

fn message_of(answer: Answer) -> Message {
    match answer {
        Answer::Running => Message::Running,
        Answer::NotRunning => Message::NotRunning,
        Answer::NotKnown => Message::NotKnown,
    }
}
