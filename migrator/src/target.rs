//! Whom to observe.

use std::path::PathBuf;

/// Whose accesses count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process and its descendants, also those forked later.
    Process(i32),
    /// The processes of a cgroup directory and of those below it.
    Cgroup(PathBuf),
    /// Every process but ourselves.
    All,
}
