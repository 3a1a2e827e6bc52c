//! How much may be read before pages drive out each other.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Looks at the memory again and again while a prefetch is under way.
#[derive(Debug, Clone)]
pub(super) struct MemoryWatch {
    /// `/` but in tests.
    root: PathBuf,
    /// The text of mountinfo: where cgroups are to be found stays as it is.
    mounts: String,
    looked_at: Instant,
}

impl MemoryWatch {
    /// Begins to watch what /proc and the cgroup file systems below `root` say.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            mounts: read(&root.join("proc/self/mountinfo")).unwrap_or_default(),
            looked_at: Instant::now(),
        }
    }

    /// The memory there is.
    ///
    /// None if /proc/meminfo cannot be read or says nothing; a cgroup that
    /// cannot be read is no limit.
    pub(super) fn memory(&self) -> Option<Memory> {
        let host = host(&read(&self.root.join("proc/meminfo")).ok()?)?;
        let cgroups = self
            .cgroups()
            .into_iter()
            .filter_map(|cgroup| limit(&cgroup));
        cgroups
            .filter(|memory| memory.total < host.total)
            .chain([host])
            .min_by_key(|memory| memory.available)
    }

    /// Whether programs are found to be in need of memory. Looks only if it has not
    /// for so long.
    pub(super) fn finds_short(&mut self, every: Duration) -> bool {
        if self.looked_at.elapsed() < every {
            return false;
        }
        self.looked_at = Instant::now();
        self.memory().is_some_and(Memory::is_short)
    }

    /// The directories of the memory cgroups that this process is in now, up to the
    /// root of each hierarchy.
    fn cgroups(&self) -> Vec<(PathBuf, Names)> {
        let own = read(&self.root.join("proc/self/cgroup")).unwrap_or_default();
        let mut dirs = Vec::new();
        // Each line is `id:controllers:path`; v2 has no controllers.
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let is_v2 = controllers.is_empty();
            if !is_v2 && !controllers.split(',').any(|name| name == "memory") {
                continue;
            }
            let Some((mounted, at)) = mount(&self.mounts, is_v2) else {
                continue;
            };
            let Ok(below) = Path::new(path).strip_prefix(mounted) else {
                continue;
            };
            let at = self.root.join(at.trim_start_matches('/'));
            dirs.extend(
                below
                    .ancestors()
                    .map(|below| (at.join(below), if is_v2 { V2 } else { V1 })),
            );
        }
        dirs
    }
}

/// A file of the kernel's, which does not say how long it is, with two reads; the
/// standard library begins with 32 bytes.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::with_capacity(16 << 10);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Memory of this host, or of a cgroup with a limit: the tightest that counts
/// for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// All of it, in bytes.
    total: u64,
    /// What is free or can be freed, in bytes: page cache counts as such.
    available: u64,
}

impl Memory {
    /// How many bytes to read at most. Without a budget three quarters of
    /// what is available, for the host's other cache is of use too; with one,
    /// as much as fits at all.
    pub(super) fn room(self, has_budget: bool) -> u64 {
        if has_budget {
            self.available
        } else {
            self.available / 4 * 3
        }
    }

    /// Whether so little is available that programs are in need of it. What
    /// was prefetched counts as available, so this is others' doing.
    pub(super) fn is_short(self) -> bool {
        self.available < self.total / 16
    }
}

/// From the text of /proc/meminfo.
fn host(meminfo: &str) -> Option<Memory> {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes = rest.strip_prefix(':')?.trim().strip_suffix(" kB")?;
        kibibytes.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
    })
}

/// Names of the files in a cgroup directory.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// File pages on the LRU lists, of the cgroup and those below it.
    cache: [&'static str; 2],
}

/// cgroup v1, Documentation/admin-guide/cgroup-v1/memory.rst.
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};

