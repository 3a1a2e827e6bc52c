//! Runs a program that may not seize others by ptrace(2), as a policy of the kernel
//! may have it. strace(1) could do that, but delays the end of the program.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::libc;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("unptraced: name a program");
        return ExitCode::FAILURE;
    };
    if let Err(error) = refuse_to_seize() {
        eprintln!("unptraced: failed to set a filter: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(words).exec();
    eprintln!("unptraced: {error}");
    ExitCode::FAILURE
}

/// Where a filter finds the low half of the first argument: `args` of `seccomp_data`.
const REQUEST: u32 = 16;

/// Sets a filter that refuses one request of ptrace(2).
fn refuse_to_seize() -> std::io::Result<()> {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let code = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        code(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            3,
            libc::SYS_ptrace as u32,
        ),
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, REQUEST),
        code(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::PTRACE_SEIZE,
        ),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the filter, which lives until then.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
