//! Accesses to pages, one after the other: what a process reads before and after
//! it is moved. Pages are counted through all files.

use std::ops::Range;

use crate::random::Random;

/// What a process reads, and when.
#[derive(Debug, Clone, Default)]
pub struct Accesses {
    /// How many pages there are.
    pub pages: u32,
    /// Page by page until the move.
    pub before: Vec<u32>,
    /// When, in seconds, since the process began: so many accesses of `before` in
    /// each tenth of a second.
    pub tenths: Vec<usize>,
    /// The tenths in which the tracker that is left on does not run.
    pub absent: Range<usize>,
    /// Page by page from then on.
    pub after: Vec<u32>,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Some pages often and most seldom, always the same: Zipf's law
    Zipf,
    /// A hot tenth of a file, while a backup reads another file once
    Scan,
    /// A hot tenth, all of which is another one in the last sixth before the move
    Shift,
    /// A hot tenth, of which half a percent is exchanged each second
    Drift,
    /// All pages once, as by a backup; then two fifths of them once a minute
    Slow,
    /// As drift, while the tracker ends 40 s before the move and begins again 30 s before
    Restart,
}

/// How much is read.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Scale {
    /// Reads a second
    #[arg(long, default_value_t = 200_000)]
    pub rate: u32,
    /// Pages of the file
    #[arg(long, default_value_t = 131_072)]
    pub pages: u32,
    /// Seconds that are observed
    #[arg(long, default_value_t = 60)]
    pub before: u32,
    /// Seconds after the move that count
    #[arg(long, default_value_t = 20)]
    pub after: u32,
}

/// Which share of reads the hot tenth gets.
const HOT: f64 = 0.9;

impl Workload {
    /// What the process reads.
    pub fn accesses(self, scale: Scale, seed: u64) -> Accesses {
        if self == Self::Slow {
            return slow(scale, seed);
        }
        let mut process = Process::new(self, scale, seed);
        let per_tenth = (scale.rate / 10).max(1) as usize;
        let tenths = vec![per_tenth; scale.before as usize * 10];
        let before = (0..tenths.iter().sum()).map(|_| process.read()).collect();
        let after = 0..per_tenth * scale.after as usize * 10;
        let second = |to_move: usize| tenths.len().saturating_sub(10 * to_move);
        Accesses {
            pages: process.pages(),
            before,
            absent: match self {
                Self::Restart => second(40)..second(30),
                _ => 0..0,
            },
            tenths,
            after: after.map(|_| process.read()).collect(),
        }
    }
}

/// What a process reads that comes back to its pages once a minute, whatever rate is
/// asked for.
fn slow(scale: Scale, seed: u64) -> Accesses {
    let mut random = Random::new(seed << 40);
    let set = random.shuffled(0..scale.pages);
    let set = &set[..scale.pages as usize / 5 * 2];
    // The next page of a minute's order, or of another minute's.
    let mut minute = Vec::new();
    let mut next = |random: &mut Random| -> u32 {
        if minute.is_empty() {
            minute = random.shuffled(set.iter().copied());
        }
        minute.pop().unwrap_or_default()
    };
    let per_tenth = (set.len() / 600).max(1);
    let backup = (scale.pages as usize / 100).max(1);
    let mut accesses = Accesses {
        pages: scale.pages,
        ..Accesses::default()
    };
    let mut scanned = 0..scale.pages;
    for _ in 0..scale.before * 10 {
        let before = accesses.before.len();
        accesses.before.extend(scanned.by_ref().take(backup));
        accesses
            .before
            .extend((0..per_tenth).map(|_| next(&mut random)));
        accesses.tenths.push(accesses.before.len() - before);
    }
    let after = 0..per_tenth * scale.after as usize * 10;
    accesses.after = after.map(|_| next(&mut random)).collect();
    accesses
}

/// A process that reads.
struct Process {
    workload: Workload,
    scale: Scale,
    random: Random,
    ranks: Ranks,
    /// Page of each rank: hot pages lie anywhere.
    places: Vec<u32>,
    /// Reads so far.
    reads: u64,
    /// Pages of the hot tenth that have been exchanged, and their parts.
    exchanged: f64,
    /// Where the backup is.
    scanned: u32,
}

impl Process {
    fn new(workload: Workload, scale: Scale, seed: u64) -> Self {
        let mut random = Random::new(seed << 40);
        let hot = scale.pages / 10;
        let ranks = match workload {
            Workload::Zipf => Ranks::new(scale.pages, 0.99),
            Workload::Scan | Workload::Drift | Workload::Restart | Workload::Slow => {
                Ranks::new(hot, 0.6)
            }
            Workload::Shift => Ranks::new(hot, 0.8),
        };
        Self {
            workload,
            scale,
            ranks,
            places: random.shuffled(0..scale.pages),
            random,
            reads: 0,
            exchanged: 0.0,
            scanned: 0,
        }
    }

    fn pages(&self) -> u32 {
        match self.workload {
            Workload::Scan => 2 * self.scale.pages,
            _ => self.scale.pages,
        }
    }

