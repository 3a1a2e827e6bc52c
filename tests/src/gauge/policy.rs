//! Which pages to read ahead, and in which order: migrator's heat, and what it is
//! compared with. Each knows what was read before the move, the oracle also what
//! will be.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use migrator::duty::{Duty, News, Pause, Window, absence};
use migrator::heat::{FileId, HeatMap, Ranking};
use migrator::pagelist::runs::{Joined, combine};
use migrator::pagelist::{ACTIVE, ONCE, REFERENCED, RESIDENT, Run, with_lru};
use migrator::plan::{self, Shape};
use migrator_common::access::{CHUNK_PAGES, ChunkBits};

use super::accesses::Accesses;
use crate::PAGE_SIZE;
use crate::random::Random;

/// The file that is read.
const FILE: FileId = FileId {
    device: 1,
    inode: 1,
};

/// How long `move` observes, in tenths of a second.
const OBSERVED_TENTHS: usize = 50;

/// The order of migrator's heat: the product's own map and plan, told of accesses
/// as by the eBPF source, ten times in an epoch of a second.
pub fn heat(accesses: &Accesses, ranking: Ranking) -> Vec<u32> {
    observed(accesses, ranking, |_| Pause::default()).0
}

/// The same where the product's own [`Duty`] says when it observes. Also gives the
/// part of the time in which it did.
pub fn windows(accesses: &Accesses, ranking: Ranking) -> (Vec<u32>, f64) {
    let mut duty = Duty::default();
    observed(accesses, ranking, |news| duty.pause(news))
}

/// The order of `move` without a tracker that was left on: what is observed for 5 s, and
/// below it what the LRU of `memory` pages knows.
pub fn short(accesses: &Accesses, memory: usize) -> Vec<u32> {
    let (_, late) = split(accesses);
    let map = HeatMap::default();
    let (map, _) = observe(&late, map, Ranking::default(), |_| Pause::default());
    above_lru(&map, accesses, memory)
}

/// The same where a tracker was left on in windows, from which it goes on.
pub fn left_on(accesses: &Accesses, memory: usize) -> Vec<u32> {
    let (early, late) = split(accesses);
    let ranking = Ranking::default();
    let mut duty = Duty::default();
    let (known, _) = observe(&early, HeatMap::default(), ranking, |news| duty.pause(news));
    let mut map = HeatMap::default();
    map.restore(FILE, &known.runs(FILE, ONCE, u64::MAX), 0);
    let (map, _) = observe(&late, map, ranking, |_| Pause::default());
    above_lru(&map, accesses, memory)
}

/// Returns what is read until `move` begins to observe, and from then on.
fn split(accesses: &Accesses) -> (Accesses, Accesses) {
    let (mut early, mut late) = (accesses.clone(), accesses.clone());
    let first = late.tenths.len().saturating_sub(OBSERVED_TENTHS);
    let unseen: usize = late.tenths.drain(..first).sum();
    late.before.drain(..unseen);
    late.absent = 0..0;
    early.tenths.truncate(first);
    early.before.truncate(unseen);
    (early, late)
}

fn above_lru(map: &HeatMap, accesses: &Accesses, memory: usize) -> Vec<u32> {
    let lru = Lru::after(accesses, memory).runs();
    let runs = combine(&map.runs(FILE, RESIDENT, u64::MAX), &lru, with_lru);
    planned(&runs, accesses.pages)
}

/// `pause` says what is done after an epoch that was observed.
fn observed(
    accesses: &Accesses,
    ranking: Ranking,
    pause: impl FnMut(News) -> Pause,
) -> (Vec<u32>, f64) {
    let (map, share) = observe(accesses, HeatMap::new(ranking), ranking, pause);
    let runs = map.runs(FILE, RESIDENT, u64::MAX);
    (planned(&runs, accesses.pages), share)
}

