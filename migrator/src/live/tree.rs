//! The process tree that is to move, as /proc shows it.

use std::fs;
use std::path::Path;

use crate::process::{PROC, Process};

/// Returns whether a process holds a lock on a file. The kernel names the locks
/// that were taken through a descriptor in its `fdinfo` (proc_pid_fdinfo(5)).
pub fn holds_locks(processes: &[Process]) -> bool {
    processes.iter().any(|process| {
        let fds = fs::read_dir(process.directory().join("fdinfo"));
        fds.into_iter().flatten().flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines().any(|line| line.starts_with("lock:"))
        })
    })
}

/// Returns the first of these ids that is taken on this host, and by what.
pub fn taken(pids: &[i32]) -> Option<(i32, String)> {
    pids.iter().find_map(|pid| {
        let comm = Path::new(PROC).join(pid.to_string()).join("comm");
        Some((*pid, fs::read_to_string(comm).ok()?.trim().to_owned()))
    })
}

/// Returns the bytes of memory that the images of the processes may hold:
/// anonymous and shared pages, resident or swapped out (proc_pid_status(5)).
/// Pages that several share count for each.
pub fn memory_bytes(processes: &[Process]) -> u64 {
    let status = |process: &Process| {
        fs::read_to_string(process.directory().join("status")).unwrap_or_default()
    };
    processes
        .iter()
        .map(|process| memory_of(&status(process)))
        .sum()
}

fn memory_of(status: &str) -> u64 {
    let kib = |line: &str| {
        let fields = ["RssAnon:", "RssShmem:", "VmSwap:"];
        let value = fields.iter().find_map(|field| line.strip_prefix(field))?;
        value
            .split_whitespace()
            .next()
            .and_then(|number| number.parse::<u64>().ok())
    };
    status.lines().filter_map(kib).sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_no_file_has() {
        let status = "Name:\tx\nVmRSS:\t  999 kB\nRssAnon:\t    100 kB\nRssFile:\t  7 kB\n\
                      RssShmem:\t    20 kB\nVmSwap:\t     3 kB\n";
        assert_eq!(memory_of(status), 123 << 10);
        assert_eq!(memory_of(""), 0);
    }
}
