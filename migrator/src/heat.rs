//! Accesses → ranked pages.
//!
//! Time is cut into epochs, in each of which the source tells several times
//! which pages were used since it told last, and which of them more than once.
//! Each page has a count of its uses: 1 is added when it was used, 2 when it was
//! used more than once, and at the end of each epoch the count falls to a part
//! of what it was ([`Ranking`]), so that it is how often and how lately the page
//! was used. That it was used more than once is never forgotten.
//!
//! Heat is [`pagelist::ONCE`](crate::pagelist::ONCE) for a page that was used once, as
//! by a backup, however lately. For a page that was used again it is
//! [`pagelist::AGAIN`](crate::pagelist::AGAIN) and more by the logarithm of the count,
//! four steps for each doubling. A page in use all the time has some 62.
//!
//! The numbers of [`Ranking::default`] are chosen by `cargo xtask bench quality`,
//! which tries others beside them.

mod chunk;
mod count;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use migrator_common::access::{CHUNK_PAGES, CHUNK_WORDS, ChunkBits};

use chunk::{CHUNK_ROOM, Chunk};
use count::{AGAIN, COUNT, SOMETHING, aged, page_of, warmth};

use crate::format::MAX_RUNS;
use crate::pagelist::{ACTIVE, Heat, Run};

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

/// After so many epochs hardly anything is left of a count.
const EPOCHS: usize = 64;

/// What all that is remembered may take, in bytes: some 20 million pages of which every
/// tenth is used.
pub const ROOM: usize = 96 << 20;

/// What the counts of pages may take of that: a list can't have more runs than these.
const COUNTS_ROOM: usize = size_of::<u16>() * MAX_RUNS as usize;

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
        if heat >= ACTIVE {
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
        let again = self.again;
        self.change(file, chunk, |chunk| chunk.mark(bits, again));
    }

    /// Changes what is known of a chunk, brought to the present epoch.
    fn change(&mut self, file: FileId, chunk: u32, change: impl FnOnce(&mut Box<Chunk>)) {
        let (before, chunk) = match self.chunks.entry(Place::new(file, chunk)) {
            Entry::Occupied(chunk) => (chunk.get().room(), chunk.into_mut()),
            Entry::Vacant(place) => (0, place.insert(Chunk::new(self.epoch, 1))),
        };
        let elapsed = self.epoch - chunk.epoch;
        if elapsed > 0 {
            chunk.age(left(&self.left, elapsed), self.epoch);
        }
        change(chunk);
        self.room = self.room - before + chunk.room();
        self.keep_within_room();
    }

    /// Takes over what another map knew of a file, `epochs` ago: of a page that is known
    /// already, the greater heat stays. Runs must be sorted and not overlap; pages that
    /// were not seen to be used are left out.
    pub fn restore(&mut self, file: FileId, runs: &[Run], epochs: u32) {
        let left = left(&self.left, epochs);
        let mut number = 0;
        let mut pages = Vec::new();
        for run in runs {
            let Some(page) = page_of(run.heat).map(|page| aged(page, left)) else {
                continue;
            };
            let mut index = run.index;
            while index < run.end() {
                // No file has more chunks than that.
                let Ok(chunk) = u32::try_from(index / CHUNK_PAGES) else {
                    break;
                };
                if chunk != number {
                    self.raise(file, number, &pages);
                    number = chunk;
                    pages.clear();
                }
                let first = u64::from(chunk) * CHUNK_PAGES;
                let end = run.end().min(first + CHUNK_PAGES);
                pages.extend((index - first..end - first).map(|number| (number as u32, page)));
                index = end;
            }
        }
        self.raise(file, number, &pages);
    }

    fn raise(&mut self, file: FileId, chunk: u32, pages: &[(u32, u16)]) {
        if pages.is_empty() {
            return;
        }
        self.change(file, chunk, |chunk| chunk.raise(pages));
    }

    /// Forgets a file, which does not count as forgotten for want of room.
    pub fn remove(&mut self, file: FileId) {
        let places: Vec<Place> = self.of_file(file).map(|(place, _)| *place).collect();
        for place in places {
            if let Some(chunk) = self.chunks.remove(&place) {
                self.room -= chunk.room();
            }
        }
    }

    fn keep_within_room(&mut self) {
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

    /// The number of the present epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// How many files and pages are known.
    pub fn totals(&self) -> (u64, u64) {
        let (mut files, mut pages) = (0, 0);
        let mut last = None;
        for (place, chunk) in &self.chunks {
            files += u64::from(last != Some(place.file()));
            last = Some(place.file());
            pages += chunk.count() as u64;
        }
        (files, pages)
    }

    /// Adds a part of [`Self::sum`] to what was found before it; `part` goes on to the
    /// part behind it. Returns whether there is one.
    pub fn sum_part(&self, file: FileId, part: &mut Part, sum: &mut Sum, min_heat: Heat) -> bool {
        for (place, chunk) in self.from(file, part.begin()) {
            part.newest = part.newest.max(chunk.epoch);
            let left = left(&self.left, self.epoch - chunk.epoch);
            chunk.each_heat(left, |_, heat| {
                if heat >= min_heat {
                    sum.add(1, heat);
                }
            });
            part.passed(*place);
        }
        part.goes_on()
    }

    /// Gives a part of [`Self::runs`], as [`Self::sum_part`] does.
    pub fn runs_part(
        &self,
        file: FileId,
        part: &mut Part,
        min_heat: Heat,
        end: u64,
        runs: &mut Vec<Run>,
    ) -> bool {
        for (place, chunk) in self.from(file, part.begin()) {
            self.append(runs, *place, chunk, min_heat, end);
            part.passed(*place);
        }
        part.goes_on()
    }

    /// Returns the chunks of a part that begins with this one.
    fn from(&self, file: FileId, from: u32) -> impl Iterator<Item = (&Place, &Chunk)> {
        let places = Place::new(file, from)..=Place::new(file, u32::MAX);
        let chunks = self.chunks.range(places).take(PART_CHUNKS);
        chunks.map(|(place, chunk)| (place, chunk.as_ref()))
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

/// How many chunks a part of a file has at most.
const PART_CHUNKS: usize = 64;

/// How far a file was gone through that is not gone through in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The chunk that the next part begins with.
    next: Option<u32>,
    /// How many more chunks the present part can have.
    room: usize,
    /// The latest epoch in which a page of the file was used, so far.
    pub newest: u32,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            next: Some(0),
            room: PART_CHUNKS,
            newest: 0,
        }
    }
}

