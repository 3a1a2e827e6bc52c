//! What ties a process tree to its host: terminals, pipes of processes that
//! stay, TCP connections.
//!
//! CRIU would find them too, but in the middle of a dump, or only on the
//! destination; here they are found before anything is frozen, and the user
//! is told what to do.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::files::links;
use crate::process::{PROC, Process};

/// Refuses what CRIU can't move, or not to another host, before anything is
/// frozen.
///
/// # Errors
/// A sentence that says what, and what to do.
pub fn check(processes: &[Process], tcp_established: bool) -> anyhow::Result<()> {
    let has = |pid: i32| processes.iter().any(|process| process.pid == pid);
    if has(1) {
        bail!("process 1 is this host's init, which can't be moved");
    }
    if has(std::process::id() as i32) {
        bail!("migrator is one of the processes to move: start it from outside of the tree");
    }
    if tcp_established {
        return Ok(());
    }
    for process in processes {
        let sockets = descriptors(*process)
            .filter_map(|(_, _, target)| {
                let inode = target.strip_prefix("socket:[")?;
                Some(inode.trim_end_matches(']').to_owned())
            })
            .collect();
        if let Some(connection) = established(*process, &sockets) {
            bail!(
                "process {} has a TCP connection ({connection}); it survives only if the address \
                 moves to the destination as well: close it, or say --tcp-established",
                process.pid
            );
        }
    }
    Ok(())
}

/// Refuses a tree that hangs on something outside of it: a terminal, or a pipe
/// of a process that stays.
///
/// # Errors
/// A sentence that says what, and what to do.
pub fn check_outside(processes: &[Process]) -> anyhow::Result<()> {
    let ours: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    let mut pipes = BTreeSet::new();
    for process in processes {
        for (link, fd, target) in descriptors(*process) {
            if fs::metadata(&link).is_ok_and(|meta| is_terminal(&meta)) {
                bail!(
                    "process {} has the terminal {target} open (descriptor {fd}), which does not \
                     exist on the destination: start it detached, as with `setsid COMMAND \
                     </dev/null >LOG 2>&1 &`",
                    process.pid
                );
            }
            if target.starts_with("pipe:") {
                pipes.insert(target);
            }
        }
    }
    if let Some((pid, pipe)) = outside(&pipes, &ours) {
        bail!(
            "process {pid}, which does not move, has the other end of {pipe}: start the tree with \
             its output in a file, or move the parent as well"
        );
    }
    Ok(())
}

/// The links to the descriptors of a process, their numbers, and what they
/// refer to.
fn descriptors(process: Process) -> impl Iterator<Item = (PathBuf, i32, String)> {
    links(process).into_iter().filter_map(|(link, fd)| {
        let target = fs::read_link(&link).ok()?;
        Some((link, fd?, target.to_string_lossy().into_owned()))
    })
}

/// Pseudo-terminals (majors 136 to 143) and ttys (4); see devices.txt of the
/// kernel.
fn is_terminal(meta: &Metadata) -> bool {
    let major = nix::sys::stat::major(meta.rdev());
    meta.file_type().is_char_device() && matches!(major, 4 | 136..=143)
}

/// Who else has one of these pipes.
fn outside(pipes: &BTreeSet<String>, ours: &BTreeSet<i32>) -> Option<(i32, String)> {
    if pipes.is_empty() {
        return None;
    }
    let entries = fs::read_dir(PROC).ok()?.flatten();
    let others = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !ours.contains(pid));
    for pid in others {
        let fds = fs::read_dir(Path::new(PROC).join(pid.to_string()).join("fd"));
        for entry in fds.into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            if pipes.contains(&*target) {
                return Some((pid, target.into_owned()));
            }
        }
    }
    None
}

/// An established TCP connection (state 01 of `/proc/PID/net/tcp`) that is one
/// of these sockets.
fn established(process: Process, sockets: &BTreeSet<String>) -> Option<String> {
    let tables = ["net/tcp", "net/tcp6"].map(|table| process.directory().join(table));
    let texts = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    texts.iter().flat_map(|text| text.lines()).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields.get(9).is_some_and(|inode| sockets.contains(*inode));
        (is_ours && fields.get(3) == Some(&"01"))
            .then(|| format!("{} to {} in /proc/net/tcp's form", fields[1], fields[2]))
    })
}
