//! A dump or a restore at work.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::ROOT_PID;
use crate::cgroup::Group;
use crate::child;
use crate::process::{self, Process};

/// How long a dump may take to fail by itself when it has to; then CRIU is
/// killed.
const FAIL_LIMIT: Duration = Duration::from_secs(2);

/// How long killed processes may take to end, the larger their memory the
/// longer.
const KILLED_LIMIT: Duration = Duration::from_secs(30);

/// CRIU, or a runtime that runs it, as a note keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWork {
    /// The program that was started.
    pub process: Process,
    /// The cgroup of all that it has started, and of a tree that it restores.
    pub group: Option<PathBuf>,
}

impl AtWork {
    /// Ends a dump before it is complete; the tree runs on. CRIU is made to
    /// fail by itself first, because only then it takes its code out of the
    /// processes and puts them back as they were.
    pub fn abort_dump(&self) {
        for process in self.criu() {
            if let Some(handle) = process.handle() {
                child::starve(&handle);
            }
        }
        // One that is not stopped needs none.
        _ = self.process.signal(Signal::CONT);
        if !self.wait(FAIL_LIMIT) {
            self.kill();
        }
    }

    /// Waits for its end. Returns whether it has ended.
    pub fn wait(&self, time: Duration) -> bool {
        let handle = self.process.handle();
        handle.is_none_or(|handle| handle.wait_gone(time))
    }

    /// Kills everything that was started and waits for it. Returns whether
    /// nothing is left.
    pub fn kill(&self) -> bool {
        let end = Instant::now() + KILLED_LIMIT;
        let left = || end.saturating_duration_since(Instant::now());
        if let Some(group) = self.group() {
            return group.kill(left()) && self.wait(left());
        }
        let started = match self.process.is_alive() {
            true => process::tree(self.process.pid).unwrap_or_default(),
            false => Vec::new(),
        };
        // CRIU last: what it holds must not run when CRIU has ended.
        let youngest_first: Vec<Process> = started.into_iter().rev().collect();
        let mut stuck = process::kill(&youngest_first, left());
        // What it has left without a parent is a child of this process.
        let orphans = process::tree(std::process::id() as i32).unwrap_or_default();
        let ids: Vec<i32> = orphans.iter().map(|process| process.pid).collect();
        stuck.extend(process::kill(
            &process::half_made(&ids, self.process),
            left(),
        ));
        stuck.is_empty()
    }

    /// Returns the cgroup of all that was started.
    pub fn group(&self) -> Option<Group> {
        self.group.clone().map(Group::at)
    }

    /// Returns the CRIU processes among what was started.
    fn criu(&self) -> Vec<Process> {
        let mut started = match self.group() {
            Some(group) => group.processes(),
            None => Vec::new(),
        };
        if self.process.is_alive() {
            started.extend(process::tree(self.process.pid).unwrap_or_default());
        }
        started.retain(|process| {
            let name = fs::read_to_string(process.directory().join("comm")).unwrap_or_default();
            name.trim() == "criu"
        });
        started.sort();
        started.dedup();
        started
    }
}

/// A job that this process has started.
#[derive(Debug)]
pub struct Job {
    child: Child,
    at_work: AtWork,
    storage: PathBuf,
    ended: Option<ExitStatus>,
    /// Where CRIU answers this process: whether it has succeeded.
    response: Option<Receiver<bool>>,
}

impl Job {
    /// Starts a program, in the cgroup if there is one.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(
        mut command: Command,
        group: Option<&Group>,
        storage: &Path,
    ) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        // Ctrl-C is for this program, and not for CRIU.
        let mut child = child::spawn(command.process_group(0))
            .with_context(|| format!("failed to run {program}: is it installed?"))?;
        let Some(process) = Process::of(child.id() as i32) else {
            // A child that was not waited for is there, be it as a zombie.
            child::kill(&mut child);
            anyhow::bail!("failed to find the process of {program} in /proc");
        };
        // Before it can have started anything: CRIU waits for its request, and
        // a runtime has its libraries to load.
        let group = group.filter(|group| group.add(process.pid).is_ok());
        if group.is_none() {
            // Without a cgroup, what CRIU leaves when it is killed comes to this
            // process (prctl(2), `PR_SET_CHILD_SUBREAPER`). A kernel that has
            // pid namespaces has this.
            _ = nix::sys::prctl::set_child_subreaper(true);
        }
        Ok(Self {
            child,
            at_work: AtWork {
                process,
                group: group.map(|group| group.path().to_owned()),
            },
            storage: storage.to_owned(),
            ended: None,
            response: None,
        })
    }

    /// Keeps the kernel from killing it when memory runs out: what it dumps could
    /// die with it. It is small, and ends soon.
    pub(super) fn protect(&self) {
        // Without the right to, it is as any other process.
        _ = fs::write(
            self.at_work.process.directory().join("oom_score_adj"),
            "-1000",
        );
    }

    /// Has this channel bring CRIU's answer.
    pub(super) fn answered_by(&mut self, response: Receiver<bool>) {
        self.response = Some(response);
    }

    /// Waits until CRIU has said that it has succeeded, for at most `time`; of a
    /// runtime, until it has ended. A CRIU that has said so only ends.
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub fn has_succeeded(&mut self, time: Duration) -> anyhow::Result<bool> {
        let said = self.response.as_ref().map(|it| it.recv_timeout(time));
        Ok(match said {
            Some(Ok(success)) => success,
            Some(Err(RecvTimeoutError::Timeout)) => false,
            // Its end says the rest.
            Some(Err(RecvTimeoutError::Disconnected)) | None => {
                self.wait(time)?.is_some_and(|status| status.success())
            }
        })
    }

    /// Returns what a note keeps of it.
    pub fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    /// Waits for its end, for at most `time`. Returns its exit status.
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub fn wait(&mut self, time: Duration) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = child::wait(&mut self.child, time).context("failed to wait for CRIU")?;
        }
        Ok(self.ended)
    }

    /// Returns the root of a tree that was restored, as CRIU noted it.
    ///
    /// # Errors
    /// It noted none, or there is no such process.
    pub fn restored_root(&self) -> anyhow::Result<Process> {
        let path = self.storage.join(ROOT_PID);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        let pid = text.trim().parse().context("CRIU notes no process id")?;
        Process::of(pid).with_context(|| format!("the restored process {pid} has ended"))
    }

    /// Kills everything that was started, and waits for it. Returns whether
    /// nothing is left.
    pub fn kill(&mut self) -> bool {
        let is_gone = self.at_work.kill();
        // Reaped, if it can be; a zombie is no harm.
        _ = self.wait(Duration::ZERO);
        is_gone
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        _ = self.wait(Duration::ZERO);
    }
}
