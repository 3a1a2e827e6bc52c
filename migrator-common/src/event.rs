//! What the programs tell userspace while they run.

/// A chunk of a file that was not known yet was used: the file is probably
/// open right now, so this is the moment to learn its path.
pub const NEW_FILE: u32 = 1;
/// The written side of the access map is half full: it wants to be emptied.
pub const HALF_FULL: u32 = 2;

/// An entry of the ring buffer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event {
    /// [`NEW_FILE`] or [`HALF_FULL`].
    pub kind: u32,
    /// Process that used the file (in the initial pid namespace).
    pub process: u32,
    /// Inode number.
    pub inode: u64,
    /// Kernel `dev_t`.
    pub device: u32,
    /// `i_generation`, which a file handle is made of.
    pub generation: u32,
}

/// Key of the map of files seen.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Inode number.
    pub inode: u64,
    /// Kernel `dev_t`.
    pub device: u32,
    /// `i_generation`.
    pub generation: u32,
}

/// Counters of what was lost; per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chunks used this epoch that found no place in the access map.
    pub chunks_lost: u64,
    /// Files that found no place in the map of files.
    pub files_lost: u64,
    /// Events that found no place in the ring buffer.
    pub events_lost: u64,
    /// Pages beyond what one report can mark.
    pub pages_lost: u64,
}
