//! What is in the page cache of files and directories now, whoever has used it.
//!
//! Directories are walked without following symbolic links, over the file systems
//! that have a disk or a server behind them. Nothing is read into the cache, and
//! neither access times nor the LRU's flags change
//! ([`pageflags`](crate::source::pageflags)). Parts of a file that are not cached cost
//! next to nothing, however large they are ([`parts`]).
//!
//! Memory is bounded by the limits of a list.

pub mod parts;
mod scan;
mod walk;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::format::{MAX_FILES, MAX_PATH_BYTES, MAX_RUNS};
use crate::kernel;
use crate::pagelist::{ACTIVE, Heat, HotFile, PageIndexList, REFERENCED};
use scan::Scanner;

/// What is cached.
#[derive(Debug)]
pub struct Snapshot {
    /// The files of which pages are cached, in the order of a list.
    pub files: Vec<Cached>,
    /// How many regular files were examined.
    pub examined: u64,
    /// How many files, directories and other entries were left out, and why.
    pub left_out: BTreeMap<Reason, u64>,
    /// Whether the LRU's flags tell pages apart.
    pub has_flags: bool,
}

/// A file of which pages are cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The file. It has no runs where only sums are asked for.
    pub file: HotFile,
    /// Its pages.
    pub sum: Sum,
}

/// Cached pages by the state that the LRU has them in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// All of them.
    pub pages: u64,
    /// Those that are marked as referenced on the inactive list.
    pub referenced: u64,
    /// Those on the active list.
    pub active: u64,
}

/// Why something is not examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    /// The kernel tells only its owner and root what is cached of a file.
    #[error("not permitted: only its owner and root may know what is cached")]
    NotPermitted,
    /// It changed while it was looked at, or reading failed.
    #[error("changed or failed while it was looked at")]
    Failed,
    /// A directory that can't be read.
    #[error("directory that can't be read")]
    Unreadable,
    /// A directory more than 512 levels deep.
    #[error("directory that lies too deep")]
    TooDeep,
    /// Below a mount of proc, tmpfs and the like.
    #[error("not on a disk or network file system")]
    NoDisk,
    /// A symbolic link; what it points to counts where it lies.
    #[error("symbolic link")]
    SymbolicLink,
    /// A device, pipe or socket.
    #[error("device, pipe or socket")]
    Special,
    /// Another name, or another mount, of a file that is listed.
    #[error("another name of a file that is listed")]
    OtherName,
    /// Its path can't stand in a list.
    #[error("its path is too long for a list")]
    LongPath,
    /// The list is full.
    #[error("the list is full")]
    ListFull,
}

impl Snapshot {
    /// Examines files and directories. Pages of less heat than `min_heat` are left out;
    /// the pages themselves are kept if `has_runs`, and otherwise only their sums.
    ///
    /// # Errors
    /// One of the paths does not exist.
    pub fn take(paths: &[PathBuf], min_heat: Heat, has_runs: bool) -> anyhow::Result<Self> {
        let real = paths.iter().map(|path| {
            fs::canonicalize(path).with_context(|| format!("failed to find {}", path.display()))
        });
        // All of them first: a name that is wrong must not show after minutes.
        let real: Vec<PathBuf> = real.collect::<anyhow::Result<_>>()?;
        let scanner = Scanner::new();
        let mut collector = Collector::new(scanner, min_heat, has_runs);
        for path in &real {
            walk::walk(path, &mut collector);
        }
        Ok(collector.finish())
    }

    /// Returns the pages of all files.
    pub fn sum(&self) -> Sum {
        let mut all = Sum::default();
        for Cached { sum, .. } in &self.files {
            all.pages += sum.pages;
            all.referenced += sum.referenced;
            all.active += sum.active;
        }
        all
    }

    /// Returns the list, which is empty where only sums were asked for.
    pub fn into_list(self) -> PageIndexList {
        let files = self.files.into_iter().map(|cached| cached.file);
        PageIndexList {
            page_size: kernel::page_size(),
            files: files.filter(|file| !file.runs.is_empty()).collect(),
        }
    }
}

