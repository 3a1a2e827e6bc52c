//! The state of both hosts and of the network between them.

use super::process::{Incoming, Outgoing, Process};
use super::rules::Rules;
use crate::handover::incoming::{self, Record};
use crate::handover::outgoing::{self, Answer, Intent};
use crate::handover::{Decision, incoming::State};

/// The source's copy of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SourceTree {
    Runs,
    /// CRIU holds it, and it runs when CRIU dies.
    Held,
    /// It has a SIGSTOP and stays stopped, whatever dies.
    Stopped,
    /// It has ended, and its images are complete on this host.
    Images,
    /// It has ended, and its images are removed.
    Dead,
    /// The host lost its power with it.
    Lost,
}

/// CRIU at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Dump {
    Works,
    Hangs,
    Ended,
}

/// The destination's copy of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum DestinationTree {
    None,
    /// CRIU restores it.
    Restoring,
    /// CRIU hangs while it restores it.
    Hanging,
    /// CRIU has died over it.
    HalfMade,
    /// It is complete and stopped.
    Stopped,
    Runs,
    /// It was killed, and its control group removed: no restore can start.
    Killed,
    /// The host lost its power after it ran.
    Lost,
}

/// The power of the destination. The source's is not needed: nothing of a
/// session is left there after a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Power {
    On,
    Off,
    Booted,
}

/// The source. Its processes are `move`, two that take over (the guard and a
/// `recover`, or two `recover`), and the operator's `--destination-is-dead`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) tree: SourceTree,
    pub(super) dump: Dump,
    pub(super) dumped: bool,
    /// The tree ran here after it was dumped.
    pub(super) moved_on: bool,
    /// The directory of the notes is there.
    pub(super) session: bool,
    pub(super) intent: Option<Intent>,
    pub(super) decision: Option<Decision>,
    /// An operator stated that the destination is dead.
    pub(super) stated: bool,
    pub(super) processes: [Option<Process<Outgoing>>; 4],
}

/// The place of the operator's process in [`Source::processes`].
pub(super) const OPERATOR: usize = 3;

/// The destination. Its processes are `receive`, one that takes over (the guard,
/// later a `recover`), and two that answer questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    pub(super) tree: DestinationTree,
    /// The tree has run here.
    pub(super) ran: bool,
    pub(super) power: Power,
    /// The directory of the notes is there.
    pub(super) session: bool,
    pub(super) decision: Option<Decision>,
    pub(super) running: bool,
    /// On the disk.
    pub(super) record: Option<Record>,
    /// The record was lost with its disk.
    pub(super) wiped: bool,
    pub(super) processes: [Option<Process<Incoming>>; 4],
}

/// The places in [`Destination::processes`] of the guard and of the process that
/// answers on the first question's link.
pub(super) const GUARD: usize = 1;
pub(super) const ANSWERS: usize = 2;

/// A message; [`Link`] holds a set of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Images = 1,
    Resume = 2,
    Ask = 4,
    Confirm = 8,
    Restored = 16,
    Running = 32,
    NotRunning = 64,
    NotKnown = 128,
}

/// Each message to the destination.
pub(super) const TO_DESTINATION: [Message; 4] = [
    Message::Images,
    Message::Resume,
    Message::Ask,
    Message::Confirm,
];

/// Each message to the source.
pub(super) const TO_SOURCE: [Message; 4] = [
    Message::Restored,
    Message::Running,
    Message::NotRunning,
    Message::NotKnown,
];

impl Message {
    /// Returns what a message to the source is to its machine.
    pub(super) fn event_at_source(self) -> outgoing::Event {
        match self {
            Self::Restored => outgoing::Event::Restored,
            Self::Running => outgoing::Event::Answer(Answer::Running),
            Self::NotRunning => outgoing::Event::Answer(Answer::NotRunning),
            _ => outgoing::Event::Answer(Answer::NotKnown),
        }
    }
}

/// A connection. Messages that are on their way arrive in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Link {
    /// The source's process.
    pub(super) process: u8,
    /// The source's end is open.
    pub(super) source: bool,
    /// The destination's end is open.
    pub(super) destination: bool,
    /// The question is answered: its end is no failure.
    pub(super) answered: bool,
    pub(super) to_destination: u8,
    pub(super) to_source: u8,
}

impl Link {
    /// Ends the wait for an answer. A connection that may yet confirm stays.
    pub(super) fn answer_arrives(&mut self, message: Message) {
        self.answered = true;
        self.source &= message != Message::NotKnown;
    }
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The tree ends with its dump.
    pub(super) release: bool,
    pub(super) source: Source,
    pub(super) destination: Destination,
    /// The first is that of `move`, the others carry a question each.
    pub(super) links: [Link; 3],
    /// A confirmation may have been lost, or have come too early.
    pub(super) unconfirmed: bool,
}

impl World {
    /// Returns the moment after the destination has accepted the order and the
    /// dump has begun.
    pub(super) fn new(release: bool) -> Self {
        let leader = Process::new((outgoing::State::Frozen, Vec::new()));
        let receiver = Process::new((State::Restoring, Vec::new()));
        Self {
            release,
            source: Source {
                tree: SourceTree::Held,
                dump: Dump::Works,
                dumped: false,
                moved_on: false,
                session: true,
                intent: None,
                decision: None,
                stated: false,
                processes: [Some(leader), None, None, None],
            },
            destination: Destination {
                tree: DestinationTree::None,
                ran: false,
                power: Power::On,
                session: true,
                decision: None,
                running: false,
                record: Some(Record::NotAllowed),
                wiped: false,
                processes: [Some(receiver), None, None, None],
            },
            links: [
                Link {
                    source: true,
                    destination: true,
                    ..Link::default()
                },
                Link::default(),
                Link::default(),
            ],
            unconfirmed: false,
        }
    }

