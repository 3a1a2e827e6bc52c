//! Several lists as one (pure).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use super::{FileIdentity, HotFile, PageIndexList, Run, runs};

/// Gathers files, each path once.
///
/// Pages of a path are joined, with the greatest heat, where it is the same file: one
/// with the same inode number. Its device is not compared, for the number of a network
/// file system changes with each mount. The newest size and mtime stand for all, and
/// pages beyond that size are left out. Of several files that had a path one after the
/// other, only the newest stays.
#[derive(Debug)]
pub struct Merge {
    page_size: u32,
    files: HashMap<PathBuf, Parts>,
    replaced: Vec<PathBuf>,
}

/// What is known of a path so far.
#[derive(Debug)]
struct Parts {
    identity: FileIdentity,
    parts: Vec<Vec<Run>>,
}

/// The list has pages of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it counts in pages of {found} bytes, and the list before it in pages of {wanted}")]
pub struct OtherPages {
    found: u32,
    wanted: u32,
}

impl OtherPages {
    pub(super) fn check(found: u32, wanted: u32) -> Result<(), Self> {
        match found == wanted {
            true => Ok(()),
            false => Err(Self { found, wanted }),
        }
    }
}

impl Merge {
    /// Begins with the files of a list.
    pub fn new(list: PageIndexList) -> Self {
        let mut merge = Self {
            page_size: list.page_size,
            files: HashMap::with_capacity(list.files.len()),
            replaced: Vec::new(),
        };
        merge.extend(list.files);
        merge
    }

    /// Adds the files of another list.
    ///
    /// # Errors
    /// Its pages have another size.
    pub fn add(&mut self, list: PageIndexList) -> Result<(), OtherPages> {
        OtherPages::check(list.page_size, self.page_size)?;
        self.extend(list.files);
        Ok(())
    }

    /// Returns how many runs there are.
    pub fn runs(&self) -> usize {
        let parts = self.files.values().flat_map(|file| &file.parts);
        parts.map(Vec::len).sum()
    }

    /// Returns the list, hottest file first, and the paths of which an older file was
    /// left out, in their order.
    pub fn into_list(self) -> (PageIndexList, Vec<PathBuf>) {
        let page_size = self.page_size;
        let files = self.files.into_values().map(|file| file.join(page_size));
        let mut list = PageIndexList {
            page_size,
            files: files.collect(),
        };
        list.hottest_first();
        let mut replaced = self.replaced;
        replaced.sort_unstable();
        replaced.dedup();
        (list, replaced)
    }

    fn extend(&mut self, files: Vec<HotFile>) {
        let mut several = Vec::new();
        for HotFile { identity, runs } in files {
            let mut entry = match self.files.entry(identity.path.clone()) {
                Entry::Occupied(entry) => entry,
                Entry::Vacant(entry) => {
                    let parts = vec![runs];
                    entry.insert(Parts { identity, parts });
                    continue;
                }
            };
            let file = entry.get_mut();
            let is_newer = identity.mtime_ns >= file.identity.mtime_ns;
            if identity.inode != file.identity.inode {
                self.replaced.push(identity.path.clone());
                if is_newer {
                    let parts = vec![runs];
                    *file = Parts { identity, parts };
                }
                continue;
            }
            if file.parts.len() == 1 {
                several.push(identity.path.clone());
            }
            if is_newer {
                file.identity = identity;
            }
            file.parts.push(runs);
        }
        // What waits for its end takes the memory of every list that it came from.
        for path in several {
            if let Some(file) = self.files.get_mut(&path) {
                let parts = std::mem::take(&mut file.parts);
                file.parts.push(runs::union_all(parts));
            }
        }
    }
}

impl Parts {
    fn join(self, page_size: u32) -> HotFile {
        let end = self.identity.size.div_ceil(page_size.into());
        let runs = runs::union_all(self.parts);
        let runs = match runs.last() {
            Some(last) if last.end() > end => runs::clip(&runs, end),
            _ => runs,
        };
        HotFile {
            identity: self.identity,
            runs,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pagelist::Heat;

    /// A file with this path, inode number and mtime, of 100 pages.
    pub(in crate::pagelist) fn file(
        path: &str,
        inode: u64,
        mtime_ns: i64,
        runs: &[(u64, u32, Heat)],
    ) -> HotFile {
        let run = |&(index, pages, heat)| Run { index, pages, heat };
        HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 1,
                inode,
                size: 100 * 4096,
                mtime_ns,
            },
            runs: runs.iter().map(run).collect(),
        }
    }