/// Returns what a tracker knows at the end that begins with `map`, and the part of the
/// time that it observed.
fn observe(
    accesses: &Accesses,
    mut map: HeatMap,
    ranking: Ranking,
    mut pause: impl FnMut(News) -> Pause,
) -> (HeatMap, f64) {
    let mut window = Window::default();
    let mut chunks = vec![ChunkBits::default(); accesses.pages as usize / CHUNK_PAGES as usize + 1];
    let mut rest = accesses.before.as_slice();
    let mut last = None;
    let (mut paused, mut seen) = (0, 0);
    for (tenth, count) in (1..).zip(&accesses.tenths) {
        let (now, later) = rest.split_at(*count);
        rest = later;
        if accesses.absent.contains(&(tenth - 1)) {
            continue;
        }
        if tenth - 1 == accesses.absent.end && !accesses.absent.is_empty() {
            // What it has kept at its end.
            let kept = map.runs(FILE, ONCE, u64::MAX);
            let away = Duration::from_millis(100 * accesses.absent.len() as u64);
            map = HeatMap::new(ranking);
            map.restore(FILE, &kept, absence(away, Duration::from_secs(1)));
        }
        let epoch_ends = tenth % 10 == 0;
        if paused > 0 {
            paused -= u32::from(epoch_ends);
            continue;
        }
        seen += 1;
        for page in now {
            let bits = &mut chunks[*page as usize / CHUNK_PAGES as usize];
            let word = &mut bits.words[*page as usize % CHUNK_PAGES as usize / 64];
            let bit = 1 << (page % 64);
            // Of a page that is read twice in a row the programs take the second
            // time for the rest of the first.
            if last != Some(page) {
                word.again |= word.used & bit;
            }
            word.used |= bit;
            last = Some(page);
        }
        for (number, bits) in (0..).zip(&mut chunks) {
            window.see(&map, FILE, number, bits);
            map.mark(FILE, number, bits);
            *bits = ChunkBits::default();
        }
        if epoch_ends {
            map.next_epoch();
            let pause = pause(window.news());
            (0..pause.fades).for_each(|_| map.next_epoch());
            paused = pause.epochs;
        }
    }
    (map, f64::from(seen) / accesses.tenths.len().max(1) as f64)
}

/// Returns the order in which a prefetch reads.
fn planned(runs: &[Run], pages: u32) -> Vec<u32> {
    let shape = Shape {
        page_size: PAGE_SIZE as u32,
        touch: None,
    };
    let size = u64::from(pages) * PAGE_SIZE as u64;
    // With a budget that is too small, as all that are asked about are.
    let extents = plan::extents(0, size, runs, &[], shape).extents;
    let (_, order) = plan::order(extents, PAGE_SIZE as u32, Some(0), |_| 0);
    let pages = |extent: &plan::Extent| extent.first as u32..(extent.first + extent.span) as u32;
    order.iter().flat_map(pages).collect()
}

/// What a page cache of `memory` pages holds, in the order of the files: what
/// vmtouch, happycache and pgfincore know.
pub fn resident(accesses: &Accesses, memory: usize) -> Vec<u32> {
    let mut pages = Lru::after(accesses, memory).pages();
    pages.sort_unstable();
    pages
}

/// The same, the active pages first, of each list the newest first: more than the
/// page flags tell, which know no order.
pub fn active(accesses: &Accesses, memory: usize) -> Vec<u32> {
    Lru::after(accesses, memory).pages()
}

/// What was read last, first.
pub fn recent(accesses: &Accesses) -> Vec<u32> {
    let mut last = vec![0; accesses.pages as usize];
    for (time, page) in (1_u32..).zip(&accesses.before) {
        last[*page as usize] = time;
    }
    by(&last)
}

/// What was read, in no order.
pub fn random(accesses: &Accesses, seed: u64) -> Vec<u32> {
    let mut pages = recent(accesses);
    pages.sort_unstable();
    Random::new(seed << 32).shuffled(pages)
}

