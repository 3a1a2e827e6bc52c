//! The page index list: per file, which pages are hot, and how hot.
//!
//! Pure data. It is made by a source through [`heat`](crate::heat), written
//! and read by [`format`](crate::format), and turned into reads by
//! [`plan`](crate::plan).

pub mod diff;
pub mod filter;
pub mod merge;
pub mod runs;
pub mod text;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How much a page is worth. 0 never stands in a list; the steps up to [`AGAIN`]
/// have names, and what lies above ranks pages by how often and how lately they were
/// used.
///
/// The steps of the LRU and of observed uses interleave: a page that was seen to be
/// used once is worth more than one that the kernel has marked as referenced, which is
/// also a single use; and less than one on the active list, which has been used more
/// often, though it was not seen.
pub type Heat = u8;

/// In the page cache, and not known to have been used: it may have been read ahead.
pub const RESIDENT: Heat = 1;
/// Marked as referenced on the inactive list: used once since it came.
pub const REFERENCED: Heat = 2;
/// Seen to be used once, as by a backup.
pub const ONCE: Heat = 3;
/// On the active list: used more than once.
pub const ACTIVE: Heat = 4;
/// Used again since it came to the active list.
pub const ACTIVE_REFERENCED: Heat = 5;
/// Seen to be used more than once, if long ago.
pub const AGAIN: Heat = 6;

/// Returns the heat of a page by what was observed of it and by the LRU, where 0 means
/// that it is not in the page cache. One that was observed once and is active has been
/// used before; one that was evicted since is worth no more than any page.
pub fn with_lru(observed: Heat, lru: Heat) -> Heat {
    match observed {
        ONCE if lru >= ACTIVE => AGAIN,
        ONCE if lru == 0 => RESIDENT,
        observed => observed.max(lru),
    }
}

/// The names of the steps.
pub const STEPS: [(&str, Heat); 5] = [
    ("resident", RESIDENT),
    ("referenced", REFERENCED),
    ("once", ONCE),
    ("active", ACTIVE),
    ("again", AGAIN),
];

/// A run of neighbouring pages of one file that have the same heat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the first page, in units of the list's page size.
    pub index: u64,
    /// How many pages, at least 1.
    pub pages: u32,
    /// Heat of each of them, at least 1.
    pub heat: Heat,
}

impl Run {
    /// The page index just after the run.
    pub fn end(&self) -> u64 {
        self.index + u64::from(self.pages)
    }

    /// This run and the one behind it as one, if they touch, have the same
    /// heat, and have less than 2^32 pages together.
    pub fn join(self, next: Self) -> Option<Self> {
        if self.end() != next.index || self.heat != next.heat {
            return None;
        }
        let pages = self.pages.checked_add(next.pages)?;
        Some(Self { pages, ..self })
    }
}

/// Which file the pages are of, as the source host saw it.
///
/// Size and mtime say whether the file found at `path` is still in the same state.
/// Device and inode say whether it is still the same file, where they can be compared:
/// on one host, or on a file server. A device or inode of 0 is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Absolute path, without `.` or `..`.
    pub path: PathBuf,
    /// `st_dev` as stat(2) gives it; 0 if not known.
    pub device: u64,
    /// `st_ino`; 0 if not known.
    pub inode: u64,
    /// `st_size` in bytes.
    pub size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    pub mtime_ns: i64,
}

impl FileIdentity {
    /// Checks that a list may name this file.
    ///
    /// # Errors
    /// When the path has more than [`MAX_PATH`] bytes, is not absolute, or
    /// has a component that is empty, `.` or `..`, or a NUL.
    pub fn check(&self) -> Result<(), Invalid> {
        check_path(&self.path).map_err(|why| Invalid::Path {
            path: self.path.clone(),
            why,
        })
    }
}

fn check_path(path: &Path) -> Result<(), &'static str> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH {
        return Err("has more than 4096 bytes");
    }
    let Some(relative) = bytes.strip_prefix(b"/") else {
        return Err("is not absolute");
    };
    if bytes.contains(&0) {
        return Err("has a NUL in it");
    }
    if relative
        .split(|byte| *byte == b'/')
        .any(|component| matches!(component, b"" | b"." | b".."))
    {
        return Err("has a component that is empty, . or ..");
    }
    Ok(())
}

/// One file of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotFile {
    /// The file.
    pub identity: FileIdentity,
    /// Its hot pages: sorted by index, not overlapping.
    pub runs: Vec<Run>,
}

impl HotFile {
    /// How many pages the runs name.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    /// Mean heat of its pages; 0 without any.
    pub fn hotness(&self) -> f64 {
        let heat = |run: &Run| u64::from(run.pages) * u64::from(run.heat);
        let heat: u64 = self.runs.iter().map(heat).sum();
        heat as f64 / self.pages().max(1) as f64
    }

    /// Checks that the file may stand in a list of which no run ends beyond
    /// page `limit`: see [`page_limit`].
    ///
    /// # Errors
    /// As [`FileIdentity::check`]; and when a run has no pages or no heat,
    /// ends beyond the limit, or begins before the end of the one before it.
    pub fn check(&self, limit: u64) -> Result<(), Invalid> {
        self.identity.check()?;
        check_runs(&self.runs, 0, limit).map(drop)
    }
}

/// Checks runs of a file behind those that end before page `end`, and gives the page
/// that they end before.
///
/// # Errors
/// As [`HotFile::check`].
pub(crate) fn check_runs(runs: &[Run], mut end: u64, limit: u64) -> Result<u64, Invalid> {
    for run in runs {
        let index = run.index;
        let fault = |why| Err(Invalid::Run { index, why });
        if run.index < end {
            return fault("overlaps the one before it");
        }
        if run.pages == 0 || run.heat == 0 {
            return fault("has no pages or no heat");
        }
        end = index.saturating_add(u64::from(run.pages));
        if end > limit {
            return fault("ends beyond the largest offset of a file");
        }
    }
    Ok(end)
}

/// The hot pages of a set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageIndexList {
    /// Bytes a page; a power of two.
    pub page_size: u32,
    /// The files, hottest first.
    pub files: Vec<HotFile>,
}

impl PageIndexList {
    /// How many pages the list names.
    pub fn pages(&self) -> u64 {
        self.files.iter().map(HotFile::pages).sum()
    }

    /// Puts the files into the order of a list; those of the same heat by path.
    pub fn hottest_first(&mut self) {
        let mut files: Vec<_> = std::mem::take(&mut self.files)
            .into_iter()
            .map(|file| (file.hotness(), file))
            .collect();
        files.sort_by(|(one, a), (other, b)| {
            let by_heat = other.total_cmp(one);
            by_heat.then_with(|| a.identity.path.cmp(&b.identity.path))
        });
        self.files = files.into_iter().map(|(_, file)| file).collect();
    }
}

/// How many bytes a path may have: Linux's `PATH_MAX`.
pub const MAX_PATH: usize = 4096;

/// The page index that no run may end beyond: the largest offset of a file,
/// 2^63 - 1 bytes (`loff_t`), in pages of so many bytes. An index within it
/// times the page size does not overflow.
pub fn page_limit(page_size: u32) -> u64 {
    i64::MAX as u64 / u64::from(page_size.max(1))
}

/// Why something can't stand in a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The page size, in bytes.
    #[error("a list can't have pages of {0} bytes, only of a power of two from 4 KiB to 256 KiB")]
    PageSize(u32),
    /// The path of a file.
    #[error("a list can't name the file {path:?}: its path {why}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A run.
    #[error("the run at page {index} {why}")]
    Run {
        /// Where the run begins.
        index: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}
