//! Containers, as their runtimes see them: checkpoint, restore, and what is
//! left to do on the source. `docs/containers.md` has what each runtime does.
//!
//! podman makes an archive of its own when the container's processes have
//! ended, so that they can't be held until it has arrived: they end with the
//! checkpoint, and podman restores them if the migration fails. runc's are
//! held, as those of a plain process tree are.

mod podman;
mod runc;
mod wrapper;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::criu::{Criu, Passed};
use crate::handover::Session;
use crate::handover::settle::{Journal, Origin};
use crate::live::order::Subject;

pub use podman::subject as podman_subject;
pub use runc::subject as runc_subject;

/// How long processes that have ended may stay in the process table.
const REAPED: Duration = Duration::from_secs(20);

/// What it is, for people.
pub fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Process { pid } => format!("process {pid}"),
        Subject::Runc { id, .. } => format!("runc's container {id}"),
        Subject::Podman { name, .. } => format!("podman's container {name}"),
    }
}

/// Whether its processes end with the dump in any case.
pub fn ends_with_dump(subject: &Subject) -> bool {
    matches!(subject, Subject::Podman { .. })
}

/// Finds out whether this host can restore it.
///
/// # Errors
/// What is missing, or in the way.
pub fn able(subject: &Subject, criu: &Criu) -> anyhow::Result<()> {
    criu.check()?;
    match subject {
        Subject::Process { .. } => Ok(()),
        Subject::Runc { id, bundle } => runc::able(id, bundle),
        Subject::Podman { name, image } => podman::able(name, image),
    }
}

/// Starts the dump of a tree, which then waits for the session's decision, or
/// ends it.
///
/// # Errors
/// It can't be prepared, or run.
pub fn dump(
    subject: &Subject,
    session: &Session,
    images: &Path,
    criu: &Criu,
    passed: Passed,
) -> anyhow::Result<Child> {
    match subject {
        Subject::Process { pid } => criu.dump(session, images, *pid, passed),
        Subject::Runc { id, .. } => spawn(runc::dump(id, session, images, passed)?),
        Subject::Podman { name, .. } => spawn(podman::dump(name, session, images, passed)?),
    }
}

/// Starts the restore of a tree, which waits for the session's decision before
/// it runs.
///
/// # Errors
/// It can't be prepared, or run.
pub fn restore(
    subject: &Subject,
    session: &Session,
    images: &Path,
    criu: &Criu,
    passed: Passed,
) -> anyhow::Result<Child> {
    match subject {
        Subject::Process { .. } => criu.restore(session, images, passed),
        Subject::Runc { id, bundle } => spawn(runc::restore(id, bundle, session, images, passed)?),
        Subject::Podman { .. } => spawn(podman::restore(session, images, passed)?),
    }
}

fn spawn(mut command: Command) -> anyhow::Result<Child> {
    command
        .spawn()
        .with_context(|| format!("failed to run {:?}", command.get_program()))
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
    // Their parents have to reap them before their ids are free.
    let began = Instant::now();
    while origin.processes.iter().any(|process| process.is_there()) && began.elapsed() < REAPED {
        thread::sleep(Duration::from_millis(10));
    }
    let mut child = match &journal.subject {
        Subject::Podman { name, .. } => spawn(podman::go_on(name, session, passed)?)?,
        other => restore(other, session, &images, &criu, passed)?,
    };
    let status = child.wait().context("failed to wait for the restore")?;
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
        // runc has deleted what it has dumped.
        Subject::Process { .. } | Subject::Runc { .. } => Ok(()),
        Subject::Podman { name, .. } => podman::remove(name),
    }
}

/// Removes what a restore that was given up has left on the destination.
///
/// # Errors
/// What the runtime says.
pub fn discard(subject: &Subject) -> anyhow::Result<()> {
    match subject {
        Subject::Process { .. } => Ok(()),
        Subject::Runc { id, .. } => runc::remove(id),
        Subject::Podman { name, .. } => podman::remove(name),
    }
}

/// Runs a runtime for something short; gives what it says, without the line
/// end.
fn ask(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {program}: is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` fails: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A name that no runtime takes for an option or a path.
fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "_.-".contains(char);
    if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(is_plain) {
        bail!("{name:?} is no container's name");
    }
    Ok(())
}
