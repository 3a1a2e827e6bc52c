//! What can happen next: the processes, CRIU, deadlines and the operator.

use super::process::Process;
use super::rules::{Rule, Rules};
use super::world::{
    DestinationTree, Dump, GUARD, Link, Message, OPERATOR, Power, SourceTree, World,
};
use crate::handover::incoming;
use crate::handover::outgoing;

/// Why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is taken sooner or later.
    Progress,
    /// It may be taken at any time, or never.
    Choice,
    /// It is a fault, of which there is a limited number.
    Fault,
}

/// One of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Source,
    Destination,
}

/// How an action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// An error, and it has no effect.
    Error,
    /// An error, and it has its effect.
    ErrorAfterAll,
}

/// Each outcome.
pub(super) const OUTCOMES: [Outcome; 3] = [Outcome::Done, Outcome::Error, Outcome::ErrorAfterAll];

/// Returns why an action ends like this.
pub(super) fn kind(outcome: Outcome) -> Kind {
    match outcome {
        Outcome::Done => Kind::Progress,
        Outcome::Error | Outcome::ErrorAfterAll => Kind::Fault,
    }
}

/// Returns the event that an action leads to.
pub(super) fn done<E>(outcome: Outcome, done: E, not_done: E) -> E {
    match outcome {
        Outcome::Done => done,
        Outcome::Error | Outcome::ErrorAfterAll => not_done,
    }
}

/// A step, for the trace of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Act(Host, usize, Outcome),
    AskAnotherHost(usize),
    NoticeFailure(Host, usize),
    NoticeCriuFinished(Host),
    Arrive(usize, Message),
    ArriveTwice(usize, Message),
    ConnectionLost(usize),
    Silence(usize),
    Crash(Host, usize),
    Pause(Host),
    Continue(Host),
    PowerCut(Host),
    Boot,
    DiskLost,
    TakeOver(Host, usize),
    OperatorStates,
    DumpCompletes,
    DumpHangs,
    DumpDies,
    DumpGetsNoAnswer,
    RestoreSucceeds,
    RestoreHangs,
    RestoreFails,
    Deadline,
    Interrupt(Host),
}

impl Step {
    /// Returns how many faults a step is.
    pub(super) fn cost(self, kind: Kind) -> usize {
        match (kind, self) {
            (Kind::Progress | Kind::Choice, _) => 0,
            // It is paused, and stays so until its deadline is over.
            (Kind::Fault, Self::Pause(_)) => 2,
            (Kind::Fault, _) => 1,
        }
    }

    /// Returns whether a confirmation can come to nothing after this fault.
    fn may_lose_a_confirmation(self) -> bool {
        matches!(
            self,
            Self::Act(..)
                | Self::AskAnotherHost(_)
                | Self::Crash(..)
                | Self::Pause(_)
                | Self::PowerCut(_)
                | Self::DiskLost
        )
    }
}

/// The steps from one state.
pub(super) struct Steps<'a> {
    pub(super) world: World,
    pub(super) rules: &'a Rules,
    /// The number of faults that a step may be.
    faults: usize,
    pub(super) found: Vec<(Step, Kind, World)>,
}

impl<'a> Steps<'a> {
    /// Returns each step from this state.
    pub(super) fn from(world: World, rules: &'a Rules, faults: usize) -> Vec<(Step, Kind, World)> {
        let mut steps = Self {
            world,
            rules,
            faults,
            found: Vec::with_capacity(32),
        };
        for place in 0..world.source.processes.len() {
            steps.act_at_source(place);
            steps.act_at_destination(place);
            steps.notice(place);
        }
        steps.take_over();
        steps.dump();
        steps.restore();
        for number in 0..world.links.len() {
            steps.arrive(number);
        }
        steps.wait();
        if world.destination.power == Power::Off {
            steps.change(Step::Boot, Kind::Choice, |world| {
                world.destination.power = Power::Booted;
            });
        }
        if faults > 0 {
            steps.crash();
            steps.power();
        }
        steps.found
    }

    /// Adds a step that leads to `world` if it leads anywhere.
    pub(super) fn add(&mut self, step: Step, kind: Kind, mut world: World) {
        if step.cost(kind) > self.faults {
            return;
        }
        world.unconfirmed |= kind == Kind::Fault && step.may_lose_a_confirmation();
        world.tidy(self.rules);
        if world != self.world {
            self.found.push((step, kind, world));
        }
    }