/// What will be read most often, first: no order has more hits at any budget.
pub fn oracle(accesses: &Accesses) -> Vec<u32> {
    by(&counts(accesses.pages, &accesses.after))
}

/// Which share of the reads after the move goes to the first so many pages.
pub fn hits(accesses: &Accesses, order: &[u32], budgets: &[usize]) -> Vec<f64> {
    let counts = counts(accesses.pages, &accesses.after);
    let share = |budget: &usize| {
        let first = order.iter().take(*budget);
        let hits: u64 = first.map(|page| u64::from(counts[*page as usize])).sum();
        hits as f64 / accesses.after.len().max(1) as f64
    };
    budgets.iter().map(share).collect()
}

fn counts(pages: u32, accesses: &[u32]) -> Vec<u32> {
    let mut counts = vec![0; pages as usize];
    for page in accesses {
        counts[*page as usize] += 1;
    }
    counts
}

/// The pages that have a score, the highest first.
fn by(score: &[u32]) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..score.len() as u32)
        .filter(|page| score[*page as usize] > 0)
        .collect();
    pages.sort_by_key(|page| Reverse(score[*page as usize]));
    pages
}

/// The classic LRU of two lists, as read(2) and reclaim treat it
/// (`mark_page_accessed` and `shrink_lruvec` of mm/, without refault distances).
struct Lru {
    memory: usize,
    states: Vec<State>,
    /// Newest last. An entry counts if the page's number is the same.
    inactive: VecDeque<(u32, u32)>,
    active: VecDeque<(u32, u32)>,
    numbers: Vec<u32>,
    number: u32,
    inactive_pages: usize,
    active_pages: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Inactive,
    Referenced,
    Active,
}

impl Lru {
    fn after(accesses: &Accesses, memory: usize) -> Self {
        let mut lru = Self {
            memory: memory.max(1),
            states: vec![State::Absent; accesses.pages as usize],
            inactive: VecDeque::new(),
            active: VecDeque::new(),
            numbers: vec![0; accesses.pages as usize],
            number: 0,
            inactive_pages: 0,
            active_pages: 0,
        };
        for page in &accesses.before {
            lru.read(*page);
        }
        lru
    }

    fn read(&mut self, page: u32) {
        match self.states[page as usize] {
            State::Absent => {
                if self.inactive_pages + self.active_pages >= self.memory {
                    self.reclaim();
                }
                self.add_inactive(page);
                // The read that brings a page marks it as well.
                self.states[page as usize] = State::Referenced;
            }
            State::Inactive => self.states[page as usize] = State::Referenced,
            State::Referenced => {
                self.inactive_pages -= 1;
                self.active_pages += 1;
                self.states[page as usize] = State::Active;
                let entry = self.entry(page);
                self.active.push_back(entry);
            }
            State::Active => {}
        }
    }

    /// Frees a page, after the inactive list has got as many as the active one.
    fn reclaim(&mut self) {
        while self.inactive_pages < self.active_pages {
            let Some((page, number)) = self.active.pop_front() else {
                break;
            };
            if self.is(State::Active, page, number) {
                self.active_pages -= 1;
                self.add_inactive(page);
            }
        }
        while let Some((page, number)) = self.inactive.pop_front() {
            if self.is(State::Inactive, page, number) || self.is(State::Referenced, page, number) {
                self.states[page as usize] = State::Absent;
                self.inactive_pages -= 1;
                break;
            }
        }
    }

    fn add_inactive(&mut self, page: u32) {
        self.states[page as usize] = State::Inactive;
        self.inactive_pages += 1;
        let entry = self.entry(page);
        self.inactive.push_back(entry);
    }

    fn entry(&mut self, page: u32) -> (u32, u32) {
        self.number += 1;
        self.numbers[page as usize] = self.number;
        (page, self.number)
    }

    fn is(&self, state: State, page: u32, number: u32) -> bool {
        self.states[page as usize] == state && self.numbers[page as usize] == number
    }

