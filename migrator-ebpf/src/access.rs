//! Marks pages in the access map.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use migrator_common::access::{
    CHUNK_PAGES, CHUNK_WORDS, CURSORS, ChunkBits, ChunkKey, Cursor, PROBES, Sides, WordBits,
};
use migrator_common::event::{Counters, Event, FileKey, HALF_FULL, NEW_FILE};

use crate::atomic;
use crate::config::config;
use crate::inode::Inode;
use crate::maps::{CHUNK_BITS, CHUNK_KEYS, COUNTERS, CURSOR_TABLE, EVENTS, FILES, SIDES};

/// Chunks that one report of a read can mark. It is for at most one batch of 31
/// folios of 512 pages each before the next report comes, which is 31 chunks
/// and one more for a start in the middle of a chunk.
pub(crate) const BATCH: u32 = 32;
/// The same for a folio: at most 2^11 pages (EXT4_MAX_PAGECACHE_ORDER), and
/// aligned to its size.
pub(crate) const FOLIO: u32 = 4;
/// The same for fault-around: at most a page table's 512 pages, anywhere.
pub(crate) const PAGE_TABLE: u32 = 2;
/// The same for one page.
pub(crate) const ONE_PAGE: u32 = 1;

/// When a page that is already marked counts as used again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// In another request than the thread's latest one of this file.
    Request,
    /// As for a request; it may make the file grow.
    Write,
    /// Always: a page that is mapped already causes no report.
    Mapping,
}