/// cgroup v2, Documentation/admin-guide/cgroup-v2.rst.
const V2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// The limit of a cgroup, if it has one.
fn limit((dir, names): &(PathBuf, Names)) -> Option<Memory> {
    let text = |name: &str| read(&dir.join(name)).ok();
    // Without a limit, v2 says "max" and v1 a number larger than any host.
    let total: u64 = text(names.limit)?.trim().parse().ok()?;
    let usage: u64 = text(names.usage)?.trim().parse().ok()?;
    let stat = text("memory.stat")?;
    let cache: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| names.cache.contains(name))
        .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
        .sum();
    Some(Memory {
        total,
        available: total.saturating_sub(usage.saturating_sub(cache)),
    })
}

/// Where the memory hierarchy is mounted: its directory that is at the mount
/// point, and the mount point. From mountinfo, see proc_pid_mountinfo(5).
fn mount(mounts: &str, is_v2: bool) -> Option<(&str, &str)> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let (fs, options) = (kind.next()?, kind.nth(1)?);
        let fits = if is_v2 {
            fs == "cgroup2"
        } else {
            fs == "cgroup" && options.split(',').any(|option| option == "memory")
        };
        fits.then_some((mount.next()?, mount.next()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MEMINFO: &str = "\
MemTotal:       24000000 kB
MemFree:        22000000 kB
MemAvailable:   20000000 kB
";

    /// A recorded tree: file → text.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("create directory");
            fs::write(path, text).expect("write");
        }
        root
    }

    #[test]
    fn the_host_alone() {
        let root = tree(&[("proc/meminfo", MEMINFO)]);
        let memory = MemoryWatch::new(root.path()).memory().expect("memory");
        assert_eq!(memory.available, 20_000_000 << 10);
        assert_eq!(memory.room(false), 15_000_000 << 10);
        assert_eq!(memory.room(true), 20_000_000 << 10);
        assert!(!memory.is_short());
    }

    #[test]
    fn nothing_known() {
        for files in [&[][..], &[("proc/meminfo", "MemTotal: 5 kB\n")]] {
            assert_eq!(MemoryWatch::new(tree(files).path()).memory(), None);
        }
    }

    #[test]
    fn a_limit_of_v1_above_us() {
        let root = tree(&[
            ("proc/meminfo", MEMINFO),
            (
                "proc/self/cgroup",
                "9:name=systemd:/\n4:cpu,memory:/box/inner\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "30 1 0:5 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpuacct\n\
                 31 1 0:6 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n",
            ),
            (
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes",
                "1000000\n",
            ),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "990000\n"),
            (
                "sys/fs/cgroup/memory/box/memory.stat",
                "cache 9\ninactive_file 7\ntotal_inactive_file 20000\ntotal_active_file 10000\n",
            ),
            (
                "sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/box/inner/memory.usage_in_bytes",
                "5\n",
            ),
            ("sys/fs/cgroup/memory/box/inner/memory.stat", "cache 5\n"),
        ]);
        let memory = MemoryWatch::new(root.path()).memory().expect("memory");
        let expected = Memory {
            total: 1_000_000,
            available: 40_000,
        };
        assert_eq!(memory, expected);
        let mut watch = MemoryWatch::new(root.path());
        assert!(!watch.finds_short(Duration::MAX), "looks too often");
        assert!(watch.finds_short(Duration::ZERO));
    }

    #[test]
    fn a_limit_of_v2_seen_from_a_bind_mount() {
        let root = tree(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/pod/us\n"),
            (
                "proc/self/mountinfo",
                "31 1 0:6 /pod /cg rw - cgroup2 cgroup2 rw,nsdelegate\n",
            ),
            ("cg/memory.max", "max\n"),
            ("cg/memory.current", "1\n"),
            ("cg/memory.stat", "\n"),
            ("cg/us/memory.max", "1000000\n"),
            ("cg/us/memory.current", "300000\n"),
            (
                "cg/us/memory.stat",
                "inactive_file 100000\nactive_file 50000\n",
            ),
        ]);
        let memory = MemoryWatch::new(root.path()).memory().expect("memory");
        assert_eq!(memory.total, 1_000_000);
        assert_eq!(memory.available, 850_000);
    }
}
