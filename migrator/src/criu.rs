//! CRIU: what it can do here, and dumps and restores of process trees.
//!
//! A dump waits at CRIU's stage `post-dump` for an answer of ours: CRIU ends the
//! tree or lets it run. A restore runs to its end with `--leave-stopped`: all
//! that can fail in CRIU has succeeded when the tree is still stopped, and a
//! SIGCONT is what lets it run (`finalize_restore`, criu/cr-restore.c).

mod job;
mod service;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cgroup::Group;
use crate::child::{self, QUESTION_LIMIT};
use service::Order;

pub use job::{AtWork, Job};

/// How many lines of its log are shown when CRIU fails.
const LOG_LINES: usize = 6;

/// The variable that names a configuration file to CRIU, beside its others
/// (criu(8)).
pub const CONFIG_VARIABLE: &str = "CRIU_CONFIG_FILE";

/// The file with the id of a restored root, in the storage directory.
pub const ROOT_PID: &str = "root.pid";

/// Returns, at the end of a dump, whether CRIU ends the tree; it runs on
/// otherwise. It may take its time: the tree stands still.
pub type OnPostDump = Box<dyn FnOnce() -> bool + Send>;

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

/// Where a dump or a restore works.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The images.
    pub images: &'a Path,
    /// Logs, scripts and configuration.
    pub storage: &'a Path,
    /// The cgroup for everything that is started.
    pub group: Option<&'a Group>,
    /// What to pass through.
    pub passed: Passed,
    /// Restore each process into its cgroup of before. Otherwise the tree stays
    /// in the group, by which all of it can be ended.
    pub restores_cgroups: bool,
}

impl Criu {
    /// Takes the program, or the path to it.
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Returns the program, or the path to it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns its version, such as `4.1.1`.
    ///
    /// # Errors
    /// It can't be run, or does not answer.
    pub fn version(&self, is_cancelled: &dyn Fn() -> bool) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        let output = child::output(command.arg("--version"), QUESTION_LIMIT, is_cancelled)
            .context("install CRIU, or name it with --criu")?;
        output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(|version| version.trim().to_owned())
            .with_context(|| format!("{} --version prints no version", self.program.display()))
    }

    /// Runs `criu check`: whether it works on this kernel.
    ///
    /// # Errors
    /// What it prints.
    pub fn check(&self, is_cancelled: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        let output = child::output(command.arg("check"), QUESTION_LIMIT, is_cancelled)?;
        if output.status.success() {
            return Ok(());
        }
        bail!(
            "`criu check` fails: {}",
            last_lines(&(output.stderr + &output.stdout))
        )
    }

    /// Starts the dump of a tree.
    ///
    /// # Errors
    /// CRIU can't be started.
    pub fn dump(&self, work: Work<'_>, root: i32, answer: OnPostDump) -> anyhow::Result<Job> {
        let order = Order {
            work,
            dump: Some((root, answer)),
        };
        order.start(Command::new(&self.program))
    }

    /// Starts the restore of a tree, which is complete and stopped at its end.
    ///
    /// # Errors
    /// CRIU can't be started.
    pub fn restore(&self, work: Work<'_>) -> anyhow::Result<Job> {
        // An old CRIU refuses an unknown option of a file and ignores an
        // unknown field of a request: the tree would run.
        let config = restore_config(work.storage)?;
        let mut command = Command::new(&self.program);
        command.env(CONFIG_VARIABLE, config);
        let order = Order { work, dump: None };
        order.start(command)
    }
}

/// Writes the configuration of a restore. Returns its path.
///
/// # Errors
/// It can't be written.
pub fn restore_config(storage: &Path) -> anyhow::Result<PathBuf> {
    let root = storage.join(ROOT_PID);
    let text = format!("leave-stopped\npidfile {}\n", root.display());
    // CRIU opens it with O_EXCL.
    _ = fs::remove_file(&root);
    let path = storage.join("restore.conf");
    write(&path, text.as_bytes(), 0o600)?;
    Ok(path)
}

/// Returns the reason that CRIU wrote into its log when it failed, in one line.
pub fn complaint(storage: &Path, what: &str) -> String {
    let log = storage.join(format!("{what}.log"));
    let text = fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let is_error = |line: &&str| line.contains("Error") || line.contains("rror:");
    let errors: Vec<&str> = text.lines().filter(is_error).collect();
    match errors.is_empty() {
        true => last_lines(&text),
        false => last_lines(&errors.join("\n")),
    }
}

/// Writes a file that only root may read, anew.
///
/// # Errors
/// The file system says why not.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(mode);
    options
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Returns the last lines of a program's output, as one.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.len() {
        0 => "it prints nothing".into(),
        length => lines[length.saturating_sub(LOG_LINES)..].join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_one_line() {
        assert_eq!(last_lines(""), "it prints nothing");
        assert_eq!(last_lines(" a \n\nb\n"), "a | b");
        assert_eq!(
            last_lines("1\n2\n3\n4\n5\n6\n7\n8"),
            "3 | 4 | 5 | 6 | 7 | 8"
        );
    }
}
