//! Has what is read charged to the container that it is read for.
//!
//! Page cache belongs to the memory cgroup of the task that brought it in
//! (Documentation/admin-guide/cgroup-v2.rst, "Memory Ownership"). So the
//! worker becomes a member of the restored tree's cgroup.

mod group;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::file::mountinfo::MountTable;

pub use group::Group;

/// Pids that the container must have left for itself.
const SPARE: u64 = 64;

/// Why this process is not charged to the cgroup.
#[derive(Debug, thiserror::Error)]
pub enum NotJoined {
    /// No memory cgroup is mounted here, or the process has ended.
    #[error("no memory cgroup of the process was found")]
    None,
    /// The container could run out of pids.
    #[error("{} has a limit of {limit} pids, which leaves too few for us", path.display())]
    Pids {
        /// Where.
        path: PathBuf,
        /// `pids.max`.
        limit: u64,
    },
    /// The kernel refuses.
    #[error("failed to write to {}: {source}", path.display())]
    Failed {
        /// What was written to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Moves this process into the memory cgroup of another, where that can spare
/// `pids` more processes and threads. Gives the cgroup's directory.
///
/// # Errors
/// Why it stays where it is.
pub fn join(pid: i32, pids: u64) -> Result<PathBuf, NotJoined> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let cgroups = cgroups.map_err(|_| NotJoined::None)?;
    let mounts = MountTable::read(Path::new("/proc/self")).map_err(|_| NotJoined::None)?;
    let cgroup = memory_cgroup(&cgroups, &mounts).ok_or(NotJoined::None)?;
    for directory in cgroup.ancestors() {
        // Of version 1 it is another hierarchy, which is not joined.
        if let Some(limit) = is_short_of_pids(directory, pids + SPARE) {
            let path = directory.to_owned();
            return Err(NotJoined::Pids { path, limit });
        }
    }
    let path = cgroup.join("cgroup.procs");
    // 0 is the process that writes.
    fs::write(&path, "0").map_err(|source| NotJoined::Failed { path, source })?;
    Ok(cgroup)
}

/// This process is in a cgroup that a container will have, and reads for it.
#[derive(Debug)]
pub struct Visit {
    cgroup: PathBuf,
    home: PathBuf,
}

impl Visit {
    /// Makes a cgroup (of version 2, by its path below the root of the
    /// hierarchy) that has a memory controller, and moves this process there.
    /// Runtimes take it as it is: `docs/containers.md`.
    ///
    /// # Errors
    /// Why it stays where it is.
    pub fn begin(path: &Path) -> Result<Self, NotJoined> {
        let mounts = MountTable::read(Path::new("/proc/self")).map_err(|_| NotJoined::None)?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|_| NotJoined::None)?;
        let home = memory_cgroup(&own, &mounts).ok_or(NotJoined::None)?;
        let text = format!("0::{}\n", path.display());
        let cgroup = memory_cgroup(&text, &mounts).ok_or(NotJoined::None)?;
        let has_parents = path.components().any(|part| part == Component::ParentDir);
        if path == Path::new("/") || has_parents {
            return Err(NotJoined::None);
        }
        let visit = Self { cgroup, home };
        visit.make(path).and_then(|()| visit.enter(&visit.cgroup))?;
        Ok(visit)
    }

    fn make(&self, path: &Path) -> Result<(), NotJoined> {
        // The root of the hierarchy, and each cgroup on the way, has to hand
        // the controller down.
        let depth = path.components().count() - 1;
        let ways: Vec<&Path> = self.cgroup.ancestors().take(depth + 1).collect();
        for way in ways.into_iter().rev() {
            let create = || match fs::create_dir(way) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            };
            let hand_down = || match way == self.cgroup {
                true => Ok(()),
                false => fs::write(way.join("cgroup.subtree_control"), "+memory"),
            };
            create().and_then(|()| hand_down()).map_err(|source| {
                let path = way.to_owned();
                NotJoined::Failed { path, source }
            })?;
        }
        Ok(())
    }

    fn enter(&self, cgroup: &Path) -> Result<(), NotJoined> {
        let path = cgroup.join("cgroup.procs");
        // 0 is the process that writes.
        fs::write(&path, "0").map_err(|source| NotJoined::Failed { path, source })
    }

    /// Moves this process back; what it has read stays charged.
    ///
    /// # Errors
    /// Why it stays where it is.
    pub fn end(&self) -> Result<(), NotJoined> {
        self.enter(&self.home)
    }
}

