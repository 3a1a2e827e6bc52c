//! The maps. Userspace sets the sizes of those marked "sized at load".

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, CgroupArray, HashMap, PerCpuArray, RingBuf};
use migrator_common::access::{CURSORS, ChunkBits, ChunkKey, Cursor, ProcessPage, Sides};
use migrator_common::event::{Counters, FileKey};

/// Both sides of the access map's keys, one after the other, where there are
/// several maps those of each; sized at load.
#[map]
pub(crate) static CHUNK_KEYS: Array<ChunkKey> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// The bits of the same entries; sized at load.
#[map]
pub(crate) static CHUNK_BITS: Array<ChunkBits> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// Which side is written; one entry for each access map, sized at load.
#[map]
pub(crate) static SIDES: Array<Sides> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Where the threads stand in their files.
#[map]
pub(crate) static CURSOR_TABLE: Array<Cursor> = Array::with_max_entries(CURSORS, 0);

/// The processes that are observed, by process id; sized at load.
#[map]
pub(crate) static PROCESSES: Array<ProcessPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The cgroup that is observed.
#[map]
pub(crate) static CGROUPS: CgroupArray = CgroupArray::with_max_entries(1, 0);

/// The files seen so far.
#[map]
pub(crate) static FILES: HashMap<FileKey, u32> =
    HashMap::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

/// What userspace should know at once.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What was lost; one entry.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
