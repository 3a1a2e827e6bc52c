//! Running other programs, with errors that name them.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end. Its output goes where ours goes, its input is
/// empty: no step may wait for an answer.
///
/// # Errors
/// When it can't be started, or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("failed to start {}", line(command)))?;
    if !status.success() {
        bail!("failed to run {}: {status}", line(command));
    }
    Ok(())
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it can't be started, does not succeed (with what it said on standard
/// error), or writes what is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "failed to run {}: {}\n{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end(),
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("failed to read the output of {}", line(command)))
}

/// Finds a program as a shell would, and in the directories of root's
/// programs, which are not on everybody's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| {
            candidate
                .metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no disk >&2; exit 7"]))
            .expect_err("it exits with 7");
        let error = error.to_string();
        assert!(
            error.contains("`sh -c echo no disk >&2; exit 7`"),
            "{error}"
        );
        assert!(error.contains("exit status: 7\nno disk"), "{error}");
    }

    #[test]
    fn a_program_is_found_only_when_it_can_be_run() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("passwd-but-nobody-has-this"), None);
    }
}