/// Removes a cgroup that [`Visit`] has made and nobody will use. A runtime that
/// has failed may have done it already, and one that has not keeps it.
pub fn remove(path: &Path) {
    let mounts = MountTable::read(Path::new("/proc/self"));
    let text = format!("0::{}\n", path.display());
    if let Ok(mounts) = mounts
        && let Some(cgroup) = memory_cgroup(&text, &mounts)
    {
        _ = fs::remove_dir(cgroup);
    }
}

/// The path of a process' cgroup of version 2 below the root of the hierarchy.
pub fn path_of(pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(path))
}

/// The directory of the memory cgroup in `/proc/PID/cgroup`.
fn memory_cgroup(cgroups: &str, mounts: &MountTable) -> Option<PathBuf> {
    // Each line is `id:controllers:path`; version 2 has no controllers.
    let lines = cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, Path::new(fields.next()?)))
    });
    let is_memory = |controllers: &str| controllers.split(',').any(|name| name == "memory");
    let v1 = lines
        .clone()
        .find(|(controllers, _)| is_memory(controllers));
    let (kind, path) = match v1 {
        Some((_, path)) => ("cgroup", path),
        None => ("cgroup2", lines.clone().find(|line| line.0.is_empty())?.1),
    };
    let mut places = mounts.iter().filter(|mount| {
        mount.fs_type == kind
            && (kind == "cgroup2" || mount.options.iter().any(|it| it == "memory"))
    });
    places.find_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        // Joining nothing would add a slash.
        Some(match below == Path::new("") {
            true => mount.mount_point.clone(),
            false => mount.mount_point.join(below),
        })
    })
}

/// The limit, if less than `needed` pids are left below it.
fn is_short_of_pids(cgroup: &Path, needed: u64) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(cgroup.join(name)).ok()?;
        text.trim().parse().ok()
    };
    // Without a limit it says "max".
    let limit = number("pids.max")?;
    let used = number("pids.current").unwrap_or_default();
    (limit.saturating_sub(used) < needed).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(text: &str) -> MountTable {
        MountTable::parse(text.as_bytes())
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn the_cgroup_that_memory_is_charged_to_is_found() {
        let v2 = memory_cgroup("0::/machine.slice/libpod-1.scope\n", &mounts(V2));
        let expected = "/sys/fs/cgroup/machine.slice/libpod-1.scope";
        assert_eq!(v2, Some(expected.into()));
        let v1 = "3:memory:/box\n2:cpu,cpuacct:/other\n0::/third\n";
        let v1 = memory_cgroup(v1, &mounts(HYBRID));
        assert_eq!(v1, Some("/sys/fs/cgroup/memory/box".into()));
        let root = memory_cgroup("0::/\n", &mounts(V2));
        assert_eq!(root, Some("/sys/fs/cgroup".into()));
        assert_eq!(memory_cgroup("0::/box\n", &mounts("")), None);
        assert_eq!(memory_cgroup("", &mounts(V2)), None);
    }

    #[test]
    fn a_tight_limit_of_pids_is_seen() {
        let cgroup = tempfile::tempdir().expect("a directory");
        let short = |needed| is_short_of_pids(cgroup.path(), needed);
        assert_eq!(short(100), None);
        fs::write(cgroup.path().join("pids.max"), "max\n").expect("a file");
        assert_eq!(short(100), None);
        fs::write(cgroup.path().join("pids.max"), "120\n").expect("a file");
        fs::write(cgroup.path().join("pids.current"), "20\n").expect("a file");
        assert_eq!(short(100), None);
        assert_eq!(short(101), Some(120));
    }
}
