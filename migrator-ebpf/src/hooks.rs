//! Where the kernel tells of accesses. Each program is for one hook; userspace
//! loads those that the running kernel has (docs/kernels.md).

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::access::{Again, access};
use crate::config::config;
use crate::filter;
use crate::inode::{Inode, folio_pages, task_ids};

/// Reads: `(mapping, index, last_index)`, since Linux 6.12. `last_index` is
/// inclusive and covers all that is left of the request. Also splice, exec and
/// io_uring.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn get_pages(ctx: BtfTracePointContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(ctx.arg(0))
    {
        access(task, &inode, ctx.arg(1), ctx.arg(2), Again::Request);
    }
    0
}

/// Fault-around: `(mapping, start, end)`, inclusive. The kernel maps what is
/// resident near the fault; later touches of these pages cause no event, so
/// all of them count as used.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn map_pages(ctx: BtfTracePointContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(ctx.arg(0))
    {
        access(task, &inode, ctx.arg(1), ctx.arg(2), Again::Mapping);
    }
    0
}

/// A fault that fault-around could not serve: `(mapping, index)`.
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn fault(ctx: BtfTracePointContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(ctx.arg(0))
    {
        let index = ctx.arg(1);
        access(task, &inode, index, index, Again::Mapping);
    }
    0
}

/// Buffered writes on ext4, exactly: `(inode, pos, len)`.
#[btf_tracepoint(function = "ext4_da_write_begin")]
pub fn ext4_da_write_begin(ctx: BtfTracePointContext) -> i32 {
    write(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// The same without delayed allocation.
#[btf_tracepoint(function = "ext4_write_begin")]
pub fn ext4_write_begin(ctx: BtfTracePointContext) -> i32 {
    write(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[inline(always)]
fn write(inode: *const u8, position: u64, length: u32) -> i32 {
    if length != 0
        && let Some(task) = filter::observed()
        && let Some(inode) = Inode::new(inode)
    {
        let shift = config(|c| &c.page_shift);
        let last = (position + u64::from(length) - 1) >> shift;
        access(task, &inode, position >> shift, last, Again::Write);
    }
    0
}

/// A clean folio becomes dirty: `(folio, mapping)`. Writes on every other file
/// system; names the whole folio, and is silent until it was written back.
#[btf_tracepoint(function = "writeback_dirty_folio")]
pub fn dirty_folio(ctx: BtfTracePointContext) -> i32 {
    let mapping: *const u8 = ctx.arg(1);
    if !mapping.is_null()
        && let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(mapping)
        && inode.magic() != config(|c| &c.exact_writes_magic)
    {
        let (index, pages) = folio_pages(ctx.arg(0));
        access(task, &inode, index, index + pages - 1, Again::Write);
    }
    0
}

/// A process forks: `(parent, child)`. The child of an observed process is
/// observed too.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let (_, parent) = task_ids(ctx.arg(0));
    let (child, process) = task_ids(ctx.arg(1));
    if child == process && filter::is_observed(parent) {
        filter::observe(process, true);
    }
    0
}

/// A task is freed: `(task)`. The leader is the last of its process to go, and
/// its number may be another's from then on.
#[btf_tracepoint(function = "sched_process_free")]
pub fn process_free(ctx: BtfTracePointContext) -> i32 {
    let (task, process) = task_ids(ctx.arg(0));
    if task == process && filter::is_observed(process) {
        filter::observe(process, false);
    }
    0
}
