//! Programs of the tests that run inside the guests.

use std::path::PathBuf;

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

/// What the guests run; static, for they have another libc.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs, in the crate of the integration tests.
pub(super) const PROGRAMS: &[&str] = &["steps"];

/// Compiles them, and gives the directory that has them.
pub(super) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--quiet", "--package", "migrator-tests"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(workspace.target())
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=debuginfo",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for program in PROGRAMS {
        cargo.args(["--bin", program]);
    }
    command::run(&mut cargo)?;
    Ok(workspace.target().join(TARGET).join("debug"))
}
