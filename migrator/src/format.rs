//! The bytes of a page index list: a `.pil` file, or the same bytes over a
//! socket.
//!
//! `docs/page-index-list.md` describes every byte. A list is a header and
//! then frames, each with its checksum, so that the reader can begin before
//! the writer has ended. [`Writer`] and [`Reader`] work file by file in
//! bounded memory; [`read_list`] collects a whole list, and
//! [`write_atomically`] and [`read_file`] deal with paths.

mod bits;
mod file;
mod frame;
mod reader;
mod rice;
mod runs;
mod writer;

use std::io;

pub use file::{read_file, write_atomically, write_atomically_with, write_file};
pub(crate) use frame::{put_number, take_number};
pub use reader::{Reader, Record, read_list};
pub use writer::Writer;

use crate::pagelist::Invalid;

/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 1;

/// The page sizes that a list may have, as powers of two: 4 KiB to 256 KiB
/// are what Linux runs with.
pub const PAGE_SHIFTS: std::ops::RangeInclusive<u8> = 12..=18;

/// How many files a list may name. Like the other limits it bounds the memory
/// of whoever reads a list, so [`Writer`] keeps to it as well.
pub const MAX_FILES: u64 = 1 << 20;

/// How many bytes the paths of a list may have in sum.
pub const MAX_PATH_BYTES: u64 = 256 << 20;

/// How many runs a list may have in sum; in memory they take 512 MiB.
pub const MAX_RUNS: u64 = 1 << 25;

/// The kinds of optional frames that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Optional {
    /// What a tracker keeps of its files besides their pages.
    Tracked = frame::kind::OPTIONAL,
}

/// Why a list can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as a list does.
    #[error("this is not a page index list, or a transfer in text mode damaged it")]
    NotAList,
    /// Another version of the format; carries the version found.
    #[error(
        "the list has version {0} of the format and this migrator knows version {VERSION}: \
         use the migrator that wrote it, or a newer one"
    )]
    Version(u8),
    /// The list counts in pages of another size than this host.
    #[error(
        "the list counts in pages of {list} bytes and the pages of this host have {host}: \
         it has to come from a host with the same page size"
    )]
    PageSize {
        /// Page size of the list in bytes.
        list: u32,
        /// Page size of this host in bytes.
        host: u32,
    },
    /// The bytes end before the list does.
    #[error("the list is cut short: it ends after {at} bytes, in the middle")]
    Truncated {
        /// How many bytes there are.
        at: u64,
    },
    /// A checksum does not fit what it covers.
    #[error("the list is damaged: the checksum of what begins at byte {at} is wrong")]
    Checksum {
        /// Offset of the damaged frame; 0 is the header.
        at: u64,
    },
    /// A limit of the format is exceeded.
    #[error("the list has more than {limit} {what}, which is the limit")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The checksum is right and yet the bytes make no sense.
    #[error("the list is malformed at byte {at}: {why}")]
    Malformed {
        /// Offset of the frame; 0 is the header.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file or a run that must not stand in a list.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks that a list of one page size is of use on a host of another.
///
/// Showing a list works anywhere; its page indexes mean something only where
/// pages have the same size.
///
/// # Errors
/// [`FormatError::PageSize`] when the two differ.
pub fn check_page_size(list: u32, host: u32) -> Result<(), FormatError> {
    if list == host {
        Ok(())
    } else {
        Err(FormatError::PageSize { list, host })
    }
}

/// What a list holds so far; the limits and the totals of the END frame.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    files: u64,
    path_bytes: u64,
    runs: u64,
    pages: u64,
}

impl Totals {
    /// Counts a file in, unless there are too many.
    fn add_file(&mut self, path_bytes: usize) -> Result<(), FormatError> {
        self.files = within("files", self.files + 1, MAX_FILES)?;
        self.path_bytes = within(
            "bytes of paths",
            self.path_bytes + path_bytes as u64,
            MAX_PATH_BYTES,
        )?;
        Ok(())
    }

    /// Counts runs and their pages in, unless there are too many. The pages
    /// can't overflow: at most 2^25 runs have less than 2^32 pages each.
    fn add_runs(&mut self, runs: usize, pages: u64) -> Result<(), FormatError> {
        self.runs = within("runs", self.runs + runs as u64, MAX_RUNS)?;
        self.pages += pages;
        Ok(())
    }
}

fn within(what: &'static str, count: u64, limit: u64) -> Result<u64, FormatError> {
    if count > limit {
        return Err(FormatError::TooLarge { what, limit });
    }
    Ok(count)
}
