//! Marks pages in the access map.

use core::arch::asm;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use migrator_common::access::{
    CHUNK_PAGES, CHUNK_WORDS, CURSORS, ChunkKey, Cursor, PROBES, WordBits,
};
use migrator_common::event::{Counters, Event, FileKey, HALF_FULL, NEW_FILE};

use crate::atomic;
use crate::config::config;
use crate::filter::Task;
use crate::inode::Inode;
use crate::maps::{CHUNK_BITS, CHUNK_KEYS, COUNTERS, CURSOR_TABLE, EVENTS, FILES, SIDES};

/// Chunks that [`mark_batch`] marks.
const BATCH: u32 = 31;

/// Chunks that one report of [`Again::Batch`] and of all others but
/// [`Again::Request`] can mark. A batch has at most 31 folios of 512 pages
/// before the next report comes, which is 31 chunks and one more for a start
/// in the middle of a chunk. The longest of the others is a folio of 2^11 pages
/// (EXT4_MAX_PAGECACHE_ORDER).
const REPORT: u64 = 1 + BATCH as u64;

/// Calls of [`mark_batch`] that the longest request takes after its first
/// chunk: 2 GiB (MAX_RW_COUNT) are 1025 chunks.
const REQUEST_BATCHES: u32 = 34;

/// When a page that is already marked counts as used again, and what the
/// report is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// In another request than the thread's latest one of this file; the report
    /// is of what a request has used.
    Request,
    /// As for a request, which is reported once for each batch of folios: all
    /// that is left of it.
    Batch,
    /// As for a batch, but the kernel does not report each.
    LossyBatch,
    /// As for a batch; it may make the file grow.
    Write,
    /// Always: a page that is mapped already causes no report.
    Mapping,
}

/// Marks the pages `index..=last` as used by `task`, as far as the file reaches.
#[inline(always)]
pub(crate) fn access(task: Task, inode: &Inode, index: u64, last: u64, kind: Again) {
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

    let mut first = index;
    let mut quiet = false;
    if kind != Again::Mapping {
        let owner = inode.mixed() ^ task.0.rotate_left(24);
        let Some(cursor) = CURSOR_TABLE
            .get_ptr_mut((owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u32 & (CURSORS - 1))
        else {
            return;
        };
        // SAFETY: an entry of the map. Another thread with the same hash may
        // write it at the same time; the worst is a page counted twice.
        let cursor: &mut Cursor = unsafe { &mut *cursor };
        if cursor.owner == owner {
            if kind == Again::Request {
                quiet = index == cursor.last;
            } else if cursor.last == last && index > cursor.index {
                first = index.max(cursor.marked);
                if index > cursor.marked {
                    lose(|counters| counters.pages_lost += index - cursor.marked);
                }
            } else {
                // The kernel does not tell of the cached beginning of a read
                // that runs into a page on its way from the disk. Where the
                // read ends just one buffer behind the one before, it also
                // began where that one ended.
                let buffer_end = (cursor.last + cursor.length).min(pages.wrapping_sub(1));
                if kind == Again::LossyBatch && last == buffer_end {
                    // SAFETY: as above. The read is volatile to come after the
                    // comparison: LLVM would make `first` a minimum, whose
                    // branch no CPU can foresee when reads are random.
                    let next = unsafe { (&raw const cursor.last).read_volatile() } + 1;
                    if index > next {
                        first = next;
                    }
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
        cursor.marked = last.min(first / CHUNK_PAGES * CHUNK_PAGES + REPORT * CHUNK_PAGES - 1) + 1;
        if first > last {
            return;
        }
    }
    let batches = if kind == Again::Request {
        REQUEST_BATCHES
    } else {
        1
    };
    let rest = mark(inode, first, last, quiet, batches, task);
    // Of the others the next report tells what is lost.
    if let Again::Request | Again::Mapping = kind
        && rest > 0
    {
        lose(|counters| counters.pages_lost += rest);
    }
}

/// Counts what is lost.
#[inline(always)]
fn lose(count: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's entry of the map.
        count(unsafe { &mut *counters });
    }
}

/// What [`mark_chunk`] and [`mark_batch`] tell: bits, and above them a number.
mod told {
    /// A chunk is new on the written side.
    pub(super) const NEW: u64 = 1;
    /// With a chunk the side is half full.
    pub(super) const HALF_FULL: u64 = 2;
    /// One chunk that found no place in the access map.
    pub(super) const LOST: u64 = 4;

    /// Both.
    #[inline(always)]
    pub(super) fn both(one: u64, other: u64) -> u64 {
        let bits = NEW | HALF_FULL;
        ((one & !bits) + (other & !bits)) | ((one | other) & bits)
    }
}

/// Marks `first..=last`, or as much of it as so many batches can, and gives how
/// many pages are left. `quiet`: the first page is not used again, only still.
#[inline(always)]
fn mark(inode: &Inode, first: u64, last: u64, quiet: bool, batches: u32, task: Task) -> u64 {
    // Most reads end in the chunk where they begin: they go without a call.
    let end = last.min(first / CHUNK_PAGES * CHUNK_PAGES + CHUNK_PAGES - 1);
    let key = ChunkKey::new(inode.number, inode.device, (first / CHUNK_PAGES) as u32);
    let mut said = mark_chunk(key, first, end, u64::from(quiet));
    let mut start = end + 1;
    for _ in 0..batches {
        if start > last {
            break;
        }
        said = told::both(said, mark_batch(inode.number, inode.device, start, last));
        start += u64::from(BATCH) * CHUNK_PAGES;
    }
    if said != 0 {
        report(inode, said, task);
    }
    (last + 1).saturating_sub(start)
}

/// Marks the pages `first..=last` of a file, or of so many as are in
/// [`BATCH`] chunks. `first` is the first of its chunk.
///
/// A global function: the verifier looks at it once and by itself, whatever
/// its arguments, and then believes it at each call. Inlined, it would be
/// followed anew in every round of the loops, which some kernels give up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_batch(inode: u64, device: u32, first: u64, last: u64) -> u64 {
    let (mut start, mut said) = (first, 0);
    for _ in 0..BATCH {
        if start > last {
            break;
        }
        let chunk = start / CHUNK_PAGES;
        let end = last.min(chunk * CHUNK_PAGES + CHUNK_PAGES - 1);
        let key = ChunkKey::new(inode, device, chunk as u32);
        said = told::both(said, mark_next_chunk(key.inode, key.place, start, end));
        start = end + 1;
    }
    said
}

/// [`mark_chunk`] for every chunk but the first; global as [`mark_batch`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_next_chunk(inode: u64, place: u64, first: u64, last: u64) -> u64 {
    mark_chunk(ChunkKey { inode, place }, first, last, 0)
}

/// Marks the pages `first..=last` of a file, which lie in one chunk, and gives
/// the bits of [`told`]. `quiet` is 1 where the first page is not used again,
/// only still.
#[inline(always)]
fn mark_chunk(key: ChunkKey, first: u64, last: u64, quiet: u64) -> u64 {
    let Some((entry, told)) = find(key) else {
        return told::LOST;
    };
    let Some(bits) = CHUNK_BITS.get_ptr_mut(entry) else {
        return told::LOST;
    };
    let (mut word, last_word) = (first % CHUNK_PAGES / 64, last % CHUNK_PAGES / 64);
    let mut mask = u64::MAX << (first % 64);
    let mut still = quiet << (first % 64);
    let at = |word: u64| {
        // SAFETY: below the number of words in the map's value. The compiler
        // must not know how large it is: it would leave out the remainder,
        // which tells the verifier.
        unsafe {
            bits.cast::<WordBits>()
                .add(hidden(word) as usize % CHUNK_WORDS)
        }
    };
    for _ in 1..CHUNK_WORDS {
        if word >= last_word {
            break;
        }
        mark_word(at(word), mask, still);
        word += 1;
        mask = u64::MAX;
        still = 0;
    }
    mark_word(at(word), mask & u64::MAX >> (63 - last % 64), still);
    told
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
fn hidden(mut number: u64) -> u64 {
    // An instruction, because the kernel wants one for each line of source.
    // SAFETY: a register becomes what it is.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
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

/// Finds the entry of a chunk on the written side, or takes one for it, which
/// the bits of [`told`] tell.
#[inline(always)]
fn find(key: ChunkKey) -> Option<(u32, u64)> {
    let sides = SIDES.get_ptr_mut(0)?;
    // SAFETY: an entry of the map.
    let side = unsafe { core::ptr::read_volatile(&raw const (*sides).written) } as u32 & 1;
    let mask = config(|c| &c.chunk_mask);
    let map = if atomic::alone() {
        // SAFETY: a helper without side effects.
        unsafe { bpf_get_smp_processor_id() }
    } else {
        0
    };
    let base = (2 * map + side) * (mask + 1);
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
                let place_now = place.read_volatile();
                if place_now == key.place {
                    return Some((entry, 0));
                }
                if place_now == 0 && atomic::claim(place, key.place) == key.place {
                    return Some((entry, told::NEW | count(map, side)));
                }
            }
        }
        slot = slot.wrapping_add(distance);
    }
    None
}

