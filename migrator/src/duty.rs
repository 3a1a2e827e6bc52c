//! When a tracker that is left on observes.
//!
//! To see every access costs a few percent of each read, for as long as the
//! programs are attached. A list that is good in an hour does not need every
//! access, but to be told in time that other pages are hot now. So, after a
//! beginning that is observed whole, a window of one epoch opens now and then:
//! the sooner, the more of what the last one saw hot had not been known as hot.
//!
//! Time is counted in epochs here, so that nothing depends on a clock.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use migrator_common::access::{CHUNK_WORDS, ChunkBits, ChunkKey};

use crate::heat::{FileId, HeatMap};

/// Epochs that are observed before the first pause: so many that most of what
/// is hot was used again in them, and an early list is a good one.
pub const FIRST: u32 = 10;

/// Epochs from the beginning of a window to that of the next, at least and at
/// most. Of the 8 % of a read that full tracking may cost, one epoch in 12 leaves
/// 0.7 %; and with one in 60, of a second each, a list is a minute old at most.
pub const EVERY: (u32, u32) = (12, 60);

/// The part of what is hot that may be new when a window opens: as long as it takes
/// for so much to become hot, the next one waits. Where hot pages are always the
/// same, chance makes it 0.5 to 2.5 % (`cargo xtask bench quality`: scan and zipf).
const NEWS: f64 = 0.03;

/// The part of what is hot that is new for each epoch that a pause counts for in
/// heat, and how many epochs that can be. Chosen with the same bench: where hot pages
/// come and go (drift), those that have gone would keep the places of the new ones.
const FADES: (f64, u32) = (0.02, 2);

/// How many epochs an absence of the tracker counts for at most: after it, what had been
/// hot is still told from what had been less so.
const ABSENCE: u32 = 16;

/// Returns how many epochs a time without a tracker counts for in heat, where epochs take
/// `interval`: as many as would have ended in the rarest windows.
pub fn absence(time: Duration, interval: Duration) -> u32 {
    let window = interval * EVERY.1;
    let windows = time.as_nanos() / window.as_nanos().max(1);
    windows.min(ABSENCE.into()) as u32
}

/// What so many chunks show, 16 GiB, is what all show: of a larger cache, a part is
/// looked at, so that a window takes no more memory.
const CHUNKS: usize = 1 << 13;

/// Decides after each epoch that was observed.
#[derive(Debug)]
pub struct Duty {
    /// Epochs that are left of the beginning.
    first: u32,
    /// Epochs from window to window.
    every: f64,
}

/// What is done after an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    /// Epochs that are not observed; 0 is to go on.
    pub epochs: u32,
    /// Epochs that they count for in heat. The less what was known was still true,
    /// the less it is worth beside what the next window shows.
    pub fades: u32,
}

impl Default for Duty {
    fn default() -> Self {
        Self {
            first: FIRST,
            every: EVERY.0.into(),
        }
    }
}

impl Duty {
    /// How long to pause after an epoch that has shown this.
    pub fn pause(&mut self, news: News) -> Pause {
        self.first = self.first.saturating_sub(1);
        if self.first > 0 {
            return Pause::default();
        }
        // What was new came in the time since the last window. It was one look
        // only, so that the next pause is no more than twice as long.
        let factor = (NEWS / news.share()).min(2.0);
        let (least, most) = (EVERY.0.into(), EVERY.1.into());
        self.every = (self.every * factor).clamp(least, most);
        Pause {
            epochs: self.every as u32 - 1,
            fades: ((news.share() / FADES.0) as u32).min(FADES.1),
        }
    }
}

/// How much of what was hot in an epoch is news. Pages count by how often somebody
/// came back to them: most of those that just pass for hot do so by chance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct News {
    /// Uses of pages in it but the first of each, as [`HeatMap`] counts them.
    pub hot: u64,
    /// Those of pages that had not been known as hot.
    pub new: u64,
}

impl News {
    fn share(self) -> f64 {
        self.new as f64 / self.hot.max(1) as f64
    }
}

/// Gathers what an epoch shows.
#[derive(Debug, Default)]
pub struct Window(HashMap<(FileId, u32), Shown>);

/// What is seen of a chunk.
#[derive(Debug, Clone, Copy)]
struct Shown {
    /// Pages that were used.
    used: [u64; CHUNK_WORDS],
    /// Pages that had been known as hot before.
    known: [u64; CHUNK_WORDS],
    /// Uses of all pages, and of those that were not known.
    uses: News,
}

impl Window {
    /// Takes note of what is about to be told to `heat`.
    pub fn see(&mut self, heat: &HeatMap, file: FileId, chunk: u32, bits: &ChunkBits) {
        let (place, _) = ChunkKey::new(file.inode, file.device, chunk).slots();
        let part = (heat.chunks() / CHUNKS).max(1).next_power_of_two();
        if !(place as usize).is_multiple_of(part) {
            return;
        }
        let shown = self.0.entry((file, chunk)).or_insert_with(|| Shown {
            used: [0; _],
            known: heat.known_hot(file, chunk),
            uses: News::default(),
        });
        for (number, word) in bits.words.iter().enumerate() {
            shown.used[number] |= word.used;
            for uses in [word.used, word.again] {
                shown.uses.hot += u64::from(uses.count_ones());
                shown.uses.new += u64::from((uses & !shown.known[number]).count_ones());
            }
        }
    }

