//! Accesses → ranked pages.
//!
//! Time is cut into epochs, in each of which the source tells several times
//! which pages were used since it told last, and which of them more than once.
//! Each page has a count of its uses: 1 is added when it was used, 2 when it was
//! used more than once, and at the end of each epoch the count falls to a part
//! of what it was ([`Ranking`]), so that it is how often and how lately the page
//! was used. That it was used more than once is never forgotten.
//!
//! Heat is 1 for what was used once, as by a backup, however lately; and for what
//! somebody came back to it is 2 and more by the logarithm of the count, four
//! steps for each doubling. What is in use all the time has some 58.
//!
//! The numbers of [`Ranking::default`] are chosen by `cargo xtask bench quality`,
//! which tries others beside them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use migrator_common::access::{CHUNK_PAGES, CHUNK_WORDS, ChunkBits, WordBits};

use crate::pagelist::{Heat, Run};

/// A file, as the kernel names it: kernel `dev_t` and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Kernel `dev_t` (major << 20 | minor).
    pub device: u32,
    /// Inode number.
    pub inode: u64,
}

/// How counts become heat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranking {
    /// The part of a count that is left an epoch later.
    pub kept: f64,
    /// What a page's count grows by when it was used more than once; 1 when it
    /// was used once.
    pub again: u16,
}

impl Default for Ranking {
    fn default() -> Self {
        Self {
            kept: 0.75,
            again: 2,
        }
    }
}

/// A use, in the unit that counts have.
const USE: u16 = 1 << 8;
/// The count of a page: 0 if it was never used.
const COUNT: u16 = AGAIN - 1;
/// The page was used more than once.
const AGAIN: u16 = 1 << 15;
/// What is left of a use after ten epochs; below, [`HeatMap::known_hot`] sees nothing.
const SOMETHING: u16 = USE / 16;
/// After so many epochs hardly anything is left of a count.
const EPOCHS: usize = 64;

/// What the pages that are remembered may take, in units of 2 bytes: 96 MiB.
pub const ROOM: usize = 48 << 20;

/// What a chunk takes beside its pages, in the same units.
const CHUNK_ROOM: usize = 104;

/// What is known of a part of a file.
#[derive(Debug, Default)]
struct Chunk {
    /// The epoch that the counts were brought to.
    epoch: u32,
    /// The pages that were used.
    known: [u64; CHUNK_WORDS],
    /// [`COUNT`] and [`AGAIN`] of each of them, in their order.
    pages: Vec<u16>,
}

/// What is known of the pages of all files.
#[derive(Debug)]
pub struct HeatMap {
    epoch: u32,
    files: HashMap<FileId, BTreeMap<u32, Chunk>>,
    again: u16,
    /// What is left of a count after so many epochs, of 2^16.
    left: [u32; EPOCHS],
    room: usize,
    forgotten: u64,
}

impl Default for HeatMap {
    fn default() -> Self {
        Self::new(Ranking::default())
    }
}

impl HeatMap {
    /// An empty one that ranks so.
    pub fn new(ranking: Ranking) -> Self {
        let left = |epochs: usize| (65536.0 * ranking.kept.powi(epochs as i32)) as u32;
        Self {
            epoch: 0,
            files: HashMap::new(),
            again: ranking.again,
            left: std::array::from_fn(left),
            room: 0,
            forgotten: 0,
        }
    }

    /// Adds what was seen of a chunk, in the present epoch, since it was told of
    /// last.
    pub fn mark(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        if bits.words.iter().all(|word| word.used == 0) {
            return;
        }
        let chunk = match self.files.entry(file).or_default().entry(chunk) {
            Entry::Occupied(chunk) => chunk.into_mut(),
            Entry::Vacant(place) => {
                self.room += CHUNK_ROOM;
                place.insert(Chunk::default())
            }
        };
        let elapsed = self.epoch - chunk.epoch;
        if elapsed > 0 {
            let left = left(&self.left, elapsed);
            chunk
                .pages
                .iter_mut()
                .for_each(|page| *page = aged(*page, left));
            chunk.epoch = self.epoch;
        }
        self.room += chunk.learn(bits);
        let mut pages = chunk.pages.as_mut_slice();
        for (word, known) in bits.words.iter().zip(chunk.known) {
            let (these, rest) = pages.split_at_mut(known.count_ones() as usize);
            for bit in ones(word.used) {
                let place = (known & ((1 << bit) - 1)).count_ones();
                let again = word.again >> bit & 1 != 0;
                use_page(&mut these[place as usize], again, self.again);
            }
            pages = rest;
        }
    }

    /// The same for pages of which it is not known when they were used: those
    /// that are known already are left as they are.
    pub fn mark_unknown(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        let mut bits = *bits;
        let known = self.files.get(&file).and_then(|chunks| chunks.get(&chunk));
        if let Some(chunk) = known {
            for (word, known) in bits.words.iter_mut().zip(chunk.known) {
                word.used &= !known;
            }
        }
        self.mark(file, chunk, &bits);
    }

