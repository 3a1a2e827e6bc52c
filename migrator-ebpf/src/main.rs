//! The eBPF programs of migrator: which pages of which files are used.
//!
//! One object for all kernels. Userspace loads only the programs whose hooks
//! the running kernel has, and tells them through [`config`] where members of
//! kernel structs stand; nothing is relocated at load time.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod atomic;
mod config;
mod filter;
mod hooks;
mod inode;
mod maps;

/// Never runs: the verifier refuses programs that could reach it. Clippy and
/// rust-analyzer look at the crate on the host too, where std brings its own.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lets programs load that call GPL-only helpers only when they
/// say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
