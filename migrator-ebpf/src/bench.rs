//! What `cargo xtask bench overhead` compares migrator's programs with, at the
//! same hooks. An object of its own, which is not embedded and ships to nobody.
#![no_std]
#![no_main]

mod config;
#[allow(dead_code, reason = "migrator's own programs need more of it")]
mod inode;

use aya_ebpf::macros::{btf_tracepoint, fexit, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{BtfTracePointContext, FExitContext};

use crate::config::config;
use crate::inode::Inode;

/// Never runs: the verifier refuses programs that could reach it.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// As in the product's object.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A page of a file.
#[repr(C)]
#[derive(Clone, Copy)]
struct Page {
    inode: u64,
    device: u64,
    index: u64,
}

/// How often each was used: what BPF_HASH makes in a script for bcc.
#[map]
static COUNTS: HashMap<Page, u64> = HashMap::with_max_entries(1 << 18, 0);

/// The floor: the kernel calls a program, and it does nothing.
#[fexit(function = "filemap_read")]
pub fn empty_read(_ctx: FExitContext) -> i32 {
    0
}

/// The same.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn empty_get_pages(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// The same.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn empty_map_pages(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// The same.
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn empty_fault(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// The peer: one lookup in a hash per event, of the first page that it tells of.
/// That is less than it takes to know the pages of a longer read.
#[fexit(function = "filemap_read")]
pub fn count_read(ctx: FExitContext) -> i32 {
    if let Some((inode, end)) = inode::position(ctx.arg(0)) {
        let (before, after): (i64, i64) = (ctx.arg(2), ctx.arg(3));
        let start = end.wrapping_sub((after - before) as u64);
        count(&inode, start >> config(|c| &c.page_shift));
    }
    0
}

/// The same: `(mapping, index, last_index)`.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn count_get_pages(ctx: BtfTracePointContext) -> i32 {
    count_mapping(ctx.arg(0), ctx.arg(1))
}

/// The same: `(mapping, start, end)`.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn count_map_pages(ctx: BtfTracePointContext) -> i32 {
    count_mapping(ctx.arg(0), ctx.arg(1))
}

/// The same: `(mapping, index)`.
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn count_fault(ctx: BtfTracePointContext) -> i32 {
    count_mapping(ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn count_mapping(mapping: *const u8, index: u64) -> i32 {
    if let Some(inode) = Inode::of_mapping(mapping) {
        count(&inode, index);
    }
    0
}

#[inline(always)]
fn count(inode: &Inode, index: u64) {
    let page = Page {
        inode: inode.number,
        device: u64::from(inode.device),
        index,
    };
    match COUNTS.get_ptr_mut(page) {
        // SAFETY: a value of the map, which others may count in at the same time;
        // one count more or less is nothing here.
        Some(count) => unsafe { *count += 1 },
        None => {
            // A map that is full counts no more.
            let _ = COUNTS.insert(page, 1, 0);
        }
    }
}