impl Sum {
    fn of(file: &HotFile) -> Self {
        let mut sum = Self::default();
        for run in &file.runs {
            let pages = u64::from(run.pages);
            sum.pages += pages;
            match run.heat {
                ACTIVE.. => sum.active += pages,
                REFERENCED.. => sum.referenced += pages,
                _ => {}
            }
        }
        sum
    }
}

/// Takes what the walk finds.
struct Collector {
    scanner: Scanner,
    min_heat: Heat,
    has_runs: bool,
    files: Vec<(f64, Cached)>,
    /// The files that are listed, by device and inode number.
    listed: HashSet<(u64, u64)>,
    examined: u64,
    runs: u64,
    path_bytes: u64,
    left_out: BTreeMap<Reason, u64>,
}

impl Collector {
    fn new(scanner: Scanner, min_heat: Heat, has_runs: bool) -> Self {
        Self {
            scanner,
            min_heat,
            has_runs,
            files: Vec::new(),
            listed: HashSet::new(),
            examined: 0,
            runs: 0,
            path_bytes: 0,
            left_out: BTreeMap::new(),
        }
    }

    fn add(&mut self, mut file: HotFile) -> Result<(), Reason> {
        file.runs.retain(|run| run.heat >= self.min_heat);
        let sum = Sum::of(&file);
        if sum.pages == 0 {
            return Ok(());
        }
        let hotness = file.hotness();
        if !self.has_runs {
            file.runs = Vec::new();
        }
        let runs = self.runs + file.runs.len() as u64;
        let path_bytes = self.path_bytes + file.identity.path.as_os_str().len() as u64;
        let files = self.files.len() as u64 + 1;
        if files > MAX_FILES || runs > MAX_RUNS || path_bytes > MAX_PATH_BYTES {
            return Err(Reason::ListFull);
        }
        (self.runs, self.path_bytes) = (runs, path_bytes);
        self.listed
            .insert((file.identity.device, file.identity.inode));
        file.runs.shrink_to_fit();
        self.files.push((hotness, Cached { file, sum }));
        Ok(())
    }

    fn finish(mut self) -> Snapshot {
        self.files.sort_by(|(one, a), (other, b)| {
            let by_heat = other.total_cmp(one);
            by_heat.then_with(|| a.file.identity.path.cmp(&b.file.identity.path))
        });
        Snapshot {
            files: self.files.into_iter().map(|(_, cached)| cached).collect(),
            examined: self.examined,
            left_out: self.left_out,
            has_flags: self.scanner.has_flags(),
        }
    }
}

impl walk::Visitor for Collector {
    fn file(&mut self, found: walk::Found<'_>) {
        let place = (found.device, found.inode);
        let added = if self.listed.contains(&place) {
            Err(Reason::OtherName)
        } else {
            self.examined += 1;
            let scanned = self.scanner.scan(&found);
            scanned.and_then(|file| self.add(file))
        };
        if let Err(reason) = added {
            self.leave_out(reason);
        }
    }

    fn leave_out(&mut self, reason: Reason) {
        *self.left_out.entry(reason).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagelist::{ACTIVE_REFERENCED, FileIdentity, RESIDENT, Run};

    #[test]
    fn pages_are_summed_by_their_state() {
        let run = |(index, heat)| Run {
            index,
            pages: 10,
            heat,
        };
        let heats = [RESIDENT, REFERENCED, ACTIVE, ACTIVE_REFERENCED];
        let file = HotFile {
            identity: FileIdentity {
                path: "/a".into(),
                device: 1,
                inode: 1,
                size: 1 << 20,
                mtime_ns: 0,
            },
            runs: (0..).step_by(20).zip(heats).map(run).collect(),
        };
        let sum = Sum {
            pages: 40,
            referenced: 10,
            active: 20,
        };
        assert_eq!(Sum::of(&file), sum);
    }
}
