//! Cgroups that end with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A cgroup that is removed with the test.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one below another, or below the root of a hierarchy.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn new(parent: &Path) -> Self {
        Self::named(parent, &format!("migrator-test-{}", std::process::id()))
    }

    /// The same with a name of one's own.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn named(parent: &Path, name: &str) -> Self {
        let path = parent.join(name);
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process there.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn add(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a member");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last member may just have ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where cgroup2 is mounted.
///
/// # Panics
/// When it is not.
pub fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut places = fields
        .filter(|it| it[2] == "cgroup2")
        .map(|it| PathBuf::from(it[1]));
    places
        .next()
        .expect("this test needs cgroup2: mount -t cgroup2 none DIRECTORY")
}
