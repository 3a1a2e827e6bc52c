//! The prefetch for a restored tree, on its own.
//!
//! It lasts no longer than it must: it holds the container's root directory,
//! and counts as a member of its cgroup. It ends when all is read, when the
//! tree has ended, after [`LIMIT`], or when a later stage of the same restore
//! starts another one, which looks again and goes on with what is missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use super::stage::{Call, Stage, threads};
use super::{RUN, list};
use crate::cgroup;
use crate::prefetch::{Options, StartError, prefetch};

/// How long it may take.
pub const LIMIT: Duration = Duration::from_secs(300);

/// How long the one before may take to end.
const HANDOVER: Duration = Duration::from_secs(1);

/// Reads in flight; and where there are not enough pids or open files.
const JOBS: [u16; 2] = [32, 4];

/// Reads the list on standard input, and its pages. `restore` is the pid of
/// the CRIU that restores.
///
/// # Errors
/// Why nothing was read.
pub fn run(call: &Call, restore: i32) -> anyhow::Result<()> {
    // Away from the terminal and the process group that CRIU has. It fails
    // only for one who leads a group, which is away already.
    _ = setsid();
    yield_to_others(call.stage == Stage::PreResume);
    let lock = take_over(restore);
    end_with(call.init.unwrap_or(restore), lock.path())?;
    let who = match call.init {
        Some(init) => format!("process {init}"),
        None => format!("the tree that process {restore} restores"),
    };
    let list = list::read(standard_input()?)?;
    if let Some(init) = call.init {
        let expected = match call.stage {
            Stage::PreResume => 0,
            _ => threads(&call.images),
        };
        match cgroup::join(init, expected + u64::from(JOBS[0])) {
            Ok(cgroup) => say(&format!("{who}: charged to {}", cgroup.display())),
            Err(error) => say(&format!("{who}: not charged to its cgroup: {error}")),
        }
    }
    let root = call.init.map(root_of).transpose()?;
    for jobs in JOBS {
        let options = Options {
            jobs,
            root: root.clone(),
            // The images may come from anywhere.
            is_foreign: true,
            ..Options::default()
        };
        match prefetch(list.clone(), options) {
            Err(StartError::System { .. } | StartError::OpenFiles { .. }) => {}
            report => {
                let report = report.context("failed to prefetch")?;
                say(&format!("{who}:\n{report}"));
                return Ok(());
            }
        }
    }
    bail!("{who}: not even {} jobs can be had", JOBS[1]);
}

fn say(what: &str) {
    let time = humantime::format_rfc3339_millis(std::time::SystemTime::now());
    // Into a log that may be full; there is nobody else to tell.
    _ = writeln!(io::stderr(), "{time} {}: {what}", process::id());
}

fn standard_input() -> anyhow::Result<File> {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    Ok(stdin.context("failed to take the list")?.into())
}

/// The directory that paths of the list count from.
fn root_of(init: i32) -> anyhow::Result<Arc<OwnedFd>> {
    let root = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(format!("/proc/{init}/root"));
    let root = root.with_context(|| format!("failed to find the root of process {init}"))?;
    Ok(Arc::new(root.into()))
}

/// The processor, the disk and, should it come to that, memory are for others
/// first: for CRIU, and then for the tree.
fn yield_to_others(resumed: bool) {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    /// Best effort, the last of its eight levels; linux/ioprio.h.
    const LAST: i32 = 2 << 13 | 7;
    const IDLE: i32 = 3 << 13;
    let (nice, disk) = if resumed { (10, LAST) } else { (19, IDLE) };
    // SAFETY: numbers only, and of our own process. What fails leaves us as
    // important as CRIU, which is no harm.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, disk);
    }
    _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Held as long as this process is the one that reads for a restore.
struct Held {
    path: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Held {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Where it can't be removed, the next one finds it unlocked.
        _ = fs::remove_file(&self.path);
    }
}

/// Ends the worker of an earlier stage. Where that fails, both read, which
/// costs time and nothing else.
fn take_over(restore: i32) -> Held {
    let path = Path::new(RUN).join(format!("criu-hook-{restore}.lock"));
    let lock = lock(&path).unwrap_or_else(|error| {
        say(&format!("failed to lock {}: {error}", path.display()));
        None
    });
    Held { path, _lock: lock }
}

fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let end = Instant::now() + HANDOVER;
    while Instant::now() < end {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                write!(lock, "{}", process::id())?;
                return Ok(Some(lock));
            }
            Err((back, Errno::EAGAIN)) => file = back,
            Err((_, error)) => return Err(error.into()),
        }
        let mut pid = String::new();
        File::open(path)?.read_to_string(&mut pid)?;
        if let Ok(pid) = pid.parse() {
            // Whoever wrote this holds the lock, so it is still that process.
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}

/// Has this process end when another ends, and after [`LIMIT`].
fn end_with(pid: i32, lock: &Path) -> anyhow::Result<()> {
    let other = match pidfd(pid) {
        Ok(other) => Some(other),
        Err(Errno::ESRCH) => bail!("process {pid} has ended already"),
        // A kernel without it (before 5.3): the limit must do.
        Err(error) => {
            say(&format!("failed to watch process {pid}: {error}"));
            None
        }
    };
    let lock = lock.to_owned();
    let watch = move || {
        let ended = match other {
            Some(other) => has_ended(&other, LIMIT),
            None => {
                thread::sleep(LIMIT);
                false
            }
        };
        say(&match ended {
            true => format!("process {pid} has ended, and so does the prefetch"),
            false => format!("{LIMIT:?} are over, the prefetch ends"),
        });
        _ = fs::remove_file(lock);
        // Reads that hang in a dead server's file system are left behind.
        process::exit(0);
    };
    thread::Builder::new()
        .name("watch".into())
        .spawn(watch)
        .context("failed to start a thread")?;
    Ok(())
}

/// Waits for so long at most until a process has ended.
fn has_ended(pidfd: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as i32;
    // SAFETY: a descriptor that was just made, and that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut other = process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("sleep");
        let watched = pidfd(other.id().cast_signed()).expect("a pidfd");
        assert!(!has_ended(&watched, Duration::from_millis(1)));
        other.kill().expect("killed");
        // Before anybody has waited for it: a zombie has ended.
        assert!(has_ended(&watched, Duration::from_secs(60)));
        other.wait().expect("waited");
    }

    #[test]
    fn the_lock_is_taken_from_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let mut before = process::Command::new("flock")
            .args(["--no-fork", "--exclusive"])
            .arg(&path)
            .args(["sleep", "1000"])
            .spawn()
            .expect("flock of util-linux");
        let held = || {
            let file = File::open(&path).ok()?;
            Flock::lock(file, FlockArg::LockExclusiveNonblock).err()
        };
        while held().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        fs::write(&path, before.id().to_string()).expect("its pid");
        assert!(lock(&path).expect("no error").is_some());
        let status = before.wait().expect("waited");
        assert!(!status.success(), "it was killed");
        let own = fs::read_to_string(&path).expect("a pid");
        assert_eq!(own, process::id().to_string());
    }
}
