//! Where accesses come from; which source was chosen, and why.

pub mod pageflags;
pub mod procfs;

use crate::target::TargetError;

/// Why a source can't be used here. "Can't", "may not" and "something went
/// wrong" are three different answers.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The kernel, or this binary, does not have it.
    #[error("not supported: {0}")]
    NotSupported(String),
    /// It is there, but we may not.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// It should work, but did not.
    #[error("probe failed: {0}")]
    Failed(String),
    /// It is not the source's fault: there is nobody to observe.
    #[error(transparent)]
    Target(TargetError),
}
