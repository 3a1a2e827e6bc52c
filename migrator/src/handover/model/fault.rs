//! Processes that die, power that is cut, and a disk that is lost.

use super::step::{Host, Kind, Step, Steps};
use super::world::{DestinationTree, Dump, Power, SourceTree, World};

impl Steps<'_> {
    /// Adds the death of each process. What it has sent arrives, or is lost too.
    pub(super) fn crash(&mut self) {
        for place in 0..self.world.source.processes.len() {
            if self.world.source.processes[place].is_some() {
                let step = Step::Crash(Host::Source, place);
                self.change(step, Kind::Fault, |world| world.end_at_source(place));
                self.change(step, Kind::Fault, |world| {
                    world.end_at_source(place);
                    drop_unsent(world, Host::Source);
                });
            }
            if self.world.destination.processes[place].is_some() {
                let step = Step::Crash(Host::Destination, place);
                self.change(step, Kind::Fault, |world| world.end_at_destination(place));
                self.change(step, Kind::Fault, |world| {
                    world.end_at_destination(place);
                    drop_unsent(world, Host::Destination);
                });
            }
        }
    }

    /// Adds power cuts, and the loss of the destination's disk.
    pub(super) fn power(&mut self) {
        let World {
            source,
            destination,
            ..
        } = self.world;
        let cut_source = |world: &mut World| {
            (0..4).for_each(|place| world.end_at_source(place));
            let source = &mut world.source;
            source.session = false;
            (source.intent, source.decision) = (None, None);
            source.dump = Dump::Ended;
            if source.tree != SourceTree::Dead {
                source.tree = SourceTree::Lost;
            }
        };
        if source.tree != SourceTree::Lost {
            let step = Step::PowerCut(Host::Source);
            self.change(step, Kind::Fault, cut_source);
            self.change(step, Kind::Fault, |world| {
                cut_source(world);
                drop_unsent(world, Host::Source);
            });
        }
        let cut_destination = |world: &mut World| {
            (0..4).for_each(|place| world.end_at_destination(place));
            world
                .links
                .iter_mut()
                .for_each(|link| link.destination = false);
            let destination = &mut world.destination;
            destination.session = false;
            (destination.decision, destination.running) = (None, false);
            destination.power = Power::Off;
            destination.tree = match destination.tree {
                DestinationTree::Runs | DestinationTree::Lost => DestinationTree::Lost,
                _ => DestinationTree::None,
            };
        };
        if destination.power == Power::On {
            let step = Step::PowerCut(Host::Destination);
            self.change(step, Kind::Fault, cut_destination);
            self.change(step, Kind::Fault, |world| {
                cut_destination(world);
                drop_unsent(world, Host::Destination);
            });
        }
        if destination.record.is_some() {
            self.change(Step::DiskLost, Kind::Fault, |world| {
                world.destination.record = None;
                world.destination.wiped = true;
            });
        }
    }
}

/// Drops what a host has sent over connections that it has closed.
fn drop_unsent(world: &mut World, host: Host) {
    for link in &mut world.links {
        match host {
            Host::Source if !link.source => link.to_destination = 0,
            Host::Destination if !link.destination => link.to_source = 0,
            _ => {}
        }
    }
}
