//! What the LRU knows of the pages of a file, without anything in the kernel.
//!
//! A mapping of the file gives, through `/proc/self/pagemap`, the page frame
//! of each resident page, and `/proc/kpageflags` the flags of the frame
//! (Documentation/admin-guide/mm/pagemap.rst). The scan leaves things as it
//! finds them:
//! - Residency: only pages that mincore(2) calls resident are touched, under
//!   `MADV_RANDOM`, which switches readahead off for faults. A page that is
//!   evicted in between is read again, alone. `MADV_NOHUGEPAGE` keeps
//!   khugepaged away: on newer kernels (seen with 7.3) it takes a mapping of
//!   which a few pages are resident as a reason to read in the huge page.
//! - Flags: a fault marks nothing, but unmapping a page that was touched
//!   counts as an access, unless the mapping is one of sequential or (since
//!   Linux 6.3, `vma_has_recency`) random access. So it is made sequential
//!   right before it goes.
//!
//! What the flags don't tell: a page used through a mapping that still stands
//! looks unused until the mapping goes or reclaim has come by, since the use
//! is only in the page table of the process.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use crate::kernel;
use crate::residency;

/// How much of a file is mapped at once.
const WINDOW: u64 = 256 << 20;

/// Pages around one that is touched which the kernel maps along with it, if they are
/// resident: `fault_around_bytes` (mm/memory.c) as it is without debugfs.
const FAULT_AROUND_PAGES: usize = 16;

/// Frames this close are asked about together: the flags of those in between
/// cost less than another system call.
const NEAR: u64 = 16;

/// The largest folio of the page cache: a huge page of x86.
const MAX_FOLIO_PAGES: u64 = 512;

/// `UIO_MAXIOV`: how many places one writev(2) takes.
const MAX_PLACES: usize = 1024;

// Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h).
const REFERENCED: u64 = 1 << 2;
const ACTIVE: u64 = 1 << 6;
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;

// Bits of /proc/PID/pagemap.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Of include/uapi/linux/mempolicy.h.
const MPOL_MF_MOVE: i32 = 1 << 1;

/// CAP_FOWNER of include/uapi/linux/capability.h.
const CAP_FOWNER: u32 = 3;

/// What the LRU knows of a resident page. Neither: it was read ahead, and
/// never used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PageState {
    /// Used since it came, or since it was last moved in its list.
    pub referenced: bool,
    /// On the active list: used more than once. /proc shows it under the
    /// multi-generational LRU, too, where it means nothing.
    pub active: bool,
}

/// Neighbouring resident pages of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateRun {
    /// Index of the first page, in pages of the kernel.
    pub index: u64,
    /// How many.
    pub pages: u64,
    /// The state of each.
    pub state: PageState,
}