    pub(in crate::pagelist) fn list(files: Vec<HotFile>) -> PageIndexList {
        PageIndexList {
            page_size: 4096,
            files,
        }
    }

    fn merged(lists: Vec<Vec<HotFile>>) -> (Vec<HotFile>, Vec<PathBuf>) {
        let mut merge = Merge::new(list(Vec::new()));
        for files in lists {
            merge.add(list(files)).expect("the same page size");
        }
        let (list, replaced) = merge.into_list();
        (list.files, replaced)
    }

    #[test]
    fn pages_have_the_greater_heat_and_files_the_newer_identity() {
        let mut old = file("/a", 7, 1, &[(0, 10, 2), (95, 1, 9)]);
        old.identity.device = 44;
        let mut new = file("/a", 7, 2, &[(5, 10, 4)]);
        new.identity.size = 90 * 4096 - 1;
        let mut wanted = new.clone();
        wanted.runs = file("", 0, 0, &[(0, 5, 2), (5, 10, 4)]).runs;
        let other = file("/b", 8, 1, &[(1, 1, 1)]);
        for lists in [
            vec![vec![old.clone(), other.clone()], vec![new.clone()]],
            vec![vec![new.clone()], vec![other.clone(), old.clone()]],
            vec![vec![new, other.clone(), old]],
        ] {
            let (files, replaced) = merged(lists);
            assert_eq!(files, [wanted.clone(), other.clone()]);
            assert_eq!(replaced, [] as [PathBuf; 0]);
        }
    }

    #[test]
    fn of_two_files_of_one_path_the_newer_stays() {
        let old = file("/a", 7, 1, &[(0, 10, 9)]);
        let new = file("/a", 8, 2, &[(5, 10, 4)]);
        for lists in [
            vec![vec![old.clone()], vec![new.clone()]],
            vec![vec![new.clone()], vec![old.clone()], vec![old.clone()]],
        ] {
            let (files, replaced) = merged(lists);
            assert_eq!(files, std::slice::from_ref(&new));
            assert_eq!(replaced, [PathBuf::from("/a")]);
        }
    }

    #[test]
    fn pages_of_another_size_are_refused() {
        let mut merge = Merge::new(list(Vec::new()));
        let mut other = list(Vec::new());
        other.page_size = 65_536;
        let error = merge.add(other).expect_err("another page size");
        assert!(error.to_string().contains("65536"), "{error}");
    }

    /// Entries of one path as a hostile list may have them take no quadratic time: this
    /// would be 5 * 10^9 steps.
    #[test]
    fn many_entries_of_one_path_are_joined_in_time() {
        let entry = |index| file("/a", 7, 1, &[(index, 1, 1)]);
        let mut files: Vec<_> = (0..50_000_u64).map(|n| entry(2 * (n % 50))).collect();
        let large: Vec<_> = (0..100_000).map(|n| (2 * n, 1, 1)).collect();
        files.insert(0, file("/a", 7, 1, &large));
        let (files, _) = merged(vec![files]);
        assert_eq!(files[0].runs.len(), 50);
    }

    proptest! {
        #[test]
        fn the_order_of_lists_changes_nothing(
            lists in proptest::collection::vec(
                proptest::collection::vec((0..3_u8, 0..90_u64, 1..5_u32, 1..4_u8), 0..6),
                0..5,
            ),
        ) {
            let files = |entries: &Vec<(u8, u64, u32, Heat)>| -> Vec<HotFile> {
                let one = |&(name, index, pages, heat): &(u8, u64, u32, Heat)| {
                    file(&format!("/{name}"), name.into(), 1, &[(index, pages, heat)])
                };
                entries.iter().map(one).collect()
            };
            let one = merged(lists.iter().map(files).collect());
            let other = merged(lists.iter().rev().map(files).collect());
            prop_assert_eq!(&one, &other);
            for file in &one.0 {
                prop_assert_eq!(file.check(100), Ok(()));
            }
        }
    }
}
