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

/// The verifier refuses a program that could get here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// bpf_get_current_ancestor_cgroup_id and others are for GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
