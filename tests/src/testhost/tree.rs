//! A tree of `steps` on the source.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::host::{Handle, Seen};
use super::site::Pair;
use crate::steps::Verdict;

/// Processes of a tree.
pub(super) const PROCESSES: usize = 3;

/// Steps that have to be seen before the tree counts as running.
const PROGRESS: u64 = 3;

/// How long that may take.
const PROGRESS_LIMIT: Duration = Duration::from_secs(20);

/// The most steps that a tree can make, one each 10 ms.
const STEPS: &str = "60000";

/// The last process id before that of the tree: those of the destination do not
/// come near.
const LAST_PID: u32 = 20000;

/// Whether a tree holds file locks. One that does ends with its dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// It holds two.
    Held,
    /// It holds none.
    None,
}

/// A tree.
#[derive(Debug)]
pub struct Tree {
    directory: PathBuf,
    /// Its root in the source.
    pub pid: i32,
    /// Its processes on the source when it was started.
    pub processes: Vec<Seen>,
}

impl Tree {
    /// Starts one on the source and waits until it makes steps.
    ///
    /// # Errors
    /// Returns an error when it does not.
    pub fn start(pair: &Pair, locks: Locks) -> Result<Self> {
        Self::start_large(pair, locks, 0)
    }

    /// Starts one whose root has so many MiB of memory besides.
    ///
    /// # Errors
    /// Returns an error when it does not make steps.
    pub fn start_large(pair: &Pair, locks: Locks, ballast: u32) -> Result<Self> {
        Self::start_with(pair, locks, &format!("--ballast {ballast}"))
    }

    /// Starts one with these options of `steps run`.
    ///
    /// # Errors
    /// Returns an error when it does not make steps.
    pub fn start_with(pair: &Pair, locks: Locks, options: &str) -> Result<Self> {
        let name = format!("tree-{}", pair.site.number());
        let directory = pair.site.shared.join(&name);
        let status = Command::new(pair.site.programs.join("steps"))
            .arg("prepare")
            .arg(&directory)
            .args(["--steps", STEPS, "--pages", "256"])
            .stdin(Stdio::null())
            .status()
            .context("failed to run steps")?;
        ensure!(status.success(), "steps prepare failed: {status}");
        let no_locks = match locks {
            Locks::Held => "",
            Locks::None => "--no-locks",
        };
        pair.source.run(&format!(
            "echo {LAST_PID} >/proc/sys/kernel/ns_last_pid
             setsid --fork /mnt/programs/steps run /mnt/shared/{name} {no_locks} \
             {options} </dev/null >/dev/null 2>&1"
        ))?;
        let mut tree = Self {
            directory,
            pid: 0,
            processes: Vec::new(),
        };
        tree.wait_for_progress()?;
        tree.processes = pair.source.handle().find("steps", "");
        let root = tree
            .processes
            .iter()
            .find(|process| process.args.contains(" run "));
        tree.pid = root.context("no process of the tree")?.inner;
        Ok(tree)
    }

    /// Returns the directory of its files.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// Returns what its ledger says at the moment.
    ///
    /// # Errors
    /// Returns an error when it can't be read.
    pub fn verdict(&self) -> Result<Verdict> {
        Verdict::read(&self.directory.join("ledger")).context("failed to read the ledger")
    }

    /// Waits until more steps are made.
    ///
    /// # Errors
    /// Returns an error when that takes too long.
    pub fn wait_for_progress(&self) -> Result<()> {
        let (began, before) = (Instant::now(), self.verdict()?.last);
        while self.verdict()?.last < before + PROGRESS {
            ensure!(
                began.elapsed() < PROGRESS_LIMIT,
                "the steps end at {before}"
            );
            thread::sleep(Duration::from_millis(15));
        }
        Ok(())
    }

    /// Ends it on these hosts, and removes its files.
    pub fn end(&self, hosts: &[&Handle]) {
        let began = Instant::now();
        while began.elapsed() < PROGRESS_LIMIT {
            let left: Vec<_> = hosts.iter().flat_map(|it| it.find("steps", "")).collect();
            if left.is_empty() {
                break;
            }
            for process in left {
                process.signal(Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(3));
        }
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns how many processes of a tree run on a host: they are not stopped.
pub(super) fn running(host: &Handle) -> usize {
    let all = host.find("steps", "");
    all.iter().filter(|process| !process.is_still()).count()
}
