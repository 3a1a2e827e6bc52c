//! Where the kernel tells of accesses. Each program is for one hook; userspace
//! loads those that the running kernel has (docs/kernels.md).

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext};

use crate::access::{Again, access};
use crate::config::config;
use crate::filter::{self, Task};
use crate::inode::{self, Inode, folio_pages, task_ids};

/// Reads, when they are over: `(iocb, iter, read before) -> read in all`, of
/// which the latter two are bytes. Also exec and io_uring, and splice as long as
/// it was a read into a pipe (before Linux 6.5, commit c6585011bc1d).
///
/// The function is `filemap_read` since Linux 5.12 (commit 87fa0f3eb267), before
/// `generic_file_buffered_read`.
#[fexit(function = "filemap_read")]
pub fn read(ctx: FExitContext) -> i32 {
    let (before, after): (i64, i64) = (ctx.arg(2), ctx.arg(3));
    if after > before
        && let Some(task) = filter::observed()
        && let Some((inode, end)) = inode::position(ctx.arg(0))
    {
        bytes(task, &inode, end - (after - before) as u64, end);
    }
    0
}

/// Splice, when it is over: `(file, *position, pipe, length, flags) -> bytes`.
#[fexit(function = "filemap_splice_read")]
pub fn splice_read(ctx: FExitContext) -> i32 {
    let after: i64 = ctx.arg(5);
    if after > 0
        && let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_file(ctx.arg(0))
    {
        let position: *const u64 = ctx.arg(1);
        // SAFETY: the helper checks the address. The position is a plain
        // number, of which no BTF type tells where it is.
        if let Ok(end) = unsafe { bpf_probe_read_kernel(position) } {
            bytes(task, &inode, end - after as u64, end);
        }
    }
    0
}

/// A request has used the bytes `start..end`, which are some.
#[inline(always)]
fn bytes(task: Task, inode: &Inode, start: u64, end: u64) {
    let shift = config(|c| &c.page_shift);
    let last = (end - 1) >> shift;
    access(task, inode, start >> shift, last, Again::Request);
}

/// Reads and splice: `(iocb, bytes left, ...)`, once per batch of folios; also
/// of requests that then fail.
#[fentry(function = "filemap_get_pages")]
pub fn get_pages_entry(ctx: FEntryContext) -> i32 {
    let length: u64 = ctx.arg(1);
    if length != 0
        && let Some(task) = filter::observed()
        && let Some((inode, start)) = inode::position(ctx.arg(0))
    {
        let shift = config(|c| &c.page_shift);
        let last = (start + length - 1) >> shift;
        access(task, &inode, start >> shift, last, Again::Batch);
    }
    0
}

/// Reads and splice: `(mapping, index, last_index)`, since Linux 6.12, once per
/// batch of folios. `last_index` is inclusive and covers all that is left of the
/// request. Silent where the batch begins in the cache and ends in a folio that
/// is on its way from the disk.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn get_pages(ctx: BtfTracePointContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(ctx.arg(0))
    {
        access(task, &inode, ctx.arg(1), ctx.arg(2), Again::LossyBatch);
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

/// The same before it is done, and whether anything is resident or not:
/// `(vmf, start, end)`.
#[fentry(function = "filemap_map_pages")]
pub fn map_pages_entry(ctx: FEntryContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some((inode, _)) = inode::fault(ctx.arg(0))
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

/// The same: `(vmf)`.
#[fentry(function = "filemap_fault")]
pub fn fault_entry(ctx: FEntryContext) -> i32 {
    if let Some(task) = filter::observed()
        && let Some((inode, index)) = inode::fault(ctx.arg(0))
    {
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
    dirty(ctx.arg(1), || folio_pages(ctx.arg(0)))
}

/// The same before Linux 5.18: `(page, mapping)`.
#[btf_tracepoint(function = "writeback_dirty_page")]
pub fn dirty_page(ctx: BtfTracePointContext) -> i32 {
    dirty(ctx.arg(1), || (inode::page_index(ctx.arg(0)), 1))
}

#[inline(always)]
fn dirty(mapping: *const u8, pages: impl FnOnce() -> (u64, u64)) -> i32 {
    if !mapping.is_null()
        && let Some(task) = filter::observed()
        && let Some(inode) = Inode::of_mapping(mapping)
        && inode.magic() != u64::from(config(|c| &c.exact_writes_magic))
    {
        let (index, pages) = pages();
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
