//! The counts of the pages of a chunk, in as little memory as they need.

use migrator_common::access::{CHUNK_PAGES, CHUNK_WORDS, ChunkBits, WordBits};

use super::count::{AGAIN, aged, heat, used, warmth};
use crate::pagelist::Heat;

/// What a chunk takes in memory beside itself, in bytes: its part of a node of the map,
/// and what the allocator adds.
pub(super) const CHUNK_ROOM: usize = 64;

/// What is known of a part of a file.
///
/// All of it is in one place, which is one of few sizes: chunks get and give up pages
/// all the time, and what one leaves another one takes.
#[derive(Debug)]
pub(super) struct Chunk<Pages: ?Sized = [u16]> {
    /// The pages that were used.
    pub(super) known: [u64; CHUNK_WORDS],
    /// The epoch that the counts were brought to.
    pub(super) epoch: u32,
    /// [`COUNT`] and [`AGAIN`] of each of them, in their order, and then some room.
    /// Or a single one, where all have been used alike, as those of a file that is
    /// read as a whole.
    pub(super) pages: Pages,
}

impl Chunk {
    /// An empty one with room for so many pages.
    pub(super) fn new(epoch: u32, pages: usize) -> Box<Self> {
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
    pub(super) fn room(&self) -> usize {
        CHUNK_ROOM + size_of_val(self)
    }

    /// How many pages are known.
    pub(super) fn count(&self) -> usize {
        self.known
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known == [0; CHUNK_WORDS]
    }

    /// What all pages have in common, where that is what is known of them.
    pub(super) fn alike(&self) -> Option<u16> {
        match self.pages {
            [page] => Some(page),
            _ => None,
        }
    }

    /// Of each page that is known, in their order.
    pub(super) fn each(&self, mut each: impl FnMut(u32, u16)) {
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
    pub(super) fn each_heat(&self, left: u32, mut each: impl FnMut(u32, Heat)) {
        match self.alike() {
            Some(page) => {
                let heat = heat(aged(page, left));
                self.each(|page, _| each(page, heat));
            }
            None => self.each(|page, count| each(page, heat(aged(count, left)))),
        }
    }

    /// Leaves so much of each count, in an epoch.
    pub(super) fn age(self: &mut Box<Self>, left: u32, epoch: u32) {
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
    pub(super) fn mark(self: &mut Box<Self>, bits: &ChunkBits, several: u16) {
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

    /// Raises pages, of which the numbers ascend, to at least what is given for each.
    pub(super) fn raise(self: &mut Box<Self>, to: &[(u32, u16)]) {
        let Some((_, first)) = to.first() else {
            return;
        };
        let mut bits = ChunkBits::default();
        for (page, _) in to {
            bits.words[*page as usize / 64].used |= 1 << (page % 64);
        }
        let is_alike = to.iter().all(|(_, page)| page == first);
        if is_alike && (self.is_empty() || self.alike() == Some(*first)) {
            self.pages[0] = *first;
            for (word, known) in bits.words.iter().zip(&mut self.known) {
                *known |= word.used;
            }
            return;
        }
        self.learn(&bits);
        let mut to = to.iter().peekable();
        let mut place = 0;
        for (word, known) in (0..).zip(self.known) {
            for bit in ones(known) {
                if let Some((_, page)) = to.next_if(|(page, _)| *page == 64 * word + bit) {
                    self.pages[place] = self.pages[place].max(*page);
                }
                place += 1;
            }
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
    pub(super) fn forget(self: &mut Box<Self>, left: u32, end: usize) -> u64 {
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