impl Part {
    fn begin(&mut self) -> u32 {
        self.room = PART_CHUNKS;
        self.next.unwrap_or(u32::MAX)
    }

    fn passed(&mut self, place: Place) {
        self.room -= 1;
        self.next = (place.0 as u32).checked_add(1);
    }

    /// Whether the part was a whole one, behind which another may come.
    fn goes_on(&self) -> bool {
        self.room == 0 && self.next.is_some()
    }
}

/// So many runs are given at a time, and up to a chunk's more.
const RUNS_AT_ONCE: usize = 1 << 13;

/// What is left of a count some epochs later, of 2^16.
fn left(left: &[u32; EPOCHS], epochs: u32) -> u32 {
    left.get(epochs as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pagelist::{AGAIN as AGAIN_HEAT, ONCE};

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
        assert_eq!(found[0], (3, ONCE));
        assert!(matches!(found[1], (70, AGAIN_HEAT..)), "{found:?}");
    }

    /// All of a file, part by part.
    fn parts(map: &HeatMap, min_heat: Heat, end: u64) -> (Vec<Run>, Sum, u32) {
        let (mut runs, mut part) = (Vec::new(), Part::default());
        while map.runs_part(FILE, &mut part, min_heat, end, &mut runs) {}
        let (mut sum, mut part) = (Sum::default(), Part::default());
        while map.sum_part(FILE, &mut part, &mut sum, min_heat) {}
        (runs, sum, part.newest)
    }

    #[test]
    fn the_parts_of_a_file_are_all_of_it() {
        for chunks in [0, 1, PART_CHUNKS - 1, PART_CHUNKS, 3 * PART_CHUNKS + 1] {
            let mut map = HeatMap::default();
            for chunk in 0..chunks as u32 {
                map.mark(FILE, 3 * chunk, &bits(&[1, 2, 500], &[2]));
                map.next_epoch();
            }
            let (runs, sum, newest) = parts(&map, ONCE, 5000);
            assert_eq!(runs, map.runs(FILE, ONCE, 5000), "{chunks}");
            assert_eq!(sum, map.sum(FILE, ONCE, u64::MAX), "{chunks}");
            assert_eq!(newest, chunks.saturating_sub(1) as u32);
            assert_eq!(map.totals(), (u64::from(chunks > 0), 3 * chunks as u64));
        }
    }

    #[test]
    fn what_is_restored_has_the_heat_that_it_had_and_sinks() {
        let mut map = HeatMap::default();
        for round in 0..20 {
            map.mark(FILE, 0, &bits(&[1, 2, 3], &[2]));
            map.mark(FILE, 7, &bits(&[round], &[]));
            map.next_epoch();
        }
        let known = map.runs(FILE, ONCE, u64::MAX);
        let mut restored = HeatMap::default();
        restored.restore(FILE, &known, 0);
        assert_eq!(restored.runs(FILE, ONCE, u64::MAX), known);
        assert_eq!(restored.count(FILE), map.count(FILE));
        let mut later = HeatMap::default();
        later.restore(FILE, &known, 10);
        (0..10).for_each(|_| restored.next_epoch());
        let heat = |map: &HeatMap| heats(map).into_iter().map(|(_, heat)| heat).collect();
        let (one, other): (Vec<Heat>, Vec<Heat>) = (heat(&later), heat(&restored));
        let near = |(one, other): (&Heat, &Heat)| one.abs_diff(*other) <= 1;
        assert!(one.iter().zip(&other).all(near), "{one:?} {other:?}");
        // Used once stays that; and what the LRU says is no use that was seen.
        let mut map = HeatMap::default();
        let run = |index, heat| Run {
            index,
            pages: 1,
            heat,
        };
        map.restore(
            FILE,
            &[run(1, ONCE), run(2, ONCE - 1), run(3, Heat::MAX)],
            1000,
        );
        assert_eq!(heats(&map), [(1, ONCE), (3, AGAIN_HEAT)]);
    }

    #[test]
    fn what_is_seen_again_merges_with_what_was_restored() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1, 2], &[2]));
        map.mark(FILE, 0, &bits(&[2], &[2]));
        let [(_, once), (_, hot)] = heats(&map)[..] else {
            panic!("{map:?}");
        };
        let run = |index, heat| Run {
            index,
            pages: 1,
            heat,
        };
        map.restore(FILE, &[run(1, hot - 4), run(2, hot - 4), run(600, once)], 0);
        assert_eq!(heats(&map), [(1, hot - 4), (2, hot), (600, once)]);
        map.remove(FILE);
        assert_eq!((heats(&map), map.room), (Vec::new(), 0));
    }

    #[test]
    fn what_is_restored_takes_no_more_room_than_there_is() {
        let mut map = HeatMap::default();
        let run = |chunk| Run {
            index: chunk * CHUNK_PAGES,
            pages: 1,
            heat: AGAIN_HEAT + 3,
        };
        let runs: Vec<_> = (0..1_000_000).map(run).collect();
        map.restore(FILE, &runs, 0);
        assert!(map.room <= ROOM && map.forgotten() > 0, "{}", map.room);
        let beyond = Run {
            index: u64::MAX - 9,
            pages: 9,
            heat: 9,
        };
        map.restore(FILE, &[beyond], 0);
    }

    #[test]
    fn a_scan_stays_below_what_is_used_in_two_epochs() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1, 2, 3], &[]));
        map.next_epoch();
        map.mark(FILE, 0, &bits(&[2], &[]));
        let found = heats(&map);
        assert!(
            matches!(found[..], [(1, ONCE), (2, AGAIN_HEAT..), (3, ONCE)]),
            "{found:?}"
        );
        let again = map.runs(FILE, AGAIN_HEAT, u64::MAX);
        assert_eq!(again.iter().map(|run| run.index).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn heat_sinks_to_what_is_never_forgotten() {
        let mut map = HeatMap::default();
        for _ in 0..100 {
            (0..10).for_each(|_| map.mark(FILE, 1, &bits(&[5], &[5])));
            map.next_epoch();
        }
        assert_eq!(heats(&map), [(517, 61)]);
        let mut before = 61;
        for _ in 0..EPOCHS + 3 {
            map.next_epoch();
            let now = heats(&map)[0].1;
            assert!(now < before || now == AGAIN_HEAT, "{now} after {before}");
            before = now;
        }
        assert_eq!(before, AGAIN_HEAT);
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
            matches!(
                found[..],
                [
                    (2, ONCE),
                    (3, ONCE),
                    (70, AGAIN_HEAT..),
                    (71, ONCE),
                    (511, ONCE)
                ]
            ),
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
                heat: ONCE
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
        assert_eq!(map.runs(FILE, AGAIN_HEAT, u64::MAX).len(), 1);
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
                prop_assert_eq!(*heat >= AGAIN_HEAT, uses(*page) >= 2);
            }
            let mut sum = Sum::default();
            found.iter().for_each(|(_, heat)| sum.add(1, *heat));
            prop_assert_eq!(map.sum(FILE, 1, u64::MAX), sum);
            prop_assert_eq!(map.count(FILE), (sum.pages, sum.again));
        }
    }
}
