//! podman, which knows the container on both hosts.

use std::process::Command;

use anyhow::{Context, bail};

use super::{DumpHook, IsCancelled, Subject, ask, check_name, never, wrapper};
use crate::criu::{Passed, Work};

/// podman's archive, in the directory of images.
const ARCHIVE: &str = "podman.tar";

/// Returns the container of this name and the pid of its first process.
///
/// # Errors
/// podman does not know it, or it does not run.
pub fn subject(name: &str, is_cancelled: IsCancelled<'_>) -> anyhow::Result<(Subject, i32)> {
    check_name(name)?;
    let format = "{{.Name}} {{.State.Pid}} {{.State.Status}} {{.Image}}";
    let said = ask(
        "podman",
        &["container", "inspect", "--format", format, name],
        is_cancelled,
    )?;
    let mut words = said.split_whitespace();
    let mut word = || {
        words
            .next()
            .context("malformed output of `podman container inspect`")
    };
    let (name, pid, status, image) = (word()?, word()?, word()?, word()?);
    if status != "running" {
        bail!("podman's container {name} is {status}, not running");
    }
    let subject = Subject::Podman {
        name: name.to_owned(),
        image: image.to_owned(),
    };
    Ok((subject, pid.parse().context("podman prints no process id")?))
}

/// Checks whether this host can restore it.
pub(super) fn check_restore(
    name: &str,
    image: &str,
    is_cancelled: IsCancelled<'_>,
) -> anyhow::Result<()> {
    check_name(name)?;
    check_name(image)?;
    if ask("podman", &["container", "exists", name], is_cancelled).is_ok() {
        bail!("this host has a podman container {name} already");
    }
    if ask("podman", &["image", "exists", image], is_cancelled).is_err() {
        bail!(
            "podman has no image {image:.12} on this host: bring it there, as with \
             `podman save IMAGE | ssh HOST podman load`"
        );
    }
    Ok(())
}

pub(super) fn dump(name: &str, work: Work<'_>, hook: DumpHook<'_>) -> anyhow::Result<Command> {
    let mut command = command("checkpoint", work.passed);
    wrapper::hook_dump(&mut command, work.storage, hook)?;
    command
        .arg("--compress=none")
        .arg("--export")
        .arg(work.images.join(ARCHIVE))
        .arg(name);
    Ok(command)
}

pub(super) fn restore(work: Work<'_>) -> anyhow::Result<Command> {
    let mut command = command("restore", work.passed);
    wrapper::hook_restore(&mut command, work.storage)?;
    command.arg("--import").arg(work.images.join(ARCHIVE));
    Ok(command)
}

/// Returns the restore of a container from the checkpoint that podman has kept.
pub(super) fn restore_here(name: &str, work: Work<'_>) -> anyhow::Result<Command> {
    let mut command = command("restore", work.passed);
    wrapper::hook_restore(&mut command, work.storage)?;
    command.arg(name);
    Ok(command)
}

/// Without `--keep`, podman could not restore it a second time.
fn command(what: &str, passed: Passed) -> Command {
    let mut command = Command::new("podman");
    command.args(["container", what, "--keep", "--file-locks"]);
    if passed.tcp_established {
        command.arg("--tcp-established");
    }
    command
}

pub(super) fn remove(name: &str) -> anyhow::Result<()> {
    ask(
        "podman",
        &["rm", "--force", "--ignore", "--time", "0", name],
        &never,
    )
    .map(drop)
}
