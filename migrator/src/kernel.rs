//! Facts about the running kernel, probed once.
//!
//! None of them decides anything by a version number; `check` shows them, and
//! the sources probe for what they need themselves.

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;
use nix::unistd::{SysconfVar, sysconf};

use crate::file::mountinfo::MountTable;

/// What `migrator check` says of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// As `uname -m` has it.
    pub machine: String,
    /// Whether it tells of its types.
    pub btf: bool,
    /// How far it is locked down: `none`, `integrity`, `confidentiality`; or
    /// nothing, where the kernel does not say.
    pub lockdown: Option<String>,
    /// Whether the multi-generational LRU is on, so that active/inactive means
    /// nothing.
    pub lru_gen: bool,
    /// What kinds of cgroups are mounted.
    pub cgroups: Cgroups,
}

/// Versions of cgroups that are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// None.
    None,
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Both.
    Hybrid,
}

impl Kernel {
    /// Probes the running kernel; the roots are `/proc` and `/sys`.
    pub fn probe(proc_root: &Path, sys_root: &Path) -> Self {
        let name = uname();
        let word = |word: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            let name = name.as_ref().ok();
            name.map_or_else(String::new, |name| {
                word(name).to_string_lossy().into_owned()
            })
        };
        Self {
            release: word(|name| name.release()),
            machine: word(|name| name.machine()),
            btf: sys_root.join("kernel/btf/vmlinux").exists(),
            lockdown: lockdown(sys_root),
            lru_gen: lru_gen_enabled(sys_root),
            cgroups: cgroups(proc_root),
        }
    }
}

/// `[none] integrity confidentiality`, where the brackets mark what holds.
fn lockdown(sys_root: &Path) -> Option<String> {
    let text = fs::read_to_string(sys_root.join("kernel/security/lockdown")).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Whether the multi-generational LRU is on (`sys_root` is `/sys`): then the
/// active flag means nothing, and the referenced flag goes when pages age.
pub fn lru_gen_enabled(sys_root: &Path) -> bool {
    fs::read_to_string(sys_root.join("kernel/mm/lru_gen/enabled"))
        .ok()
        .and_then(|text| {
            let digits = text.trim().trim_start_matches("0x").to_owned();
            u32::from_str_radix(&digits, 16).ok()
        })
        // The other bits choose how it walks page tables.
        .is_some_and(|features| features & 1 != 0)
}

fn cgroups(proc_root: &Path) -> Cgroups {
    let Ok(mounts) = MountTable::read(&proc_root.join("self")) else {
        return Cgroups::None;
    };
    let mounted = |kind| mounts.iter().any(|mount| mount.fs_type == kind);
    match (mounted("cgroup"), mounted("cgroup2")) {
        (false, false) => Cgroups::None,
        (true, false) => Cgroups::V1,
        (false, true) => Cgroups::V2,
        (true, true) => Cgroups::Hybrid,
    }
}

/// Bytes per page.
pub fn page_size() -> u32 {
    // Every Linux knows it (the auxiliary vector has it), so that what stands
    // for "unknown" never does.
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| size.try_into().ok()).unwrap_or(4096)
}

/// Total memory of this host in bytes; 0 if /proc can't be read.
pub fn memory(proc_root: &Path) -> u64 {
    let meminfo = fs::read_to_string(proc_root.join("meminfo")).unwrap_or_default();
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
    let text = fs::read_to_string(proc_root.join("sys/kernel/pid_max"));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(LIMIT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn recorded_trees_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        );
        write("kernel/btf/vmlinux", "");
        write("meminfo", "MemTotal:       24684088 kB\nMemFree: 1 kB\n");
        write("sys/kernel/pid_max", "32768\n");
        write("self/mountinfo", "1 0 0:2 / /c rw - cgroup2 cgroup2 rw\n");
        let kernel = Kernel::probe(root.path(), root.path());
        assert!(kernel.btf);
        assert_eq!(kernel.lockdown.as_deref(), Some("integrity"));
        assert_eq!(kernel.cgroups, Cgroups::V2);
        assert_eq!(memory(root.path()), 24_684_088 * 1024);
        assert_eq!(pid_max(root.path()), 32_768);
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_no() {
        let root = tempfile::tempdir().unwrap();
        let kernel = Kernel::probe(root.path(), root.path());
        assert!(!kernel.btf);
        assert_eq!(kernel.lockdown, None);
        assert_eq!(kernel.cgroups, Cgroups::None);
        assert_eq!(memory(root.path()), 0);
        assert_eq!(pid_max(root.path()), 4 << 20);
    }

    #[test]
    fn lru_gen_is_on_when_its_lowest_bit_is_set() {
        let sys = tempfile::tempdir().expect("a directory");
        assert!(!lru_gen_enabled(sys.path()), "not there");
        let dir = sys.path().join("kernel/mm/lru_gen");
        fs::create_dir_all(&dir).expect("directories");
        for (text, enabled) in [
            ("0x0007\n", true),
            ("0x0001\n", true),
            ("0x0000\n", false),
            ("0x0006\n", false),
            ("y\n", false),
        ] {
            fs::write(dir.join("enabled"), text).expect("a file");
            assert_eq!(lru_gen_enabled(sys.path()), enabled, "{text}");
        }
    }
}