/// Counts an entry that was just taken in this access map.
#[inline(always)]
fn count(map: u32, side: u32) -> u64 {
    let Some(sides) = SIDES.get_ptr_mut(map) else {
        return 0;
    };
    // SAFETY: an entry of the map; `side` is 0 or 1.
    let taken = unsafe {
        atomic::increment(
            (&raw mut (*sides).taken)
                .cast::<u64>()
                .add(side as usize & 1),
        )
    };
    if taken + 1 == u64::from(config(|c| &c.chunk_mask)) / 2 {
        told::HALF_FULL
    } else {
        0
    }
}

/// Tells userspace of a new file and of a side that is half full, and counts chunks
/// that are lost. Happens at most once per chunk and epoch where none is lost.
#[inline(always)]
fn report(inode: &Inode, said: u64, task: Task) {
    if said >= told::LOST {
        lose(|counters| counters.chunks_lost += said / told::LOST);
    }
    if said & (told::NEW | told::HALF_FULL) == 0 {
        return;
    }
    let key = FileKey {
        inode: inode.number,
        device: inode.device,
        generation: inode.generation(),
    };
    let process = task.process();
    // SAFETY: the value is not read.
    if unsafe { FILES.get(key) }.is_none() {
        if FILES.insert(key, process, 0).is_err() {
            lose(|counters| counters.files_lost += 1);
        }
        tell(NEW_FILE, process, key);
    }
    if said & told::HALF_FULL != 0 {
        tell(HALF_FULL, process, key);
    }
}

/// Sends an event to userspace, or counts that it could not.
#[inline(always)]
fn tell(kind: u32, process: u32, key: FileKey) {
    let event = Event {
        kind,
        process,
        inode: key.inode,
        device: key.device,
        generation: key.generation,
    };
    if EVENTS.output::<Event>(event, 0).is_err() {
        lose(|counters| counters.events_lost += 1);
    }
}
