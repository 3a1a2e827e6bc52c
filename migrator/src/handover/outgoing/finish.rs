//! Stops, ends and continues the tree on the source, as its machine has decided.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::Event;
use super::executor::Executor;
use crate::cgroup::Group;
use crate::container;
use crate::criu::{self, AtWork, Work};
use crate::handover::Mark;
use crate::handover::journal::{AT_WORK, ROOT};
use crate::process::{self, Process};

/// How long CRIU may take to end a dump in the decided way.
const CRIU_LIMIT: Duration = Duration::from_secs(10);

/// How long killed processes may take to end, the larger the longer.
const KILLED_LIMIT: Duration = Duration::from_secs(30);

/// How long a runtime may take to end a checkpoint.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

/// How long an attempt to restore the tree here may take, besides the time for its
/// images.
const RESTORE_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of images that a restore reads in a second, at least.
const RESTORE_BYTES_PER_SECOND: u64 = 20 << 20;

/// How often a restore is attempted. CRIU 4.1.1 was seen to hang once, in a process
/// that it was restoring.
const RESTORE_ATTEMPTS: u32 = 3;

/// How long processes that have ended may stay in the process table.
const REAP_LIMIT: Duration = Duration::from_secs(20);

/// How soon a process has ended that CRIU takes along.
const LATE_DEATH: Duration = Duration::from_millis(50);

