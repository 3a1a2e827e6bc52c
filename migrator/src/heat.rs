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

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use migrator_common::access::{CHUNK_PAGES, CHUNK_WORDS, ChunkBits, WordBits};

use crate::format::MAX_RUNS;
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

/// What all that is remembered may take, in bytes: some 20 million pages of which every
/// tenth is used.
pub const ROOM: usize = 96 << 20;

/// What the counts of pages may take of that: a list can't have more runs than these.
const COUNTS_ROOM: usize = size_of::<u16>() * MAX_RUNS as usize;

/// What a chunk takes in memory beside itself, in bytes: its part of a node of the map,
/// and what the allocator adds.
const CHUNK_ROOM: usize = 64;

/// What is known of a part of a file.
///
/// All of it is in one place, which is one of few sizes: chunks get and give up pages
/// all the time, and what one leaves another one takes.
#[derive(Debug)]
struct Chunk<Pages: ?Sized = [u16]> {
    /// The pages that were used.
    known: [u64; CHUNK_WORDS],
    /// The epoch that the counts were brought to.
    epoch: u32,
    /// [`COUNT`] and [`AGAIN`] of each of them, in their order, and then some room.
    /// Or a single one, where all have been used alike, as those of a file that is
    /// read as a whole.
    pages: Pages,
}

/// File and number of a chunk, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u128);

impl Place {
    fn new(file: FileId, chunk: u32) -> Self {
        let file = u128::from(file.device) << 64 | u128::from(file.inode);
        Self(file << 32 | u128::from(chunk))
    }

    fn file(self) -> FileId {
        FileId {
            device: (self.0 >> 96) as u32,
            inode: (self.0 >> 32) as u64,
        }
    }

    /// The page that the chunk begins with.
    fn first_page(self) -> u64 {
        u64::from(self.0 as u32) * CHUNK_PAGES
    }
}

/// What is known of the pages of all files.
#[derive(Debug)]
pub struct HeatMap {
    epoch: u32,
    chunks: BTreeMap<Place, Box<Chunk>>,
    again: u16,
    /// What is left of a count after so many epochs, of 2^16.
    left: [u32; EPOCHS],
    room: usize,
    forgotten: u64,
}

/// What is known of a file in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Pages.
    pub pages: u64,
    /// Those that were used more than once.
    pub again: u64,
    /// The heat of all.
    pub heat: u64,
}

impl Sum {
    /// Counts in so many pages of one heat.
    pub fn add(&mut self, pages: u64, heat: Heat) {
        self.pages += pages;
        self.heat += pages * u64::from(heat);
        if heat >= 2 {
            self.again += pages;
        }
    }

