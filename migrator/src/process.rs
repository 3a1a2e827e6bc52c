//! Processes that are never mistaken for later ones with the same number.
//!
//! A [`Process`] is a number and a start time, as a note keeps it. A
//! [`Handle`] is a descriptor of it (pidfd_open(2)): it is opened first and the
//! start time compared afterwards, so a signal reaches this process or none.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::target::{Target, stat_fields};

/// Where the kernel shows processes.
pub const PROC: &str = "/proc";

/// Between two SIGKILLs for a process that does not end.
const KILL_INTERVAL: Duration = Duration::from_millis(200);

/// How often it is tried to continue a process.
const RESUME_ATTEMPTS: u32 = 5;

/// Poll interval where the kernel has no pidfds (before Linux 5.3).
const GONE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A process by number and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started: field 22 of `/proc/PID/stat`, in clock ticks since
    /// the boot.
    pub started: u64,
}

/// The parts of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

impl Process {
    /// Returns the process with this id, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        let started = stat(&Path::new(PROC).join(pid.to_string()))?.started;
        Some(Self { pid, started })
    }

    /// Returns whether it exists and is no zombie.
    pub fn is_alive(self) -> bool {
        self.stat()
            .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
    }

    /// Returns whether its id is still taken by it, be it as a zombie.
    pub fn is_there(self) -> bool {
        self.stat().is_some()
    }

    /// Returns whether it does not run because CRIU or a debugger holds it
    /// (`t`), a signal has stopped it (`T`), or it has ended.
    pub fn is_held(self) -> bool {
        self.stat()
            .is_none_or(|stat| matches!(stat.state, 't' | 'T' | 'Z' | 'X' | 'x'))
    }

    /// Returns whether a signal has stopped it (`T`): nothing but a SIGCONT
    /// lets it run.
    pub fn is_stopped(self) -> bool {
        self.stat().is_some_and(|stat| stat.state == 'T')
    }

    /// Returns whether another process traces it (ptrace(2)).
    pub fn is_traced(self) -> bool {
        let status = fs::read_to_string(self.directory().join("status")).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|pid| pid.trim() != "0") && self.is_alive()
    }

    /// Returns a descriptor of it; `None` if it has ended.
    pub fn handle(self) -> Option<Handle> {
        let fd = Pid::from_raw(self.pid)
            .map(|pid| pidfd_open(pid, PidfdFlags::empty()))?
            .ok();
        // Compared after the descriptor is open: it is of this process now.
        self.stat()?;
        Some(Handle { process: self, fd })
    }

    /// Sends a signal if it still exists.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        match self.handle() {
            Some(handle) => handle.signal(signal),
            None => Ok(()),
        }
    }

    /// Returns whether all its threads wait in CRIU's restorer: in futex(2),
    /// called from code that is of no file. Programs call it from libraries.
    fn is_in_restorer(self) -> bool {
        let maps = fs::read_to_string(self.directory().join("maps")).unwrap_or_default();
        let threads = fs::read_dir(self.directory().join("task"));
        let mut threads = threads.into_iter().flatten().flatten().peekable();
        self.is_alive()
            && threads.peek().is_some()
            && threads.all(|thread| {
                let syscall = fs::read_to_string(thread.path().join("syscall"));
                syscall.is_ok_and(|syscall| waits_in_restorer(&syscall, &maps))
            })
    }

    fn stat(self) -> Option<Stat> {
        let stat = stat(&self.directory())?;
        (stat.started == self.started).then_some(stat)
    }

    /// Returns `/proc/PID`.
    pub fn directory(self) -> PathBuf {
        Path::new(PROC).join(self.pid.to_string())
    }
}

/// An open process.
#[derive(Debug)]
pub struct Handle {
    process: Process,
    /// `None` where the kernel has no pidfds.
    fd: Option<OwnedFd>,
}

impl Handle {
    /// Returns which process it is.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Sends a signal. A process that has ended needs none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_raw(self.process.pid).filter(|_| self.process.is_alive());
        let sent = match (&self.fd, pid) {
            (Some(fd), _) => pidfd_send_signal(fd, signal),
            (None, Some(pid)) => kill_process(pid, signal),
            (None, None) => Ok(()),
        };
        match sent {
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Waits until it has ended. Returns whether it did within the time.
    pub fn wait_gone(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if !self.process.is_alive() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match &self.fd {
                Some(fd) => {
                    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    let millis = left.as_millis().clamp(1, 1000) as u16;
                    _ = poll(&mut fds, PollTimeout::from(millis));
                }
                None => std::thread::sleep(GONE_POLL_INTERVAL),
            }
        }
    }
}

/// Sends a signal to each that still exists.
///
/// # Errors
/// The kernel refuses for one of them; the others have it.
pub fn signal(processes: &[Process], signal: Signal) -> io::Result<()> {
    let sent: Vec<_> = processes.iter().map(|it| it.signal(signal)).collect();
    sent.into_iter().collect()
}

