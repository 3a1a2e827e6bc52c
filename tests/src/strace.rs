//! What a program really read, as strace(1) saw it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::mapped::mapped;
use crate::{Child, PAGE_SIZE};

/// Pages of files.
pub type Pages = BTreeMap<PathBuf, BTreeSet<u64>>;

/// Which pages a program used.
#[derive(Debug, Default)]
pub struct Used {
    /// Those that it read, by offset and returned length of each read.
    pub read: Pages,
    /// Those that were mapped into it when it ended.
    pub mapped: Pages,
}

/// Runs a program to its end below strace, with its logs in a directory that
/// is made for them.
///
/// # Panics
/// When it fails, or reads in a way that is not understood here.
pub fn trace(command: &[&str], logs: &Path) -> Used {
    fs::create_dir(logs).expect("a directory for the logs");
    let mut strace = Command::new("strace");
    // With -D the child is the program itself and strace its observer. A log
    // for each thread, so that the calls of two never mix. At its end it is
    // held back until its page table was read.
    strace
        .args(["-D", "-ff", "-y", "-s", "0", "-o"])
        .arg(logs.join("log"));
    strace.args(["-e", "trace=openat,read,pread64,readv,preadv,preadv2,lseek,dup,dup2,dup3,fcntl,sendfile,splice,copy_file_range,io_uring_setup,exit_group"]);
    strace.args(["-e", "inject=exit_group:delay_enter=3000000"]);
    strace
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = Child::spawn(&mut strace);
    let pid = child.pid();
    let ends = || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall"));
        call.unwrap_or_else(|error| panic!("{command:?} ended before it was held back: {error}"))
            .starts_with(&format!("{} ", nix::libc::SYS_exit_group))
    };
    while !ends() {
        thread::sleep(Duration::from_millis(20));
    }
    let mapped = mapped(pid);
    let status = child.wait();
    assert!(status.success(), "{command:?} ended with {status}");
    Used {
        read: read_logs(logs, pid),
        mapped,
    }
}

fn read_logs(logs: &Path, pid: i32) -> Pages {
    let main = logs.join(format!("log.{pid}"));
    let whole = || fs::read_to_string(&main).is_ok_and(|log| log.contains("+++ exited"));
    while !whole() {
        thread::sleep(Duration::from_millis(20));
    }
    let mut pages = Pages::new();
    for log in fs::read_dir(logs).expect("the logs") {
        let log = fs::read_to_string(log.expect("a log").path()).expect("a log");
        // Where each descriptor stands; each is used by one thread only.
        let mut positions = HashMap::new();
        for line in log.lines() {
            read_line(line, &mut positions, &mut pages)
                .unwrap_or_else(|| panic!("strace wrote what is not understood here: {line}"));
        }
    }
    pages
}

/// Takes account of `call(3</path>, ..., 4096) = 4096`.
fn read_line(line: &str, positions: &mut HashMap<u32, u64>, pages: &mut Pages) -> Option<()> {
    if line.starts_with("+++") || line.starts_with("---") || line.starts_with("exit_group") {
        return Some(());
    }
    let (call, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    if result.starts_with("-1 ") {
        return Some(());
    }
    if call == "openat" {
        let (fd, _) = descriptor(result)?;
        positions.insert(fd, 0);
        return Some(());
    }
    let (fd, path) = descriptor(arguments)?;
    let number = |text: &str| text.split(' ').next()?.parse::<u64>().ok();
    match call {
        "lseek" => {
            positions.insert(fd, number(result)?);
        }
        // It neither reads nor makes a second descriptor.
        "fcntl" if !arguments.contains("F_DUPFD") => {}
        "read" | "readv" if !path.is_absolute() => {}
        "read" | "readv" => {
            let position = positions.get_mut(&fd)?;
            use_pages(pages, path, *position, number(result)?);
            *position += number(result)?;
        }
        "pread64" => {
            let (_, offset) = arguments.rsplit_once(", ")?;
            use_pages(pages, path, offset.parse().ok()?, number(result)?);
        }
        _ => return None,
    }
    Some(())
}

fn use_pages(pages: &mut Pages, path: PathBuf, offset: u64, bytes: u64) {
    // What the kernel makes up as it is read has no pages.
    if bytes > 0 && !path.starts_with("/proc") && !path.starts_with("/sys") {
        let page = PAGE_SIZE as u64;
        let range = offset / page..=(offset + bytes - 1) / page;
        pages.entry(path).or_default().extend(range);
    }
}

/// `3</path>`, with anything behind it.
fn descriptor(text: &str) -> Option<(u32, PathBuf)> {
    let (fd, rest) = text.split_once('<')?;
    let (path, _) = rest.split_once('>')?;
    Some((fd.parse().ok()?, path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_followed_by_offset_and_position() {
        let log = "\
openat(AT_FDCWD</>, \"/f\", O_RDONLY|O_CLOEXEC) = 3</f>
read(3</f>, \"\"..., 5000) = 5000
read(3</f>, \"\"..., 5000) = 100
lseek(3</f>, 40960, SEEK_SET) = 40960
read(3</f>, \"\"..., 4096) = 4096
read(3</f>, \"\", 4096)        = 0
pread64(3</f>, \"\"..., 4096, 81920) = 4096
openat(AT_FDCWD</>, \"/g\", O_RDONLY) = -1 ENOENT (No such file or directory)
+++ exited with 0 +++";
        let mut pages = Pages::new();
        let mut positions = HashMap::new();
        for line in log.lines() {
            read_line(line, &mut positions, &mut pages).expect(line);
        }
        assert_eq!(pages, Pages::from([("/f".into(), [0, 1, 10, 20].into())]));
        let unknown = "sendfile(4</g>, 3</f>, NULL, 10) = 10";
        assert_eq!(read_line(unknown, &mut positions, &mut pages), None);
    }
}
