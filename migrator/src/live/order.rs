//! What the source asks the destination to take over.

use std::fs::Metadata;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::Subject;
use crate::file::identity;
use crate::handover::Identity;

/// Names the JSON form of an [`Order`].
pub const ORDER_SCHEMA: &str = "migrator.order/2";

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
    /// The source's name.
    pub host: String,
    /// The bytes of memory that its images may hold.
    pub memory_bytes: u64,
}

/// The answer of a destination whose preflight check has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The host's name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// CRIU's version.
    pub criu: String,
    /// The host and boot that a question has to name.
    pub identity: Identity,
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
