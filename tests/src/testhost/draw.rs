//! Draws a case from a seed: the same case from the same seed.

use std::time::Duration;

use super::case::{Case, Moment};
use super::fault::{Fault, Side, Who};
use super::relay::{Action, Direction, Kind};
use super::tree::Locks;
use crate::random::Random;

/// Names of the steps that a move prints, in their order.
const STEPS: [&str; 8] = [
    "observe", "freeze", "dump", "images", "restore", "restored", "resume", "running",
];

/// Messages at which something can happen, in their order.
const MESSAGES: [(Direction, Kind); 8] = [
    (Direction::There, Kind::ORDER),
    (Direction::Back, Kind::ABLE),
    (Direction::There, Kind::LIST),
    (Direction::There, Kind::IMAGES),
    (Direction::Back, Kind::RESTORED),
    (Direction::There, Kind::RESUME),
    (Direction::Back, Kind::RUNNING),
    (Direction::There, Kind::ENDED),
];

/// Messages that are short and not repeated: one that comes twice, late or with a
/// changed byte is an error that both sides can see.
const CONTROL: [(Direction, Kind); 4] = [
    (Direction::Back, Kind::RESTORED),
    (Direction::There, Kind::RESUME),
    (Direction::Back, Kind::RUNNING),
    (Direction::There, Kind::ENDED),
];

/// Sizes of a disk without room, in KiB.
const SMALL: [u32; 5] = [16, 64, 256, 1024, 3072];

/// System calls that fail: the error, and the highest number of the call.
const CALLS: [(&str, &str, u64); 20] = [
    ("openat", "EMFILE", 300),
    ("openat", "ENOSPC", 300),
    ("write", "ENOSPC", 60),
    ("write", "EIO", 60),
    ("renameat2,rename,renameat", "ENOSPC", 8),
    ("link,linkat", "ENOSPC", 4),
    ("epoll_create1", "EMFILE", 4),
    ("eventfd2", "EMFILE", 4),
    ("socketpair", "EMFILE", 5),
    ("clone3", "EAGAIN", 16),
    ("mkdir", "ENOSPC", 5),
    ("fsync", "EIO", 5),
    ("fdatasync", "EIO", 3),
    ("unlink,unlinkat", "EIO", 8),
    ("pipe2", "EMFILE", 5),
    ("kill,pidfd_send_signal", "EPERM", 6),
    ("pidfd_open", "EMFILE", 6),
    ("read", "EIO", 120),
    ("flock", "ENOLCK", 3),
    ("getdents64", "EIO", 30),
];

impl Case {
    /// Returns the case of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed << 32);
        let mut case = Self {
            locks: pick(&mut random, &[Locks::Held, Locks::None, Locks::None]),
            ballast: pick(&mut random, &[0, 0, 0, 20, 60]),
            options: pick(
                &mut random,
                &[
                    "--no-prefetch",
                    "--no-prefetch",
                    "--observe 100ms --max-warmup 300ms --interval 50ms",
                ],
            ),
            faults: Vec::new(),
            network: Vec::new(),
            calls: Vec::new(),
            started: None,
        };
        case.add(&mut random);
        // Two faults find what one does not: an error while a lost connection is
        // dealt with.
        if random.below(4) == 0 {
            case.add(&mut random);
        }
        case
    }

    /// Returns what goes wrong, in words.
    pub fn describe(&self) -> String {
        let faults = self.faults.iter().map(|(fault, moment)| match moment {
            Moment::Before => format!("{fault:?}"),
            _ => format!("{fault:?} at {moment:?}"),
        });
        let network = self
            .network
            .iter()
            .map(|(direction, kind, action)| format!("{action:?} at {kind:?} {direction:?}"));
        let all: Vec<_> = faults.chain(network).collect();
        let mode = match self.options.contains("no-prefetch") {
            true => "bare",
            false => "cached",
        };
        format!(
            "[{mode}, locks {:?}, {} MiB] {}",
            self.locks,
            self.ballast,
            all.join(" + ")
        )
    }

    fn add(&mut self, random: &mut Random) {
        let side = pick(random, &[Side::Source, Side::Destination]);
        match random.below(24) {
            0..5 => self.add_network(random),
            5..9 => {
                let who = who(random, side);
                let moment = moment(random);
                self.faults.push((Fault::Kill(who), moment));
            }
            9..11 => {
                let (who, time) = (who(random, side), 200 + random.below(2500));
                let moment = moment(random);
                self.faults
                    .push((Fault::Stop(who, Duration::from_millis(time)), moment));
            }
            11..13 => {
                let kept = random.below(3) > 0;
                let moment = moment(random);
                self.faults.push((Fault::PowerCut(side, kept), moment));
            }
            13 => {
                let size = pick(random, &SMALL);
                self.faults
                    .push((Fault::DiskFull(side, size), Moment::Before));
            }
            14 => {
                let fault = match random.below(6) {
                    0 => Fault::CriuHangs(side),
                    1 | 2 => Fault::CriuFails(side),
                    _ => Fault::SeizeFails,
                };
                self.faults.push((fault, Moment::Before));
            }
            15 => {
                self.faults.push((Fault::Stranger, Moment::Before));
                self.add_network(random);
            }
            _ => {
                let (call, error, last) = pick(random, &CALLS);
                let when = 1 + random.below(last);
                self.faults
                    .push((Fault::Syscall(side, call, error, when), Moment::Before));
            }
        }
    }

    fn add_network(&mut self, random: &mut Random) {
        let (direction, kind) = pick(random, &MESSAGES);
        let time = Duration::from_millis(random.below(3000));
        let (direction, kind, action) = match random.below(12) {
            0..3 => (direction, kind, Action::Cut),
            3..5 => (direction, kind, Action::CutAfter),
            5 => (direction, kind, Action::Outage(time)),
            6 => (direction, kind, Action::Hold(None)),
            7 => (direction, kind, Action::Hold(Some(time))),
            8 => (direction, kind, Action::Delay(time)),
            which => {
                let (direction, kind) = pick(random, &CONTROL);
                let action = match which {
                    9 => Action::Duplicate,
                    10 => Action::Swap,
                    _ => Action::Corrupt(random.next()),
                };
                (direction, kind, action)
            }
        };
        self.network.push((direction, kind, action));
    }
}

fn who(random: &mut Random, side: Side) -> Who {
    match random.below(7) {
        0..3 => Who::Leader(side),
        3 => Who::Guard(side),
        4 => Who::Both(side),
        _ => Who::Criu(side),
    }
}

fn moment(random: &mut Random) -> Moment {
    match random.below(3) {
        0 => {
            let step = pick(random, &STEPS);
            Moment::Step(step, random.below(40))
        }
        1 => {
            let (direction, kind) = pick(random, &MESSAGES);
            Moment::Message(direction, kind)
        }
        _ => {
            let (direction, kind) = pick(random, &MESSAGES);
            Moment::Delivered(direction, kind)
        }
    }
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_case_again() {
        for seed in 0..100 {
            let case = Case::draw(seed);
            assert_eq!(case.describe(), Case::draw(seed).describe());
            assert!(!case.faults.is_empty() || !case.network.is_empty());
        }
        assert_ne!(Case::draw(1).describe(), Case::draw(2).describe());
    }
}