    /// Returns what the source's notes say.
    pub(super) fn source_notes(&self) -> outgoing::Notes {
        outgoing::Notes {
            intent: self.source.intent,
            decision: self.source.decision,
        }
    }

    /// Returns what the destination's notes say.
    pub(super) fn destination_notes(&self) -> incoming::Notes {
        incoming::Notes {
            decision: self.destination.decision,
            running: self.destination.running,
        }
    }

    /// Returns the link of a process of the destination.
    pub(super) fn link_at_destination(&mut self, place: usize) -> Option<&mut Link> {
        match place {
            0 => Some(&mut self.links[0]),
            GUARD => None,
            _ => Some(&mut self.links[place - 1]),
        }
    }

    /// Lets the source's tree run.
    pub(super) fn run_source_tree(&mut self) {
        self.source.tree = SourceTree::Runs;
        self.source.dump = Dump::Ended;
        self.source.moved_on |= self.source.dumped;
    }

    /// Ends a process of the source. What it has sent arrives.
    pub(super) fn end_at_source(&mut self, place: usize) {
        self.source.processes[place] = None;
        for link in &mut self.links {
            if usize::from(link.process) == place {
                link.source = false;
            }
        }
    }

    /// Ends a process of the destination. What it has sent arrives.
    pub(super) fn end_at_destination(&mut self, place: usize) {
        self.destination.processes[place] = None;
        if let Some(link) = self.link_at_destination(place) {
            link.destination = false;
        }
    }

    /// Breaks a connection: each end fails once, and what is on its way is lost.
    pub(super) fn break_link(&mut self, number: usize) {
        let link = std::mem::take(&mut self.links[number]);
        self.unconfirmed = true;
        if link.source && !link.answered {
            self.fail_at_source(usize::from(link.process));
        }
        if link.destination {
            self.fail_at_destination(number);
        }
    }

    /// Marks a process of the source: something has failed.
    pub(super) fn fail_at_source(&mut self, place: usize) {
        if let Some(process) = &mut self.source.processes[place] {
            process.failed = true;
        }
    }

    /// Marks the process of the destination at this connection as above.
    fn fail_at_destination(&mut self, number: usize) {
        let place = if number == 0 { 0 } else { number + 1 };
        if let Some(process) = &mut self.destination.processes[place] {
            process.failed = true;
        }
    }

    /// Closes connections whose other end is closed and has sent all, and ends
    /// processes that have nothing left to do.
    pub(super) fn tidy(&mut self, rules: &Rules) {
        use outgoing::State::Ended;
        self.forget(rules);
        for place in 0..self.source.processes.len() {
            let Some(process) = &self.source.processes[place] else {
                continue;
            };
            let idle = !process.paused && process.action().is_none();
            if idle && matches!(process.state(), Ended(_)) {
                self.end_at_source(place);
            }
        }
        self.tidy_links();
        for place in 0..self.destination.processes.len() {
            let Some(process) = self.destination.processes[place] else {
                continue;
            };
            if process.paused || process.action().is_some() {
                continue;
            }
            let connected = self
                .link_at_destination(place)
                .is_some_and(|link| link.destination);
            let ends = match process.state() {
                State::Ended => true,
                // The notes answer, should a question come.
                State::Running | State::Gone => !connected,
                State::Restoring | State::Stopped | State::Decided(_) => false,
            };
            if ends {
                self.end_at_destination(place);
            }
        }
        self.tidy_links();
    }

    /// Forgets what no process will ever act on.
    fn forget(&mut self, rules: &Rules) {
        for process in self.source.processes.iter_mut().flatten() {
            process.failed &= !rules.source_ignores(process, outgoing::Event::Failed);
        }
        for process in self.destination.processes.iter_mut().flatten() {
            process.failed &= !rules.destination_ignores(process, incoming::Event::Failed);
            process.finished &= !rules.destination_ignores(process, incoming::Event::Restored);
        }
        for number in 0..self.links.len() {
            let link = &mut self.links[number];
            if link.to_source != 0
                && let Some(process) = &self.source.processes[usize::from(link.process)]
            {
                for message in TO_SOURCE {
                    if link.to_source & message as u8 != 0
                        && rules.source_ignores(process, message.event_at_source())
                    {
                        link.to_source &= !(message as u8);
                        if number > 0 {
                            link.answer_arrives(message);
                        }
                    }
                }
            }
            let place = if number == 0 { 0 } else { number + 1 };
            if link.to_destination != 0
                && let Some(process) = &self.destination.processes[place]
            {
                for (message, event) in [
                    // They lead to it.
                    (Message::Images, incoming::Event::Restored),
                    (Message::Resume, incoming::Event::Resume),
                    (Message::Confirm, incoming::Event::Confirmed),
                ] {
                    if rules.destination_ignores(process, event) {
                        link.to_destination &= !(message as u8);
                    }
                }
            }
        }
    }

    /// Closes connections whose other end is closed and has sent all.
    fn tidy_links(&mut self) {
        for number in 0..self.links.len() {
            let link = &mut self.links[number];
            if !link.source {
                link.to_source = 0;
            }
            if !link.destination {
                self.unconfirmed |= link.to_destination & Message::Confirm as u8 != 0;
                link.to_destination = 0;
            }
            if link.source && !link.destination && link.to_source == 0 {
                link.source = false;
                if !link.answered {
                    let place = usize::from(link.process);
                    self.fail_at_source(place);
                }
            }
            let link = &mut self.links[number];
            if link.destination && !link.source && link.to_destination == 0 {
                link.destination = false;
                self.fail_at_destination(number);
            }
            let link = &mut self.links[number];
            if !link.source && !link.destination {
                *link = Link::default();
            }
        }
    }
}
