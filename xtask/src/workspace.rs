//! Where things are in the source tree, and the cargo that builds them.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// The source tree that this task works on.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The top of the tree.
    pub(crate) root: PathBuf,
}

impl Workspace {
    /// Finds the tree. The path comes from cargo at run time and not at
    /// compile time, so that a moved or copied tree works on itself.
    pub(crate) fn find() -> Result<Self> {
        let xtask = env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .context("failed to find the source tree: run this as `cargo xtask`")?;
        let root = xtask
            .parent()
            .context("failed to find the source tree: xtask has no parent directory")?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Everything that is built; never below a `CARGO_TARGET_DIR` of the
    /// user's, so that the documentation can name the paths.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// What `cargo xtask build` hands out.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target().join("dist")
    }

    /// The crate of the eBPF programs, a workspace of its own.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.root.join("migrator-ebpf")
    }

    /// The source of the kernel module.
    pub(crate) fn kmod(&self) -> PathBuf {
        self.root.join("kmod-compat")
    }

    /// What runs inside the virtual machines.
    pub(crate) fn guests(&self) -> PathBuf {
        self.root.join("tests/vm")
    }

    /// The cargo that runs this task, at the top of the tree.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root);
        command
    }
}

/// Cargo itself, not rustup's stand-in for it, which would put its own
/// libraries before those of another toolchain.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
