//! CRIU: what it can, and dumps and restores that it holds until a [`Session`]
//! has decided. It asks us at each stage; where a container's runtime stands in
//! between, by way of an action script (criu(8), --action-script).

mod service;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::handover::Session;
use crate::handover::session::VARIABLE;
use crate::handover::settle::{DUMPED, INIT, RESTORED};
use service::Order;

/// How many lines of its log are shown when CRIU fails.
const LINES: usize = 6;

/// A CRIU to run.
#[derive(Debug, Clone)]
pub struct Criu {
    program: PathBuf,
}

/// What to pass through to CRIU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// Dump and restore established TCP connections.
    pub tcp_established: bool,
}

impl Criu {
    /// The program, or the path to it.
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// The program, or the path to it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version, such as `4.1.1`.
    ///
    /// # Errors
    /// It can't be run.
    pub fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| {
                let program = self.program.display();
                format!("failed to run {program}: install CRIU, or say where it is with --criu")
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(|version| version.trim().to_owned())
            .with_context(|| format!("{} --version tells no version", self.program.display()))
    }

    /// Finds out whether it works on this kernel: `criu check`.
    ///
    /// # Errors
    /// What it says.
    pub fn check(&self) -> anyhow::Result<()> {
        let output = Command::new(&self.program)
            .arg("check")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("failed to run {}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        bail!("`criu check` fails: {}", last_lines(&said))
    }

    /// Starts the dump of a tree, which then waits for the session's decision.
    ///
    /// # Errors
    /// CRIU can't be run.
    pub fn dump(
        &self,
        session: &Session,
        images: &Path,
        root: i32,
        passed: Passed,
    ) -> anyhow::Result<Child> {
        let order = Order {
            session,
            images,
            root: Some(root),
            passed,
        };
        order.start(&self.program)
    }

    /// Starts the restore of a tree, which waits for the session's decision
    /// before the tree runs. It ends when the tree runs.
    ///
    /// # Errors
    /// CRIU can't be run.
    pub fn restore(
        &self,
        session: &Session,
        images: &Path,
        passed: Passed,
    ) -> anyhow::Result<Child> {
        let order = Order {
            session,
            images,
            root: None,
            passed,
        };
        order.start(&self.program)
    }

    /// The reason that CRIU wrote into its log when it failed, in one line.
    pub fn complaint(session: &Session, what: &str) -> String {
        let log = session.storage().join(format!("{what}.log"));
        let text = fs::read_to_string(&log).unwrap_or_default();
        let is_error = |line: &&str| line.contains("Error") || line.contains("rror:");
        let errors: Vec<&str> = text.lines().filter(is_error).collect();
        match errors.is_empty() {
            true => last_lines(&text),
            false => last_lines(&errors.join("\n")),
        }
    }
}

/// The script that a runtime's CRIU runs at each stage.
///
/// A shell between CRIU and us: CRIU takes a script that a signal has killed
/// for one that has succeeded (`WEXITSTATUS` in `cr_dump_finish`, CRIU 4.2),
/// and would kill the tree. The shell makes 137 of SIGKILL.
///
/// It lies beside the images, for /run is often mounted noexec.
///
/// # Errors
/// It can't be written.
pub fn action_script(session: &Session) -> anyhow::Result<PathBuf> {
    let path = session.storage().join("action");
    let program = std::env::current_exe().context("failed to find migrator's own program")?;
    let program = program.to_str().context("migrator's path is not UTF-8")?;
    let program = shlex::try_quote(program).context("migrator's path has a NUL")?;
    let name = session.name();
    let mark = |mark| {
        let path = session.directory().join(mark);
        let path = path.to_str().context("the session's path is not UTF-8")?;
        shlex::try_quote(path)
            .map(|path| path.into_owned())
            .context("the session's path has a NUL")
    };
    let (dumped, restored, init) = (mark(DUMPED)?, mark(RESTORED)?, mark(INIT)?);
    // A frozen tree waits for this: at the other stages, of which CRIU has many,
    // nothing is started, and at these two the shell tells before it starts us.
    let script = format!(
        "#!/bin/sh\n\
         case $CRTOOLS_SCRIPT_ACTION in\n\
         post-dump) : >{dumped} ;;\n\
         post-restore) echo \"$CRTOOLS_INIT_PID\" >{init} && : >{restored} ;;\n\
         *) exit 0 ;;\n\
         esac\n\
         export {VARIABLE}={name}\n\
         {program} criu-hook\n\
         exit $?\n"
    );
    let write = || {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o700);
        options.open(&path)?.write_all(script.as_bytes())
    };
    write().with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

/// The last lines of what a program said, as one.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.len() {
        0 => "it says nothing".into(),
        length => lines[length.saturating_sub(LINES)..].join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_one_line() {
        assert_eq!(last_lines(""), "it says nothing");
        assert_eq!(last_lines(" a \n\nb\n"), "a | b");
        assert_eq!(
            last_lines("1\n2\n3\n4\n5\n6\n7\n8"),
            "3 | 4 | 5 | 6 | 7 | 8"
        );
    }
}
