//! Accesses → ranked pages.
//!
//! Time is cut into epochs. For each page it is known whether it was used
//! once or more than once in each of the latest seven epochs, and whether it
//! was ever used more than once. Heat is the larger of two numbers:
//!
//! * how often and how lately: over the latest seven epochs, 1 for each epoch
//!   in which the page was used once, 2 for each in which it was used more;
//! * what is never forgotten: 1 for a page used once, 2 for one used again.
//!
//! So heat is 1 for what a backup read once, at least 2 for what somebody came
//! back to, and up to 14 for what is in use all the time.

use std::collections::{BTreeMap, HashMap};

use migrator_common::access::{CHUNK_PAGES, ChunkBits};

use crate::pagelist::{Heat, Run};

/// A file, as the kernel names it: kernel `dev_t` and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Kernel `dev_t` (major << 20 | minor).
    pub device: u32,
    /// Inode number.
    pub inode: u64,
}

/// The epochs that are remembered, two bits each, in the low bits of a page's
/// history; the latest epoch is the lowest pair.
const RECENT: u16 = (1 << (2 * 7)) - 1;
/// The page was used.
const USED: u16 = 1 << 14;
/// The page was used more than once.
const AGAIN: u16 = 1 << 15;

/// Pages that are remembered at most: 2 bytes each, so 48 MiB.
pub const PAGES_MAX: usize = 24 << 20;

/// The history of a part of a file.
#[derive(Debug)]
struct Chunk {
    /// The epoch that the histories were shifted to.
    epoch: u32,
    /// The page of the chunk that `pages` begins with.
    first: u16,
    /// Histories of neighbouring pages.
    pages: Vec<u16>,
}

/// What is known of the pages of all files.
#[derive(Debug, Default)]
pub struct HeatMap {
    epoch: u32,
    files: HashMap<FileId, BTreeMap<u32, Chunk>>,
    pages: usize,
    forgotten: u64,
}

impl HeatMap {
    /// Adds what was seen of a chunk in the present epoch.
    pub fn mark(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        let used = || bits.words.iter().map(|word| word.used).enumerate();
        let first = used()
            .find(|(_, word)| *word != 0)
            .map(|(n, word)| n as u16 * 64 + word.trailing_zeros() as u16);
        let last = used()
            .rfind(|(_, word)| *word != 0)
            .map(|(n, word)| n as u16 * 64 + 63 - word.leading_zeros() as u16);
        let (Some(first), Some(last)) = (first, last) else {
            return;
        };
        let epoch = self.epoch;
        let entry = self.files.entry(file).or_default().entry(chunk);
        let chunk = entry.or_insert_with(|| Chunk {
            epoch,
            first,
            pages: Vec::new(),
        });
        let before = chunk.pages.len();
        chunk.cover(first, last);
        self.pages += chunk.pages.len() - before;
        chunk.age(epoch);
        for (n, word) in bits.words.iter().enumerate() {
            let mut left = word.used;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let page = n * 64 + bit as usize - usize::from(chunk.first);
                use_page(&mut chunk.pages[page], word.again >> bit & 1 != 0);
            }
        }
    }

    /// The same for pages of which it is not known when they were used: those
    /// that are known already are left as they are.
    pub fn mark_unknown(&mut self, file: FileId, chunk: u32, bits: &ChunkBits) {
        let mut bits = *bits;
        let known = self.files.get(&file).and_then(|chunks| chunks.get(&chunk));
        if let Some(known) = known {
            let first = usize::from(known.first);
            let used = known.pages.iter().enumerate();
            for (n, _) in used.filter(|(_, history)| **history != 0) {
                let page = first + n;
                bits.words[page / 64].used &= !(1 << (page % 64));
            }
        }
        self.mark(file, chunk, &bits);
    }

    /// Begins the next epoch, and forgets the pages that were not used for the
    /// longest time where more are remembered than [`PAGES_MAX`].
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        if self.pages > PAGES_MAX {
            self.forget(PAGES_MAX / 8 * 7);
        }
    }

    /// How many pages were forgotten for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The files of which pages are known.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.files.keys().copied()
    }

    /// The pages of a file below `end` that have at least the heat asked for.
    pub fn runs(&self, file: FileId, min_heat: Heat, end: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (number, chunk) in self.files.get(&file).into_iter().flatten() {
            let start = u64::from(*number) * CHUNK_PAGES + u64::from(chunk.first);
            for (index, history) in (start..end).zip(&chunk.pages) {
                let heat = heat(aged(*history, self.epoch - chunk.epoch));
                if heat == 0 || heat < min_heat {
                    continue;
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
            }
        }
        runs
    }

    /// Drops the chunks that were not used for the longest time, until at most
    /// `keep` pages are left.
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
            if self.pages <= keep {
                break;
            }
            let chunks = self.files.get_mut(&file);
            if let Some(chunk) = chunks.and_then(|chunks| chunks.remove(&number)) {
                self.pages -= chunk.pages.len();
                let known = chunk.pages.iter().filter(|history| **history != 0);
                self.forgotten += known.count() as u64;
            }
        }
        self.files.retain(|_, chunks| !chunks.is_empty());
    }
}