    /// Adds a step that makes this change.
    pub(super) fn change(&mut self, step: Step, kind: Kind, change: impl FnOnce(&mut World)) {
        if step.cost(kind) > self.faults {
            return;
        }
        let mut world = self.world;
        change(&mut world);
        self.add(step, kind, world);
    }

    /// Adds that a process notices a failure, or the success of CRIU.
    fn notice(&mut self, place: usize) {
        let rules = self.rules;
        if let Some(mut process) = self.world.source.processes[place]
            && !process.paused
        {
            if process.failed {
                process.failed = false;
                process.feed(rules, outgoing::Event::Failed);
                let step = Step::NoticeFailure(Host::Source, place);
                self.change(step, Kind::Progress, |world| {
                    world.source.processes[place] = Some(process);
                });
            } else if process.finished {
                process.finished = false;
                let step = Step::NoticeCriuFinished(Host::Source);
                self.change(step, Kind::Progress, |world| {
                    world.source.processes[place] = Some(process);
                    if world.links[0].source {
                        world.links[0].to_destination |= Message::Images as u8;
                    }
                });
            }
        }
        if let Some(mut process) = self.world.destination.processes[place]
            && !process.paused
        {
            let (step, event) = match (process.failed, process.finished) {
                (true, _) => (
                    Step::NoticeFailure(Host::Destination, place),
                    incoming::Event::Failed,
                ),
                (false, true) => (
                    Step::NoticeCriuFinished(Host::Destination),
                    incoming::Event::Restored,
                ),
                (false, false) => return,
            };
            match event {
                incoming::Event::Failed => process.failed = false,
                _ => process.finished = false,
            }
            process.feed(rules, event);
            self.change(step, Kind::Progress, |world| {
                world.destination.processes[place] = Some(process);
            });
        }
    }

    /// Adds guards and `recover`s that take a session over. One starts sooner or
    /// later; a second one at the same time is a fault, as is one beside a leader.
    fn take_over(&mut self) {
        let World {
            source,
            destination,
            ..
        } = self.world;
        let rules = self.rules;
        let led = source.processes[0].is_some_and(|leader| !leader.paused);
        let free = (1..OPERATOR).find(|place| source.processes[*place].is_none());
        let others = (1..OPERATOR).any(|place| source.processes[place].is_some());
        if let Some(place) = free
            && source.session
            && (!led || !rules.hold(Rule::LeaderIsLeftAlone))
        {
            let kind = match led || others {
                true => Kind::Fault,
                false => Kind::Progress,
            };
            let step = Step::TakeOver(Host::Source, place);
            self.change(step, kind, |world| {
                let taken = rules.take_over_source(world.source_notes());
                // A leader that is paused finds that its deadline is over.
                world.fail_at_source(0);
                world.source.processes[place] = Some(Process::new(taken));
            });
        }
        let tree = destination.tree;
        let gone = tree == DestinationTree::None
            || matches!(tree, DestinationTree::Killed | DestinationTree::Lost);
        if gone && source.processes[OPERATOR].is_none() && self.world.waits() {
            self.change(Step::OperatorStates, Kind::Choice, |world| {
                let mut process = Process::new((outgoing::State::Committed, Vec::new()));
                process.feed(rules, outgoing::Event::DestinationIsDead);
                world.source.processes[OPERATOR] = Some(process);
                world.source.stated = true;
            });
        }

        let led = destination.processes[0].is_some_and(|leader| !leader.paused);
        let taken = rules.take_over_destination(self.world.destination_notes());
        if destination.session
            && destination.processes[GUARD].is_none()
            && !taken.1.is_empty()
            && (!led || !rules.hold(Rule::LeaderIsLeftAlone))
        {
            let kind = match led {
                true => Kind::Fault,
                false => Kind::Progress,
            };
            let step = Step::TakeOver(Host::Destination, GUARD);
            self.change(step, kind, |world| {
                world.destination.processes[GUARD] = Some(Process::new(taken));
            });
        }
    }

