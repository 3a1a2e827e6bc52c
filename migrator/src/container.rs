//! Containers as their runtimes see them: checkpoint, restore, and what is left
//! to do on the source. `docs/containers.md` has what each runtime does.
//!
//! podman makes an archive of its own when the container's processes have
//! ended. They can't be held until it has arrived: they end with the checkpoint,
//! and podman restores them if the migration fails. runc's are held, as those of
//! a plain process tree are.

mod find;
mod podman;
mod runc;
mod wrapper;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use crate::child::{self, QUESTION_LIMIT};
use crate::criu::{Criu, Job, OnPostDump, Work};

pub use find::{Runtime, find};
pub use podman::subject as podman_subject;
pub use runc::subject as runc_subject;

/// What is to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A process and its descendants.
    Process {
        /// The root of the tree.
        pid: i32,
    },
    /// A container that runc runs.
    Runc {
        /// Its id.
        id: String,
        /// The directory of its config.json, the same on both hosts.
        bundle: PathBuf,
    },
    /// A container that podman knows.
    Podman {
        /// Its name.
        name: String,
        /// What it was made from; has to be on the destination.
        image: String,
    },
}

/// What the action script of a container's CRIU does at the end of a dump: it
/// creates a mark, then runs this program as `criu-hook` with an environment
/// variable, and takes its exit code.
#[derive(Debug, Clone, Copy)]
pub struct DumpHook<'a> {
    /// The mark that the dump is complete.
    pub mark: &'a Path,
    /// The variable's name and value.
    pub variable: (&'a str, &'a str),
}

/// Whether a question of `move` or `receive` was given up.
pub type IsCancelled<'a> = &'a dyn Fn() -> bool;

/// Returns what it is, for people.
pub fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Process { pid } => format!("process {pid}"),
        Subject::Runc { id, .. } => format!("runc's container {id}"),
        Subject::Podman { name, .. } => format!("podman's container {name}"),
    }
}

/// Returns whether its processes end with the dump in any case.
pub fn ends_with_dump(subject: &Subject) -> bool {
    matches!(subject, Subject::Podman { .. })
}

/// Returns how often the images' bytes are on a disk at once: podman unpacks
/// its archive.
pub fn copies(subject: &Subject) -> u64 {
    match subject {
        Subject::Podman { .. } => 2,
        _ => 1,
    }
}

/// Checks whether this host can restore it.
///
/// # Errors
/// What is missing, or in the way.
pub fn check_restore(
    subject: &Subject,
    criu: &Criu,
    is_cancelled: IsCancelled<'_>,
) -> anyhow::Result<()> {
    criu.check(is_cancelled)?;
    match subject {
        Subject::Process { .. } => Ok(()),
        Subject::Runc { id, bundle } => runc::check_restore(id, bundle, is_cancelled),
        Subject::Podman { name, image } => podman::check_restore(name, image, is_cancelled),
    }
}

/// Starts the dump of a tree, which waits at its end: a plain tree's for
/// `answer`, a container's for the hook.
///
/// # Errors
/// It can't be prepared, or started.
pub fn dump(
    subject: &Subject,
    work: Work<'_>,
    criu: &Criu,
    hook: DumpHook<'_>,
    answer: OnPostDump,
) -> anyhow::Result<Job> {
    let command = match subject {
        Subject::Process { pid } => return criu.dump(work, *pid, answer),
        Subject::Runc { id, .. } => runc::dump(id, work, hook)?,
        Subject::Podman { name, .. } => podman::dump(name, work, hook)?,
    };
    Job::start(command, work.group, work.storage)
}

/// Starts the restore of a tree, which is complete and stopped at its end.
///
/// # Errors
/// It can't be prepared, or started.
pub fn restore(subject: &Subject, work: Work<'_>, criu: &Criu) -> anyhow::Result<Job> {
    let command = match subject {
        Subject::Process { .. } => return criu.restore(work),
        Subject::Runc { id, bundle } => runc::restore(id, bundle, work)?,
        Subject::Podman { .. } => podman::restore(work)?,
    };
    Job::start(command, work.group, work.storage)
}

/// Starts the restore of a tree on the host where it has ended with its dump.
///
/// # Errors
/// It can't be prepared, or started.
pub fn restore_here(subject: &Subject, work: Work<'_>, criu: &Criu) -> anyhow::Result<Job> {
    match subject {
        Subject::Podman { name, .. } => {
            Job::start(podman::restore_here(name, work)?, work.group, work.storage)
        }
        other => restore(other, work, criu),
    }
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

/// Runs a runtime for something short. Returns its output without the line
/// end.
fn ask(program: &str, arguments: &[&str], is_cancelled: IsCancelled<'_>) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    let output = child::output(
        command.args(arguments).current_dir("/"),
        QUESTION_LIMIT,
        is_cancelled,
    )?;
    if !output.status.success() {
        let words = arguments.join(" ");
        bail!("`{program} {words}` fails: {}", output.stderr.trim());
    }
    Ok(output.stdout.trim().to_owned())
}

/// Nothing interrupts a clean-up.
fn never() -> bool {
    false
}

/// Refuses a name that a runtime could take for an option or a path.
fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "_.-".contains(char);
    if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(is_plain) {
        bail!("invalid container name: {name:?}");
    }
    Ok(())
}
