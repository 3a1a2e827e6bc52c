//! Facts about the running kernel, probed once.

use std::path::Path;

/// Bytes per page.
pub fn page_size() -> u32 {
    // SAFETY: sysconf(3) without pointers. It can't fail for this name.
    let size = unsafe { nix::libc::sysconf(nix::libc::_SC_PAGESIZE) };
    size as u32
}

/// Total memory of this host in bytes; 0 if /proc can't be read.
pub fn memory(proc_root: &Path) -> u64 {
    let meminfo = std::fs::read_to_string(proc_root.join("meminfo")).unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The number that no process id reaches.
pub fn pid_max(proc_root: &Path) -> u32 {
    // What a 64-bit kernel permits at most (PID_MAX_LIMIT), if it won't say.
    const LIMIT: u32 = 4 << 20;
    let text = std::fs::read_to_string(proc_root.join("sys/kernel/pid_max"));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(LIMIT)
}