    /// Adds what CRIU does at the source.
    fn dump(&mut self) {
        let source = self.world.source;
        if source.dump == Dump::Ended {
            return;
        }
        let holds = matches!(source.tree, SourceTree::Held | SourceTree::Stopped);
        if source.dump == Dump::Works && !source.dumped && holds {
            self.change(Step::DumpCompletes, Kind::Progress, |world| {
                world.source.dumped = true;
                if world.release {
                    world.source.tree = SourceTree::Images;
                    world.source.dump = Dump::Ended;
                }
                if let Some(leader) = &mut world.source.processes[0] {
                    leader.finished = true;
                }
            });
            self.change(Step::DumpHangs, Kind::Fault, |world| {
                world.source.dump = Dump::Hangs;
            });
        }
        let let_go = |world: &mut World| {
            world.source.dump = Dump::Ended;
            if world.source.tree == SourceTree::Held {
                world.run_source_tree();
            }
        };
        if source.processes[0].is_none() && source.dump == Dump::Works {
            self.change(Step::DumpGetsNoAnswer, Kind::Progress, let_go);
        }
        self.change(Step::DumpDies, Kind::Fault, |world| {
            let_go(world);
            world.fail_at_source(0);
        });
    }

    /// Adds what CRIU does at the destination.
    fn restore(&mut self) {
        let tree = self.world.destination.tree;
        if tree == DestinationTree::Restoring {
            self.change(Step::RestoreSucceeds, Kind::Progress, |world| {
                world.destination.tree = DestinationTree::Stopped;
                if let Some(leader) = &mut world.destination.processes[0] {
                    leader.finished = true;
                }
            });
            self.change(Step::RestoreHangs, Kind::Fault, |world| {
                world.destination.tree = DestinationTree::Hanging;
            });
        }
        if matches!(tree, DestinationTree::Restoring | DestinationTree::Hanging) {
            self.change(Step::RestoreFails, Kind::Fault, |world| {
                world.destination.tree = DestinationTree::HalfMade;
                if let Some(leader) = &mut world.destination.processes[0] {
                    leader.failed = true;
                }
            });
        }
    }

    /// Adds deadlines, silence and Ctrl-C, and pauses and continues the leaders.
    fn wait(&mut self) {
        let World {
            source,
            destination,
            links,
            ..
        } = self.world;
        let rules = self.rules;
        if let Some(mut leader) = source.processes[0] {
            use outgoing::State::{Committed, Frozen};
            let hangs = source.dump == Dump::Hangs || destination.tree == DestinationTree::Hanging;
            let waits = matches!(leader.state(), Frozen | Committed);
            if hangs && waits && !leader.paused && leader.action().is_none() {
                leader.feed(rules, outgoing::Event::Failed);
                self.change(Step::Deadline, Kind::Progress, |world| {
                    world.source.processes[0] = Some(leader);
                });
            }
            if waits && !leader.paused {
                self.change(Step::Interrupt(Host::Source), Kind::Fault, |world| {
                    world.fail_at_source(0);
                });
            }
            let step = match leader.paused {
                true => (Step::Continue(Host::Source), Kind::Fault),
                false => (Step::Pause(Host::Source), Kind::Fault),
            };
            self.change(step.0, step.1, |world| {
                if let Some(leader) = &mut world.source.processes[0] {
                    leader.paused = !leader.paused;
                }
            });
        }
        if let Some(leader) = destination.processes[0] {
            let step = match leader.paused {
                true => (Step::Continue(Host::Destination), Kind::Fault),
                false => (Step::Pause(Host::Destination), Kind::Fault),
            };
            self.change(step.0, step.1, |world| {
                if let Some(leader) = &mut world.destination.processes[0] {
                    leader.paused = !leader.paused;
                }
            });
            if !leader.paused {
                self.change(Step::Interrupt(Host::Destination), Kind::Fault, |world| {
                    if let Some(leader) = &mut world.destination.processes[0] {
                        leader.failed = true;
                    }
                });
            }
        }
        let at_source = source.processes[0].is_some_and(|leader| leader.paused);
        let at_destination = destination.processes[0].is_some_and(|leader| leader.paused);
        for (number, link) in links.iter().enumerate() {
            let source = at_source && link.source && link.process == 0;
            if source || at_destination && number == 0 && *link != Link::default() {
                self.change(Step::Silence(number), Kind::Progress, |world| {
                    world.break_link(number);
                });
            }
        }
    }
}