    /// The pages with the heat that their flags have in a list.
    fn runs(&self) -> Vec<Run> {
        let mut joined = Joined::default();
        for (page, state) in (0..).zip(&self.states) {
            let heat = match state {
                State::Absent => continue,
                State::Inactive => RESIDENT,
                State::Referenced => REFERENCED,
                State::Active => ACTIVE,
            };
            joined.push(page, page + 1, heat);
        }
        joined.into_runs()
    }

    /// The active pages, then the inactive ones, newest first.
    fn pages(&self) -> Vec<u32> {
        let mut pages: Vec<u32> = (0..self.states.len() as u32)
            .filter(|page| self.states[*page as usize] != State::Absent)
            .collect();
        pages.sort_by_key(|page| {
            let active = self.states[*page as usize] == State::Active;
            Reverse((active, self.numbers[*page as usize]))
        });
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accesses(before: &[u32], after: &[u32]) -> Accesses {
        Accesses {
            pages: 10,
            before: before.to_vec(),
            tenths: vec![before.len()],
            absent: 0..0,
            after: after.to_vec(),
        }
    }

    #[test]
    fn a_short_observation_ranks_above_the_lru_and_has_all_of_it() {
        let mut accesses = accesses(&[1, 2, 3, 1, 3, 4, 4], &[]);
        // 5 s are observed: 4 again, in two requests, and nothing before.
        accesses.tenths = vec![5; 1];
        accesses.tenths.extend(vec![0; 48]);
        accesses.tenths.extend([1, 1]);
        assert_eq!(short(&accesses, 10), [4, 1, 3, 2]);
    }

    #[test]
    fn a_tracker_that_begins_again_knows_what_it_had_seen() {
        let mut accesses = accesses(&[5, 5, 7, 9], &[]);
        accesses.tenths = vec![1, 1, 1, 1];
        accesses.absent = 2..3;
        assert_eq!(heat(&accesses, Ranking::default()), [5, 9]);
    }

    #[test]
    fn a_second_read_activates() {
        let accesses = accesses(&[1, 2, 3, 1, 4, 2], &[]);
        assert_eq!(active(&accesses, 10), [2, 1, 4, 3]);
        assert_eq!(resident(&accesses, 10), [1, 2, 3, 4]);
        assert_eq!(recent(&accesses), [2, 4, 1, 3]);
    }

    #[test]
    fn reclaim_takes_the_oldest_inactive_page() {
        assert_eq!(resident(&accesses(&[1, 2, 3, 1, 4], &[]), 3), [1, 3, 4]);
        // Half of memory at most is active: 1 is deactivated for 4, and goes for 5.
        let reads = [1, 1, 2, 2, 3, 4, 5];
        assert_eq!(active(&accesses(&reads, &[]), 3), [2, 5, 4]);
    }

    #[test]
    fn the_oracle_knows_the_future_and_only_that() {
        let accesses = accesses(&[1, 1, 1, 2], &[7, 2, 7, 1]);
        assert_eq!(oracle(&accesses), [7, 1, 2]);
        assert_eq!(
            hits(&accesses, &oracle(&accesses), &[0, 1, 2, 9]),
            [0.0, 0.5, 0.75, 1.0]
        );
    }

    #[test]
    fn heat_has_every_page_that_was_read_the_hottest_first() {
        let accesses = accesses(&[5, 1, 5, 8, 5, 8, 1, 8], &[]);
        assert_eq!(heat(&accesses, Ranking::default()), [1, 5, 8]);
        let mut often = accesses.clone();
        often.tenths = vec![4, 4];
        // 1 in two tenths, 5 twice and once, 8 once and twice.
        assert_eq!(heat(&often, Ranking::default()), [5, 8, 1]);
        let mut once = accesses;
        once.before = vec![9, 3, 3, 4];
        once.tenths = vec![4];
        assert_eq!(heat(&once, Ranking::default()), [3, 4, 9]);
    }
}
