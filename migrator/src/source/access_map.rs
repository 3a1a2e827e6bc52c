//! Userspace's view of the access map: the only place that touches memory
//! which eBPF programs write at the same time.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use migrator_common::access::{ChunkBits, ChunkKey, PROCESS_PAGE, ProcessPage, Sides, WordBits};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map, shared with the programs.
#[derive(Debug)]
struct Shared<T> {
    entries: NonNull<T>,
    count: usize,
}

// SAFETY: the memory is shared with the kernel anyway; it is accessed through
// atomics, or while nobody else writes it.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    fn map(fd: impl AsFd, count: u32) -> io::Result<Self> {
        let count = count as usize;
        let bytes = NonZeroUsize::new(count * size_of::<T>())
            .ok_or_else(|| io::Error::other("an empty map"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self {
            entries: start.cast(),
            count,
        })
    }

    /// A pointer to an entry.
    fn entry(&self, index: usize) -> *mut T {
        assert!(index < self.count, "entry {index} of {}", self.count);
        // SAFETY: inside the mapping, which the assertion makes sure of.
        unsafe { self.entries.as_ptr().add(index) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`, of which no reference is left.
        // It can only fail for a wrong address.
        let _ = unsafe { munmap(self.entries.cast(), self.count * size_of::<T>()) };
    }
}

/// The access map.
#[derive(Debug)]
pub struct AccessMap {
    keys: Shared<ChunkKey>,
    bits: Shared<ChunkBits>,
    sides: Shared<Sides>,
    /// Chunks on one side of a map.
    chunks: u32,
    /// One, or one per CPU.
    maps: u32,
}

impl AccessMap {
    /// Maps the three arrays; `chunks` is the size of one side, of each of so
    /// many `maps`.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(
        keys: impl AsFd,
        bits: impl AsFd,
        sides: impl AsFd,
        chunks: u32,
        maps: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            keys: Shared::map(keys, 2 * chunks * maps)?,
            bits: Shared::map(bits, 2 * chunks * maps)?,
            sides: Shared::map(sides, maps)?,
            chunks,
            maps,
        })
    }

    /// Lets the programs write to the other side, and gives what is on the one
    /// they wrote to so far, which is empty afterwards.
    ///
    /// # Errors
    /// Where it can't be known that the programs have left the side.
    pub fn drain(&self, mut each: impl FnMut(ChunkKey, &ChunkBits)) -> io::Result<()> {
        let sides = self.sides.entry(0);
        // SAFETY: the programs only read this word.
        let written = unsafe { AtomicU64::from_ptr(&raw mut (*sides).written) };
        let side = written.load(Ordering::Relaxed) as usize & 1;
        written.store(side as u64 ^ 1, Ordering::SeqCst);
        wait_for_programs()?;

        for map in 0..self.maps as usize {
            let start = (2 * map + side) * self.chunks as usize;
            for index in start..start + self.chunks as usize {
                let (key, bits) = (self.keys.entry(index), self.bits.entry(index));
                // SAFETY: no program is left that could use this side.
                unsafe {
                    if (*key).inode != 0 {
                        each(*key, &*bits);
                        *bits = ChunkBits {
                            words: [WordBits::default(); _],
                        };
                        *key = ChunkKey::default();
                    }
                }
            }
            // SAFETY: as above.
            unsafe { (*self.sides.entry(map)).taken[side] = 0 };
        }
        Ok(())
    }
}

/// Waits until every program that may still use the side it found has ended.
///
/// The programs run as RCU readers, and `MEMBARRIER_CMD_GLOBAL` waits for a
/// grace period (membarrier(2)).
fn wait_for_programs() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: a system call without pointers.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        // With nohz_full there is no such command. A program takes less than
        // a millisecond, unless its task is preempted.
        error if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            std::thread::sleep(std::time::Duration::from_millis(50));
            Ok(())
        }
        error => Err(error),
    }
}

/// The table of the processes that are observed.
#[derive(Debug)]
pub(super) struct ProcessTable(Shared<ProcessPage>);

impl ProcessTable {
    /// Maps the table; `pages` as it was created.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(super) fn new(fd: impl AsFd, pages: u32) -> io::Result<Self> {
        Shared::map(fd, pages).map(Self)
    }

    /// Observes a process. Gives whether it was not observed before.
    pub(super) fn insert(&self, process: u32) -> bool {
        let process = process as usize;
        let page = self.0.entry(process / PROCESS_PAGE);
        // SAFETY: one byte, which the programs write as one byte too.
        let wanted = unsafe { AtomicU8::from_ptr(&raw mut (*page).wanted[process % PROCESS_PAGE]) };
        wanted.swap(1, Ordering::SeqCst) == 0
    }

    /// The processes that are observed, ended ones that nobody waited for
    /// included.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for index in 0..self.0.count {
            let page = self.0.entry(index);
            for slot in 0..PROCESS_PAGE {
                // SAFETY: one byte, which the programs write as one byte too.
                let wanted = unsafe { AtomicU8::from_ptr(&raw mut (*page).wanted[slot]) };
                if wanted.load(Ordering::Relaxed) != 0 {
                    found.push((index * PROCESS_PAGE + slot) as u32);
                }
            }
        }
        found
    }
}
