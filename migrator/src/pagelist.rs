//! The page index list: per file, which pages are hot, and how hot.
//!
//! Pure data. It is made by a source through [`heat`](crate::heat), written
//! and read by [`format`](crate::format), and turned into reads by
//! [`plan`](crate::plan).

use std::path::PathBuf;

/// How much a page was used. 1 is "used once", 2 is "used more than once";
/// what lies above ranks pages by how often and how lately they were used.
/// 0 never stands in a list.
pub type Heat = u8;

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
}

/// Which file the pages are of, as the source host saw it.
///
/// Size and mtime tell the destination whether the file it finds at `path`
/// is the one meant; device and inode are for the reader's information, they
/// differ from host to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Absolute path, without `.` or `..`.
    pub path: PathBuf,
    /// `st_dev` as stat(2) gives it.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_size` in bytes.
    pub size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    pub mtime_ns: i64,
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
}
