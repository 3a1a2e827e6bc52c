//! What `cargo xtask bench prefetch` measures: cold pages brought into the cache, by
//! migrator and in other ways.

pub mod arm;
pub mod shape;

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use migrator::pagelist::{HotFile, PageIndexList};
use migrator::residency::{self, Residency};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::major;
use nix::unistd::sync;

use crate::PAGE_SIZE;

/// So many files at most are visited at a time.
const VISITORS: usize = 16;

/// Drops all pages of the files of some lists from the cache, and with them what the
/// kernel remembers of files and directories; on a disk its blocks as well, which takes
/// the pages of everybody.
///
/// Programs stay in the cache where files come over a network, as in a virtual machine
/// whose processors are emulated: of a page that has had code, QEMU forgets piece by
/// piece what it has translated, when it is written to, which takes seconds. It would be
/// whoever comes next who reads into the pages of the program that went, and fio's are
/// the most.
///
/// # Errors
/// When pages stay, or this is not root.
pub fn cool(lists: &[&PageIndexList]) -> Result<()> {
    // What others have written is neither dropped nor written later.
    sync();
    for list in lists {
        each(&list.files, |file| {
            let open = open(file)?;
            posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .with_context(|| format!("failed to evict {}", file.identity.path.display()))
        })?;
    }
    let what = if lists.iter().any(|list| is_on_disk(list)) {
        "3"
    } else {
        "2"
    };
    fs::write("/proc/sys/vm/drop_caches", what).context("failed to drop the caches")?;
    for list in lists {
        let stay = resident(list)?;
        ensure!(stay == 0, "{stay} pages stay in the cache");
    }
    Ok(())
}

/// Whether files of the list are on a disk of this host, and not all on a network.
pub fn is_on_disk(list: &PageIndexList) -> bool {
    let mut files = list.files.iter();
    files.any(|file| major(file.identity.device) != 0)
}

/// Reads all of the files. In a virtual machine the host takes back memory that has not
/// been used for a while, and what it has of the disk in its own cache; the next trial
/// that comes along would pay for that, whichever it is.
///
/// # Errors
/// When one can't be read.
pub fn read(list: &PageIndexList) -> Result<()> {
    each(&list.files, |file| {
        // A system call for 8 KiB each would take seconds where processors are emulated.
        let mut reader = BufReader::with_capacity(1 << 20, open(file)?);
        io::copy(&mut reader, &mut io::sink())
            .with_context(|| format!("failed to read {}", file.identity.path.display()))?;
        Ok(())
    })?;
    Ok(())
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
    let pages = each(&list.files, |file| {
        let found = residency::resident(&open(file)?, &ranges(file))
            .with_context(|| format!("failed to ask about {}", file.identity.path.display()))?;
        let Residency::Known(found) = found else {
            bail!("the kernel does not say what is resident");
        };
        Ok(found.iter().map(|it| it.end - it.start).sum::<u64>())
    })?;
    Ok(pages.iter().sum())
}

/// Visits files, several at a time, for over a network each takes round trips. What
/// comes of them is in their order.
fn each<F: Sync, T: Send>(files: &[F], visit: impl Fn(&F) -> Result<T> + Sync) -> Result<Vec<T>> {
    let part = files.len().div_ceil(VISITORS).max(1);
    let visit = &|files: &[F]| files.iter().map(&visit).collect::<Result<Vec<T>>>();
    thread::scope(|scope| {
        let visitors: Vec<_> = files
            .chunks(part)
            .map(|files| scope.spawn(move || visit(files)))
            .collect();
        let mut all = Vec::with_capacity(files.len());
        for visitor in visitors {
            all.extend(
                visitor
                    .join()
                    .unwrap_or_else(|panic| resume_unwind(panic))?,
            );
        }
        Ok(all)
    })
}

fn whole(file: &HotFile) -> Range<u64> {
    0..file.identity.size.div_ceil(PAGE_SIZE as u64)
}

fn open(file: &HotFile) -> Result<File> {
    let path = &file.identity.path;
    File::open(path).with_context(|| format!("failed to open {}", path.display()))
}