    /// Begins the next epoch, and forgets the pages that were not used for the
    /// longest time where more are remembered than have [`ROOM`].
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        if self.room > ROOM {
            self.forget(ROOM / 8 * 7);
        }
    }

    /// How many pages were forgotten for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The pages of a chunk that are known as hot, a bit each: used more than once,
    /// and not so long ago that nothing is left of it.
    pub fn known_hot(&self, file: FileId, chunk: u32) -> [u64; CHUNK_WORDS] {
        let mut found = [0; CHUNK_WORDS];
        let chunk = self.files.get(&file).and_then(|chunks| chunks.get(&chunk));
        if let Some(chunk) = chunk {
            let left = left(&self.left, self.epoch - chunk.epoch);
            let mut pages = chunk.pages.iter();
            for (found, known) in found.iter_mut().zip(chunk.known) {
                for (bit, page) in ones(known).zip(&mut pages) {
                    let is_hot = page & AGAIN != 0 && aged(*page, left) & COUNT >= SOMETHING;
                    *found |= u64::from(is_hot) << bit;
                }
            }
        }
        found
    }

    /// The files of which pages are known.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.files.keys().copied()
    }

    /// The pages of a file below `end` that have at least the heat asked for.
    pub fn runs(&self, file: FileId, min_heat: Heat, end: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (number, chunk) in self.files.get(&file).into_iter().flatten() {
            let left = left(&self.left, self.epoch - chunk.epoch);
            let mut pages = chunk.pages.iter();
            for (word, known) in (0..).zip(chunk.known) {
                let start = u64::from(*number) * CHUNK_PAGES + word * 64;
                for (bit, page) in ones(known).zip(&mut pages) {
                    let index = start + u64::from(bit);
                    let heat = heat(aged(*page, left));
                    if heat < min_heat || index >= end {
                        continue;
                    }
                    match runs.last_mut() {
                        Some(run)
                            if run.end() == index && run.heat == heat && run.pages < u32::MAX =>
                        {
                            run.pages += 1;
                        }
                        _ => runs.push(Run {
                            index,
                            pages: 1,
                            heat,
                        }),
                    }
                }
            }
        }
        runs
    }

    /// Drops the chunks that were not used for the longest time, until what is
    /// left takes no more than `keep`.
    fn forget(&mut self, keep: usize) {
        let mut ages: Vec<(u32, FileId, u32)> = Vec::new();
        for (file, chunks) in &self.files {
            ages.extend(
                chunks
                    .iter()
                    .map(|(number, chunk)| (chunk.epoch, *file, *number)),
            );
        }
        ages.sort_unstable();
        for (_, file, number) in ages {
            if self.room <= keep {
                break;
            }
            let chunks = self.files.get_mut(&file);
            if let Some(chunk) = chunks.and_then(|chunks| chunks.remove(&number)) {
                self.room -= CHUNK_ROOM + chunk.pages.len();
                self.forgotten += chunk.pages.len() as u64;
            }
        }
        self.files.retain(|_, chunks| !chunks.is_empty());
    }
}

impl Chunk {
    /// Makes room for the pages that are used for the first time; gives how many.
    fn learn(&mut self, bits: &ChunkBits) -> usize {
        let both = || bits.words.iter().zip(self.known);
        let new = |(word, known): (&WordBits, u64)| (word.used & !known).count_ones() as usize;
        let new: usize = both().map(new).sum();
        if new > 0 {
            let mut pages = Vec::with_capacity(self.pages.len() + new);
            let mut before = self.pages.iter();
            for (word, known) in both() {
                pages.extend(ones(word.used | known).map(|bit| match known >> bit & 1 {
                    0 => 0,
                    _ => before.next().copied().unwrap_or_default(),
                }));
            }
            self.pages = pages;
            for (word, known) in bits.words.iter().zip(&mut self.known) {
                *known |= word.used;
            }
        }
        new
    }
}

/// The numbers of the bits that are set, from the lowest on.
fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit)
    })
}

/// What is left of a count some epochs later, of 2^16.
fn left(left: &[u32; EPOCHS], epochs: u32) -> u32 {
    left.get(epochs as usize).copied().unwrap_or_default()
}

/// A page of which so much is left. Its count never falls to 0.
fn aged(page: u16, left: u32) -> u16 {
    let count = ((u32::from(page & COUNT) * left) >> 16) as u16;
    page & AGAIN | count.max((page & COUNT).min(1))
}

/// Counts a use in, or several.
fn use_page(page: &mut u16, again: bool, several: u16) {
    let ever = if again || *page != 0 { AGAIN } else { 0 };
    let more = if again { several * USE } else { USE };
    *page = *page & AGAIN | ever | (*page & COUNT).saturating_add(more).min(COUNT);
}

