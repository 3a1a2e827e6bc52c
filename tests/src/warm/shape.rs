//! Files, and which of their pages are asked for.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use migrator::file::identity::mtime_ns;
use migrator::pagelist::{FileIdentity, Heat, HotFile, PageIndexList, Run};

use crate::PAGE_SIZE;
use crate::random::Random;

/// Which pages of which files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// All of a file
    Whole,
    /// Every tenth page of a file, anywhere
    Random,
    /// An eighth of a file in pieces of 256 KiB, and 7 of 8 pages there
    Clustered,
    /// All of many files of 1 to 7 pages
    Files,
}

/// Pages of a piece of [`Shape::Clustered`].
const PIECE: u64 = 64;

/// Files in a directory.
const IN_DIRECTORY: u64 = 100;

impl Shape {
    /// The list of the pages, of files below a directory that are made where they
    /// are not there. Which pages they are depends on the seed; the files don't.
    ///
    /// # Errors
    /// When files can't be made.
    pub fn list(self, directory: &Path, size: u64, files: u64, seed: u64) -> Result<PageIndexList> {
        let in_file = size / PAGE_SIZE as u64;
        let mut random = Random::new(seed << 40);
        let single = |runs| vec![(directory.join("file"), in_file, runs)];
        let parts = match self {
            Self::Files => {
                let mut lengths = Random::new(0);
                let small = (0..files).map(|number| {
                    let pages = 1 + lengths.below(7);
                    let path = directory
                        .join(format!("{}", number / IN_DIRECTORY))
                        .join(format!("{}", number % IN_DIRECTORY));
                    (path, pages, vec![run(0..pages, heat(&mut random))])
                });
                let small: Vec<_> = small.collect();
                random.shuffled(small)
            }
            Self::Whole => single(vec![run(0..in_file, 2)]),
            Self::Random => {
                let pages = (0..in_file).filter(|_| random.below(10) == 0).collect();
                single(runs(pages, |_| 0, seed))
            }
            Self::Clustered => {
                let pieces = (0..in_file).step_by(PIECE as usize);
                let hot_pieces: Vec<u64> = pieces.filter(|_| random.below(8) == 0).collect();
                let pages = hot_pieces.iter().flat_map(|piece| *piece..piece + PIECE);
                let pages = pages.filter(|page| *page < in_file && random.below(8) > 0);
                let pages = pages.collect();
                single(runs(pages, |page| page / PIECE, seed))
            }
        };
        Ok(PageIndexList {
            page_size: PAGE_SIZE as u32,
            files: super::each(&parts, |(path, pages, runs)| file(path, *pages, runs))?,
        })
    }
}

/// Neighbouring pages as runs. Each place, of one or several pages, has a heat of
/// its own; where `place` is always the same, each page has.
fn runs(pages: Vec<u64>, place: impl Fn(u64) -> u64, seed: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in pages {
        let heat = match place(page) {
            0 => heat(&mut Random::new(seed ^ (page << 20))),
            place => heat(&mut Random::new(seed ^ (place << 20))),
        };
        match runs.last_mut() {
            Some(last) if last.end() == page && last.heat == heat => last.pages += 1,
            _ => runs.push(run(page..page + 1, heat)),
        }
    }
    runs
}

fn run(pages: std::ops::Range<u64>, heat: Heat) -> Run {
    Run {
        index: pages.start,
        pages: (pages.end - pages.start) as u32,
        heat,
    }
}

/// Half of the pages are used once, a quarter four times as often, and so on.
fn heat(random: &mut Random) -> Heat {
    1 + 8 * random.next().trailing_ones().min(4) as Heat
}

/// A file of so many pages, made unless it is there.
fn file(path: &Path, pages: u64, runs: &[Run]) -> Result<HotFile> {
    let size = pages * PAGE_SIZE as u64;
    if path.metadata().map(|it| it.len()).ok() != Some(size) {
        make(path, pages).with_context(|| format!("failed to make {}", path.display()))?;
    }
    let metadata = path
        .metadata()
        .with_context(|| format!("failed to stat {}", path.display()))?;
    let identity = FileIdentity {
        path: path.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size,
        mtime_ns: mtime_ns(&metadata),
    };
    Ok(HotFile {
        identity,
        runs: runs.to_vec(),
    })
}

fn make(path: &Path, pages: u64) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Not zeros, which storage may leave out.
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for index in 0..pages {
        file.write_all(&crate::page(index))?;
    }
    file.into_inner()?.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_pages_in_order_and_inside_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        for (shape, least, most) in [
            (Shape::Whole, 2048, 2048),
            (Shape::Random, 150, 260),
            (Shape::Clustered, 50, 600),
            (Shape::Files, 20, 140),
        ] {
            let list = shape
                .list(directory.path(), 8 << 20, 20, 1)
                .expect("a list");
            assert!((least..=most).contains(&list.pages()), "{shape:?}");
            for file in &list.files {
                assert!(file.runs.windows(2).all(|it| it[0].end() <= it[1].index));
                let end = file.runs.last().map_or(0, Run::end);
                assert!(end * PAGE_SIZE as u64 <= file.identity.size);
            }
            let again = shape
                .list(directory.path(), 8 << 20, 20, 1)
                .expect("a list");
            assert_eq!(list.files, again.files, "{shape:?}");
        }
    }
}
