//! Walks over directories, from descriptor to descriptor: what somebody renames or
//! links meanwhile leads nowhere else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::fstatfs;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::Reason;
use crate::prefetch::made_up;

/// How many directories are open at once.
pub(super) const MAX_DEPTH: usize = 512;

/// Takes what a walk finds.
pub(super) trait Visitor {
    /// Takes a regular file.
    fn file(&mut self, found: Found<'_>);
    /// Counts something else.
    fn leave_out(&mut self, reason: Reason);
}

/// A regular file on a disk or a network.
pub(super) struct Found<'a> {
    /// Leads to it whatever becomes of its name; not open for reading.
    door: OwnedFd,
    /// Its path.
    pub(super) path: &'a Path,
    /// `st_dev`.
    pub(super) device: u64,
    /// `st_ino`.
    pub(super) inode: u64,
}

impl Found<'_> {
    /// Opens the file for reading, without changing its access time and without waiting
    /// for anybody.
    ///
    /// # Errors
    /// Those of open(2); `EPERM` if it belongs to somebody else.
    pub(super) fn open(&self) -> io::Result<File> {
        let flags = OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOCTTY;
        OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(format!("/proc/self/fd/{}", self.door.as_raw_fd()))
    }
}

/// Walks over a directory and all below it, or visits a single file.
pub(super) fn walk(path: &Path, visitor: &mut impl Visitor) {
    let mut walk = Walk {
        visitor,
        path: path.to_owned(),
        disks: HashMap::new(),
    };
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            match walk.open(CWD, path) {
                Ok(directory) => walk.descend(directory),
                Err(reason) => walk.visitor.leave_out(reason),
            }
        }
        Ok(stat) => walk.entry(CWD, path, FileType::from_raw_mode(stat.st_mode)),
        Err(_) => walk.visitor.leave_out(Reason::Failed),
    }
}

struct Walk<'a, V> {
    visitor: &'a mut V,
    path: PathBuf,
    /// Which file systems have a disk or a server behind them, by `st_dev`.
    disks: HashMap<u64, bool>,
}

impl<V: Visitor> Walk<'_, V> {
    fn descend(&mut self, directory: Dir) {
        let mut levels = vec![directory];
        loop {
            let depth = levels.len();
            let Some(directory) = levels.last_mut() else {
                return;
            };
            let entry = match directory.read() {
                Some(Ok(entry)) => entry,
                end => {
                    if end.is_some() {
                        self.visitor.leave_out(Reason::Unreadable);
                    }
                    levels.pop();
                    self.path.pop();
                    continue;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(parent) = directory.fd() else {
                self.visitor.leave_out(Reason::Unreadable);
                continue;
            };
            let kind = match entry.file_type() {
                FileType::Unknown => statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |stat| {
                        FileType::from_raw_mode(stat.st_mode)
                    }),
                kind => kind,
            };
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            if kind != FileType::Directory {
                self.entry(parent, name, kind);
                self.path.pop();
                continue;
            }
            let below = match depth < MAX_DEPTH {
                true => self.open(parent, name),
                false => Err(Reason::TooDeep),
            };
            match below {
                Ok(directory) => levels.push(directory),
                Err(reason) => {
                    self.visitor.leave_out(reason);
                    self.path.pop();
                }
            }
        }
    }

    /// Opens a directory; its access time does not change if it is ours.
    fn open(&mut self, parent: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<Dir, Reason> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |flags| openat(parent, name, flags, Mode::empty());
        let directory = open(flags | OFlags::NOATIME).or_else(|error| match error {
            Errno::PERM => open(flags),
            error => Err(error),
        });
        let directory = directory.map_err(|_| Reason::Unreadable)?;
        let stat = fstat(&directory).map_err(|_| Reason::Unreadable)?;
        self.check_disk(&stat, directory.as_fd())?;
        Dir::new(directory).map_err(|_| Reason::Unreadable)
    }

    /// Visits what is no directory.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: impl Arg + Copy, kind: FileType) {
        let visited = match kind {
            FileType::RegularFile => self.file(parent, name),
            FileType::Symlink => Err(Reason::SymbolicLink),
            FileType::Unknown => Err(Reason::Failed),
            _ => Err(Reason::Special),
        };
        if let Err(reason) = visited {
            self.visitor.leave_out(reason);
        }
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<(), Reason> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let door = openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
            Errno::ACCESS | Errno::PERM => Reason::NotPermitted,
            _ => Reason::Failed,
        })?;
        let stat = fstat(&door).map_err(|_| Reason::Failed)?;
        // It may be something else by now.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Reason::Failed);
        }
        self.check_disk(&stat, door.as_fd())?;
        self.visitor.file(Found {
            door,
            path: &self.path,
            device: stat.st_dev,
            inode: stat.st_ino,
        });
        Ok(())
    }

    /// Refuses what has neither a disk nor a server behind it. Asking may take a round
    /// trip, and is done once for each file system.
    fn check_disk(&mut self, stat: &Stat, fd: BorrowedFd<'_>) -> Result<(), Reason> {
        let disks = self.disks.entry(stat.st_dev);
        let is_on_disk =
            *disks.or_insert_with(|| fstatfs(fd).is_ok_and(|stat| made_up(&stat).is_none()));
        is_on_disk.then_some(()).ok_or(Reason::NoDisk)
    }
}