/// Heat of a page that was used.
fn heat(page: u16) -> Heat {
    if page & AGAIN == 0 {
        return 1;
    }
    // The binary logarithm with two digits behind the point, as a floating-point
    // number has it: exponent and the first bits of the mantissa.
    let count = u32::from(page & COUNT).max(1) << 2;
    let exponent = count.ilog2() - 2;
    let mantissa = count >> exponent & 3;
    // At most 2 + 14 * 4 + 3, so it fits.
    (2 + exponent * 4 + mantissa) as Heat
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: FileId = FileId {
        device: 1,
        inode: 2,
    };

    fn bits(used: &[u64], again: &[u64]) -> ChunkBits {
        let mut bits = ChunkBits::default();
        for page in used {
            bits.words[(page / 64) as usize].used |= 1 << (page % 64);
        }
        for page in again {
            bits.words[(page / 64) as usize].again |= 1 << (page % 64);
        }
        bits
    }

    fn heats(map: &HeatMap) -> Vec<(u64, Heat)> {
        let runs = map.runs(FILE, 1, u64::MAX);
        runs.iter()
            .flat_map(|run| (run.index..run.end()).map(|page| (page, run.heat)))
            .collect()
    }

    #[test]
    fn once_is_one_and_again_is_two() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[3, 70], &[70]));
        let found = heats(&map);
        assert_eq!(found[0], (3, 1));
        assert!(matches!(found[1], (70, 2..)), "{found:?}");
    }

    #[test]
    fn a_scan_stays_below_what_is_used_in_two_epochs() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1, 2, 3], &[]));
        map.next_epoch();
        map.mark(FILE, 0, &bits(&[2], &[]));
        let found = heats(&map);
        assert!(matches!(found[..], [(1, 1), (2, 2..), (3, 1)]), "{found:?}");
        let again = map.runs(FILE, 2, u64::MAX);
        assert_eq!(again.iter().map(|run| run.index).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn heat_sinks_to_what_is_never_forgotten() {
        let mut map = HeatMap::default();
        for _ in 0..100 {
            (0..10).for_each(|_| map.mark(FILE, 1, &bits(&[5], &[5])));
            map.next_epoch();
        }
        assert_eq!(heats(&map), [(517, 57)]);
        let mut before = 57;
        for _ in 0..EPOCHS + 3 {
            map.next_epoch();
            let now = heats(&map)[0].1;
            assert!(now < before || now == 2, "{now} after {before}");
            before = now;
        }
        assert_eq!(before, 2);
    }

    #[test]
    fn four_steps_of_heat_are_half_the_count() {
        for count in [4, 5, 6, 7, 100, USE, 16_000] {
            let [one, two] = [count, 2 * count].map(|count| heat(AGAIN | count));
            assert_eq!(two, one + 4, "{count}");
        }
        assert_eq!(heat(AGAIN | COUNT), 61);
    }

    #[test]
    fn what_is_used_more_often_is_hotter() {
        let mut map = HeatMap::default();
        for part in 0..8 {
            map.mark(FILE, 0, &bits(&[1], &[1]));
            map.mark(FILE, 0, &bits(&[2], &[]));
            if part % 4 == 0 {
                map.mark(FILE, 0, &bits(&[3], &[]));
            }
        }
        let heats: Vec<_> = heats(&map).iter().map(|(_, heat)| *heat).collect();
        assert_eq!(heats[0], heats[1] + 4);
        assert_eq!(heats[1], heats[2] + 8);
    }

    #[test]
    fn what_is_known_is_not_marked_as_unknown() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[3, 70], &[70]));
        for _ in 0..3 {
            map.next_epoch();
            map.mark_unknown(FILE, 0, &bits(&[2, 3, 70, 71, 511], &[]));
        }
        let found = heats(&map);
        assert!(
            matches!(found[..], [(2, 1), (3, 1), (70, 2..), (71, 1), (511, 1)]),
            "{found:?}"
        );
    }

    #[test]
    fn pages_beyond_the_end_are_left_out() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1, 2, 3], &[]));
        assert_eq!(
            map.runs(FILE, 1, 3),
            [Run {
                index: 1,
                pages: 2,
                heat: 1
            }]
        );
    }

    #[test]
    fn the_longest_unused_is_forgotten_first() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[0, 1], &[]));
        map.next_epoch();
        map.mark(FILE, 1, &bits(&[0, 1], &[]));
        map.forget(CHUNK_ROOM + 2);
        assert_eq!(heats(&map), [(512, 1), (513, 1)]);
        assert_eq!(map.forgotten(), 2);
        assert_eq!(map.room, CHUNK_ROOM + 2);
    }

    proptest! {
        #[test]
        fn every_page_used_is_in_the_runs(epochs in prop::collection::vec(
            prop::collection::btree_set(0u64..2048, 0..64), 1..12))
        {
            let mut map = HeatMap::default();
            for pages in &epochs {
                for page in pages {
                    map.mark(FILE, (page / 512) as u32, &bits(&[page % 512], &[]));
                }
                map.next_epoch();
            }
            let uses = |page| epochs.iter().filter(|pages| pages.contains(&page)).count();
            let found = heats(&map);
            let all: std::collections::BTreeSet<u64> = epochs.iter().flatten().copied().collect();
            prop_assert_eq!(found.iter().map(|(page, _)| *page).collect::<Vec<_>>(),
                all.into_iter().collect::<Vec<_>>());
            for (page, heat) in found {
                prop_assert_eq!(heat >= 2, uses(page) >= 2);
            }
        }
    }
}
