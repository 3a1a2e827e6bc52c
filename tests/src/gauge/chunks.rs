//! Tracked pages as the eBPF programs leave them: chunks in the kernel's map.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, bail};
use aya::maps::{Array, Map, MapData};
use migrator::source::access_map::AccessMap;
use migrator_common::access::{CHUNK_PAGES, ChunkBits, ChunkKey, Sides};

use crate::random::Random;

/// How the pages of a file that were used lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// All of one file, equally hot
    Sequential,
    /// Every tenth page of a file, at random, each with a heat of its own
    Random,
    /// Runs of 16 pages on average, in a tenth of a file
    Clustered,
    /// Files of 100 pages, all of each
    Files,
}

/// A neighbourhood of used pages that is used as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Number of the file, from 0 on.
    pub file: u64,
    /// First page.
    pub first: u64,
    /// How many.
    pub pages: u64,
}

/// The clusters of `pages` pages in sum, in the order of files and pages.
pub fn clusters(shape: Shape, pages: u64, seed: u64) -> Vec<Cluster> {
    let mut random = Random::new(seed << 32);
    // Geometrically distributed, at least 1.
    let mut about = move |mean: f64| {
        let uniform = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        1 + ((1.0 - uniform).ln() / (1.0 - 1.0 / mean).ln()) as u64
    };
    let mut clusters = Vec::new();
    let (mut left, mut file, mut first) = (pages, 0, 0);
    while left > 0 {
        let pages = match shape {
            Shape::Sequential => left,
            Shape::Random => 1,
            Shape::Clustered => about(16.0),
            Shape::Files => 100,
        };
        let pages = pages.min(left);
        clusters.push(Cluster { file, first, pages });
        left -= pages;
        match shape {
            Shape::Sequential => {}
            // The gap, which is at least 0 and on average 9.
            Shape::Random => first += about(10.0),
            Shape::Clustered => first += pages + about(144.0),
            Shape::Files => file += 1,
        }
    }
    clusters
}

/// What the programs write of these clusters: sorted by file and chunk.
pub fn chunks(clusters: impl IntoIterator<Item = Cluster>) -> Vec<(ChunkKey, ChunkBits)> {
    let mut chunks: Vec<(ChunkKey, ChunkBits)> = Vec::new();
    for cluster in clusters {
        for page in cluster.first..cluster.first + cluster.pages {
            let key = ChunkKey::new(cluster.file + 1, 1, (page / CHUNK_PAGES) as u32);
            if chunks.last().is_none_or(|(last, _)| *last != key) {
                chunks.push((key, ChunkBits::default()));
            }
            if let Some((_, bits)) = chunks.last_mut() {
                bits.mark(page);
            }
        }
    }
    chunks
}

/// The kernel's side of an access map, written to as the programs do.
pub struct Kernel {
    keys: Map,
    bits: Map,
    sides: Map,
    chunks: u32,
}

impl Kernel {
    /// Creates the maps, with room for twice as many chunks as are used, as on a
    /// host whose memory is full of them.
    ///
    /// # Errors
    /// When the kernel has no such maps or does not permit them.
    pub fn new(used: usize) -> anyhow::Result<Self> {
        let chunks = (2 * used).next_power_of_two().max(1 << 14) as u32;
        Ok(Self {
            keys: array::<ChunkKey>(2 * chunks)?,
            bits: array::<ChunkBits>(2 * chunks)?,
            sides: array::<Sides>(1)?,
            chunks,
        })
    }

    /// Userspace's view of it.
    ///
    /// # Errors
    /// When it can't be mapped.
    pub fn map(&self) -> anyhow::Result<AccessMap> {
        let [keys, bits, sides] = [&self.keys, &self.bits, &self.sides].map(descriptor);
        AccessMap::new(keys?, bits?, sides?, self.chunks, 1).context("failed to map the access map")
    }

    /// Marks chunks on the side that is written, each in the first free place of
    /// those where the programs look for it.
    ///
    /// # Errors
    /// When the map does not take them.
    pub fn mark(&mut self, chunks: &[(ChunkKey, ChunkBits)]) -> anyhow::Result<()> {
        let mut keys = Array::<_, ChunkKey>::try_from(&mut self.keys)?;
        let mut words = Array::<_, ChunkBits>::try_from(&mut self.bits)?;
        let sides = Array::<_, Sides>::try_from(&self.sides)?;
        let base = sides.get(&0, 0)?.written as u32 * self.chunks;
        let mut taken = vec![false; self.chunks as usize];
        for (key, bits) in chunks {
            let (start, distance) = key.slots();
            let slots =
                (0..self.chunks).map(|probe| start.wrapping_add(probe.wrapping_mul(distance)));
            let mut slots = slots.map(|slot| slot & (self.chunks - 1));
            let Some(slot) = slots.find(|slot| !taken[*slot as usize]) else {
                bail!("the access map is full");
            };
            taken[slot as usize] = true;
            keys.set(base + slot, key, 0)?;
            words.set(base + slot, bits, 0)?;
        }
        Ok(())
    }
}

/// An array that can be mapped, as those of the eBPF object.
fn array<T>(entries: u32) -> anyhow::Result<Map> {
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    let (key, value) = (size_of::<u32>() as u32, size_of::<T>() as u32);
    let map =
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key, value, entries, BPF_F_MMAPABLE);
    let data = MapData::create(map, "gauge", None);
    Ok(Map::Array(data.context(
        "failed to create the access map, which takes root",
    )?))
}

fn descriptor(map: &Map) -> anyhow::Result<BorrowedFd<'_>> {
    match map {
        Map::Array(data) => Ok(data.fd().as_fd()),
        _ => bail!("a part of the access map is no array"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_as_many_pages_as_it_was_asked_for() {
        for shape in [
            Shape::Sequential,
            Shape::Random,
            Shape::Clustered,
            Shape::Files,
        ] {
            let clusters = clusters(shape, 10_050, 1);
            let pages: u64 = clusters.iter().map(|cluster| cluster.pages).sum();
            assert_eq!(pages, 10_050, "{shape:?}");
            let bits = chunks(clusters);
            let words = bits.iter().flat_map(|(_, bits)| bits.words);
            let marked: u32 = words.map(|word| word.used.count_ones()).sum();
            assert_eq!(marked, 10_050, "{shape:?}");
        }
    }

    #[test]
    fn clusters_fill_a_tenth_of_the_file() {
        for shape in [Shape::Random, Shape::Clustered] {
            let clusters = clusters(shape, 100_000, 1);
            let end = clusters.last().expect("clusters").first;
            assert!((900_000..1_100_000).contains(&end), "{shape:?}: {end}");
        }
    }
}