/// Marks the pages `index..=last`, as far as the file reaches, in at most so
/// many `chunks`. That is a constant for each program, and the smaller it is
/// the sooner the verifier is done: it follows the loop round by round.
#[inline(always)]
pub(crate) fn access(inode: &Inode, index: u64, last: u64, kind: Again, chunks: u32) {
    let pages = inode.pages();
    // A write beyond the end of the file comes before the file has grown.
    let last = if kind == Again::Write || last < pages {
        last
    } else {
        pages.wrapping_sub(1)
    };
    if pages == 0 && kind != Again::Write || index > last {
        return;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry of the map.
    unsafe { (*counters).accesses += 1 };

    let mut first = index;
    let mut quiet = false;
    if kind != Again::Mapping {
        let owner = inode.mixed() ^ bpf_get_current_pid_tgid().rotate_left(24);
        let Some(cursor) = CURSOR_TABLE
            .get_ptr_mut((owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u32 & (CURSORS - 1))
        else {
            return;
        };
        // SAFETY: an entry of the map. Another thread with the same hash may
        // write it at the same time; the worst is a page counted twice.
        let cursor: &mut Cursor = unsafe { &mut *cursor };
        if cursor.owner == owner {
            if cursor.last == last && index > cursor.index {
                first = index.max(cursor.marked);
                // SAFETY: as above.
                unsafe { (*counters).pages_lost += index.saturating_sub(cursor.marked) };
            } else {
                // The kernel does not tell of the cached beginning of a read
                // that runs into a page on its way from the disk. Where the
                // read ends just one buffer behind the one before, it also
                // began where that one ended.
                let next = cursor.last + 1;
                let buffer_end = (cursor.last + cursor.length).min(pages.wrapping_sub(1));
                if kind == Again::Request && index > next && last == buffer_end {
                    first = next;
                }
                quiet = index == cursor.last;
                cursor.length = last - first + 1;
            }
        } else {
            cursor.length = last - first + 1;
        }
        cursor.owner = owner;
        cursor.index = index;
        cursor.last = last;
        cursor.marked =
            last.min(first / CHUNK_PAGES * CHUNK_PAGES + u64::from(chunks) * CHUNK_PAGES - 1) + 1;
        if first > last {
            return;
        }
    }
    let rest = mark(inode, first, last, quiet, chunks, counters);
    if kind == Again::Mapping {
        // SAFETY: as above. Of a request the next report tells what is lost.
        unsafe { (*counters).pages_lost += rest };
    }
}

/// Marks `first..=last`, or as much of it as one report can, and gives how many
/// pages are left. `quiet`: the first page is not used again, only still.
#[inline(always)]
fn mark(
    inode: &Inode,
    first: u64,
    last: u64,
    quiet: bool,
    chunks: u32,
    counters: *mut Counters,
) -> u64 {
    let mut start = first;
    let mut quiet = quiet;
    for _ in 0..chunks {
        let chunk = start / CHUNK_PAGES;
        let end = if last / CHUNK_PAGES == chunk {
            last % CHUNK_PAGES
        } else {
            CHUNK_PAGES - 1
        };
        match find(inode, chunk as u32, counters) {
            Some(bits) => mark_chunk(bits, start % CHUNK_PAGES, end, quiet),
            // SAFETY: this CPU's entry of the map.
            None => unsafe { (*counters).chunks_lost += 1 },
        }
        start = (chunk + 1) * CHUNK_PAGES;
        if start > last {
            return 0;
        }
        quiet = false;
    }
    last - start + 1
}

/// Marks the pages `first..=last` of a chunk.
#[inline(always)]
fn mark_chunk(bits: *mut ChunkBits, first: u64, last: u64, quiet: bool) {
    let mut word = 0;
    while word < CHUNK_WORDS as u64 {
        let begin = word * 64;
        if first < begin + 64 && last >= begin {
            let low = first.saturating_sub(begin);
            let high = if last - begin < 63 { last - begin } else { 63 };
            let mask = (u64::MAX << (low & 63)) & (u64::MAX >> ((63 - high) & 63));
            let still = if quiet && first >= begin {
                1 << (low & 63)
            } else {
                0
            };
            // SAFETY: `word` is below the number of words in the map's value.
            mark_word(
                unsafe { bits.cast::<WordBits>().add(word as usize) },
                mask,
                still,
            );
        }
        word += 1;
    }
}

/// Marks the pages in `mask`; those in `still` never count as used again.
///
/// What is marked already is not written: the page that everybody uses would
/// make its cache line travel between all CPUs.
#[inline(always)]
fn mark_word(word: *mut WordBits, mask: u64, still: u64) {
    // SAFETY: a pointer into a map value, aligned to 8 bytes.
    unsafe {
        let used = &raw mut (*word).used;
        let before = used.read_volatile();
        if before & mask != mask {
            atomic::or(used, mask);
        }
        let twice = before & mask & !still;
        if twice != 0 {
            let again = &raw mut (*word).again;
            if again.read_volatile() & twice != twice {
                atomic::or(again, twice);
            }
        }
    }
}

/// Finds the bits of a chunk on the written side, or takes an entry for it.
#[inline(always)]
fn find(inode: &Inode, chunk: u32, counters: *mut Counters) -> Option<*mut ChunkBits> {
    let key = ChunkKey::new(inode.number, inode.device, chunk);
    let sides = SIDES.get_ptr_mut(0)?;
    // SAFETY: an entry of the map.
    let side = unsafe { core::ptr::read_volatile(&raw const (*sides).written) } as u32 & 1;
    let mask = config(|c| &c.chunk_mask);
    let base = side * (mask + 1);
    let (mut slot, distance) = key.slots();
    for _ in 0..PROBES {
        let entry = base + (slot & mask);
        let keys = CHUNK_KEYS.get_ptr_mut(entry)?;
        // SAFETY: an entry of the map, aligned to 8 bytes.
        unsafe {
            let (number, place) = (&raw mut (*keys).inode, &raw mut (*keys).place);
            let mut number_now = number.read_volatile();
            if number_now == 0 {
                number_now = atomic::claim(number, key.inode);
            }
            if number_now == key.inode {
                let mut place_now = place.read_volatile();
                if place_now == 0 {
                    place_now = atomic::claim(place, key.place);
                    if place_now == key.place {
                        announce(inode, sides, side, counters);
                    }
                }
                if place_now == key.place {
                    return CHUNK_BITS.get_ptr_mut(entry);
                }
            }
        }
        slot = slot.wrapping_add(distance);
    }
    None
}

/// Counts an entry that was just taken, and tells userspace of a new file and
/// of a side that is half full. Happens once per chunk and epoch.
#[inline(always)]
fn announce(inode: &Inode, sides: *mut Sides, side: u32, counters: *mut Counters) {
    let key = FileKey {
        inode: inode.number,
        device: inode.device,
        generation: inode.generation(),
    };
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is not read.
    if unsafe { FILES.get(key) }.is_none() {
        if FILES.insert(key, process, 0).is_err() {
            // SAFETY: this CPU's entry of the map.
            unsafe { (*counters).files_lost += 1 };
        }
        tell(NEW_FILE, process, key, counters);
    }
    // SAFETY: an entry of the map; `side` is 0 or 1.
    let taken = unsafe {
        atomic::increment(
            (&raw mut (*sides).taken)
                .cast::<u64>()
                .add(side as usize & 1),
        )
    };
    if taken + 1 == u64::from(config(|c| &c.chunk_mask)) / 2 {
        tell(HALF_FULL, process, key, counters);
    }
}

/// Sends an event to userspace, or counts that it could not.
#[inline(always)]
fn tell(kind: u32, process: u32, key: FileKey, counters: *mut Counters) {
    let event = Event {
        kind,
        process,
        inode: key.inode,
        device: key.device,
        generation: key.generation,
    };
    if EVENTS.output::<Event>(event, 0).is_err() {
        // SAFETY: this CPU's entry of the map.
        unsafe { (*counters).events_lost += 1 };
    }
}