/// Why page flags can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PageFlagsError {
    /// The kernel does not have them.
    #[error("{0}")]
    NotSupported(String),
    /// They are for root.
    #[error("{0}")]
    NotPermitted(String),
    /// Something else failed.
    #[error("failed to {verb}")]
    Failed {
        /// What was tried, on what.
        verb: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// The open files that page flags are read through.
#[derive(Debug)]
pub struct PageFlags {
    kpageflags: File,
    pagemap: File,
    /// Takes the bytes of pages that are touched.
    sink: File,
    page_size: u64,
}

impl PageFlags {
    /// Opens what is needed below `proc_root`, `/proc`.
    ///
    /// # Errors
    /// Says apart what the kernel does not have and what it does not permit.
    pub fn open(proc_root: &Path) -> Result<Self, PageFlagsError> {
        let open = |name: &str| {
            let path = proc_root.join(name);
            File::open(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => PageFlagsError::NotSupported(format!(
                    "there is no {}: the kernel is built without CONFIG_PROC_PAGE_MONITOR",
                    path.display()
                )),
                io::ErrorKind::PermissionDenied => PageFlagsError::NotPermitted(format!(
                    "failed to open {}: only root may (CAP_SYS_ADMIN)",
                    path.display()
                )),
                _ => failed(format!("open {}", path.display()), source),
            })
        };
        let kpageflags = open("kpageflags")?;
        let pagemap = open("self/pagemap")?;
        // Without it, mincore says "resident" of every page of files that
        // belong to others, and touching them would read them all.
        if !has_capability(proc_root, CAP_FOWNER) {
            return Err(PageFlagsError::NotPermitted(
                "mincore(2) tells the residency of other users' files only with CAP_FOWNER".into(),
            ));
        }
        let sink = memfd_create(c"migrator", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| failed("make a memfd".into(), errno.into()))?;
        Ok(Self {
            kpageflags,
            pagemap,
            sink: sink.into(),
            page_size: kernel::page_size().into(),
        })
    }

    /// Bytes a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// The states of the resident pages of a file, which has to be open for
    /// reading; of its first `size` bytes.
    ///
    /// # Errors
    /// `NotPermitted` when the kernel hides page frames from us.
    pub fn scan(&self, file: &File, size: u64) -> Result<Vec<StateRun>, PageFlagsError> {
        self.scan_part(file, 0..size)
    }

    /// The same of a part of the file, in bytes; it begins where a page does.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn scan_part(
        &self,
        file: &File,
        part: Range<u64>,
    ) -> Result<Vec<StateRun>, PageFlagsError> {
        let mut runs: Vec<StateRun> = Vec::new();
        for Range { start, end } in Occupied::new(file, part, self.page_size) {
            let bytes = end - start;
            let window = Window::map(file, start, bytes, self.page_size)
                .map_err(|errno| failed("map the file".into(), errno.into()))?;
            let resident = window
                .resident()
                .map_err(|source| failed("ask mincore about the file".into(), source))?;
            let frames = self.frames(&window, &resident)?;
            self.states(&frames, |page, state| {
                let index = start / self.page_size + page;
                match runs.last_mut() {
                    Some(run) if run.index + run.pages == index && run.state == state => {
                        run.pages += 1;
                    }
                    _ => runs.push(StateRun {
                        index,
                        pages: 1,
                        state,
                    }),
                }
            })?;
        }
        Ok(runs)
    }

    /// Page frames of the window's resident pages, by page. Pages that went
    /// in the meantime are left out.
    fn frames(
        &self,
        window: &Window,
        resident: &[bool],
    ) -> Result<Vec<(u64, u64)>, PageFlagsError> {
        // A fault maps the resident pages around it, too.
        let around = resident.chunks(FAULT_AROUND_PAGES);
        let firsts = around.enumerate().filter_map(|(number, pages)| {
            let first = pages.iter().position(|resident| *resident)?;
            Some(number * FAULT_AROUND_PAGES + first)
        });
        let touch = |pages: &mut dyn Iterator<Item = usize>| {
            let touched = window.touch(pages, &self.sink);
            touched.map_err(|source| failed("touch pages of the file".into(), source))
        };
        touch(&mut firsts.into_iter())?;
        let first = window.address() / self.page_size;
        let read = || {
            read_words(&self.pagemap, first, resident.len())
                .map_err(|source| failed("read /proc/self/pagemap".into(), source))
        };
        let mut entries = read()?;
        // But not all of them: those with the readahead mark, for instance, are left out.
        let is_missing = |page: &usize| resident[*page] && entries[*page] & PRESENT == 0;
        let missing: Vec<usize> = (0..entries.len()).filter(is_missing).collect();
        if !missing.is_empty() {
            touch(&mut missing.into_iter())?;
            entries = read()?;
        }
        let frames: Vec<_> = (0..)
            .zip(entries)
            .zip(resident)
            .filter(|((_, entry), resident)| **resident && entry & PRESENT != 0)
            .map(|((page, entry), _)| (page, entry & FRAME))
            .collect();
        // Frame 0 is never one of the page cache.
        if frames.iter().any(|(_, frame)| *frame == 0) {
            return Err(PageFlagsError::NotPermitted(
                "/proc/self/pagemap hides page frames: showing them needs CAP_SYS_ADMIN in the initial user namespace"
                    .into(),
            ));
        }
        Ok(frames)
    }

    /// Tells the state of each page, in the order of pages. Flags are read in
    /// the order of frames, near ones at once: pages that came in one by one
    /// lie anywhere in memory, often just the other way round.
    fn states(
        &self,
        frames: &[(u64, u64)],
        mut tell: impl FnMut(u64, PageState),
    ) -> Result<(), PageFlagsError> {
        let mut sorted = frames.to_vec();
        sorted.sort_unstable_by_key(|(_, frame)| *frame);
        let mut states = Vec::with_capacity(frames.len());
        for batch in sorted.chunk_by(|(_, frame), (_, next)| next - frame <= NEAR) {
            let [(_, first), ..] = batch else {
                continue;
            };
            let last = batch.last().map_or(*first, |(_, frame)| *frame);
            let flags = self.flags(*first, (last - first + 1) as usize)?;
            let mut head = match flags.first() {
                Some(flags) if flags & COMPOUND_TAIL != 0 => self.head_of(*first)?,
                _ => 0,
            };
            let mut pages = batch.iter().peekable();
            for (frame, flags) in (*first..).zip(flags) {
                // The flags are those of the folio. Before Linux 6.10
                // (dee3d0bef2b0) only its head shows them.
                if flags & COMPOUND_TAIL == 0 {
                    head = flags;
                }
                while let Some((page, _)) = pages.next_if(|(_, its)| *its == frame) {
                    states.push((*page, state(head)));
                }
            }
        }
        states.sort_unstable_by_key(|(page, _)| *page);
        for (page, state) in states {
            tell(page, state);
        }
        Ok(())
    }

    /// The flags of the head of the folio that a tail page is of. Folios lie
    /// on multiples of their size.
    fn head_of(&self, frame: u64) -> Result<u64, PageFlagsError> {
        let first = frame - frame % MAX_FOLIO_PAGES;
        let flags = self.flags(first, (frame - first) as usize)?;
        let head = flags.into_iter().rfind(|flags| flags & COMPOUND_HEAD != 0);
        Ok(head.unwrap_or_default())
    }

    fn flags(&self, frame: u64, count: usize) -> Result<Vec<u64>, PageFlagsError> {
        read_words(&self.kpageflags, frame, count)
            .map_err(|source| failed("read /proc/kpageflags".into(), source))
    }
}

