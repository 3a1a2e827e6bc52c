//! A cgroup for what this program starts, so that all of it can be ended.
//!
//! It lies below this process's own cgroup of version 2, where no controller is
//! needed. `cgroup.kill` (Linux 5.14, 661ee6281c8a) reaches processes whose
//! parent has died and those that are being forked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::file::mountinfo::MountTable;
use crate::process::Process;

/// Poll interval for the end of the last process of a cgroup.
const POPULATED_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How long a cgroup may take until it is empty, once nothing is to be left in it.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// A cgroup that this program made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes the cgroup `migrator-NAME` below this process's own; `None` where
    /// no cgroup2 is mounted, or none may be made.
    pub fn create(name: &str) -> Option<Self> {
        let group = Self {
            path: own()?.join(format!("migrator-{name}")),
        };
        match fs::create_dir(&group.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => None,
            _ => Some(group),
        }
    }

    /// Returns the cgroup with this directory.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process there.
    ///
    /// # Errors
    /// Those of write(2) on `cgroup.procs`.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Returns its processes.
    pub fn processes(&self) -> Vec<Process> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        pids.filter(|pid| *pid > 0)
            .filter_map(Process::of)
            .collect()
    }

    /// Kills all its processes and waits until none is left. Returns whether
    /// that is so.
    pub fn kill(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            // The oldest is CRIU. It goes last: what it traces would run when
            // it ends, unless a SIGKILL is pending.
            let mut processes = self.processes();
            processes.sort_by_key(|process| std::cmp::Reverse(process.started));
            for process in processes {
                // It is sent again below.
                _ = process.signal(Signal::KILL);
            }
            // Before Linux 5.14 there is no such file, and the loop does it.
            _ = fs::write(self.path.join("cgroup.kill"), "1");
            if !self.is_populated() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(POPULATED_POLL_INTERVAL);
        }
    }

    /// Returns whether a process lives in it or below it (`cgroup.events`,
    /// which does not count zombies).
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Moves its processes to the cgroup above, where they would be without it,
    /// and removes it.
    pub fn dissolve(&self) {
        self.remove_after(|| {
            if let Some(above) = self.path.parent() {
                for process in self.processes() {
                    _ = fs::write(above.join("cgroup.procs"), process.pid.to_string());
                }
            }
        });
    }

    /// Removes it if it is empty.
    pub fn remove(&self) {
        self.remove_after(|| {});
    }

    /// Removes it, and waits for processes that are about to end, or were just forked.
    /// One that is not empty is kept by the kernel, and seen by its name.
    fn remove_after(&self, empty: impl Fn()) {
        let end = Instant::now() + REMOVE_LIMIT;
        loop {
            empty();
            let removed = fs::remove_dir(&self.path);
            let is_busy = removed.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy);
            if !is_busy || Instant::now() >= end {
                return;
            }
            thread::sleep(POPULATED_POLL_INTERVAL);
        }
    }
}

/// Returns the directory of this process's cgroup of version 2.
fn own() -> Option<PathBuf> {
    let mounts = MountTable::read(Path::new("/proc/self")).ok()?;
    let path = super::path_of(std::process::id() as i32)?;
    let mut directories = mounts.iter().filter(|mount| mount.fs_type == "cgroup2");
    directories.find_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        Some(mount.mount_point.join(below))
    })
}
