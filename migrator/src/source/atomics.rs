//! Whether programs may use atomic instructions, and what is done where not.
//!
//! Linux has them since 5.12 (commit 5ffa25502b5a). Before, the
//! verifier refuses a program that holds one, even where it sees that it is
//! never reached.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;

/// An instruction: code, registers, offset, immediate (linux/bpf.h).
type Instruction = [u8; 8];

/// `BPF_STX | BPF_ATOMIC | BPF_DW`, or with `BPF_W`. Before 5.12 that is
/// `BPF_XADD`, an addition, and its immediate is 0.
const ATOMIC: [u8; 2] = [0xdb, 0xc3];
/// `BPF_LD | BPF_IMM | BPF_DW`: the only instruction that is two.
const LOAD_WIDE: u8 = 0x18;

/// Whether the running kernel has them. Where it may not be asked, nothing
/// speaks against it: what is loaded next will be refused too.
pub(super) fn supported() -> bool {
    const PROGRAM: [Instruction; 5] = [
        // r0 = 0
        [0xb7, 0, 0, 0, 0, 0, 0, 0],
        // *(u64 *)(r10 - 8) = r0
        [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
        // lock *(u64 *)(r10 - 8) |= r0
        [0xdb, 0x0a, 0xf8, 0xff, 0x40, 0, 0, 0],
        // r0 = 0, because the verifier of some kernels trusts no other
        [0xb7, 0, 0, 0, 0, 0, 0, 0],
        // exit
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    match load(&PROGRAM) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
    }
}

/// Makes every atomic instruction of code an addition, which all kernels load.
/// The programs are told not to use them (`Config::per_cpu`), and the verifier
/// removes what is not reached.
pub(super) fn remove(code: &mut [u8]) {
    let mut second_half = false;
    for instruction in code.as_chunks_mut::<8>().0 {
        if !second_half && ATOMIC.contains(&instruction[0]) {
            instruction[4..].fill(0);
        }
        second_half = !second_half && instruction[0] == LOAD_WIDE;
    }
}

/// Loads a program that is never attached.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    /// The beginning of `union bpf_attr` for this command.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the kernel reads as many bytes as it is told, and what they
    // point to, all of which lives until the call returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomics_become_additions_and_constants_stay() {
        let or = [0xdb, 0x21, 0, 0, 0x40, 0, 0, 0];
        let add = [0xdb, 0x21, 0, 0, 0, 0, 0, 0];
        let wide = [0x18, 1, 0, 0, 7, 0, 0, 0];
        // The second half of a constant may look like anything.
        let half = [0xdb, 0, 0, 0, 9, 9, 9, 9];
        let store = [0x7b, 0x0a, 0xf8, 0xff, 1, 0, 0, 0];
        let mut code = [or, wide, half, or, store, wide, wide, or].concat();
        remove(&mut code);
        assert_eq!(
            code,
            [add, wide, half, add, store, wide, wide, add].concat()
        );
    }
}
