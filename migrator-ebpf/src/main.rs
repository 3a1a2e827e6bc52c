//! The programs that migrator loads into the kernel, all in one object;
//! userspace loads those that fit the running kernel.
#![no_std]
#![no_main]

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

/// Sees every batch of folios that a buffered read takes from the page cache.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn mm_filemap_get_pages(_: BtfTracePointContext) -> i32 {
    0
}

/// The kernel lets programs load that call GPL-only helpers only when they
/// say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never runs: the verifier refuses programs that could reach it. Clippy and
/// rust-analyzer look at the crate on the host too, where std brings its own.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
