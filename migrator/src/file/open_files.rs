//! What a process has open: `/proc/PID/fd`, `/proc/PID/maps`, `/proc/PID/exe`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Device, maps};

/// A file that a process has open or mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// A magic link to it, such as `/proc/7/fd/3`: stat(2) on it is fstat(2)
    /// on the file, wherever and in whatever namespace that lies.
    pub link: PathBuf,
    /// The file descriptor's number, if it has one.
    pub fd: Option<i32>,
    /// For a mapping: device (`s_dev`), inode number and path as `maps` has
    /// them, which tells a file known already without a look at the link.
    pub mapping: Option<(Device, u64, PathBuf)>,
}

/// The files of a process: its descriptors, each file it maps once, and its
/// executable. `process` is a directory such as `/proc/7`.
///
/// # Errors
/// `NotFound` when the process is gone, `PermissionDenied` when its files may
/// not be seen.
pub fn list(process: &Path) -> io::Result<Vec<OpenFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let fd = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        files.push(OpenFile {
            link: entry.path(),
            fd,
            mapping: None,
        });
    }
    // A process that ends now has no maps any more: that is no error.
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    files.extend(mapped(&maps, &process.join("map_files")));
    files.push(OpenFile {
        link: process.join("exe"),
        fd: None,
        mapping: None,
    });
    Ok(files)
}

/// The id of the mount through which a descriptor was opened.
///
/// # Errors
/// The descriptor is closed, or may not be seen.
pub fn mount_id(process: &Path, fd: i32) -> io::Result<i32> {
    let text = fs::read_to_string(process.join("fdinfo").join(fd.to_string()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Each mapped file once, by its first mapping.
fn mapped(maps: &[u8], map_files: &Path) -> Vec<OpenFile> {
    let mut seen = HashSet::new();
    maps::parse(maps)
        .filter(|mapping| seen.insert((mapping.device, mapping.inode)))
        .map(|mapping| OpenFile {
            link: map_files.join(mapping.name()),
            fd: None,
            mapping: Some((mapping.device, mapping.inode, mapping.path)),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 247282                     /usr/bin/head
55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 247282                     /usr/bin/head
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:01 2052                       /memfd:a b (deleted)
7f0000002000-7f0000003000 r--p 00000000 00:27 258                        /mnt/sub/with space
7f0000003000-7f0000004000 r--p 00000000 00:00 0
";

    #[test]
    fn each_mapped_file_is_listed_once() {
        let files = mapped(MAPS, Path::new("/proc/7/map_files"));
        let what: Vec<_> = files
            .iter()
            .map(|file| (file.link.to_str().unwrap(), file.mapping.clone().unwrap()))
            .collect();
        let device = |major, minor| Device { major, minor };
        assert_eq!(
            what,
            [
                (
                    "/proc/7/map_files/55d0c0000000-55d0c0001000",
                    (device(0xfe, 0), 247_282, "/usr/bin/head".into())
                ),
                (
                    "/proc/7/map_files/7f0000000000-7f0000001000",
                    (device(0, 1), 2052, "/memfd:a b (deleted)".into())
                ),
                (
                    "/proc/7/map_files/7f0000002000-7f0000003000",
                    (device(0, 0x27), 258, "/mnt/sub/with space".into())
                ),
            ]
        );
    }

    #[test]
    fn own_files_are_listed() {
        let here = tempfile::NamedTempFile::new().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(here.as_file());
        let process = Path::new("/proc/self");
        let files = list(process).unwrap();
        let open = files.iter().find(|file| file.fd == Some(fd)).unwrap();
        assert_eq!(fs::read_link(&open.link).unwrap(), here.path());
        assert!(mount_id(process, fd).unwrap() > 0);
        assert!(files.iter().any(|file| file.mapping.is_some()));
    }
}
