//! Kernel structs: the only place that reads the kernel's memory.
//!
//! The pointers come from the arguments of BTF-typed hooks, and from members
//! of what those point to. The verifier knows their types; it turns each load
//! into one that yields 0 where the memory is gone, and refuses an offset that
//! does not fit the type. So a load needs no check at run time.

use migrator_common::config::ABSENT;

use crate::config::config;

/// Reads a member at a byte offset that is constant to the verifier.
#[inline(always)]
fn member<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: see the module's documentation: the verifier checks it.
    unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) }
}

/// An inode, as far as it matters here.
#[derive(Clone, Copy)]
pub(crate) struct Inode {
    base: *const u8,
    /// Inode number.
    pub(crate) number: u64,
    /// Kernel `dev_t` of its file system.
    pub(crate) device: u32,
}

impl Inode {
    /// The inode of a `struct file *`'s pages. (Not `f_inode`, which of a file
    /// on overlayfs is another.)
    #[inline(always)]
    pub(crate) fn of_file(file: *const u8) -> Option<Self> {
        Self::of_mapping(member(file, config(|c| &c.offsets.file_mapping)))
    }

    /// The inode of an `address_space`.
    #[inline(always)]
    pub(crate) fn of_mapping(mapping: *const u8) -> Option<Self> {
        Self::new(member(mapping, config(|c| &c.offsets.mapping_host)))
    }

    /// From a `struct inode *`.
    #[inline(always)]
    pub(crate) fn new(base: *const u8) -> Option<Self> {
        if base.is_null() {
            return None;
        }
        let sb: *const u8 = member(base, config(|c| &c.offsets.inode_sb));
        Some(Self {
            base,
            number: member(base, config(|c| &c.offsets.inode_ino)),
            device: member(sb, config(|c| &c.offsets.sb_dev)),
        })
    }

    /// One number that tells files apart well enough for a cursor. (The
    /// address would too, but the verifier permits no arithmetic on it.)
    #[inline(always)]
    pub(crate) fn mixed(&self) -> u64 {
        self.number ^ u64::from(self.device) << 32
    }

    /// Pages up to the end of the file.
    #[inline(always)]
    pub(crate) fn pages(&self) -> u64 {
        let size: u64 = member(self.base, config(|c| &c.offsets.inode_size));
        let shift = config(|c| &c.page_shift);
        (size + (1 << shift) - 1) >> shift
    }

    /// What tells it from an earlier file with the same number.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u32 {
        member(self.base, config(|c| &c.offsets.inode_generation))
    }

    /// Magic number of the file system.
    #[inline(always)]
    pub(crate) fn magic(&self) -> u64 {
        let sb: *const u8 = member(self.base, config(|c| &c.offsets.inode_sb));
        member(sb, config(|c| &c.offsets.sb_magic))
    }
}

/// File and position of a `struct kiocb *`.
#[inline(always)]
pub(crate) fn position(kiocb: *const u8) -> Option<(Inode, u64)> {
    let inode = Inode::of_file(member(kiocb, config(|c| &c.offsets.kiocb_filp)))?;
    Some((inode, member(kiocb, config(|c| &c.offsets.kiocb_pos))))
}

/// File and page index of a `struct vm_fault *`.
#[inline(always)]
pub(crate) fn fault(vmf: *const u8) -> Option<(Inode, u64)> {
    let vma: *const u8 = member(vmf, config(|c| &c.offsets.fault_vma));
    let inode = Inode::of_file(member(vma, config(|c| &c.offsets.vma_file)))?;
    Some((inode, member(vmf, config(|c| &c.offsets.fault_pgoff))))
}

/// Page index of a `struct page *` of before folios.
#[inline(always)]
pub(crate) fn page_index(page: *const u8) -> u64 {
    member(page, config(|c| &c.offsets.page_index))
}

/// First page index and number of pages of a `struct folio *`.
#[inline(always)]
pub(crate) fn folio_pages(folio: *const u8) -> (u64, u64) {
    let index = member(folio, config(|c| &c.offsets.folio_index));
    let flags: u64 = member(folio, config(|c| &c.offsets.folio_flags));
    let head = config(|c| &c.folio_head_bit);
    let pages = config(|c| &c.offsets.folio_pages);
    if head == ABSENT || pages == ABSENT || flags & (1 << head) == 0 {
        return (index, 1);
    }
    let count: u32 = member(folio, pages);
    (index, u64::from(count.max(1)))
}

/// `(pid, tgid)` of a `struct task_struct *`.
#[inline(always)]
pub(crate) fn task_ids(task: *const u8) -> (u32, u32) {
    (
        member(task, config(|c| &c.offsets.task_pid)),
        member(task, config(|c| &c.offsets.task_tgid)),
    )
}
