//! What userspace tells the programs before they are loaded.
//!
//! The struct is read-only to the programs, so that the verifier takes its
//! values as constants and removes what a mode does not need.

/// Every process but migrator itself.
pub const FILTER_ALL: u32 = 0;
/// The processes marked in the process table.
pub const FILTER_PROCESSES: u32 = 1;
/// The processes of the cgroup (v2) in the map of cgroups, and of those below.
pub const FILTER_CGROUP: u32 = 2;

/// An offset that stands for "this kernel has no such member".
pub const ABSENT: u32 = u32::MAX;

/// Options and the layout of the running kernel's structs.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Superblock magic of a file system whose writes are reported by a hook
    /// of its own, so that the general one leaves it alone; 0 for none.
    pub exact_writes_magic: u32,
    /// One of the `FILTER_` constants.
    pub filter: u32,
    /// migrator's own process id, which is never observed.
    pub own_process: u32,
    /// Entries of one side of the access map, minus 1; a power of two minus 1.
    pub chunk_mask: u32,
    /// Bit number of the head flag in `folio.flags`, or [`ABSENT`].
    pub folio_head_bit: u32,
    /// log2 of bytes per page.
    pub page_shift: u32,
    /// Not 0 where the kernel has no atomic operations for programs (before
    /// 5.12): then each CPU has an access map of its own.
    pub per_cpu: u32,
    /// Where members stand, in bytes.
    pub offsets: Offsets,
}

/// Byte offsets of members in the running kernel's structs; 0 for those of
/// which no loaded program makes use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `address_space.host`
    pub mapping_host: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `inode.i_generation`
    pub inode_generation: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `super_block.s_magic`
    pub sb_magic: u32,
    /// `kiocb.ki_filp`
    pub kiocb_filp: u32,
    /// `kiocb.ki_pos`
    pub kiocb_pos: u32,
    /// `file.f_mapping`
    pub file_mapping: u32,
    /// `vm_fault.vma`
    pub fault_vma: u32,
    /// `vm_fault.pgoff`
    pub fault_pgoff: u32,
    /// `vm_area_struct.vm_file`
    pub vma_file: u32,
    /// `page.index`
    pub page_index: u32,
    /// `folio.index`
    pub folio_index: u32,
    /// `folio.flags`
    pub folio_flags: u32,
    /// `folio._nr_pages`, or [`ABSENT`]
    pub folio_pages: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
}
