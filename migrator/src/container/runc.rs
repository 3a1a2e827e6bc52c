//! runc by itself: its bundle is at the same path on both hosts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{DumpHook, IsCancelled, Subject, ask, check_name, never, wrapper};
use crate::criu::Work;

/// The parts of `runc state` that matter here.
#[derive(Deserialize)]
struct State {
    status: String,
    pid: i32,
    bundle: PathBuf,
}

/// Returns the container of this id and the pid of its first process.
///
/// # Errors
/// runc does not know it, or it does not run.
pub fn subject(id: &str, is_cancelled: IsCancelled<'_>) -> anyhow::Result<(Subject, i32)> {
    check_name(id)?;
    let state = ask("runc", &["state", id], is_cancelled)?;
    let state: State = serde_json::from_str(&state).context("malformed output of `runc state`")?;
    if state.status != "running" {
        bail!("runc's container {id} is {}, not running", state.status);
    }
    let subject = Subject::Runc {
        id: id.to_owned(),
        bundle: state.bundle,
    };
    Ok((subject, state.pid))
}

/// Checks whether this host can restore it.
pub(super) fn check_restore(
    id: &str,
    bundle: &Path,
    is_cancelled: IsCancelled<'_>,
) -> anyhow::Result<()> {
    check_name(id)?;
    if !bundle.join("config.json").is_file() {
        bail!(
            "there is no bundle {} on this host: it has to be on both, at the same path",
            bundle.display()
        );
    }
    let known = ask("runc", &["list", "--quiet"], is_cancelled)?;
    if known.lines().any(|it| it == id) {
        bail!("this host has a runc container {id} already");
    }
    Ok(())
}

pub(super) fn dump(id: &str, work: Work<'_>, hook: DumpHook<'_>) -> anyhow::Result<Command> {
    let mut command = command("checkpoint", work)?;
    wrapper::hook_dump(&mut command, work.storage, hook)?;
    command.arg(id);
    Ok(command)
}

pub(super) fn restore(id: &str, bundle: &Path, work: Work<'_>) -> anyhow::Result<Command> {
    let mut command = command("restore", work)?;
    wrapper::hook_restore(&mut command, work.storage)?;
    command.arg("--detach").arg("--bundle").arg(bundle).arg(id);
    // A detached container keeps these, and CRIU restores its own.
    command.stderr(std::process::Stdio::null());
    Ok(command)
}

fn command(what: &str, work: Work<'_>) -> anyhow::Result<Command> {
    let directory = work.storage.join("work");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let mut command = Command::new("runc");
    command
        .args([what, "--file-locks", "--image-path"])
        .arg(work.images)
        .arg("--work-path")
        .arg(directory);
    if work.passed.tcp_established {
        command.arg("--tcp-established");
    }
    Ok(command)
}

pub(super) fn remove(id: &str) -> anyhow::Result<()> {
    let known = ask("runc", &["list", "--quiet"], &never)?;
    match known.lines().any(|it| it == id) {
        true => ask("runc", &["delete", "--force", id], &never).map(drop),
        false => Ok(()),
    }
}
