//! The process tree that is to move, as /proc shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::order::OpenedFile;
use crate::file::open_files;
use crate::target::Target;

const PROC: &str = "/proc";

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

/// Reads `7 (name) S 1 ...`, where the name may hold anything.
fn stat(process: &Path) -> Option<Stat> {
    let text = fs::read(process.join("stat")).ok()?;
    let name_end = text.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&text[name_end + 1..]).ok()?;
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

/// The regular files that the processes have open or mapped, each once, by
/// path. Deleted ones have no path that the destination could look at.
pub fn files(processes: &[Process]) -> Vec<OpenedFile> {
    let mut found: BTreeMap<PathBuf, OpenedFile> = BTreeMap::new();
    for process in processes {
        // A process that has ended meanwhile has nothing open.
        for (link, fd) in links(*process) {
            let (Ok(path), Ok(meta)) = (fs::read_link(&link), fs::metadata(&link)) else {
                continue;
            };
            if !meta.is_file() || meta.nlink() == 0 || !path.is_absolute() {
                continue;
            }
            let writable = is_writable(*process, &link, fd);
            found
                .entry(path.clone())
                .and_modify(|file| file.writable |= writable)
                .or_insert_with(|| OpenedFile::new(path, &meta, writable));
        }
    }
    found.into_values().collect()
}

/// Magic links to what a process has open or mapped, with its descriptor.
fn links(process: Process) -> Vec<(PathBuf, Option<i32>)> {
    let directory = process.directory();
    let mut links: Vec<_> = open_files::list(&directory)
        .unwrap_or_default()
        .into_iter()
        .filter(|file| file.mapping.is_none())
        .map(|file| (file.link, file.fd))
        .collect();
    let mappings = fs::read_dir(directory.join("map_files"))
        .into_iter()
        .flatten();
    links.extend(mappings.flatten().map(|entry| (entry.path(), None)));
    links
}

/// Whether the process may write to the file through this link: the links in
/// `fd` and `map_files` have the owner's write bit then (proc_pid_fd(5)).
/// A private mapping is never written back, but a mapping's link does not
/// tell; so a mapped file that could be written counts as one that is.
fn is_writable(process: Process, link: &Path, fd: Option<i32>) -> bool {
    let has_bit = fs::symlink_metadata(link).is_ok_and(|meta| meta.mode() & 0o200 != 0);
    match fd {
        Some(_) => has_bit,
        None => has_bit && is_shared(process, link),
    }
}

/// Whether a mapping is a shared one: `rw-s` in `/proc/PID/maps`.
fn is_shared(process: Process, link: &Path) -> bool {
    let Some(name) = link.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let maps = fs::read_to_string(process.directory().join("maps")).unwrap_or_default();
    maps.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(name) && fields.next().is_some_and(|mode| mode.ends_with('s'))
    })
}

/// Writes what the processes have written and the host has not yet to the
/// file systems, so that the other host sees it. Gives the files that they
/// could have written.
///
/// # Errors
/// fsync(2) failed: the file system has lost data.
pub fn sync(processes: &[Process]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut done = BTreeSet::new();
    let mut written = BTreeSet::new();
    for process in processes {
        for (link, fd) in links(*process) {
            let Ok(meta) = fs::metadata(&link) else {
                continue;
            };
            let is_new = done.insert((meta.dev(), meta.ino()));
            if !meta.is_file() || !is_writable(*process, &link, fd) || !is_new {
                continue;
            }
            // Opening the link opens the inode anew; fsync(2) is the inode's.
            let synced = File::open(&link).and_then(|file| file.sync_all());
            let path = fs::read_link(&link).unwrap_or(link);
            synced.with_context(|| format!("failed to fsync {}", path.display()))?;
            written.insert(path);
        }
    }
    Ok(written)
}

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

/// Compares the open files of the source with what is here under their paths.
///
/// # Errors
/// The first that is not the same, in words.
pub fn same_files(files: &[OpenedFile]) -> Result<(), String> {
    for file in files {
        let path = file.path.display();
        // Opened, because NFS asks the server for the attributes then
        // (close-to-open consistency), and may answer stat(2) by memory.
        let meta = match fs::symlink_metadata(&file.path) {
            Ok(meta) if meta.is_file() => File::open(&file.path).and_then(|file| file.metadata()),
            Ok(_) => return Err(format!("{path} is not a regular file on the destination")),
            Err(error) => Err(error),
        };
        let here = match meta {
            Ok(meta) => OpenedFile::new(file.path.clone(), &meta, file.writable),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!(
                    "{path} is open and does not exist on the destination"
                ));
            }
            Err(error) => return Err(format!("{path} can't be read on the destination: {error}")),
        };
        if file.writable {
            // Size and time are compared when nobody writes any more.
            continue;
        }
        if here.size != file.size {
            return Err(format!(
                "{path} has {} bytes on the source and {} on the destination: is it the same \
                 file system?",
                file.size, here.size
            ));
        }
        if here.mtime_ns != file.mtime_ns {
            return Err(format!(
                "{path} was modified at another time on the destination than on the source: is it \
                 the same file system, or the same version of it?"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn me() -> Process {
        Process::of(std::process::id() as i32).unwrap()
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

    #[test]
    fn own_open_files_are_found_with_whether_they_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let (read, written) = (directory.path().join("a b"), directory.path().join("w"));
        fs::write(&read, "abc").unwrap();
        let _written = File::create(&written).unwrap();
        let _read = File::open(&read).unwrap();
        let files = files(&[me()]);
        let file = |path: &Path| files.iter().find(|file| file.path == path).unwrap();
        assert!(!file(&read).writable && file(&written).writable);
        assert_eq!(file(&read).size, 3);
        sync(&[me()]).unwrap();
    }

    #[test]
    fn files_that_differ_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abc").unwrap();
        let file = OpenedFile::new(path.clone(), &fs::metadata(&path).unwrap(), false);
        let changed = |change: fn(&mut OpenedFile)| {
            let mut file = file.clone();
            change(&mut file);
            same_files(&[file])
        };
        assert_eq!(changed(|_| {}), Ok(()));
        assert!(
            changed(|file| file.size = 4)
                .unwrap_err()
                .contains("4 bytes on the source and 3")
        );
        assert!(
            changed(|file| file.mtime_ns += 1)
                .unwrap_err()
                .contains("another time")
        );
        assert_eq!(
            changed(|file| (file.size, file.writable) = (4, true)),
            Ok(())
        );
        let gone = changed(|file| file.path.push("x")).unwrap_err();
        assert!(
            gone.contains("can't be read") || gone.contains("does not exist"),
            "{gone}"
        );
    }
}
