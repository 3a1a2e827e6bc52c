//! What `cargo xtask bench prefetch` measures: cold pages brought into the cache, by
//! migrator and in other ways.

pub mod arm;
pub mod shape;

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, bail, ensure};
use migrator::pagelist::{HotFile, PageIndexList};
use migrator::residency::{self, Residency};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::sync;

use crate::PAGE_SIZE;

/// So many files at most are visited at a time.
const VISITORS: usize = 16;

/// Drops all pages of the files of some lists from the cache, and with them what the
/// kernel remembers of files and directories.
///
/// # Errors
/// When pages stay, or this is not root.
pub fn cool(lists: &[&PageIndexList]) -> Result<()> {
    // What others have written is neither dropped nor written later.
    sync();
    for list in lists {
        each(list, |file| {
            let open = open(file)?;
            posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .with_context(|| format!("failed to evict {}", file.identity.path.display()))
        })?;
    }
    fs::write("/proc/sys/vm/drop_caches", "3").context("failed to drop the caches")?;
    for list in lists {
        let stay = resident(list)?;
        ensure!(stay == 0, "{stay} pages stay in the cache");
    }
    Ok(())
}

/// Reads all of the files. In a virtual machine the host takes back memory that has not
/// been used for a while, and what it has of the disk in its own cache; the next trial
/// that comes along would pay for that, whichever it is.
///
/// # Errors
/// When one can't be read.
pub fn read(list: &PageIndexList) -> Result<()> {
    each(list, |file| {
        // A system call for 8 KiB each would take seconds where processors are emulated.
        let mut reader = BufReader::with_capacity(1 << 20, open(file)?);
        io::copy(&mut reader, &mut io::sink())
            .with_context(|| format!("failed to read {}", file.identity.path.display()))?;
        Ok(())
    })
}

/// How many of the pages that the list names are in the cache.
///
/// # Errors
/// When the kernel does not tell.
pub fn asked_and_resident(list: &PageIndexList) -> Result<u64> {
    pages_of(list, |file| {
        file.runs.iter().map(|run| run.index..run.end()).collect()
    })
}

/// How many pages of the files are.
///
/// # Errors
/// When the kernel does not tell.
pub fn resident(list: &PageIndexList) -> Result<u64> {
    pages_of(list, |file| [whole(file)].into())
}

fn pages_of(
    list: &PageIndexList,
    ranges: impl Fn(&HotFile) -> Vec<Range<u64>> + Sync,
) -> Result<u64> {
    let pages = AtomicU64::new(0);
    each(list, |file| {
        let found = residency::resident(&open(file)?, &ranges(file))
            .with_context(|| format!("failed to ask about {}", file.identity.path.display()))?;
        let Residency::Known(found) = found else {
            bail!("the kernel does not say what is resident");
        };
        pages.fetch_add(found.iter().map(|it| it.end - it.start).sum(), Relaxed);
        Ok(())
    })?;
    Ok(pages.into_inner())
}

/// Visits the files of a list, several at a time: over a network each takes round trips.
fn each(list: &PageIndexList, visit: impl Fn(&HotFile) -> Result<()> + Sync) -> Result<()> {
    let part = list.files.len().div_ceil(VISITORS).max(1);
    thread::scope(|scope| {
        let parts = list.files.chunks(part);
        let visitors: Vec<_> = parts
            .map(|files| scope.spawn(|| files.iter().try_for_each(&visit)))
            .collect();
        let mut all = visitors.into_iter().map(ScopedJoinHandle::join);
        all.try_for_each(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn whole(file: &HotFile) -> Range<u64> {
    0..file.identity.size.div_ceil(PAGE_SIZE as u64)
}

fn open(file: &HotFile) -> Result<File> {
    let path = &file.identity.path;
    File::open(path).with_context(|| format!("failed to open {}", path.display()))
}