    /// Mean heat of a page; 0 without any.
    pub fn hotness(&self) -> f64 {
        self.heat as f64 / self.pages.max(1) as f64
    }
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
            chunks: BTreeMap::new(),
            again: ranking.again,
            left: std::array::from_fn(left),
            room: 0,
            forgotten: 0,
        }
    }

    /// Adds what was seen of a chunk, in the present epoch, since it was told of
    /// last. Forgets the coldest pages where more are remembered than have [`ROOM`].
    pub fn mark(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        if bits.words.iter().all(|word| word.used == 0) {
            return;
        }
        let (before, chunk) = match self.chunks.entry(Place::new(file, chunk)) {
            Entry::Occupied(chunk) => (chunk.get().room(), chunk.into_mut()),
            Entry::Vacant(place) => (0, place.insert(Chunk::new(self.epoch, 1))),
        };
        let elapsed = self.epoch - chunk.epoch;
        if elapsed > 0 {
            chunk.age(left(&self.left, elapsed), self.epoch);
        }
        chunk.mark(bits, self.again);
        self.room = self.room - before + chunk.room();
        let without_counts = CHUNK_ROOM + size_of::<Chunk<[u16; 1]>>();
        if self.room > ROOM || self.room - self.chunks.len() * without_counts > COUNTS_ROOM {
            self.forget(self.room / 3 * 2);
        }
    }

    /// The same for pages of which it is not known when they were used: those
    /// that are known already are left as they are.
    pub fn mark_unknown(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        let mut bits = *bits;
        if let Some(chunk) = self.chunks.get(&Place::new(file, chunk)) {
            for (word, known) in bits.words.iter_mut().zip(chunk.known) {
                word.used &= !known;
            }
        }
        self.mark(file, chunk, &bits);
    }

    /// Begins the next epoch.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
    }

    /// How many pages were forgotten for want of room. A page that is used and
    /// forgotten again counts again.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The pages of a chunk that are known as hot, a bit each: used more than once,
    /// and not so long ago that nothing is left of it.
    pub fn known_hot(&self, file: FileId, chunk: u32) -> [u64; CHUNK_WORDS] {
        let mut found = [0; CHUNK_WORDS];
        if let Some(chunk) = self.chunks.get(&Place::new(file, chunk)) {
            let left = left(&self.left, self.epoch - chunk.epoch);
            chunk.each(|page, count| {
                let is_hot = count & AGAIN != 0 && aged(count, left) & COUNT >= SOMETHING;
                found[page as usize / 64] |= u64::from(is_hot) << (page % 64);
            });
        }
        found
    }

    /// How many chunks have pages that are known.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The files of which pages are known.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        let mut next = Some(Place(0));
        std::iter::from_fn(move || {
            let (place, _) = self.chunks.range(next?..).next()?;
            let file = place.file();
            next = Place::new(file, u32::MAX).0.checked_add(1).map(Place);
            Some(file)
        })
    }

    /// What is known of the pages of a file below `end` that have at least the heat
    /// asked for.
    pub fn sum(&self, file: FileId, min_heat: Heat, end: u64) -> Sum {
        let mut sum = Sum::default();
        for (place, chunk) in self.of_file(file) {
            let left = left(&self.left, self.epoch - chunk.epoch);
            let reaches = end.saturating_sub(place.first_page());
            chunk.each_heat(left, |page, heat| {
                if heat >= min_heat && u64::from(page) < reaches {
                    sum.add(1, heat);
                }
            });
        }
        sum
    }

    /// How many pages of a file are known, and how many of them were used more than
    /// once, in a small part of the time that [`Self::sum`] takes.
    pub fn count(&self, file: FileId) -> (u64, u64) {
        let mut sum = (0, 0);
        for (_, chunk) in self.of_file(file) {
            let count = chunk.count();
            let each = &chunk.pages[..count.min(chunk.pages.len())];
            let again = each.iter().filter(|page| **page & AGAIN != 0).count();
            sum.0 += count as u64;
            sum.1 += match chunk.alike() {
                Some(_) => again * count,
                None => again,
            } as u64;
        }
        sum
    }

    /// The pages of a file below `end` that have at least the heat asked for.
    pub fn runs(&self, file: FileId, min_heat: Heat, end: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        for (place, chunk) in self.of_file(file) {
            self.append(&mut runs, *place, chunk, min_heat, end);
        }
        runs
    }

    /// The same, some at a time: all of them take 16 bytes for each page that has
    /// another heat than its neighbours.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn each_runs<E>(
        &self,
        file: FileId,
        min_heat: Heat,
        end: u64,
        mut each: impl FnMut(&[Run]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut runs = Vec::new();
        for (place, chunk) in self.of_file(file) {
            self.append(&mut runs, *place, chunk, min_heat, end);
            if runs.len() >= RUNS_AT_ONCE {
                each(&runs)?;
                runs.clear();
            }
        }
        each(&runs)
    }

    fn of_file(&self, file: FileId) -> impl Iterator<Item = (&Place, &Chunk)> {
        let places = Place::new(file, 0)..=Place::new(file, u32::MAX);
        let chunks = self.chunks.range(places);
        chunks.map(|(place, chunk)| (place, chunk.as_ref()))
    }

    fn append(&self, runs: &mut Vec<Run>, place: Place, chunk: &Chunk, min_heat: Heat, end: u64) {
        let left = left(&self.left, self.epoch - chunk.epoch);
        chunk.each_heat(left, |page, heat| {
            let index = place.first_page() + u64::from(page);
            if heat < min_heat || index >= end {
                return;
            }
            match runs.last_mut() {
                Some(run) if run.end() == index && run.heat == heat && run.pages < u32::MAX => {
                    run.pages += 1;
                }
                _ => runs.push(Run {
                    index,
                    pages: 1,
                    heat,
                }),
            }
        });
    }

    /// Forgets the coldest pages, and of those that are as cold as others the ones
    /// that were not used for the longest time, until what is left takes no more than
    /// `keep`. Of what nothing is left, it does not matter how often it was used: what
    /// was hot a long time ago makes room for what is used now.
    fn forget(&mut self, keep: usize) {
        // What forgetting all that is so cold gives back, at least.
        let mut given_back = [0; Heat::MAX as usize + 1];
        for chunk in self.chunks.values() {
            let left = left(&self.left, self.epoch - chunk.epoch);
            match chunk.alike() {
                Some(page) => given_back[warmth(aged(page, left))] += chunk.room(),
                None => {
                    // With its pages a chunk gives back its room, if not at once.
                    let each = chunk.room() / chunk.count().max(1);
                    chunk.each(|_, page| given_back[warmth(aged(page, left))] += each);
                }
            }
        }
        let mut missing = self.room.saturating_sub(keep);
        let enough = given_back.iter().position(|bytes| {
            missing = missing.saturating_sub(*bytes);
            missing == 0
        });
        let enough = enough.unwrap_or(given_back.len());

        let ages = self
            .chunks
            .iter()
            .map(|(place, chunk)| (chunk.epoch, *place));
        let mut ages: Vec<_> = ages.collect();
        ages.sort_unstable();
        for end in [enough, enough + 1] {
            for (_, place) in &ages {
                if self.room <= keep {
                    return;
                }
                let Entry::Occupied(mut chunk) = self.chunks.entry(*place) else {
                    continue;
                };
                let left = left(&self.left, self.epoch - chunk.get().epoch);
                let before = chunk.get().room();
                self.forgotten += chunk.get_mut().forget(left, end);
                self.room -= before;
                match chunk.get().is_empty() {
                    true => drop(chunk.remove()),
                    false => self.room += chunk.get().room(),
                }
            }
        }
    }
}

