//! podman, which knows the container on both hosts.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{ask, check_name, wrapper};
use crate::criu::Passed;
use crate::handover::Session;
use crate::live::order::Subject;

/// podman's archive, in the directory of images.
const ARCHIVE: &str = "podman.tar";

/// The container of this name, and its first process.
///
/// # Errors
/// podman does not know it, or it does not run.
pub fn subject(name: &str) -> anyhow::Result<(Subject, i32)> {
    check_name(name)?;
    let format = "{{.Name}} {{.State.Pid}} {{.State.Status}} {{.Image}}";
    let said = ask(
        "podman",
        &["container", "inspect", "--format", format, name],
    )?;
    let mut words = said.split_whitespace();
    let mut word = || {
        words
            .next()
            .context("`podman container inspect` makes no sense")
    };
    let (name, pid, status, image) = (word()?, word()?, word()?, word()?);
    if status != "running" {
        bail!("podman's container {name} is {status} and does not run");
    }
    let subject = Subject::Podman {
        name: name.to_owned(),
        image: image.to_owned(),
    };
    Ok((subject, pid.parse().context("podman tells no process id")?))
}

/// Whether this host can restore it.
pub(super) fn able(name: &str, image: &str) -> anyhow::Result<()> {
    check_name(name)?;
    check_name(image)?;
    if ask("podman", &["container", "exists", name]).is_ok() {
        bail!("this host has a podman container {name} already");
    }
    if ask("podman", &["image", "exists", image]).is_err() {
        bail!(
            "podman has no image {image:.12} on this host: bring it there, as with \
             `podman save IMAGE | ssh HOST podman load`"
        );
    }
    Ok(())
}

pub(super) fn dump(
    name: &str,
    session: &Session,
    images: &Path,
    passed: Passed,
) -> anyhow::Result<Command> {
    let mut command = command("checkpoint", passed);
    wrapper::hook(&mut command, session, "dump")?;
    command
        .arg("--compress=none")
        .arg("--export")
        .arg(images.join(ARCHIVE))
        .arg(name);
    Ok(command)
}

pub(super) fn restore(session: &Session, images: &Path, passed: Passed) -> anyhow::Result<Command> {
    let mut command = command("restore", passed);
    wrapper::hook(&mut command, session, "restore")?;
    command.arg("--import").arg(images.join(ARCHIVE));
    Ok(command)
}

/// The restore of a container from the checkpoint that podman has kept.
pub(super) fn go_on(name: &str, session: &Session, passed: Passed) -> anyhow::Result<Command> {
    let mut command = command("restore", passed);
    wrapper::hook(&mut command, session, "restore")?;
    command.arg(name);
    Ok(command)
}

/// Without `--keep`, podman could not restore it a second time.
fn command(what: &str, passed: Passed) -> Command {
    let mut command = Command::new("podman");
    command
        .args(["container", what, "--keep", "--file-locks"])
        .process_group(0);
    if passed.tcp_established {
        command.arg("--tcp-established");
    }
    command
}

pub(super) fn remove(name: &str) -> anyhow::Result<()> {
    ask(
        "podman",
        &["rm", "--force", "--ignore", "--time", "0", name],
    )
    .map(drop)
}