/// Kills them and waits until they are gone. Returns those that are not.
pub fn kill(processes: &[Process], time: Duration) -> Vec<Process> {
    let mut handles: Vec<Handle> = processes.iter().filter_map(|it| it.handle()).collect();
    let end = Instant::now() + time;
    loop {
        for handle in &handles {
            // It is sent again to what does not end.
            _ = handle.signal(Signal::KILL);
        }
        let left = || end.saturating_duration_since(Instant::now());
        handles.retain(|handle| !handle.wait_gone(left().min(KILL_INTERVAL)));
        if handles.is_empty() || left().is_zero() {
            return handles.iter().map(Handle::process).collect();
        }
    }
}

/// Kills them and waits until they are gone.
///
/// # Errors
/// One of them does not end within the time.
pub fn end(processes: &[Process], time: Duration) -> anyhow::Result<()> {
    match kill(processes, time).first() {
        Some(process) => bail!("process {} does not end", process.pid),
        None => Ok(()),
    }
}

/// Returns the process and its descendants.
///
/// # Errors
/// There is no such process.
pub fn tree(root: i32) -> anyhow::Result<Vec<Process>> {
    let pids = Target::Process(root).processes(Path::new(PROC))?;
    Ok(pids.into_iter().filter_map(Process::of).collect())
}

/// Continues a restored tree, children before their parents. Those for which
/// `stays` holds stay stopped.
///
/// # Errors
/// There is no such process any more.
pub fn resume(root: Process, stays: impl Fn(&Process) -> bool) -> anyhow::Result<()> {
    // A root that is stopped can't fork, nor end by itself.
    let processes = children_first(&tree(root.pid)?);
    let processes: Vec<Process> = processes.into_iter().filter(|it| !stays(it)).collect();
    resume_all(&processes)?;
    // What was overlooked, for a list that could not be read, is found now. A
    // root that has ended meanwhile has run.
    let missed = tree(root.pid).unwrap_or_default();
    let missed: Vec<Process> = missed
        .into_iter()
        .filter(|it| it.is_stopped() && !stays(it))
        .collect();
    resume_all(&missed)
}

/// Continues these processes in their order.
///
/// # Errors
/// One of them can't be continued.
pub fn resume_all(processes: &[Process]) -> anyhow::Result<()> {
    for process in processes {
        let mut sent = process.signal(Signal::CONT);
        for _ in 1..RESUME_ATTEMPTS {
            if sent.is_ok() {
                break;
            }
            std::thread::sleep(GONE_POLL_INTERVAL);
            sent = process.signal(Signal::CONT);
        }
        sent.with_context(|| format!("failed to continue process {}", process.pid))?;
    }
    Ok(())
}

/// Returns whether each process of a tree is stopped, or a zombie.
pub fn is_stopped(root: Process) -> bool {
    let is_still = |process: &Process| process.is_stopped() || !process.is_alive();
    root.is_stopped() && tree(root.pid).is_ok_and(|tree| tree.iter().all(is_still))
}

/// Returns the ids of processes in the pid namespace of `root`, which is that
/// of its host for a plain tree and the container's for one of a container.
/// The last column of `NSpid` (proc_pid_status(5)) may be of a deeper one.
pub fn ids_in_namespace_of(root: Option<Process>, processes: &[Process]) -> Vec<u32> {
    let ids = |process: Process| -> Vec<u32> {
        let status = fs::read_to_string(process.directory().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let fields = line.unwrap_or_default().split_whitespace();
        fields.filter_map(|id| id.parse().ok()).collect()
    };
    let Some(depth) = root.map(|root| ids(root).len()) else {
        return Vec::new();
    };
    let id = |process: &Process| ids(*process).get(depth.saturating_sub(1)).copied();
    processes.iter().filter_map(id).collect()
}

/// Returns those of these ids that CRIU left half-made when it was killed: they
/// still are CRIU, or wait in its restorer. Another process may have an id by
/// now, but none from before `criu`.
pub fn half_made(pids: &[i32], criu: Process) -> Vec<Process> {
    let is_criu = |process: Process| {
        let exe = fs::read_link(process.directory().join("exe")).unwrap_or_default();
        exe.file_name().is_some_and(|name| name == "criu")
    };
    let processes = pids.iter().filter_map(|pid| Process::of(*pid));
    processes
        .filter(|it| it.is_alive() && it.started >= criu.started)
        .filter(|it| is_criu(*it) || it.is_in_restorer() || it.is_stopped())
        .collect()
}

/// Returns the processes, children before their parents: a parent that waits
/// for stopped children (WUNTRACED) finds them continued.
pub fn children_first(processes: &[Process]) -> Vec<Process> {
    let parent = |process: &Process| process.stat().map(|stat| stat.parent);
    let mut left = processes.to_vec();
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let parents: Vec<i32> = left.iter().filter_map(parent).collect();
        let (leaves, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|it| !parents.contains(&it.pid));
        if leaves.is_empty() {
            ordered.extend(others);
            return ordered;
        }
        ordered.extend(leaves);
        left = others;
    }
    ordered
}