/// Has the kernel finish what it put off: activations wait in batches of some
/// 15 to 31 folios for each CPU, and a page in one shows no flag at all.
///
/// There is no call for just that. move_pages(2), asked to move no page,
/// begins with it (`lru_cache_disable`, before 5.13 `migrate_prep`). Returns
/// whether the kernel knows the call; without it (CONFIG_NUMA), some pages
/// that were used last may look unused.
pub fn drain_batches() -> bool {
    let nodes = 0_i32;
    // SAFETY: with a count of 0, nothing behind any of the pointers is read
    // or written; `nodes` is only compared with null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0_i32,
            0_usize,
            std::ptr::null::<*const u8>(),
            &raw const nodes,
            std::ptr::null_mut::<i32>(),
            MPOL_MF_MOVE,
        )
    };
    result == 0
}

fn state(flags: u64) -> PageState {
    PageState {
        referenced: flags & REFERENCED != 0,
        active: flags & ACTIVE != 0,
    }
}

fn failed(verb: String, source: io::Error) -> PageFlagsError {
    PageFlagsError::Failed { verb, source }
}

/// Whether our effective capabilities include this one.
fn has_capability(proc_root: &Path, capability: u32) -> bool {
    fs::read_to_string(proc_root.join("self/status"))
        .ok()
        .and_then(|status| {
            let set = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(set.trim(), 16).ok()
        })
        .is_some_and(|set| set >> capability & 1 == 1)
}

/// Reads an array of 64-bit words from the `first` one on.
fn read_words(file: &File, first: u64, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, first * 8)?;
    let (words, _) = bytes.as_chunks();
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

/// The parts of a file, in bytes, that have pages in the page cache: a sparse file of
/// any size takes no longer than what is cached of it.
struct Occupied<'a> {
    file: &'a File,
    left: Range<u64>,
    page_size: u64,
}

impl<'a> Occupied<'a> {
    fn new(file: &'a File, part: Range<u64>, page_size: u64) -> Self {
        Self {
            file,
            left: part,
            page_size,
        }
    }
}

impl Iterator for Occupied<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let mut bytes = WINDOW;
        while !self.left.is_empty() {
            let start = self.left.start;
            let end = start.saturating_add(bytes).min(self.left.end);
            let pages = start / self.page_size..end.div_ceil(self.page_size);
            match residency::count(self.file, pages) == Some(0) {
                true => {
                    self.left.start = end;
                    bytes = bytes.saturating_mul(2);
                }
                false if bytes > WINDOW => bytes = WINDOW,
                false => {
                    self.left.start = end;
                    return Some(start..end);
                }
            }
        }
        None
    }
}

/// A mapping of a part of a file.
struct Window {
    start: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
    page_size: u64,
}

