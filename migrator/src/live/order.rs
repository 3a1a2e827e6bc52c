//! What the source asks the destination to take over.

use std::fs::Metadata;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::file::identity;

/// Names the JSON form of an [`Order`].
pub const ORDER_SCHEMA: &str = "migrator.order/1";

/// What is to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A process and its descendants.
    Process {
        /// The root of the tree.
        pid: i32,
    },
    /// A container that runc runs.
    Runc {
        /// Its id.
        id: String,
        /// The directory of its config.json, the same on both hosts.
        bundle: PathBuf,
    },
    /// A container that podman knows.
    Podman {
        /// Its name.
        name: String,
        /// What it was made from; has to be on the destination.
        image: String,
    },
}

/// A process tree to take over: what the destination has to be able to do,
/// and to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// [`ORDER_SCHEMA`].
    pub schema: String,
    /// The session's name, the same on both hosts.
    pub session: String,
    /// What is to move.
    pub subject: Subject,
    /// The machine, as `uname -m` has it.
    pub machine: String,
    /// The ids of its processes, which have to be free, unless it has a pid
    /// namespace of its own.
    pub pids: Vec<i32>,
    /// The regular files that it has open, as the host sees them.
    pub files: Vec<OpenedFile>,
    /// The container's cgroup below the root of cgroup2, to which its page
    /// cache is charged.
    pub cgroup: Option<PathBuf>,
    /// Where the images are, if both hosts share that; else they are sent.
    pub images: Option<PathBuf>,
    /// Whether TCP connections are to be restored.
    pub tcp_established: bool,
}

/// The destination's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Able {
    /// The host's name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// CRIU's version.
    pub criu: String,
}

/// A file that the tree has open or mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedFile {
    /// Its path.
    pub path: PathBuf,
    /// `st_size` in bytes.
    pub size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Whether the tree can write to it.
    pub writable: bool,
}

impl OpenedFile {
    /// The file at a path.
    pub fn new(path: PathBuf, meta: &Metadata, writable: bool) -> Self {
        Self {
            path,
            size: meta.len(),
            mtime_ns: identity::mtime_ns(meta),
            writable,
        }
    }
}
