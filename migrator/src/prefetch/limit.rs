//! How many files may be open at once.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;

use super::StartError;
use super::examine::LOOKERS;
use super::read::TOGETHER;

/// Of an `add` of so many files at most, they stay open between being looked
/// at and being read, if so many may be open.
const HELD: u64 = 1 << 14;

/// Where few may be open, so many stay so.
const HELD_AT_LEAST: u64 = 64;

/// How many files stay open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// Of an `add` of at most so many.
    pub(super) files: usize,
    /// Not only until the `add` ends, but until each is read.
    pub(super) in_jobs: bool,
}

/// Raises the soft limit of open files to what the jobs need; gives how many files
/// may stay open besides.
pub(super) fn allow_open_files(jobs: u16, twice: bool) -> Result<Held, StartError> {
    let system = |verb| {
        move |error: nix::Error| StartError::System {
            verb,
            source: error.into(),
        }
    };
    let limit = Resource::RLIMIT_NOFILE;
    let (soft, hard) = getrlimit(limit).map_err(system("get the limit of open files"))?;
    // Three each: the O_PATH descriptor, while a file is being opened, and two
    // for reading. A reader's drain takes three more, and its own of the file. And
    // some for the rest of the program.
    let jobs_need = 7 * u64::from(jobs) + 3 * LOOKERS as u64 + 64;
    if jobs_need > hard {
        return Err(StartError::OpenFiles {
            jobs,
            need: jobs_need,
            limit: hard,
        });
    }
    // What is held of an `add` may stay so while the next is looked at, in jobs.
    let each = if twice { 2 } else { 1 };
    let left = (hard - jobs_need) / each;
    let in_jobs = 4 * u64::from(jobs) * TOGETHER as u64;
    let held = match left.checked_sub(in_jobs + HELD_AT_LEAST) {
        Some(more) => HELD.min(HELD_AT_LEAST + more),
        None => HELD_AT_LEAST.min(left),
    };
    let is_ample = left >= in_jobs + held;
    let wanted = jobs_need + each * (held + in_jobs);
    if wanted.min(hard) > soft {
        setrlimit(limit, wanted.min(hard), hard)
            .map_err(system("raise the limit of open files"))?;
    }
    Ok(Held {
        files: held as usize,
        in_jobs: is_ample,
    })
}

/// Has the kernel make its table of our open files large enough for so many at once,
/// while there is one thread: with more, it waits for all CPUs each time that it makes
/// the table twice as large (`expand_fdtable` in fs/file.c), 0.1 s in sum.
pub(super) fn make_room(files: usize) {
    if let (Ok(null), Ok(number)) = (File::open("/dev/null"), i32::try_from(files))
        && let Ok(high) = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(number))
    {
        // It was opened a moment ago; and if it stays open, it harms nobody.
        _ = close(high);
    }
}
