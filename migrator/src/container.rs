//! Containers, as their runtimes see them.
//!
//! A plain process tree has none; its functions have nothing to do then.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::criu::{Criu, Passed};
use crate::handover::Session;
use crate::handover::settle::{Journal, Origin};
use crate::live::order::Subject;

/// What it is, for people.
pub fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Process { pid } => format!("process {pid}"),
        Subject::Runc { id, .. } => format!("runc's container {id}"),
        Subject::Podman { name, .. } => format!("podman's container {name}"),
    }
}

/// Finds out whether this host can checkpoint or restore it.
///
/// # Errors
/// What is missing.
pub fn able(subject: &Subject) -> anyhow::Result<()> {
    bail!("{} can't be moved yet", describe(subject))
}

/// The checkpoint of a container, which then waits for the session's decision.
///
/// # Errors
/// It can't be prepared.
pub fn dump(subject: &Subject, _: &Session, _: &Path, _: Passed) -> anyhow::Result<Command> {
    bail!("{} can't be moved yet", describe(subject))
}

/// The restore of a container, which waits for the session's decision before
/// it runs.
///
/// # Errors
/// It can't be prepared.
pub fn restore(subject: &Subject, _: &Session, _: &Path, _: Passed) -> anyhow::Result<Command> {
    bail!("{} can't be moved yet", describe(subject))
}

/// Why a dump or a restore failed, as far as its log tells.
pub fn complaint(_subject: &Subject, session: &Session) -> String {
    let has = |what: &str| session.storage().join(format!("{what}.log")).exists();
    Criu::complaint(session, if has("restore") { "restore" } else { "dump" })
}

/// Makes a tree that has ended with its dump run again on the source, from
/// its images.
///
/// # Errors
/// What the runtime, or CRIU, says. The images stay.
pub fn go_on(session: &Session, journal: &Journal, origin: &Origin) -> anyhow::Result<()> {
    let images = match &journal.images {
        Some(shared) => shared.join(session.name()),
        None => session.images(),
    };
    let passed = Passed {
        tcp_established: origin.tcp_established,
    };
    let criu = Criu::new(origin.criu.clone());
    let mut command = match &journal.subject {
        Subject::Process { .. } => criu.restore(session, &images, passed)?,
        Subject::Podman { name, .. } => {
            return podman(&["container", "restore", "--file-locks", name]).map(drop);
        }
        other => restore(other, session, &images, passed)?,
    };
    let status = command
        .status()
        .with_context(|| format!("failed to run {:?}", command.get_program()))?;
    if !status.success() {
        bail!(
            "failed to restore {} from {}, where its images stay: {status}: {}",
            describe(&journal.subject),
            images.display(),
            Criu::complaint(session, "restore")
        );
    }
    Ok(())
}

/// Makes the source's runtime forget a container that runs elsewhere.
///
/// # Errors
/// What the runtime says.
pub fn forget(subject: &Subject) -> anyhow::Result<()> {
    match subject {
        // runc deletes a container whose checkpoint it has made.
        Subject::Process { .. } | Subject::Runc { .. } => Ok(()),
        Subject::Podman { name, .. } => podman(&["rm", "--force", "--ignore", name]).map(drop),
    }
}

/// Runs podman; gives what it says, without the line end.
///
/// # Errors
/// What it complains about.
pub fn podman(arguments: &[&str]) -> anyhow::Result<String> {
    run("podman", arguments)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {program}: is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` fails: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The container of this name, and its first process.
///
/// # Errors
/// podman does not know it, or it does not run.
pub fn podman_subject(name: &str) -> anyhow::Result<(Subject, i32)> {
    bail!("podman's container {name} can't be moved yet")
}

/// The container of this id, and its first process.
///
/// # Errors
/// runc does not know it, or it does not run.
pub fn runc_subject(id: &str) -> anyhow::Result<(Subject, i32)> {
    bail!("runc's container {id} can't be moved yet")
}