impl Window {
    fn map(file: &File, start: u64, bytes: u64, page_size: u64) -> nix::Result<Self> {
        let bytes = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(start).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice, which
        // nothing refers to; it is never read by ourselves, see `touch`.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                offset,
            )
        }?;
        let window = Self {
            start,
            bytes,
            page_size,
        };
        window.advise(MmapAdvise::MADV_RANDOM)?;
        match window.advise(MmapAdvise::MADV_NOHUGEPAGE) {
            // A kernel without huge pages does not know the advice.
            Ok(()) | Err(Errno::EINVAL) => Ok(window),
            Err(errno) => Err(errno),
        }
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn pages(&self) -> usize {
        self.bytes.get().div_ceil(self.page_size as usize)
    }

    fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is exactly the mapping we own, and this advice
        // changes no content.
        unsafe { madvise(self.start, self.bytes.get(), advice) }
    }

    /// Which pages are in the page cache.
    fn resident(&self) -> io::Result<Vec<bool>> {
        let mut states = vec![0_u8; self.pages()];
        // SAFETY: the range is the mapping we own, and mincore writes a byte
        // for each of its pages, for which `states` has room.
        let result =
            unsafe { libc::mincore(self.start.as_ptr(), self.bytes.get(), states.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(states.iter().map(|state| state & 1 == 1).collect())
    }

    /// Has pages mapped, which have to be resident. The kernel reads a byte of each for us, into
    /// the sink: a page that was cut off the file meanwhile, or fails to be
    /// read, is an `EFAULT` then, where our own reading would be a SIGBUS.
    fn touch(&self, pages: &mut dyn Iterator<Item = usize>, sink: &File) -> io::Result<()> {
        let places: Vec<_> = pages
            .map(|page| libc::iovec {
                iov_base: self
                    .start
                    .as_ptr()
                    .wrapping_byte_add(page * self.page_size as usize),
                iov_len: 1,
            })
            .collect();
        let mut rest = places.as_slice();
        while !rest.is_empty() {
            let count = rest.len().min(MAX_PLACES);
            // SAFETY: `rest` has `count` places, each of a byte in the mapping
            // we own; the kernel copes with those that can't be read.
            let copied =
                unsafe { libc::pwritev(sink.as_raw_fd(), rest.as_ptr(), count as libc::c_int, 0) };
            let done = match usize::try_from(copied) {
                Ok(copied) => copied,
                Err(_) => match Errno::last() {
                    Errno::EFAULT => 0,
                    Errno::EINTR => continue,
                    errno => return Err(errno.into()),
                },
            };
            // It stops before a page that can't be read: leave that one out.
            let skip = if done < count { done + 1 } else { done };
            rest = &rest[skip..];
        }
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Neither can fail on a mapping that is ours; if one does, there is
        // nothing left to be done about it.
        let _ = self.advise(MmapAdvise::MADV_SEQUENTIAL);
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_supported() {
        let proc = tempfile::tempdir().expect("a directory");
        assert!(matches!(
            PageFlags::open(proc.path()),
            Err(PageFlagsError::NotSupported(_))
        ));
    }

    /// Recorded flags: a large folio whose tails show nothing (Linux 6.1),
    /// one whose tails do (6.18), and a single page.
    #[test]
    fn tails_have_the_flags_of_their_head() {
        let dir = tempfile::tempdir().expect("a directory");
        let tail = COMPOUND_TAIL;
        let flags = [
            COMPOUND_HEAD | REFERENCED,
            tail,
            tail,
            tail,
            COMPOUND_HEAD | ACTIVE,
            tail | ACTIVE,
            REFERENCED | ACTIVE,
            0,
        ];
        let bytes: Vec<u8> = flags
            .iter()
            .flat_map(|word: &u64| word.to_ne_bytes())
            .collect();
        let path = dir.path().join("kpageflags");
        fs::write(&path, bytes).expect("a file");
        let open = || File::open(&path).expect("the file");
        let page_flags = PageFlags {
            kpageflags: open(),
            pagemap: open(),
            sink: open(),
            page_size: 4096,
        };
        // Pages 20 and 21 begin in the middle of the first folio.
        let frames = [
            (10, 6),
            (11, 7),
            (20, 2),
            (21, 3),
            (22, 4),
            (23, 5),
            (30, 1),
        ];
        let mut told = Vec::new();
        page_flags
            .states(&frames, |page, state| {
                told.push((page, state.referenced, state.active));
            })
            .expect("states");
        assert_eq!(
            told,
            [
                (10, true, true),
                (11, false, false),
                (20, true, false),
                (21, true, false),
                (22, false, true),
                (23, false, true),
                (30, true, false),
            ]
        );
    }

    #[test]
    fn capabilities_are_read_from_status() {
        let proc = tempfile::tempdir().expect("a directory");
        fs::create_dir(proc.path().join("self")).expect("a directory");
        let status = proc.path().join("self/status");
        fs::write(&status, "Name:\tx\nCapEff:\t0000000000000008\n").expect("a file");
        assert!(has_capability(proc.path(), CAP_FOWNER));
        fs::write(&status, "Name:\tx\nCapEff:\t0000000000000007\n").expect("a file");
        assert!(!has_capability(proc.path(), CAP_FOWNER));
    }
}