    fn read(&mut self) -> u32 {
        let second = self.reads as f64 / f64::from(self.scale.rate);
        self.reads += 1;
        let (pages, hot) = (self.scale.pages, self.scale.pages / 10);
        let moved = f64::from(self.scale.before);
        let mut shift = 0;
        match self.workload {
            Workload::Zipf => return self.places[self.ranks.draw(&mut self.random) as usize],
            // A fifth of the reads, from the first quarter on until it is through.
            Workload::Scan
                if (moved / 4.0..moved).contains(&second)
                    && self.scanned < pages
                    && self.reads.is_multiple_of(5) =>
            {
                self.scanned += 1;
                return pages + self.scanned - 1;
            }
            Workload::Scan => {}
            Workload::Shift if second >= moved / 6.0 * 5.0 => shift = 3 * hot,
            Workload::Shift => {}
            Workload::Slow => {}
            Workload::Drift | Workload::Restart => {
                self.exchanged += 0.005 * f64::from(hot) / f64::from(self.scale.rate);
                while self.exchanged >= 1.0 {
                    self.exchanged -= 1.0;
                    let old = self.random.below(hot.into()) as usize;
                    let new = self.random.below(pages.into()) as usize;
                    self.places.swap(old, new);
                }
            }
        }
        let rank = match self.random.next() as f64 / u64::MAX as f64 {
            share if share < HOT => shift + self.ranks.draw(&mut self.random),
            _ => self.random.below(pages.into()) as u32,
        };
        self.places[rank as usize]
    }
}

/// Draws ranks by Zipf's law, in constant time (Walker's alias method).
#[derive(Debug)]
pub struct Ranks {
    /// How often a rank stays what it is, and what it is otherwise.
    alias: Vec<(f64, u32)>,
}

impl Ranks {
    /// Ranks from 0 to below `count`; that of `r` is drawn in proportion to
    /// (r + 1)^-`exponent`.
    pub fn new(count: u32, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=count)
            .map(|rank| f64::from(rank).powf(-exponent))
            .collect();
        let mean = weights.iter().sum::<f64>() / f64::from(count);
        let mut alias: Vec<(f64, u32)> = weights
            .iter()
            .zip(0..)
            .map(|(weight, rank)| (weight / mean, rank))
            .collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..alias.len()).partition(|rank| alias[*rank].0 < 1.0);
        while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
            alias[poor].1 = rich as u32;
            alias[rich].0 -= 1.0 - alias[poor].0;
            if alias[rich].0 < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self { alias }
    }

    /// A rank.
    pub fn draw(&self, random: &mut Random) -> u32 {
        let rank = random.below(self.alias.len() as u64) as u32;
        let (stays, other) = self.alias[rank as usize];
        let share = random.next() as f64 / u64::MAX as f64;
        if share < stays { rank } else { other }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SCALE: Scale = Scale {
        rate: 2000,
        pages: 1000,
        before: 20,
        after: 10,
    };

    fn hot(accesses: &[u32]) -> BTreeSet<u32> {
        let mut counts = vec![0; 2000];
        for page in accesses {
            counts[*page as usize] += 1;
        }
        let mut pages: Vec<u32> = (0..2000).collect();
        pages.sort_by_key(|page| std::cmp::Reverse(counts[*page as usize]));
        pages.into_iter().take(100).collect()
    }

    #[test]
    fn ranks_follow_zipfs_law() {
        let (ranks, mut random) = (Ranks::new(1000, 1.0), Random::new(7));
        let mut counts = vec![0_u32; 1000];
        for _ in 0..1_000_000 {
            counts[ranks.draw(&mut random) as usize] += 1;
        }
        // The harmonic number of 1000 is 7.485.
        for (rank, expected) in [(0, 133_600.0), (1, 66_800.0), (9, 13_360.0)] {
            let count = f64::from(counts[rank]);
            assert!((count / expected - 1.0).abs() < 0.05, "{rank}: {count}");
        }
    }

    #[test]
    fn the_hot_pages_are_the_same_after_the_move_or_not() {
        let share = |workload: Workload, until: usize| {
            let accesses = workload.accesses(SCALE, 1);
            let before = hot(&accesses.before[..until]);
            before.intersection(&hot(&accesses.after)).count()
        };
        assert!(share(Workload::Scan, 20_000) > 95);
        assert!(share(Workload::Shift, 20_000) < 10);
        let drift = share(Workload::Drift, 40_000);
        assert!((50..100).contains(&drift), "{drift}");
    }

    #[test]
    fn a_slow_set_is_read_once_a_minute() {
        let scale = Scale {
            before: 60,
            after: 20,
            ..SCALE
        };
        let accesses = Workload::Slow.accesses(scale, 1);
        let mut counts = vec![0; 1000];
        accesses
            .before
            .iter()
            .for_each(|page| counts[*page as usize] += 1);
        // 1000 / 5 * 2 = 400 pages do not divide into 600 tenths: one each.
        assert!(
            counts.iter().all(|count| (1..=3).contains(count)),
            "{counts:?}"
        );
        assert!(accesses.after.iter().all(|page| counts[*page as usize] > 1));
        assert_eq!(accesses.tenths.iter().sum::<usize>(), accesses.before.len());
    }

    #[test]
    fn a_backup_reads_each_page_once_and_before_the_move() {
        let accesses = Workload::Scan.accesses(SCALE, 1);
        let scan: Vec<u32> = accesses
            .before
            .iter()
            .copied()
            .filter(|page| *page >= 1000)
            .collect();
        assert_eq!(scan, (1000..2000).collect::<Vec<_>>());
        assert!(accesses.after.iter().all(|page| *page < 1000));
        assert_eq!(accesses.tenths.iter().sum::<usize>(), accesses.before.len());
    }
}
