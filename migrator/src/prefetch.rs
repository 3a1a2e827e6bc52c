//! Runs the batches of a plan: brings the pages of a list into the page cache
//! of this host.
//!
//! A [`Session`] takes files as they become known. [`Session::add`] looks at
//! them, plans, and hands batches to reading threads; it waits while they
//! have enough to do, which is the back-pressure for whoever sends the files.
//! [`prefetch`] is a session for a whole list.
//!
//! Threads, pread(2) and splice(2), not io_uring: they work on every kernel and in
//! every container, and mark pages as used as the program's own reads will.

mod drain;
mod early;
mod examine;
mod limit;
mod memory;
mod open;
mod pace;
mod pin;
mod read;
mod readers;
mod report;
mod session;
mod tally;
mod version;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pagelist::{self, Heat, PageIndexList};
use crate::pathmap::Mapping;

pub(crate) use self::open::made_up;
pub use self::report::{
    ChangedFile, Changes, FILES, Pages, Reason, Report, SCHEMA, Skipped, SkippedFile,
};
pub use self::session::Session;
pub use self::version::{Accepts, Change, Version};

/// How to prefetch.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the source's paths are on this host.
    pub maps: Vec<Mapping>,
    /// Prefetch only files below these directories, which have to be absolute
    /// and without symlinks; empty allows all.
    pub allow: Vec<PathBuf>,
    /// Paths are those of a container whose root directory this is, open:
    /// neither `..` nor a symlink leads out of it. Without it, paths are
    /// those of this process. Needs Linux 5.6 (`openat2`).
    pub root: Option<Arc<OwnedFd>>,
    /// Which files are read, of those found at the paths of the list.
    pub accepts: Accepts,
    /// The list was made on another host. The local disks of both may have the same
    /// device numbers, so only inode numbers of file servers are compared.
    pub is_foreign: bool,
    /// Read at most so many bytes, hottest first. Without it, and as a limit
    /// to it, what memory is available.
    pub budget: Option<u64>,
    /// How many threads read, at least one.
    pub jobs: u16,
    /// Read at most so many bytes per second.
    pub bandwidth: Option<u64>,
    /// Read pages of heat [`ACTIVATE`] and more twice, resident ones too, so
    /// that they land on the active list.
    pub activate: bool,
    /// Look and plan, but read nothing.
    pub dry_run: bool,
    /// Whoever sets it stops the prefetch; what is left is reported as
    /// interrupted.
    pub stop: Arc<AtomicBool>,
    /// Tells how far it is.
    pub progress: Arc<Progress>,
    /// How many of the jobs may read at once; whoever needs the disk, the
    /// network or the processors more sets it lower, also while it goes on.
    pub at_once: Arc<AtomicU16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            maps: Vec::new(),
            allow: Vec::new(),
            accepts: Accepts::default(),
            is_foreign: false,
            root: None,
            budget: None,
            jobs: 32,
            bandwidth: None,
            activate: false,
            dry_run: false,
            stop: Arc::default(),
            progress: Arc::default(),
            at_once: Arc::new(AtomicU16::new(u16::MAX)),
        }
    }
}

/// Pages this hot are activated: used more than once at the source.
pub const ACTIVATE: Heat = pagelist::ACTIVE;

/// How far a prefetch is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    planned: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Bytes done, and bytes that are to be done as far as is known.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.planned.load(Relaxed))
    }

    /// Takes over what another host says.
    pub fn set(&self, done: u64, planned: u64) {
        self.done.store(done, Relaxed);
        self.planned.store(planned, Relaxed);
    }

    fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    fn add_planned(&self, bytes: u64) {
        self.planned.fetch_add(bytes, Relaxed);
    }
}

/// Why a prefetch does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Page indexes of the list count other pages than those of this host.
    #[error("the list is of a host with pages of {list} bytes, this host's have {host}")]
    PageSize {
        /// Bytes a page in the list.
        list: u32,
        /// Bytes a page on this host.
        host: u32,
    },
    /// Files cannot be opened safely.
    #[error("failed to look into /proc/self/fd, which opening files needs: mount /proc")]
    Proc(#[source] io::Error),
    /// Each reader keeps a file open, or two of them to activate pages.
    #[error("{jobs} jobs need {need} open files and the limit is {limit}: use fewer --jobs")]
    OpenFiles {
        /// Jobs asked for.
        jobs: u16,
        /// File descriptors they need.
        need: u64,
        /// The hard limit RLIMIT_NOFILE.
        limit: u64,
    },
    /// The system gives no threads or no numbers.
    #[error("failed to {verb}")]
    System {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Prefetches a whole list.
///
/// Pages that cannot be prefetched are no error; the report tells of them.
///
/// # Errors
/// As [`Session::start`].
pub fn prefetch(list: PageIndexList, options: Options) -> Result<Report, StartError> {
    let mut session = Session::start_for(list.page_size, options, list.files.len())?;
    session.add(list.files);
    Ok(session.finish())
}

/// Where a thread has panicked with the lock, others go on all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