    /// What the epoch has shown; the next begins.
    pub fn news(&mut self) -> News {
        let mut news = News::default();
        for shown in mem::take(&mut self.0).into_values() {
            news.hot += shown.uses.hot;
            news.new += shown.uses.new;
            for (used, known) in shown.used.iter().zip(shown.known) {
                // The first use of each is not one that came back.
                news.hot -= u64::from(used.count_ones());
                news.new -= u64::from((used & !known).count_ones());
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: News = News { hot: 1000, new: 0 };
    const ALL: News = News {
        hot: 1000,
        new: 1000,
    };

    /// A duty whose beginning is over.
    fn begun() -> Duty {
        let mut duty = Duty::default();
        for _ in 1..FIRST {
            assert_eq!(duty.pause(NOTHING), Pause::default());
        }
        duty
    }

    #[test]
    fn the_beginning_is_observed_whole_whatever_it_shows() {
        let mut duty = Duty::default();
        let pauses: Vec<_> = (0..FIRST).map(|_| duty.pause(ALL).epochs).collect();
        let (last, before) = pauses.split_last().expect("a beginning");
        assert!(before.iter().all(|pause| *pause == 0), "{pauses:?}");
        assert_eq!(*last, EVERY.0 - 1);
    }

    #[test]
    fn windows_become_rare_where_nothing_is_new_and_frequent_where_all_is() {
        let mut duty = begun();
        let mut pauses = Vec::new();
        for _ in 0..4 {
            pauses.push(duty.pause(NOTHING).epochs);
        }
        assert_eq!(pauses, [23, 47, 59, 59]);
        assert_eq!(duty.pause(ALL).epochs, 11);
        // What does nothing has nothing new either.
        assert_eq!(duty.pause(News::default()).epochs, 23);
    }

    #[test]
    fn windows_come_as_often_as_the_hot_pages_change() {
        // Of a thousand hot pages 1.5 become others in each epoch.
        let mut duty = begun();
        let mut pause = duty.pause(NOTHING).epochs;
        for _ in 0..10 {
            let new = 1000 * u64::from(pause + 1) * 3 / 2000;
            pause = duty.pause(News { hot: 1000, new }).epochs;
        }
        assert!((18..=20).contains(&pause), "{pause}");
    }

    #[test]
    fn an_absence_counts_for_windows_and_not_for_too_many() {
        let of = |seconds| absence(Duration::from_secs(seconds), Duration::from_secs(1));
        assert_eq!([0, 59, 60, 3600].map(of), [0, 0, 1, ABSENCE]);
        assert_eq!(absence(Duration::MAX, Duration::from_nanos(1)), ABSENCE);
    }

    #[test]
    fn what_was_known_fades_where_it_is_not_true_any_more() {
        let mut duty = begun();
        let mut fades = |new| duty.pause(News { hot: 1000, new }).fades;
        assert_eq!([0, 19, 20, 39, 1000].map(&mut fades), [0, 0, 1, 1, FADES.1]);
    }

    const FILE: FileId = FileId {
        device: 1,
        inode: 2,
    };

    fn tell(window: &mut Window, heat: &mut HeatMap, used: u64, again: u64) {
        let mut bits = ChunkBits::default();
        (bits.words[1].used, bits.words[1].again) = (used, again);
        window.see(heat, FILE, 3, &bits);
        heat.mark(FILE, 3, &bits);
    }

    #[test]
    fn what_somebody_comes_back_to_is_hot_and_new_if_it_was_not_known() {
        let (mut window, mut heat) = (Window::default(), HeatMap::default());
        // Used twice at once; used at two times; used once.
        tell(&mut window, &mut heat, 0b0001, 0b0001);
        tell(&mut window, &mut heat, 0b0110, 0);
        tell(&mut window, &mut heat, 0b0010, 0);
        assert_eq!(window.news(), News { hot: 2, new: 2 });
        // What was hot is no news; what was used once before is, when it is hot.
        tell(&mut window, &mut heat, 0b0111, 0b0001);
        tell(&mut window, &mut heat, 0b0110, 0);
        assert_eq!(window.news(), News { hot: 3, new: 1 });
        assert_eq!(window.news(), News::default());
    }

    #[test]
    fn of_a_large_cache_a_part_tells() {
        let (mut window, mut heat) = (Window::default(), HeatMap::default());
        let mut bits = ChunkBits::default();
        (bits.words[1].used, bits.words[1].again) = (1, 1);
        let chunks = 10 * CHUNKS as u32;
        for hot in [0..chunks / 2, 0..chunks] {
            for chunk in hot {
                window.see(&heat, FILE, chunk, &bits);
                heat.mark(FILE, chunk, &bits);
            }
            heat.next_epoch();
            if heat.chunks() < chunks as usize {
                window.news();
            }
        }
        // Half of it was known, and no more than so many were looked at.
        assert!(window.0.len() <= 2 * CHUNKS, "{}", window.0.len());
        let share = window.news().share();
        assert!((0.4..0.6).contains(&share), "{share}");
    }

    #[test]
    fn what_was_hot_long_ago_is_new() {
        let (mut window, mut heat) = (Window::default(), HeatMap::default());
        for (epochs, new) in [(0, 1), (3, 0), (30, 1)] {
            (0..epochs).for_each(|_| heat.next_epoch());
            tell(&mut window, &mut heat, 0b1, 0b1);
            assert_eq!(window.news(), News { hot: 1, new }, "after {epochs}");
        }
    }
}