/// So many runs are given at a time, and up to a chunk's more.
const RUNS_AT_ONCE: usize = 1 << 13;

impl Chunk {
    /// An empty one with room for so many pages.
    fn new(epoch: u32, pages: usize) -> Box<Self> {
        match pages {
            0..=1 => Chunk::sized::<1>(epoch),
            2..=8 => Chunk::sized::<8>(epoch),
            9..=32 => Chunk::sized::<32>(epoch),
            33..=64 => Chunk::sized::<64>(epoch),
            65..=128 => Chunk::sized::<128>(epoch),
            129..=256 => Chunk::sized::<256>(epoch),
            _ => Chunk::sized::<{ CHUNK_PAGES as usize }>(epoch),
        }
    }

    fn sized<const PAGES: usize>(epoch: u32) -> Box<Self> {
        Box::new(Chunk {
            known: [0; _],
            epoch,
            pages: [0; PAGES],
        })
    }

    /// What it takes in memory, in bytes.
    fn room(&self) -> usize {
        CHUNK_ROOM + size_of_val(self)
    }

    /// How many pages are known.
    fn count(&self) -> usize {
        self.known
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    fn is_empty(&self) -> bool {
        self.known == [0; CHUNK_WORDS]
    }

    /// What all pages have in common, where that is what is known of them.
    fn alike(&self) -> Option<u16> {
        match self.pages {
            [page] => Some(page),
            _ => None,
        }
    }

    /// Of each page that is known, in their order.
    fn each(&self, mut each: impl FnMut(u32, u16)) {
        if let Some(page) = self.alike() {
            for (word, known) in (0..).zip(self.known) {
                ones(known).for_each(|bit| each(64 * word + bit, page));
            }
            return;
        }
        let mut pages = self.pages.iter();
        for (word, known) in (0..).zip(self.known) {
            for (bit, page) in ones(known).zip(&mut pages) {
                each(64 * word + bit, *page);
            }
        }
    }

    /// The same with its heat, where so much is left of its count.
    fn each_heat(&self, left: u32, mut each: impl FnMut(u32, Heat)) {
        match self.alike() {
            Some(page) => {
                let heat = heat(aged(page, left));
                self.each(|page, _| each(page, heat));
            }
            None => self.each(|page, count| each(page, heat(aged(count, left)))),
        }
    }

    /// Leaves so much of each count, in an epoch.
    fn age(self: &mut Box<Self>, left: u32, epoch: u32) {
        self.epoch = epoch;
        let count = self.count().max(1).min(self.pages.len());
        let pages = &mut self.pages[..count];
        pages.iter_mut().for_each(|page| *page = aged(*page, left));
        let first = pages[0];
        if count > 1 && pages.iter().all(|page| *page == first) {
            let known = self.known;
            *self = Chunk::new(epoch, 1);
            (self.known, self.pages[0]) = (known, first);
        }
    }

    /// Counts uses in; `several` is what a page grows by that was used more than once.
    fn mark(self: &mut Box<Self>, bits: &ChunkBits, several: u16) {
        if let Some(page) = self.alike()
            && let Some(page) = self.marked_alike(page, bits, several)
        {
            self.pages[0] = page;
            for (word, known) in bits.words.iter().zip(&mut self.known) {
                *known |= word.used;
            }
            return;
        }
        self.learn(bits);
        let mut pages = &mut self.pages[..];
        for (word, known) in bits.words.iter().zip(self.known) {
            let (these, rest) = pages.split_at_mut(known.count_ones() as usize);
            for bit in ones(word.used) {
                let place = (known & ((1 << bit) - 1)).count_ones();
                let again = word.again >> bit & 1 != 0;
                these[place as usize] = used(these[place as usize], again, several);
            }
            pages = rest;
        }
    }

    /// What all pages have in common after these uses, if it is so, where it is
    /// `page` now.
    fn marked_alike(&self, page: u16, bits: &ChunkBits, several: u16) -> Option<u16> {
        let words = || bits.words.iter().zip(self.known);
        let all = |is: fn(&WordBits, u64) -> bool| words().all(|(word, known)| is(word, known));
        let again = match () {
            () if all(|word, _| word.used & word.again == 0) => false,
            () if all(|word, _| word.used & !word.again == 0) => true,
            () => return None,
        };
        if all(|word, known| word.used & known == 0) {
            // All of these are new.
            let new = used(0, again, several);
            return (self.is_empty() || new == page).then_some(new);
        }
        all(|word, known| word.used == known).then(|| used(page, again, several))
    }

    /// Makes room for the pages that are used for the first time, and for a count of
    /// each page.
    fn learn(self: &mut Box<Self>, bits: &ChunkBits) {
        let before = self.known;
        let mut from = self.count();
        let mut known = before;
        for (word, known) in bits.words.iter().zip(&mut known) {
            *known |= word.used;
        }
        let mut to: usize = known.iter().map(|word| word.count_ones() as usize).sum();
        // Where one count is enough for all, there is none of each.
        if to > self.pages.len() {
            let mut larger = Chunk::new(self.epoch, to);
            match self.alike() {
                Some(page) => larger.pages[..from].fill(page),
                None => larger.pages[..from].copy_from_slice(&self.pages[..from]),
            }
            *self = larger;
        }
        self.known = known;
        // From the end, so that nothing is written over.
        for (known, before) in known.into_iter().zip(before).rev() {
            let mut left = known;
            while left != 0 && to != from {
                let bit = 1 << left.ilog2();
                left &= !bit;
                to -= 1;
                let is_old = before & bit != 0;
                from -= usize::from(is_old);
                self.pages[to] = if is_old { self.pages[from] } else { 0 };
            }
        }
    }

    /// Forgets the pages that are not as warm as `end`, where so much is left of their
    /// counts, and gives how many.
    fn forget(self: &mut Box<Self>, left: u32, end: usize) -> u64 {
        let before = self.count();
        // The least that is warm enough, of those that were used once and of others.
        let warm_from = |ever: u16| {
            let (mut cold, mut warm) = (0, AGAIN);
            while cold < warm {
                let middle = (cold + warm) / 2;
                match warmth(aged(ever | middle, left)) >= end {
                    true => warm = middle,
                    false => cold = middle + 1,
                }
            }
            u32::from(ever) + u32::from(warm)
        };
        let (once, again) = (warm_from(0), warm_from(AGAIN));
        let is_warm = |page: u16| {
            let page = u32::from(page);
            page >= again || (page >= once && page < u32::from(AGAIN))
        };
        if let Some(page) = self.alike() {
            if is_warm(page) {
                return 0;
            }
            self.known = [0; _];
            return before as u64;
        }
        if self.pages[..before].iter().all(|page| is_warm(*page)) {
            return 0;
        }
        let (mut from, mut to) = (0, 0);
        for word in 0..CHUNK_WORDS {
            for bit in ones(self.known[word]) {
                let page = self.pages[from];
                from += 1;
                if is_warm(page) {
                    self.pages[to] = page;
                    to += 1;
                } else {
                    self.known[word] &= !(1 << bit);
                }
            }
        }
        let mut smaller = Chunk::new(self.epoch, to);
        if smaller.pages.len() < self.pages.len() {
            smaller.known = self.known;
            smaller.pages[..to].copy_from_slice(&self.pages[..to]);
            *self = smaller;
        }
        (before - to) as u64
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

/// The page after another use, or several.
fn used(page: u16, again: bool, several: u16) -> u16 {
    let ever = if again || page != 0 { AGAIN } else { 0 };
    let more = if again { several * USE } else { USE };
    page & AGAIN | ever | (page & COUNT).saturating_add(more).min(COUNT)
}

/// In which order pages are remembered: by heat, but for those of whose use nothing
/// is left.
fn warmth(page: u16) -> usize {
    match page & COUNT {
        0..SOMETHING => 0,
        _ => heat(page).into(),
    }
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
    fn the_coldest_is_forgotten_first_and_of_that_the_longest_unused() {
        let mut map = HeatMap::default();
        // Hot a long time ago; then a scan, and in another file what is used again.
        map.mark(FILE, 0, &bits(&[1], &[1]));
        (0..40).for_each(|_| map.next_epoch());
        for chunk in 1..4 {
            map.mark(FILE, chunk, &bits(&[0, 1], &[]));
            map.next_epoch();
            map.mark(FILE, chunk, &bits(&[1], &[1]));
        }
        let all = |map: &HeatMap| heats(map).iter().map(|(page, _)| *page).collect::<Vec<_>>();
        assert_eq!(all(&map), [1, 512, 513, 1024, 1025, 1536, 1537]);
        for (left, pages) in [
            (&[512, 513, 1024, 1025, 1536, 1537][..], 1),
            (&[513, 1024, 1025, 1536, 1537], 2),
            (&[513, 1025, 1536, 1537], 3),
            (&[513, 1025, 1537], 4),
            (&[1025, 1537], 5),
        ] {
            map.forget(map.room - 1);
            assert_eq!((all(&map).as_slice(), map.forgotten()), (left, pages));
        }
        assert_eq!(map.room, 2 * Chunk::new(0, 1).room());
    }

    #[test]
    fn what_is_read_as_a_whole_takes_no_room_for_its_pages() {
        let all: Vec<u64> = (0..512).collect();
        let mut map = HeatMap::default();
        for _ in 0..5 {
            map.mark(FILE, 0, &bits(&all[..100], &[]));
            map.mark(FILE, 0, &bits(&all[100..], &[]));
            map.next_epoch();
        }
        assert!(map.room > 1024, "each has been used at another time");
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&all[..100], &[]));
        map.mark(FILE, 0, &bits(&all[100..], &[]));
        for _ in 0..5 {
            map.mark(FILE, 0, &bits(&all, &[]));
            map.next_epoch();
        }
        assert_eq!(map.room, Chunk::new(0, 1).room());
        assert_eq!(map.runs(FILE, 2, u64::MAX).len(), 1);
        assert_eq!(map.count(FILE), (512, 512));
        // One page is used more often; in the end nothing is left of that.
        map.mark(FILE, 0, &bits(&[7], &[]));
        assert_eq!(map.room, Chunk::new(0, 512).room());
        (0..EPOCHS).for_each(|_| map.next_epoch());
        map.mark(FILE, 0, &bits(&all, &all));
        assert_eq!(map.room, Chunk::new(0, 1).room());
    }

    #[test]
    fn more_than_has_room_is_never_remembered() {
        let mut map = HeatMap::default();
        let mut random = 1_u64;
        let mut told = 0;
        for chunk in 0..120_000 {
            let mut bits = ChunkBits::default();
            for word in &mut bits.words {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (word.used, word.again) = (u64::MAX, random);
            }
            map.mark(FILE, chunk, &bits);
            told += CHUNK_PAGES;
            assert!(map.room <= ROOM);
        }
        let runs: u64 = map.runs(FILE, 1, u64::MAX).len() as u64;
        assert!(runs <= MAX_RUNS, "{runs}");
        let room: usize = map.chunks.values().map(|chunk| chunk.room()).sum();
        assert_eq!(map.room, room);
        let known = map.sum(FILE, 1, u64::MAX);
        assert_eq!(known.pages + map.forgotten(), told);
        // Pages that were used again are those that are left, as far as can be.
        assert!(known.again * 10 > known.pages * 8, "{known:?}");
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
            for (page, heat) in &found {
                prop_assert_eq!(*heat >= 2, uses(*page) >= 2);
            }
            let mut sum = Sum::default();
            found.iter().for_each(|(_, heat)| sum.add(1, *heat));
            prop_assert_eq!(map.sum(FILE, 1, u64::MAX), sum);
            prop_assert_eq!(map.count(FILE), (sum.pages, sum.again));
        }
    }
}
