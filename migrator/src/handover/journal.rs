//! What a process that takes a session over has to know.

use std::path::PathBuf;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::cgroup::Group;
use crate::container::Subject;
use crate::criu::{Criu, Passed};
use crate::process::Process;

/// The note with a [`Journal`].
pub const JOURNAL: &str = "journal";

/// The note that CRIU, or a runtime that runs it, has been started: an
/// [`AtWork`](crate::criu::AtWork).
pub const AT_WORK: &str = "at-work";

/// The destination's note of the restored root, a [`Process`].
pub const ROOT: &str = "root";

/// The destination's note of the processes that stay stopped: their ids in the
/// root's pid namespace.
pub const STAYS_STOPPED: &str = "stays-stopped";

/// What a session is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journal {
    /// What moves.
    pub subject: Subject,
    /// The directory of shared images, if they are not sent.
    pub images: Option<PathBuf>,
    /// Pass `--tcp-established` to CRIU.
    pub tcp_established: bool,
    /// The CRIU of this host.
    pub criu: PathBuf,
    /// The cgroup for what is started here.
    pub group: Option<PathBuf>,
    /// What only one side knows.
    pub side: Side,
}

/// What only one side knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The source.
    Source(Origin),
    /// The destination.
    Destination(Target),
}

/// What the source has to know to find the destination again, and its tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Origin {
    /// The root of the tree.
    pub root: Option<Process>,
    /// The tree. It may change until it is frozen.
    pub processes: Vec<Process>,
    /// Those of them that a signal had stopped before.
    pub stopped: Vec<Process>,
    /// `--to`
    pub to: String,
    /// `--rsh`
    pub rsh: Vec<String>,
    /// `--remote-path`
    pub remote_path: PathBuf,
    /// The host that accepted the order, once it has.
    pub destination: Option<Identity>,
    /// Its name, for people.
    pub destination_name: String,
    /// When the dump was ordered, and how long the tree may stand still before
    /// the commit.
    pub freeze: Option<Freeze>,
}

/// The limit of a freeze.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Freeze {
    /// Nanoseconds since the boot (CLOCK_BOOTTIME) at which the dump was
    /// ordered.
    pub since_ns: u64,
    /// `--max-freeze` in nanoseconds.
    pub limit_ns: u64,
}

/// What the destination has to know to clean up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// The cgroup that was made ahead for the container.
    pub cgroup: Option<PathBuf>,
    /// The ids of the processes, where they are those of the source.
    pub pids: Vec<i32>,
    /// This host and boot.
    pub identity: Identity,
    /// The source's name, for people.
    pub source_name: String,
}

impl Freeze {
    /// Starts now.
    pub fn start(limit: Duration) -> Self {
        Self {
            since_ns: now_ns(),
            limit_ns: limit.as_nanos() as u64,
        }
    }

    /// Returns how long the tree has been frozen at most.
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(now_ns().saturating_sub(self.since_ns))
    }

    /// Returns whether the limit is over by more than `grace`.
    pub fn is_over(self, grace: Duration) -> bool {
        self.elapsed() > Duration::from_nanos(self.limit_ns).saturating_add(grace)
    }
}

/// Nanoseconds since the boot, as each process of it counts them.
fn now_ns() -> u64 {
    // It can't fail for a clock that the kernel has (clock_gettime(2)).
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

impl Journal {
    /// Returns the CRIU of this host.
    pub fn criu(&self) -> Criu {
        Criu::new(self.criu.clone())
    }

    /// Returns the cgroup for what is started here.
    pub fn group(&self) -> Option<Group> {
        self.group.clone().map(Group::at)
    }

    /// Returns what is passed through to it.
    pub fn passed(&self) -> Passed {
        Passed {
            tcp_established: self.tcp_established,
        }
    }

    /// Returns where the images of this session are.
    pub fn images(&self, session: &super::Session) -> PathBuf {
        match &self.images {
            Some(shared) => shared.join(session.name()),
            None => session.images(),
        }
    }
}
