//! The access map: which pages were used since userspace last looked.
//!
//! Pages are kept in chunks. A chunk is found by open addressing in an array
//! of [`ChunkKey`], and the entry of the same number in an array of
//! [`ChunkBits`] says which of its pages were used. Both arrays exist twice
//! ("sides"): the programs write to one while userspace empties the other, so
//! that no access is lost or counted for another file.
//!
//! The CPUs share the map by atomic operations. A kernel that has none for
//! programs (before 5.12) has one map per CPU instead, one after the other:
//! programs of one CPU don't interrupt each other.

/// Pages in a chunk: 2 MiB of 4 KiB pages, so that the keys of a large file
/// stay in the CPU's cache while its pages are read at random.
pub const CHUNK_PAGES: u64 = 512;

/// Words of 64 pages in a chunk.
pub const CHUNK_WORDS: usize = (CHUNK_PAGES / 64) as usize;

/// How many entries are tried before a chunk counts as lost. With a side half
/// full, which is when it is emptied, that happens to one chunk in 4096.
pub const PROBES: u32 = 12;

/// Which chunk an entry of the access map is for.
///
/// An entry is taken by writing `inode` first and `place` second, each by
/// compare-and-exchange from 0. Neither is 0 in a taken entry: no file has
/// inode number 0, and no file system has device number 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkKey {
    /// Inode number.
    pub inode: u64,
    /// Device number (kernel `dev_t`: major << 20 | minor) in the upper half,
    /// page index / [`CHUNK_PAGES`] in the lower.
    pub place: u64,
}

impl ChunkKey {
    /// The key of the chunk that holds page `index`.
    #[inline(always)]
    pub const fn new(inode: u64, device: u32, chunk: u32) -> Self {
        Self {
            inode,
            place: (device as u64) << 32 | chunk as u64,
        }
    }

    /// Kernel `dev_t` of the file system.
    pub const fn device(&self) -> u32 {
        (self.place >> 32) as u32
    }

    /// Page index / [`CHUNK_PAGES`].
    pub const fn chunk(&self) -> u32 {
        self.place as u32
    }

    /// Where the search for the key begins, and how far apart the entries are
    /// that it tries; both before they are cut to the size of the map.
    ///
    /// Neighbouring chunks of a file begin at neighbouring entries, so that a
    /// sequential reader walks through the map sequentially. The distance is
    /// odd, so that it reaches every entry of a map whose size is a power of 2.
    #[inline(always)]
    pub const fn slots(&self) -> (u32, u32) {
        // Two rounds: inode numbers in a row must not meet again and again.
        let file = (self.inode ^ (self.place >> 32) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let file = (file ^ file >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let start = ((file >> 32) as u32).wrapping_add(self.place as u32);
        (start, file as u32 | 1)
    }
}

/// 64 pages of a chunk, bit `n` for the page `n` of them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WordBits {
    /// The page was used.
    pub used: u64,
    /// The page was used by more than one request.
    pub again: u64,
}

/// Which pages of a chunk were used.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkBits {
    /// 64 pages each, in order.
    pub words: [WordBits; CHUNK_WORDS],
}

impl ChunkBits {
    /// Marks a page of the chunk as used.
    pub const fn mark(&mut self, page: u64) {
        let page = page % CHUNK_PAGES;
        self.words[(page / 64) as usize].used |= 1 << (page % 64);
    }
}

/// Where one thread stands in one file.
///
/// The kernel reports a long read once per batch of folios, each time with all
/// that is left of the request; and a reader with a small buffer comes back to
/// the same page. Neither is a second use of the page; the cursor tells.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Thread and inode, mixed.
    pub owner: u64,
    /// First page of the latest report.
    pub index: u64,
    /// Last page of the request, inclusive.
    pub last: u64,
    /// The page after the last one marked for this request.
    pub marked: u64,
    /// Pages of the request.
    pub length: u64,
}

/// Entries of the array of [`Cursor`]s; a power of two.
pub const CURSORS: u32 = 4096;

/// Processes of one page of the process table.
pub const PROCESS_PAGE: usize = 4096;

/// One byte per process id: not 0 for the processes that are observed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ProcessPage {
    /// Indexed by process id modulo [`PROCESS_PAGE`].
    pub wanted: [u8; PROCESS_PAGE],
}

/// Which side of the access map is written, and how full each is.
///
/// Where each CPU has a map of its own, each has an entry of this; the first
/// one's `written` holds for all.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sides {
    /// 0 or 1: the side that the programs write to.
    pub written: u64,
    /// Entries taken on each side since it was emptied.
    pub taken: [u64; 2],
}
