//! Processes that never outlive us.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// A running program. It is killed when this is dropped, and by the kernel
/// when we die in whatever way.
#[derive(Debug)]
pub(super) struct Process {
    child: Mutex<Child>,
    // The thread that started the child waits for the other end.
    _thread: Sender<()>,
}

impl Process {
    /// Starts a program with `setpriv --pdeathsig` (prctl(2),
    /// PR_SET_PDEATHSIG). What the kernel waits for is the end of the *thread*
    /// that started it, so each gets a thread that stays.
    /// What it says goes to the end of a file.
    pub(super) fn start(program: &Command, log: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program.get_program())
            .args(program.get_args());
        if let Some(directory) = program.get_current_dir() {
            command.current_dir(directory);
        }
        for (key, value) in program.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        let errors = log.try_clone().context("failed to share a file")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let (hand_over, started) = mpsc::channel();
        let (alive, gone) = mpsc::channel::<()>();
        thread::spawn(move || {
            // The receiver is below and waits.
            let _ = hand_over.send(command.spawn());
            let _ = gone.recv();
        });
        let child = started
            .recv()
            .map_err(io::Error::other)
            .flatten()
            .with_context(|| format!("failed to start {program:?}"))?;
        Ok(Self {
            child: Mutex::new(child),
            _thread: alive,
        })
    }

    /// How it ended, if it has.
    pub(super) fn exited(&self) -> Result<Option<ExitStatus>> {
        self.child()
            .try_wait()
            .context("failed to wait for a child")
    }

    /// Ends it at once. Not an error if it has ended already.
    pub(super) fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill().context("failed to kill a child")?;
        child.wait().context("failed to wait for a child")?;
        Ok(())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        // Nothing that is done with it leaves it half done.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_with_its_owner_and_not_with_the_thread_that_asked_for_it() {
        let process = thread::spawn(|| {
            Process::start(Command::new("sleep").arg("1000"), Path::new("/dev/null"))
        })
        .join()
        .expect("the thread ends")
        .expect("sleep starts");
        let entry = format!("/proc/{}", process.child().id());
        assert_eq!(process.exited().expect("it can be asked"), None);
        assert!(Path::new(&entry).exists());
        drop(process);
        assert!(!Path::new(&entry).exists());
    }
}