/// Returns whether a thread with this `/proc/PID/syscall` (number, arguments,
/// stack pointer, program counter; proc_pid_syscall(5)) waits in the restorer.
fn waits_in_restorer(syscall: &str, maps: &str) -> bool {
    let mut fields = syscall.split_whitespace();
    let number = fields.next().and_then(|number| number.parse().ok());
    let counter = fields.next_back().and_then(|text| text.strip_prefix("0x"));
    let counter = counter.and_then(|text| u64::from_str_radix(text, 16).ok());
    let (Some(nix::libc::SYS_futex), Some(counter)) = (number, counter) else {
        return false;
    };
    maps.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let addresses = fields.next().and_then(|text| text.split_once('-'));
        let range = addresses.and_then(|(start, end)| {
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        });
        // What is left: mode, offset, device, inode, and the path if any.
        let inode = fields.nth(3);
        range.is_some_and(|range| range.contains(&counter))
            && inode == Some("0")
            && fields.next().is_none()
    })
}

fn stat(process: &Path) -> Option<Stat> {
    // A process that is there and can't be read once, for lack of memory or
    // descriptors, must not count as ended.
    let again = || process.exists().then(|| stat_fields(process)).flatten();
    let text = stat_fields(process).or_else(again)?;
    let mut fields = text.split_whitespace();
    // The state is field 3, the parent 4, the start time 22.
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        started,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::process::Command;

    use super::*;

    fn me() -> Process {
        Process::of(std::process::id() as i32).unwrap()
    }

    fn later(process: Process) -> Process {
        Process {
            started: process.started + 1,
            ..process
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        assert!(me().is_alive() && !me().is_held() && !me().is_traced());
        assert!(!later(me()).is_alive(), "another with the same number");
        assert!(later(me()).handle().is_none());
    }

    #[test]
    fn a_later_process_with_the_same_number_gets_no_signal() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        signal(&[later(process)], Signal::KILL).unwrap();
        assert_eq!(kill(&[later(process)], Duration::ZERO), []);
        assert!(process.is_alive());
        process.signal(Signal::STOP).unwrap();
        while !process.is_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(process.is_held());
        assert_eq!(kill(&[process], Duration::from_secs(60)), []);
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_there());
    }

    #[test]
    fn children_come_before_their_parents() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let root = child.id() as i32;
        let found = loop {
            let found = tree(root).unwrap();
            if found.len() == 2 {
                break found;
            }
        };
        let ordered = children_first(&found);
        assert_eq!(ordered.last().unwrap().pid, root);
        assert_eq!(kill(&found, Duration::from_secs(60)), []);
        child.wait().unwrap();
    }

    #[test]
    fn a_tree_is_continued_but_for_what_stays_stopped() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let root = Process::of(child.id() as i32).unwrap();
        let found = loop {
            let found = tree(root.pid).unwrap();
            if found.len() == 2 {
                break found;
            }
        };
        signal(&found, Signal::STOP).unwrap();
        while !is_stopped(root) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let other = *found.iter().find(|it| **it != root).unwrap();
        assert_eq!(
            ids_in_namespace_of(Some(root), &[other]),
            [other.pid as u32]
        );
        resume(root, |process| *process == other).unwrap();
        assert!(!root.is_stopped() && other.is_stopped());
        assert_eq!(kill(&found, Duration::from_secs(60)), []);
        child.wait().unwrap();
        assert!(resume(root, |_| false).is_err());
    }

    #[test]
    fn the_restorer_is_told_from_a_program_that_waits() {
        let maps = "\
7f0000001000-7f0000003000 r-xp 00001000 fe:00 247282                     /usr/lib/libc.so.6
7f0000010000-7f0000020000 rwxp 00000000 00:00 0
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
";
        let waits = |number: i64, counter: &str| {
            let syscall = format!("{number} 0x1 0x0 0x2 0x0 0x0 0x0 0x7ffc0 {counter}\n");
            waits_in_restorer(&syscall, maps)
        };
        let futex = nix::libc::SYS_futex;
        assert!(waits(futex, "0x7f0000011234"));
        assert!(!waits(futex, "0x7f0000001234"), "in the C library");
        assert!(!waits(futex, "0x7ffd00000010"), "in the vDSO");
        assert!(!waits(nix::libc::SYS_read, "0x7f0000011234"));
        assert!(!waits_in_restorer("running\n", maps));
        assert!(!me().is_in_restorer());
    }
}
