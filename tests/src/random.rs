//! Random numbers that are the same in every run.

use std::collections::BTreeSet;

/// splitmix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on the seed alone. Seeds that are near each other
    /// give the same numbers, shifted.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, of all that a `u64` can hold.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        let mut mixed = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is far below 2^64.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// So many different numbers below `end`.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn set(&mut self, count: usize, end: u64) -> BTreeSet<u64> {
        assert!(count as u64 <= end, "{count} different numbers below {end}");
        let mut set = BTreeSet::new();
        while set.len() < count {
            set.insert(self.below(end));
        }
        set
    }

    /// The same items in another order (Fisher and Yates).
    pub fn shuffled<T>(&mut self, items: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut items: Vec<T> = items.into_iter().collect();
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
        items
    }
}