impl Chunk {
    /// Makes room for the pages `first..=last`.
    fn cover(&mut self, first: u16, last: u16) {
        if first < self.first {
            let missing = usize::from(self.first - first);
            self.pages.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = first;
        }
        let length = usize::from(last - self.first) + 1;
        if self.pages.len() < length {
            self.pages.reserve_exact(length - self.pages.len());
            self.pages.resize(length, 0);
        }
    }

    /// Shifts the histories to the present epoch.
    fn age(&mut self, epoch: u32) {
        if self.epoch != epoch {
            for history in &mut self.pages {
                *history = aged(*history, epoch - self.epoch);
            }
            self.epoch = epoch;
        }
    }
}

/// The history as it looks some epochs later.
fn aged(history: u16, epochs: u32) -> u16 {
    let recent = (history & RECENT).checked_shl(2 * epochs).unwrap_or(0);
    history & !RECENT | recent & RECENT
}

/// Adds a use in the present epoch.
fn use_page(history: &mut u16, again: bool) {
    let now = if again || *history & 3 != 0 { 2 } else { 1 };
    let ever = if again || *history & USED != 0 {
        AGAIN
    } else {
        0
    };
    *history = *history & !3 | now | ever | USED;
}

/// Heat of a page; 0 for one that was never used.
fn heat(history: u16) -> Heat {
    let recent = (0..7).map(|epoch| history >> (2 * epoch) & 3).sum::<u16>();
    let ever = (history >> 14 & 1) + (history >> 15 & 1);
    // At most 14, so it fits.
    recent.max(ever) as Heat
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
        assert_eq!(heats(&map), [(3, 1), (70, 2)]);
    }

    #[test]
    fn a_scan_stays_below_what_is_used_in_two_epochs() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1, 2, 3], &[]));
        map.next_epoch();
        map.mark(FILE, 0, &bits(&[2], &[]));
        assert_eq!(heats(&map), [(1, 1), (2, 2), (3, 1)]);
        assert_eq!(
            map.runs(FILE, 2, u64::MAX),
            [Run {
                index: 2,
                pages: 1,
                heat: 2
            }]
        );
    }

    #[test]
    fn heat_sinks_to_what_is_never_forgotten() {
        let mut map = HeatMap::default();
        for _ in 0..10 {
            map.mark(FILE, 1, &bits(&[5], &[5]));
            map.next_epoch();
        }
        assert_eq!(heats(&map), [(517, 12)]);
        (0..5).for_each(|_| map.next_epoch());
        assert_eq!(heats(&map), [(517, 2)]);
        (0..1000).for_each(|_| map.next_epoch());
        assert_eq!(heats(&map), [(517, 2)]);
    }

    #[test]
    fn an_epoch_that_is_emptied_twice_counts_as_one() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[1], &[]));
        map.mark(FILE, 0, &bits(&[1], &[]));
        assert_eq!(heats(&map), [(1, 2)]);
    }

    #[test]
    fn what_is_known_is_not_marked_as_unknown() {
        let mut map = HeatMap::default();
        map.mark(FILE, 0, &bits(&[3, 70], &[70]));
        for _ in 0..3 {
            map.next_epoch();
            map.mark_unknown(FILE, 0, &bits(&[2, 3, 70, 71, 511], &[]));
        }
        assert_eq!(heats(&map), [(2, 1), (3, 1), (70, 2), (71, 1), (511, 1)]);
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
        map.forget(2);
        assert_eq!(heats(&map), [(512, 1), (513, 1)]);
        assert_eq!(map.forgotten(), 2);
        assert_eq!(map.pages, 2);
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
