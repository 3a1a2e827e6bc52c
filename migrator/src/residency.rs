//! Which pages of a file are in the page cache.
//!
//! Asked with mincore(2) on a mapping that is never touched, so the answer
//! neither brings pages in nor marks them as used. cachestat(2) needs no mapping, but
//! it only counts: where it counts none, that is the answer.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statfs::fstatfs;
use nix::unistd::{AccessFlags, faccessat};

use crate::kernel;

/// How much of a file is mapped at once, in bytes. Mapping costs address
/// space and no memory; mincore's answer takes a byte for each page.
const WINDOW: u64 = 1 << 30;

/// Ranges this close, in pages, are asked about together: looking up a page
/// that nobody asked about is cheaper than another mapping.
const NEAR: u64 = 512;

/// What is known about the pages asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Residency {
    /// These of them are resident: page indexes, sorted, neither overlapping
    /// nor adjacent. The others are not.
    Known(Vec<Range<u64>>),
    /// This process may not know, or the file system cannot tell.
    Unknown,
}

/// Which of the `asked` pages of `file` are resident, by page index. `asked`
/// has to be sorted and not overlapping.
///
/// The page cache may have changed by the time the answer is used.
///
/// The kernel tells the truth only to those who own the file (or have
/// CAP_FOWNER) or may write to it; to others mincore answers that every page
/// is resident (`can_do_mincore` in mm/mincore.c, Linux 5.2, commit
/// 134fca9063ad). This function does not ask then, and gives
/// [`Residency::Unknown`]; so it does where the file cannot be mapped.
///
/// # Errors
/// mmap or mincore failed otherwise: out of address space, or a page index
/// that no file offset can express.
pub fn resident(file: &File, asked: &[Range<u64>]) -> io::Result<Residency> {
    if asked.iter().all(Range::is_empty) {
        return Ok(Residency::Known(Vec::new()));
    }
    if !may_know(file) {
        return Ok(Residency::Unknown);
    }
    let page_size = u64::from(kernel::page_size());
    if none_is_cached(file, asked) {
        return Ok(Residency::Known(Vec::new()));
    }
    let mut found = Found::default();
    let mut answer = Vec::new();
    let mut rest = asked;
    let mut start = rest[0].start;
    while let Some(first) = rest.first() {
        start = start.max(first.start);
        if start >= first.end {
            rest = &rest[1..];
            continue;
        }
        let end = cluster_end(start, rest, WINDOW / page_size);
        match residents(file, start..end, page_size, &mut answer) {
            Err(Errno::ENODEV) => return Ok(Residency::Unknown),
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        while let Some(next) = rest.first()
            && next.start < end
        {
            let part = next.start.max(start)..next.end.min(end);
            for page in part {
                if answer[(page - start) as usize] & 1 == 1 {
                    found.push(page);
                }
            }
            if next.end > end {
                break;
            }
            rest = &rest[1..];
        }
        start = end;
    }
    Ok(Residency::Known(found.0))
}

/// Whether cachestat(2) counts no page from the first to the last of `ranges`. It takes
/// no mapping, for which the threads that look at many files would queue up. Where it is
/// missing or fails mincore is asked: who comes here may know the answer.
fn none_is_cached(file: &File, ranges: &[Range<u64>]) -> bool {
    match (ranges.first(), ranges.last()) {
        (Some(first), Some(last)) => count(file, first.start..last.end) == Some(0),
        _ => true,
    }
}

/// Returns how many of these pages of `file` are resident, as cachestat(2) counts them.
/// Nothing where the kernel does not count: before Linux 6.5, of files whose residency
/// it hides, and on file systems whose files have their pages elsewhere.
pub fn count(file: &File, pages: Range<u64>) -> Option<u64> {
    /// Of `struct cachestat`, all counts of pages: those that are in the cache.
    const CACHED: usize = 0;
    /// The number is the same on all architectures that migrator runs on.
    const CACHESTAT: libc::c_long = 451;
    let page_size = u64::from(kernel::page_size());
    let length = pages.end.saturating_sub(pages.start);
    // A length of 0 would stand for the rest of the file.
    if length == 0 {
        return Some(0);
    }
    // `struct cachestat_range`: where it begins, and how long it is.
    let range = [
        pages.start.checked_mul(page_size)?,
        length.checked_mul(page_size)?,
    ];
    let mut counts = [0_u64; 5];
    // SAFETY: the kernel reads two numbers and writes five.
    let done = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    match counts[CACHED] {
        _ if done != 0 => None,
        0 if has_pages_elsewhere(file) => None,
        cached => Some(cached),
    }
}

/// Returns whether the pages of a file may belong to a file of another file system, of
/// which cachestat(2) counts none and mincore(2) all.
fn has_pages_elsewhere(file: &File) -> bool {
    /// overlayfs, and FUSE with passthrough.
    const STACKED: [u32; 2] = [0x794c_7630, 0x6573_5546];
    /// The answers by `st_dev`: over a network, asking takes a round trip.
    static KNOWN: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());
    let Ok(device) = file.metadata().map(|meta| meta.dev()) else {
        return true;
    };
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(answer) = known().get(&device) {
        return *answer;
    }
    // The type's width differs between C libraries; the numbers fit into 32.
    let is_stacked =
        fstatfs(file).is_ok_and(|stat| STACKED.contains(&(stat.filesystem_type().0 as u32)));
    known().insert(device, is_stacked);
    is_stacked
}

