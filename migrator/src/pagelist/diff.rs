//! What tells two lists apart (pure).

use std::collections::HashMap;
use std::path::PathBuf;

use super::merge::{Merge, OtherPages};
use super::{HotFile, PageIndexList, runs};

/// How many pages of a file, or of all, are in which list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Only in the first.
    pub only_a: u64,
    /// Only in the second.
    pub only_b: u64,
    /// In both, with the same heat.
    pub same: u64,
    /// In both, hotter in the second.
    pub hotter: u64,
    /// In both, colder in the second.
    pub colder: u64,
}

impl Counts {
    /// Returns how many pages are in both.
    pub fn both(&self) -> u64 {
        self.same + self.hotter + self.colder
    }

    /// Returns how many pages differ, be it by their heat.
    pub fn differing(&self) -> u64 {
        self.only_a + self.only_b + self.hotter + self.colder
    }

    fn add(&mut self, more: &Self) {
        self.only_a += more.only_a;
        self.only_b += more.only_b;
        self.same += more.same;
        self.hotter += more.hotter;
        self.colder += more.colder;
    }
}

/// Whether both lists mean the same file by a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// With the same size and mtime, or it is in one list only.
    Same,
    /// With another size or mtime.
    Changed,
    /// Another inode number has the path.
    Replaced,
}

/// A path that is in either list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDiff {
    /// The path.
    pub path: PathBuf,
    /// Whether it is the same file.
    pub version: Version,
    /// Its pages.
    pub counts: Counts,
}

/// Two lists, compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Paths, those with most differing pages first.
    pub files: Vec<FileDiff>,
    /// All of them.
    pub counts: Counts,
}

impl Diff {
    /// Compares two lists. Several entries of a path count as one, as in a [`Merge`].
    ///
    /// # Errors
    /// Their pages have different sizes.
    pub fn new(a: PageIndexList, b: PageIndexList) -> Result<Self, OtherPages> {
        OtherPages::check(b.page_size, a.page_size)?;
        let (a, _) = Merge::new(a).into_list();
        let (b, _) = Merge::new(b).into_list();
        let mut theirs: HashMap<PathBuf, HotFile> = HashMap::with_capacity(b.files.len());
        for file in b.files {
            theirs.insert(file.identity.path.clone(), file);
        }
        let mut diff = Self::default();
        for one in a.files {
            let other = theirs.remove(&one.identity.path);
            diff.push(FileDiff::new(one, other.as_ref()));
        }
        for (path, file) in theirs {
            let only_b = file.pages();
            let counts = Counts {
                only_b,
                ..Counts::default()
            };
            let version = Version::Same;
            diff.push(FileDiff {
                path,
                version,
                counts,
            });
        }
        diff.files.sort_unstable_by(|one, other| {
            let by_pages = other.counts.differing().cmp(&one.counts.differing());
            by_pages.then_with(|| one.path.cmp(&other.path))
        });
        Ok(diff)
    }

    fn push(&mut self, file: FileDiff) {
        self.counts.add(&file.counts);
        self.files.push(file);
    }
}

impl FileDiff {
    fn new(one: HotFile, other: Option<&HotFile>) -> Self {
        let mut counts = Counts::default();
        let theirs = other.map_or(&[][..], |file| &file.runs);
        runs::sweep(&one.runs, theirs, |index, end, a, b| {
            let count = match (a, b) {
                (_, 0) => &mut counts.only_a,
                (0, _) => &mut counts.only_b,
                (a, b) if a == b => &mut counts.same,
                (a, b) if a < b => &mut counts.hotter,
                _ => &mut counts.colder,
            };
            *count += end - index;
        });
        let here = &one.identity;
        let version = match other.map(|file| &file.identity) {
            Some(there) if there.inode != here.inode => Version::Replaced,
            Some(there) if (there.size, there.mtime_ns) != (here.size, here.mtime_ns) => {
                Version::Changed
            }
            _ => Version::Same,
        };
        Self {
            path: one.identity.path,
            version,
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::merge::tests::{file, list};
    use super::*;

    #[test]
    fn pages_are_counted_by_where_they_are() {
        let a = list(vec![
            file("/a", 1, 1, &[(0, 10, 2), (20, 5, 4)]),
            file("/gone", 2, 1, &[(0, 3, 1)]),
            file("/same", 3, 1, &[(0, 3, 1)]),
        ]);
        let b = list(vec![
            file("/a", 1, 2, &[(5, 10, 2), (20, 2, 6), (22, 3, 1)]),
            file("/new", 4, 1, &[(0, 2, 1)]),
            file("/same", 5, 1, &[(0, 3, 1)]),
        ]);
        let diff = Diff::new(a, b).expect("the same page size");
        let counts = |[only_a, only_b, same, hotter, colder]: [u64; 5]| Counts {
            only_a,
            only_b,
            same,
            hotter,
            colder,
        };
        let wanted = [
            ("/a", Version::Changed, [5, 5, 5, 2, 3]),
            ("/gone", Version::Same, [3, 0, 0, 0, 0]),
            ("/new", Version::Same, [0, 2, 0, 0, 0]),
            ("/same", Version::Replaced, [0, 0, 3, 0, 0]),
        ];
        let wanted = wanted.map(|(path, version, numbers)| FileDiff {
            path: path.into(),
            version,
            counts: counts(numbers),
        });
        assert_eq!(diff.files, wanted);
        assert_eq!(diff.counts, counts([8, 7, 8, 2, 3]));
        assert_eq!((diff.counts.both(), diff.counts.differing()), (13, 20));
    }

    #[test]
    fn pages_of_another_size_are_refused() {
        let mut other = list(Vec::new());
        other.page_size = 65_536;
        Diff::new(list(Vec::new()), other).expect_err("another page size");
    }

    proptest! {
        #[test]
        fn every_page_is_counted_once(
            a in proptest::collection::vec((0..4_u64, 1..5_u32, 1..4_u8), 0..10),
            b in proptest::collection::vec((0..4_u64, 1..5_u32, 1..4_u8), 0..10),
        ) {
            let runs = |gaps: &[(u64, u32, u8)]| {
                let mut end = 0;
                let mut runs = Vec::new();
                for (gap, pages, heat) in gaps {
                    runs.push((end + gap, *pages, *heat));
                    end += gap + u64::from(*pages);
                }
                list(vec![file("/a", 1, 1, &runs)])
            };
            let (a, b) = (runs(&a), runs(&b));
            let (pages_a, pages_b) = (a.pages(), b.pages());
            let diff = Diff::new(a.clone(), b.clone()).expect("the same page size").counts;
            prop_assert_eq!(diff.only_a + diff.both(), pages_a);
            prop_assert_eq!(diff.only_b + diff.both(), pages_b);
            let back = Diff::new(b, a.clone()).expect("the same page size").counts;
            prop_assert_eq!((back.hotter, back.only_a), (diff.colder, diff.only_b));
            let itself = Diff::new(a.clone(), a).expect("the same page size").counts;
            prop_assert_eq!(itself.differing(), 0);
        }
    }
}
