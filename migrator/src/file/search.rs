//! The last resort: looks for an inode by reading directories.
//!
//! The kernel has no way back from an inode to a path once the dentry is
//! evicted. What a process read lies mostly beside other files it read, so
//! the directories of known files, and what is below them, are looked
//! through, breadth first. The walk goes on where it stopped, remembers what
//! it has passed, and ends for good after [`LIMIT`] entries: neither its time
//! nor its memory grows with the size of the file system.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many directory entries are looked at in all, for one file system.
const LIMIT: usize = 200_000;

/// How many are looked at for one file at most, but for the rest of a
/// directory: from 4 ms when they are cached to 40 ms.
const STEP: usize = 4_000;

/// A walk through directories of one file system.
#[derive(Debug, Default)]
pub struct Search {
    /// Directories to be read; new places to begin at come first.
    ahead: VecDeque<PathBuf>,
    /// Those that were read or are to be read.
    known: HashSet<PathBuf>,
    /// Those that were read, and which names they hold by inode number.
    passed: Vec<PathBuf>,
    names: HashMap<u64, Vec<(usize, OsString)>>,
    entries: usize,
}

impl Search {
    /// Begins at this directory too.
    pub fn add(&mut self, directory: &Path) {
        if self.entries < LIMIT && self.known.insert(directory.to_owned()) {
            self.ahead.push_front(directory.to_owned());
        }
    }

    /// Walks until `check` takes a path where the inode number was seen.
    pub fn find<T>(&mut self, inode: u64, check: impl Fn(&Path) -> Option<T>) -> Option<T> {
        let end = self.entries + STEP;
        loop {
            let seen = self.names.get(&inode).map(Vec::as_slice);
            for (directory, name) in seen.unwrap_or_default() {
                if let Some(found) = check(&self.passed[*directory].join(name)) {
                    return Some(found);
                }
            }
            // Read on until the number turns up, or the step is used up.
            let before = seen.map_or(0, <[_]>::len);
            while self.names.get(&inode).map_or(0, Vec::len) == before {
                if self.entries >= end.min(LIMIT) {
                    return None;
                }
                let directory = self.ahead.pop_front()?;
                self.read(directory);
            }
        }
    }

    /// Takes in the entries of one directory. One that can't be read, or is
    /// gone, has none.
    fn read(&mut self, directory: PathBuf) {
        // An unreadable directory costs something too.
        self.entries += 1;
        let Ok(entries) = fs::read_dir(&directory) else {
            return;
        };
        let device = fs::metadata(&directory).map(|meta| meta.dev());
        for entry in entries.flatten() {
            if self.entries >= LIMIT {
                break;
            }
            self.entries += 1;
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_file() {
                let name = (self.passed.len(), entry.file_name());
                self.names.entry(entry.ino()).or_default().push(name);
            } else if kind.is_dir() {
                let below = entry.path();
                let same = match (&device, entry.metadata()) {
                    (Ok(device), Ok(meta)) => *device == meta.dev(),
                    _ => false,
                };
                if same && self.known.insert(below.clone()) {
                    self.ahead.push_back(below);
                }
            }
        }
        self.passed.push(directory);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_file_beside_or_below_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        fs::write(below.join("y"), "").unwrap();
        let mut search = Search::default();
        search.add(dir.path());
        for path in [below.join("y"), dir.path().join("x")] {
            let found = search.find(inode(&path), |place| Some(place.to_owned()));
            assert_eq!(found, Some(path));
        }
    }

    #[test]
    fn a_place_that_is_refused_is_not_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("x"), dir.path().join("y"));
        fs::write(&first, "").unwrap();
        fs::hard_link(&first, &second).unwrap();
        let mut search = Search::default();
        search.add(dir.path());
        let found = search.find(inode(&first), |place| {
            (place == second).then(|| place.to_owned())
        });
        assert_eq!(found, Some(second));
    }

    #[test]
    fn a_miss_is_not_searched_for_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let mut search = Search::default();
        search.add(dir.path());
        assert_eq!(search.find(u64::MAX, |_| Some(())), None);
        let entries = search.entries;
        search.add(dir.path());
        assert_eq!(search.find(u64::MAX, |_| Some(())), None);
        assert_eq!(search.entries, entries);
    }
}