impl Executor<'_> {
    /// Stops what CRIU holds, so that it stays stopped when CRIU dies. What is
    /// traced afterwards was never let go of: CRIU traces a process once.
    pub(super) fn stop_tree(&mut self) -> Event {
        let processes = self.processes();
        if let Err(error) = process::signal(&processes, Signal::STOP) {
            return self.failed(anyhow::anyhow!("failed to stop the tree: {error}"));
        }
        let releases = self.session.has(Mark::Release);
        let is_kept = |process: &Process| match process.is_alive() {
            true => process.is_traced(),
            false => releases || process.is_there(),
        };
        match processes.iter().all(is_kept) {
            true => Event::Stopped,
            false => self.failed(anyhow::anyhow!("CRIU let go of a process")),
        }
    }

    /// Lets the tree run here.
    pub(super) fn run_tree(&mut self) -> anyhow::Result<()> {
        self.say_rolled_back();
        let processes = self.processes();
        let is_dumped = self.session.has(Mark::Dumped);
        let mut criu_was_killed = false;
        if let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? {
            criu_was_killed = !is_dumped && !at_work.process.is_alive();
            // CRIU ends a complete dump as is decided; an incomplete one would
            // be written to its end first.
            let is_killing = is_dumped && self.session.has(Mark::Release);
            match is_dumped {
                false => at_work.abort_dump(),
                // podman writes its archive; killed in between, it would not
                // know of the checkpoint.
                true if is_killing => _ = at_work.wait(CHECKPOINT_LIMIT),
                true => {
                    // One that is not stopped needs none.
                    _ = at_work.process.signal(Signal::CONT);
                    _ = at_work.wait(CRIU_LIMIT);
                }
            }
            if at_work.process.is_alive() {
                at_work.kill();
            }
        }
        let end = Instant::now() + CRIU_LIMIT;
        while processes.iter().any(|it| it.is_traced()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        if let Some(process) = processes.iter().find(|it| it.is_traced()) {
            bail!("process {} is still traced", process.pid);
        }
        let left: Vec<Process> = processes
            .iter()
            .copied()
            .filter(|it| it.is_alive())
            .collect();
        let has_ended = left.len() < processes.len()
            && self.session.has(Mark::Release)
            && self.session.has(Mark::Dumped);
        if has_ended {
            // A dump that was killed while it ended the tree leaves a part.
            process::end(&left, KILLED_LIMIT)?;
            return self.restore_here();
        }
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.clone())
            .unwrap_or_default();
        let mut runs = process::children_first(&processes);
        runs.retain(|process| !stopped.contains(process));
        process::resume_all(&runs)?;
        if criu_was_killed {
            // It shows at the next instruction of the process.
            thread::sleep(LATE_DEATH);
        }
        if let Some(process) = processes.iter().find(|process| !process.is_alive()) {
            // Nothing can be done about it, and nothing of it is left to tidy.
            self.lost = Some(format!(
                "process {} of the tree has ended: a CRIU that is killed while it runs its code in \
                 a process takes it along",
                process.pid
            ));
        }
        Ok(())
    }

    /// Makes a tree that has ended with its dump run again, from its images.
    fn restore_here(&mut self) -> anyhow::Result<()> {
        let stopped = self
            .origin()
            .map(|origin| origin.stopped.iter().map(|it| it.pid).collect::<Vec<_>>())
            .unwrap_or_default();
        // A plain tree has its own ids again.
        let stays = |process: &Process| stopped.contains(&process.pid);
        if let Some(root) = self.session.read::<Process>(ROOT)?
            && root.is_alive()
        {
            // A process that has died has restored it.
            return process::resume(root, stays);
        }
        let root = self.restore_from_images()?;
        process::resume(root, stays)
    }

    /// Restores the tree here from its images, in several attempts.
    fn restore_from_images(&mut self) -> anyhow::Result<Process> {
        let mut left = RESTORE_ATTEMPTS;
        loop {
            left -= 1;
            match self.attempt_restore() {
                Err(error) if left > 0 => crate::say!("{error:#}; trying again"),
                restored => return restored,
            }
        }
    }

    fn attempt_restore(&mut self) -> anyhow::Result<Process> {
        let processes = self.processes();
        self.kill_half_made(&processes)?;
        // Their parents have to reap them before their ids are free.
        let began = Instant::now();
        while processes.iter().any(|it| it.is_there()) && began.elapsed() < REAP_LIMIT {
            thread::sleep(Duration::from_millis(10));
        }
        let images = self.journal.images(&self.session);
        let group = Group::create(&self.session.name());
        let work = Work {
            images: &images,
            storage: self.session.storage(),
            group: group.as_ref(),
            passed: self.journal.passed(),
            restores_cgroups: true,
        };
        let subject = &self.journal.subject;
        let mut job = container::restore_here(subject, work, &self.journal.criu())?;
        // Known to a process that takes over in the middle.
        let noted = self.session.note(AT_WORK, job.at_work());
        let seconds = bytes_below(&images) / RESTORE_BYTES_PER_SECOND;
        let limit = RESTORE_LIMIT + Duration::from_secs(seconds);
        let restored = noted.and_then(|()| match job.wait(limit)? {
            Some(status) if status.success() => {
                let root = job.restored_root()?;
                self.session.note(ROOT, &root)?;
                Ok(root)
            }
            Some(status) => bail!(
                "{}: {}",
                crate::child::describe(status),
                criu::complaint(self.session.storage(), "restore")
            ),
            None => bail!("timed out after {} s", limit.as_secs()),
        });
        match restored {
            Ok(root) => {
                if let Some(group) = group {
                    group.dissolve();
                }
                Ok(root)
            }
            Err(error) => {
                job.kill();
                self.kill_half_made(&processes)?;
                Err(error).with_context(|| {
                    format!(
                        "failed to restore {} from {}, where its images stay",
                        container::describe(subject),
                        images.display()
                    )
                })
            }
        }
    }

    /// Kills what a restore on this host has left that did not come to its end.
    fn kill_half_made(&self, processes: &[Process]) -> anyhow::Result<()> {
        let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? else {
            return Ok(());
        };
        at_work.kill();
        let ids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        process::end(&process::half_made(&ids, at_work.process), KILLED_LIMIT)
    }

    /// Ends the tree here.
    pub(super) fn end_tree(&mut self) -> anyhow::Result<()> {
        if let Some(at_work) = self.session.read::<AtWork>(AT_WORK)? {
            // One that is not stopped needs none.
            _ = at_work.process.signal(Signal::CONT);
            // CRIU kills the tree, and a runtime tidies up after it.
            if !at_work.wait(CRIU_LIMIT) {
                at_work.kill();
            }
        }
        process::end(&self.processes(), KILLED_LIMIT)?;
        container::forget(&self.journal.subject)
    }

    /// Removes images and notes.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        if let Some(group) = self.journal.group() {
            group.remove();
        }
        if let Some(shared) = &self.journal.images {
            match std::fs::remove_dir_all(shared.join(self.session.name())) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("failed to remove the shared images");
                }
                _ => {}
            }
        }
        self.session.remove()
    }
}

/// Returns how many bytes the files in a directory have.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|about| about.is_file())
        .map(|about| about.len())
        .sum()
}
