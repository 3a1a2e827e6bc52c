//! What `cargo xtask bench prefetch` measures: cold pages brought into the cache, by
//! migrator and in other ways.

pub mod arm;
pub mod shape;

use std::fs::{self, File};
use std::io;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use migrator::pagelist::{HotFile, PageIndexList};
use migrator::residency::{self, Residency};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::PAGE_SIZE;

/// Drops all pages of the files from the cache, and with them what the kernel
/// remembers of files and directories.
///
/// # Errors
/// When pages stay, or this is not root.
pub fn cool(list: &PageIndexList) -> Result<()> {
    for file in &list.files {
        let open = open(file)?;
        posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .with_context(|| format!("failed to evict {}", file.identity.path.display()))?;
    }
    fs::write("/proc/sys/vm/drop_caches", "3").context("failed to drop the caches")?;
    let stay = pages_of(list, |file| [whole(file)].into())?;
    ensure!(stay == 0, "{stay} pages stay in the cache");
    Ok(())
}

/// Reads all of the files. In a virtual machine the host takes back memory that has not
/// been used for a while, and what it has of the disk in its own cache; the next trial
/// that comes along would pay for that, whichever it is.
///
/// # Errors
/// When one can't be read.
pub fn read(list: &PageIndexList) -> Result<()> {
    for file in &list.files {
        let path = &file.identity.path;
        io::copy(&mut open(file)?, &mut io::sink())
            .with_context(|| format!("failed to read {}", path.display()))?;
    }
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

fn pages_of(list: &PageIndexList, ranges: impl Fn(&HotFile) -> Vec<Range<u64>>) -> Result<u64> {
    let mut pages = 0;
    for file in &list.files {
        match residency::resident(&open(file)?, &ranges(file)) {
            Ok(Residency::Known(found)) => {
                pages += found.iter().map(|it| it.end - it.start).sum::<u64>();
            }
            Ok(Residency::Unknown) => bail!("the kernel does not say what is resident"),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("failed to ask about {}", file.identity.path.display())
                });
            }
        }
    }
    Ok(pages)
}

fn whole(file: &HotFile) -> Range<u64> {
    0..file.identity.size.div_ceil(PAGE_SIZE as u64)
}

fn open(file: &HotFile) -> Result<File> {
    let path = &file.identity.path;
    File::open(path).with_context(|| format!("failed to open {}", path.display()))
}
