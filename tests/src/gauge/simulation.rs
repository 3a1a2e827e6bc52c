//! A tracked cache of any size on a host of any size: what the access map would
//! tell of it, told to the product's own heat.

use migrator::heat::{FileId, HeatMap};
use migrator_common::access::{CHUNK_PAGES, CHUNK_WORDS, ChunkBits, WordBits};

use crate::random::Random;

/// What is used, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// One file from its beginning to its end, in each epoch
    Sequential,
    /// A quarter of a file's pages in each epoch, at random: each has a heat of its own
    Random,
    /// Small files, half of them in each epoch, each as a whole
    Files,
    /// A hot sixteenth of a file in each epoch, and the rest of it once
    Hot,
}

/// Pages of a small file.
pub const SMALL: u64 = 16;

/// How often the access map is emptied in an epoch.
const LOOKS: u64 = 10;

/// The file that is not small.
pub const FILE: FileId = FileId {
    device: 1,
    inode: 1,
};

/// Tells `heat` what is used in so many epochs of a cache of so many pages. Gives how
/// many uses that were: a page counts once for each time the map is emptied.
pub fn tell(heat: &mut HeatMap, cache: Cache, pages: u64, epochs: u32, seed: u64) -> u64 {
    let mut random = Random::new(seed << 40);
    let mut uses = 0;
    let units = match cache {
        Cache::Files => pages / SMALL,
        _ => pages / CHUNK_PAGES,
    };
    for epoch in 1..=epochs {
        for look in 0..LOOKS {
            for unit in (units * look / LOOKS)..(units * (look + 1) / LOOKS) {
                let last = epoch == epochs;
                let Some(bits) = bits(cache, unit, units, epoch, last, &mut random) else {
                    continue;
                };
                let words = bits.words.iter();
                uses += words
                    .map(|word| u64::from(word.used.count_ones()))
                    .sum::<u64>();
                let (file, chunk) = match cache {
                    Cache::Files => (
                        FileId {
                            inode: unit + 1,
                            ..FILE
                        },
                        0,
                    ),
                    _ => (FILE, unit as u32),
                };
                heat.mark(file, chunk, &bits);
            }
        }
        heat.next_epoch();
    }
    uses
}

/// What the access map has of a chunk, or of a small file, in an epoch. In the last
/// one nothing is left that was never used.
fn bits(
    cache: Cache,
    unit: u64,
    units: u64,
    epoch: u32,
    last: bool,
    random: &mut Random,
) -> Option<ChunkBits> {
    let all = WordBits {
        used: u64::MAX,
        again: 0,
    };
    let mut bits = ChunkBits {
        words: [all; CHUNK_WORDS],
    };
    match cache {
        Cache::Sequential => {}
        Cache::Random => {
            for word in &mut bits.words {
                word.again = random.next() & random.next() & random.next();
                if !last {
                    word.used = word.again | random.next() & random.next();
                }
            }
        }
        Cache::Files => {
            if !last && random.next() & 1 == 0 {
                return None;
            }
            bits = ChunkBits::default();
            bits.words[0].used = (1 << SMALL) - 1;
        }
        Cache::Hot if is_hot(unit) => bits.words[0].again = 1,
        // All of the rest has its turn once before the last epoch ends.
        Cache::Hot => {
            let turn = unit * u64::from(HOT_EPOCHS) / units.max(1);
            if turn != u64::from(epoch - 1) {
                return None;
            }
        }
    }
    Some(bits)
}

/// Epochs in which all of [`Cache::Hot`] has been used once.
pub const HOT_EPOCHS: u32 = 16;

/// Whether a chunk is one of the hot sixteenth, which lies anywhere.
pub fn is_hot(chunk: u64) -> bool {
    Random::new(chunk << 20).next().is_multiple_of(16)
}
