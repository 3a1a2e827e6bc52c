//! The process tree that is to move, as /proc shows it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::target::{Target, stat_fields};

pub(super) const PROC: &str = "/proc";

/// A process that is not mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started: field 22 of `/proc/PID/stat`, in clock ticks since
    /// the boot.
    pub started: u64,
}

/// What a process does, as `/proc/PID/stat` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    started: u64,
}

impl Process {
    /// The process with this id.
    pub fn of(pid: i32) -> Option<Self> {
        let started = stat(&Path::new(PROC).join(pid.to_string()))?.started;
        Some(Self { pid, started })
    }

    /// Whether it still is, and is no zombie.
    pub fn is_alive(self) -> bool {
        self.stat()
            .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
    }

    /// Whether CRIU has restored it and never let it go: all its threads wait
    /// in CRIU's restorer, in futex(2) called from code that is of no file.
    /// Programs call it from their libraries.
    pub fn is_in_restorer(self) -> bool {
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

    /// Whether its id is still taken by it, be it as a zombie.
    pub fn is_there(self) -> bool {
        self.stat().is_some()
    }

    /// Whether it does not run because CRIU or a debugger holds it (`t`), or
    /// a signal has stopped it.
    pub fn is_held(self) -> bool {
        self.stat()
            .is_none_or(|stat| matches!(stat.state, 't' | 'T' | 'Z' | 'X' | 'x'))
    }

    fn stat(self) -> Option<Stat> {
        let stat = stat(&self.directory())?;
        (stat.started == self.started).then_some(stat)
    }

    /// `/proc/PID`.
    pub fn directory(self) -> PathBuf {
        Path::new(PROC).join(self.pid.to_string())
    }
}

fn stat(process: &Path) -> Option<Stat> {
    let text = stat_fields(process)?;
    let mut fields = text.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, started })
}

/// Whether a thread with this `/proc/PID/syscall` (number, arguments, stack
/// pointer, program counter; proc_pid_syscall(5)) waits in CRIU's restorer.
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

/// The process and its descendants.
///
/// # Errors
/// There is no such process.
pub fn processes(root: i32) -> anyhow::Result<Vec<Process>> {
    let pids = Target::Process(root).processes(Path::new(PROC))?;
    Ok(pids.into_iter().filter_map(Process::of).collect())
}

/// Those of these ids that are CRIU's half-made processes: they still are CRIU,
/// which was given the directory `work`, or they wait in its restorer. Another
/// process may have an id by now, but none from before `criu`.
pub fn half_made(pids: &[i32], criu: Process, work: &Path) -> Vec<Process> {
    let work = work.as_os_str().as_encoded_bytes();
    let is_criu = |process: Process| {
        let line = fs::read(process.directory().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word.starts_with(work))
    };
    let processes = pids.iter().filter_map(|pid| Process::of(*pid));
    processes
        .filter(|it| it.is_alive() && it.started >= criu.started)
        .filter(|it| is_criu(*it) || it.is_in_restorer())
        .collect()
}

/// Whether a process holds a lock on a file. The kernel names the locks that
/// were taken through a descriptor in its `fdinfo` (proc_pid_fdinfo(5)).
pub fn holds_locks(processes: &[Process]) -> bool {
    processes.iter().any(|process| {
        let fds = fs::read_dir(process.directory().join("fdinfo"));
        fds.into_iter().flatten().flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines().any(|line| line.starts_with("lock:"))
        })
    })
}

/// Which of these ids are taken on this host.
pub fn taken(pids: &[i32]) -> Option<(i32, String)> {
    pids.iter().find_map(|pid| {
        let comm = Path::new(PROC).join(pid.to_string()).join("comm");
        Some((*pid, fs::read_to_string(comm).ok()?.trim().to_owned()))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Read;

    use super::*;

    fn me() -> Process {
        Process::of(std::process::id() as i32).unwrap()
    }

    #[test]
    fn what_criu_has_left_half_made_is_known_by_its_command_line() {
        let work = tempfile::tempdir().unwrap();
        let log = work.path().join("restore.log");
        let mut left = std::process::Command::new("sh")
            .args(["-c", "echo; read line", "criu"])
            .arg(&log)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let process = Process::of(left.id() as i32).unwrap();
        // Once it speaks, it has executed its program.
        let said = left.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        assert_eq!(said, 1);
        let pids = [me().pid, process.pid];
        assert_eq!(half_made(&pids, me(), work.path()), [process]);
        let later = Process {
            started: process.started + 1,
            ..me()
        };
        assert_eq!(half_made(&pids, later, work.path()), []);
        left.kill().unwrap();
        left.wait().unwrap();
        assert_eq!(half_made(&pids, me(), work.path()), []);
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        assert!(me().is_alive() && !me().is_held());
        let later = Process {
            started: me().started + 1,
            ..me()
        };
        assert!(!later.is_alive(), "another one with the same number");
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
