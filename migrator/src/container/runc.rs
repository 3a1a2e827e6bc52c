//! runc by itself: its bundle is at the same path on both hosts.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{ask, check_name, wrapper};
use crate::criu::Passed;
use crate::handover::Session;
use crate::live::order::Subject;

/// What `runc state` says, as far as it is of interest.
#[derive(Deserialize)]
struct State {
    status: String,
    pid: i32,
    bundle: PathBuf,
}

/// The container of this id, and its first process.
///
/// # Errors
/// runc does not know it, or it does not run.
pub fn subject(id: &str) -> anyhow::Result<(Subject, i32)> {
    check_name(id)?;
    let state = ask("runc", &["state", id])?;
    let state: State = serde_json::from_str(&state).context("`runc state` makes no sense")?;
    if state.status != "running" {
        bail!("runc's container {id} is {} and does not run", state.status);
    }
    let subject = Subject::Runc {
        id: id.to_owned(),
        bundle: state.bundle,
    };
    Ok((subject, state.pid))
}

/// Whether this host can restore it.
pub(super) fn able(id: &str, bundle: &Path) -> anyhow::Result<()> {
    check_name(id)?;
    if !bundle.join("config.json").is_file() {
        bail!(
            "there is no bundle {} on this host: it has to be on both, at the same path",
            bundle.display()
        );
    }
    let known = ask("runc", &["list", "--quiet"])?;
    if known.lines().any(|it| it == id) {
        bail!("this host has a runc container {id} already");
    }
    Ok(())
}

pub(super) fn dump(
    id: &str,
    session: &Session,
    images: &Path,
    passed: Passed,
) -> anyhow::Result<Command> {
    let mut command = command("checkpoint", session, images, passed)?;
    wrapper::hook(&mut command, session, "dump")?;
    command.arg(id);
    Ok(command)
}

pub(super) fn restore(
    id: &str,
    bundle: &Path,
    session: &Session,
    images: &Path,
    passed: Passed,
) -> anyhow::Result<Command> {
    let mut command = command("restore", session, images, passed)?;
    wrapper::hook(&mut command, session, "restore")?;
    command.arg("--detach").arg("--bundle").arg(bundle).arg(id);
    // A detached container keeps these, and CRIU restores its own.
    command.stderr(std::process::Stdio::null());
    Ok(command)
}

fn command(
    what: &str,
    session: &Session,
    images: &Path,
    passed: Passed,
) -> anyhow::Result<Command> {
    let work = session.storage().join("work");
    std::fs::create_dir_all(&work)
        .with_context(|| format!("failed to create {}", work.display()))?;
    let mut command = Command::new("runc");
    command
        .args([what, "--file-locks", "--image-path"])
        .arg(images)
        .arg("--work-path")
        .arg(work)
        .process_group(0);
    if passed.tcp_established {
        command.arg("--tcp-established");
    }
    Ok(command)
}

pub(super) fn remove(id: &str) -> anyhow::Result<()> {
    let known = ask("runc", &["list", "--quiet"])?;
    match known.lines().any(|it| it == id) {
        true => ask("runc", &["delete", "--force", id]).map(drop),
        false => Ok(()),
    }
}
