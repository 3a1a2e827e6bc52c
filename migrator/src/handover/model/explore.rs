//! Visits each state that can be reached.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use super::rules::Rules;
use super::step::{Kind, Steps};
use super::world::World;

/// What an exploration without a violation has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) steps: usize,
}

/// The distinct states, and where each is.
struct Visited {
    worlds: Vec<World>,
    /// One more than a place in `worlds`, at the hash of that world or after it.
    places: Vec<u32>,
}

impl Visited {
    /// Returns the place of a world, and whether it is a new one.
    fn insert(&mut self, world: &World) -> (usize, bool) {
        if self.worlds.len() * 2 >= self.places.len() {
            self.places = vec![0; (self.places.len() * 2).max(1 << 12)];
            for (place, world) in self.worlds.iter().enumerate() {
                let slot = Self::slot(&self.places, &self.worlds, world);
                self.places[slot] = place as u32 + 1;
            }
        }
        let slot = Self::slot(&self.places, &self.worlds, world);
        match self.places[slot] {
            0 => {
                self.worlds.push(*world);
                self.places[slot] = self.worlds.len() as u32;
                (self.worlds.len() - 1, true)
            }
            place => (place as usize - 1, false),
        }
    }

    fn slot(places: &[u32], worlds: &[World], world: &World) -> usize {
        let mut hasher = Multiply(0);
        world.hash(&mut hasher);
        let mut slot = (hasher.0 >> 20) as usize & (places.len() - 1);
        while places[slot] != 0 && worlds[places[slot] as usize - 1] != *world {
            slot = (slot + 1) & (places.len() - 1);
        }
        slot
    }
}

/// Hashes small integers fast.
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// Visits each state that can be reached with at most this many faults.
///
/// # Errors
/// The first violation, with the steps that lead to it.
pub(super) fn explore(release: bool, rules: &Rules, faults: usize) -> Result<Explored, String> {
    let mut visited = Visited {
        worlds: Vec::new(),
        places: Vec::new(),
    };
    let mut seen = Seen::default();
    let mut layers = vec![VecDeque::new(); faults + 1];
    visited.insert(&World::new(release));
    seen.add(0);
    layers[0].push_back(0);
    for number in 0..=faults {
        // A state is visited with the fewest faults that lead to it.
        while let Some(place) = layers[number].pop_front() {
            if seen.visited(place) {
                continue;
            }
            let first = seen.then.len();
            for (step, kind, world) in Steps::from(visited.worlds[place], rules, faults - number) {
                let (then, new) = visited.insert(&world);
                if new {
                    seen.add(place);
                    if let Some(violation) = world.violation() {
                        return Err(seen.trace(violation, then, &visited.worlds, rules));
                    }
                }
                if new || !seen.visited(then) {
                    let cost = step.cost(kind);
                    layers[number + cost].push_back(then);
                    if cost == 0 {
                        seen.from[then] = place as u32;
                    }
                }
                seen.steps += 1;
                if kind == Kind::Progress {
                    seen.then.push(then as u32);
                }
            }
            seen.ranges[place] = (first as u32, seen.then.len() as u32);
        }
    }
    match seen.stuck(&visited.worlds) {
        Some(place) => {
            let violation = "nothing but a fault leads on from here";
            Err(seen.trace(violation, place, &visited.worlds, rules))
        }
        None => Ok(Explored {
            states: visited.worlds.len(),
            steps: seen.steps,
        }),
    }
}

/// The steps between the states.
#[derive(Default)]
struct Seen {
    /// The state that each was first reached from.
    from: Vec<u32>,
    /// Where in `then` the states are that each progresses to.
    ranges: Vec<(u32, u32)>,
    then: Vec<u32>,
    steps: usize,
}

impl Seen {
    fn add(&mut self, from: usize) {
        self.from.push(from as u32);
        self.ranges.push((u32::MAX, u32::MAX));
    }

    fn visited(&self, place: usize) -> bool {
        self.ranges[place].0 != u32::MAX
    }

    /// Returns the first state that no progress leads from to a settled one.
    fn stuck(&self, worlds: &[World]) -> Option<usize> {
        let mut settles: Vec<bool> = worlds.iter().map(World::settled).collect();
        loop {
            let mut changed = false;
            for place in (0..worlds.len()).rev() {
                let (first, end) = self.ranges[place];
                let then = &self.then[first as usize..end as usize];
                if !settles[place] && then.iter().any(|then| settles[*then as usize]) {
                    settles[place] = true;
                    changed = true;
                }
            }
            if !changed {
                // One that nothing leads from shows the reason best.
                let last = |place: &usize| {
                    let (first, end) = self.ranges[*place];
                    !settles[*place] && first == end
                };
                return (0..worlds.len())
                    .find(last)
                    .or_else(|| settles.iter().position(|settles| !settles));
            }
        }
    }

    /// Returns a violation and the steps that lead to it.
    fn trace(&self, violation: &str, place: usize, worlds: &[World], rules: &Rules) -> String {
        let mut places = vec![place];
        while places[places.len() - 1] != 0 {
            places.push(self.from[places[places.len() - 1]] as usize);
        }
        places.reverse();
        let mut text = violation.to_string();
        for pair in places.windows(2) {
            let (before, after) = (worlds[pair[0]], worlds[pair[1]]);
            let steps = Steps::from(before, rules, usize::MAX);
            let step = steps.into_iter().find(|(_, _, world)| *world == after);
            if let Some((step, kind, _)) = step {
                text += &format!("\n  {kind:?}: {step:?}");
            }
        }
        text + &format!("\n{:#?}", worlds[place])
    }
}