/// The end of the pages to ask about together, beginning at `start`, which
/// lies in the first of `ranges`.
fn cluster_end(start: u64, ranges: &[Range<u64>], window: u64) -> u64 {
    let mut end = ranges[0].end;
    for next in &ranges[1..] {
        if next.start.saturating_sub(end) > NEAR || end - start >= window {
            break;
        }
        end = end.max(next.end);
    }
    end.min(start.saturating_add(window))
}

/// Sorted page ranges, built page by page.
#[derive(Default)]
struct Found(Vec<Range<u64>>);

impl Found {
    fn push(&mut self, page: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => self.0.push(page..page + 1),
        }
    }
}

/// Whether mincore tells this thread the truth about the file.
///
/// The kernel grants O_NOATIME by the very check that mincore makes for
/// owners (`inode_owner_or_capable`), user namespaces included; so a file
/// that can be opened so, or is open so, is one that we own.
fn may_know(file: &File) -> bool {
    let open_so = fcntl(file, FcntlArg::F_GETFL)
        .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_NOATIME));
    let path = fd_path(file);
    open_so
        || OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOATIME | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .is_ok()
        || may_write(&path)
}

fn may_write(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

fn fd_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Fills `answer` with a byte for each of the pages: bit 0 says resident.
fn residents(
    file: &File,
    pages: Range<u64>,
    page_size: u64,
    answer: &mut Vec<u8>,
) -> nix::Result<()> {
    let window = Window::map(file, pages.start, pages.end - pages.start, page_size)?;
    answer.clear();
    answer.resize((pages.end - pages.start) as usize, 0);
    loop {
        // SAFETY: the window maps exactly answer.len() pages, and the kernel
        // writes one byte for each of them.
        let done =
            unsafe { libc::mincore(window.start.as_ptr(), window.len.get(), answer.as_mut_ptr()) };
        match Errno::result(done) {
            // The kernel is short of memory for the moment; mincore(2) says
            // to try again.
            Err(Errno::EAGAIN) => {}
            other => return other.map(drop),
        }
    }
}

/// A part of a file mapped for mincore; nothing ever reads through it, so a
/// file that shrinks meanwhile does no harm.
struct Window {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Window {
    fn map(file: &File, first: u64, pages: u64, page_size: u64) -> nix::Result<Self> {
        let offset = first
            .checked_mul(page_size)
            .and_then(|offset| i64::try_from(offset).ok())
            .ok_or(Errno::EOVERFLOW)?;
        let len = usize::try_from(pages * page_size)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or(Errno::EINVAL)?;
        // SAFETY: the kernel chooses an address that is free, so no existing
        // memory is touched.
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                offset,
            )
        }?;
        Ok(Self { start, len })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, nobody else knows of it and
        // no reference into it exists.
        let unmapped = unsafe { munmap(self.start, self.len.get()) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of a window of our own");
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are the answer")]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of our own with this many pages, just written: all resident.
    fn written(pages: usize) -> (tempfile::NamedTempFile, u64) {
        let page_size = kernel::page_size();
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(&vec![1; pages * page_size as usize])
            .expect("write");
        (file, u64::from(page_size))
    }

    #[test]
    fn what_was_just_written_is_resident() {
        let (file, _) = written(40);
        let answer = resident(file.as_file(), &[3..5, 5..6, 20..40]).expect("ask");
        assert_eq!(answer, Residency::Known(vec![3..6, 20..40]));
    }

    #[test]
    fn pages_that_were_never_there_are_not() {
        let (file, page_size) = written(8);
        // A hole, far behind, of more than one window.
        file.as_file().set_len(page_size << 20).expect("grow");
        let asked = [6..7, 100..101, 700_000..700_001, 900_000..(1 << 20)];
        let answer = resident(file.as_file(), &asked).expect("ask");
        assert_eq!(answer, Residency::Known(vec![6..7]));
        let whole = resident(file.as_file(), &[0..1 << 20]).expect("ask");
        assert_eq!(whole, Residency::Known(vec![0..8]));
    }

    #[test]
    fn asking_for_nothing_and_for_nonsense() {
        let (file, _) = written(1);
        let none = resident(file.as_file(), &[]).expect("ask");
        assert_eq!(none, Residency::Known(vec![]));
        let range = [u64::MAX - 3..u64::MAX];
        let error = resident(file.as_file(), &range).expect_err("no such offset");
        assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
    }

    #[test]
    fn who_may_not_write_does_not_know() {
        // Root may know everything; tests/tests/prefetch.rs has that case.
        let file = File::open("/proc/self/exe").expect("open ourselves");
        assert!(may_know(&file), "we built this file, so we own it");
        let file = File::open("/etc/passwd").expect("open");
        assert_eq!(may_know(&file), nix::unistd::geteuid().is_root());
    }

    #[test]
    fn clusters_join_what_is_near_and_end_at_the_window() {
        assert_eq!(cluster_end(0, &[0..1, 10..20, 600..601], 1000), 20);
        assert_eq!(cluster_end(0, &[0..1, 10..20, 500..501], 1000), 501);
        assert_eq!(cluster_end(5, &[0..10, 20..5000], 1000), 1005);
        assert_eq!(cluster_end(0, &[0..9000], 1000), 1000);
    }
}
