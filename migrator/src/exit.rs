//! How a command ends: exit codes, and the errors that choose them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;

/// A command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for was done: exit code 0.
    Done,
    /// Some of the pages asked for could not be prefetched; the report says
    /// which and why: exit code 3.
    Incomplete,
    /// A command was observed, and ended with this exit code, which is ours.
    Command(u8),
}

/// The command to observe can't be started: exit code 127 if it is not found, 126
/// otherwise, as in a shell.
#[derive(Debug, thiserror::Error)]
#[error("failed to start {}", program.display())]
pub struct NotStarted {
    /// As it was named.
    pub program: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// The user asked for something that does not make sense: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// This host can't do what was asked for: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// A process tree was frozen, could not be moved, and runs on where it was:
/// exit code 5.
#[derive(Debug, thiserror::Error)]
#[error("{0}; rolled back: it runs on here")]
pub struct RolledBack(pub String);

/// Runs a command. A panic becomes an error, after its message was printed: no
/// exit code is left to chance.
///
/// # Errors
/// Those of the command, or that it panicked.
pub fn caught(command: impl FnOnce() -> anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    catch_unwind(AssertUnwindSafe(command))
        .unwrap_or_else(|_| Err(anyhow!("a bug: please report the message above")))
}

/// Prints the error, if there is one, and returns the exit code.
///
/// 0 done, 1 error, 2 usage, 3 prefetch incomplete, 4 host unsupported, 5
/// rolled back to the source; with a command to observe, that of the command.
pub fn code(result: anyhow::Result<Outcome>) -> ExitCode {
    let error = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => return ExitCode::from(3),
        Ok(Outcome::Command(code)) => return ExitCode::from(code),
        Err(error) => error,
    };
    crate::say!("{error:#}");
    if error.downcast_ref::<Usage>().is_some() {
        ExitCode::from(2)
    } else if error.downcast_ref::<Unsupported>().is_some() {
        ExitCode::from(4)
    } else if error.downcast_ref::<RolledBack>().is_some() {
        ExitCode::from(5)
    } else if let Some(not_started) = error.downcast_ref::<NotStarted>() {
        match not_started.source.kind() {
            io::ErrorKind::NotFound => ExitCode::from(127),
            _ => ExitCode::from(126),
        }
    } else {
        ExitCode::FAILURE
    }
}
