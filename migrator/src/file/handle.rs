//! File handles (open_by_handle_at(2)): how an inode is opened by its number.
//!
//! A handle is opaque to users by contract, but the kernel never changes the
//! layout of a type that is in use, because NFS clients keep handles over
//! reboots of their server (`enum fid_type` in include/linux/exportfs.h). The
//! type is asked for with name_to_handle_at(2) on the mount, never guessed
//! from the file system's name; and what is opened is compared with the inode
//! that was meant.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// u32 inode, u32 generation: ext4 and most others.
const INO32_GEN: i32 = 1;
/// u64 inode, u32 generation: xfs with 64-bit inode numbers, erofs.
const INO64_GEN: i32 = 0x81;
/// u64 objectid (the inode number), u64 root objectid (the subvolume), u32
/// generation: btrfs.
const BTRFS: i32 = 0x4d;

/// `MAX_HANDLE_SZ` of fcntl.h.
const MAX_BYTES: usize = 128;

/// A file handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    kind: i32,
    bytes: Vec<u8>,
}

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; MAX_BYTES],
}

impl Handle {
    /// The handle of the file at `path` (symbolic links followed, so that
    /// `/proc/PID/fd/N` works), and the id of the mount it is found on.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the file system has none.
    pub fn of_path(path: &Path) -> io::Result<(Self, i32)> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        Self::of_name(libc::AT_FDCWD, &path, libc::AT_SYMLINK_FOLLOW)
    }

    /// The handle of an open file.
    ///
    /// # Errors
    /// As [`of_path`](Self::of_path).
    pub fn of_file(file: BorrowedFd<'_>) -> io::Result<(Self, i32)> {
        Self::of_name(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    fn of_name(dir: i32, name: &std::ffi::CStr, flags: i32) -> io::Result<(Self, i32)> {
        let mut raw = RawHandle {
            handle_bytes: MAX_BYTES as u32,
            handle_type: 0,
            f_handle: [0; MAX_BYTES],
        };
        let mut mount_id = 0;
        // SAFETY: `name` ends in NUL; `raw` has the layout of struct
        // file_handle with as many bytes as handle_bytes says, and both it
        // and `mount_id` outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                dir,
                name.as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                flags,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = raw.f_handle.get(..raw.handle_bytes as usize);
        let handle = Self {
            kind: raw.handle_type,
            bytes: bytes.unwrap_or_default().to_vec(),
        };
        Ok((handle, mount_id))
    }

    /// Opens the file as with `O_PATH`: nothing is read, no permission of the
    /// file is needed. `mount` is any open file or directory (itself not
    /// `O_PATH`) of the mount to open it on.
    ///
    /// # Errors
    /// `ESTALE`: no such inode, or of another generation. `EPERM`: needs
    /// CAP_DAC_READ_SEARCH in the initial user namespace.
    pub fn open(&self, mount: BorrowedFd<'_>) -> io::Result<File> {
        let mut raw = RawHandle {
            handle_bytes: self.bytes.len() as u32,
            handle_type: self.kind,
            f_handle: [0; MAX_BYTES],
        };
        raw.f_handle
            .get_mut(..self.bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(&self.bytes);
        // SAFETY: `raw` has the layout of struct file_handle with at least as
        // many bytes as handle_bytes says, and outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut raw).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened `fd` for us; nobody else owns it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A handle for another inode of the same file system; `None` where the
    /// layout is not known. On btrfs it is one of the same subvolume.
    pub fn of_inode(&self, inode: u64, generation: u32) -> Option<Self> {
        let mut bytes = self.bytes.clone();
        match (self.kind, bytes.as_mut_slice()) {
            (INO32_GEN, [ino @ .., _, _, _, _]) if ino.len() == 4 => {
                ino.copy_from_slice(&u32::try_from(inode).ok()?.to_ne_bytes());
            }
            (INO64_GEN, [ino @ .., _, _, _, _]) if ino.len() == 8 => {
                ino.copy_from_slice(&inode.to_ne_bytes());
            }
            (BTRFS, [ino @ .., _, _, _, _, _, _, _, _, _, _, _, _]) if ino.len() == 8 => {
                ino.copy_from_slice(&inode.to_ne_bytes());
            }
            _ => return None,
        }
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&generation.to_ne_bytes());
        Some(Self {
            kind: self.kind,
            bytes,
        })
    }

    /// The inode's generation; `None` where the layout is not known.
    pub fn generation(&self) -> Option<u32> {
        match (self.kind, self.bytes.len()) {
            (INO32_GEN, 8) | (INO64_GEN, 12) | (BTRFS, 20) => {
                let (_, generation) = self.bytes.split_last_chunk()?;
                Some(u32::from_ne_bytes(*generation))
            }
            _ => None,
        }
    }

    /// The subvolume, for handles that name it: there the inode number alone
    /// does not tell which file is meant.
    pub fn subvolume(&self) -> Option<u64> {
        match (self.kind, self.bytes.as_slice()) {
            (BTRFS, bytes) if bytes.len() == 20 => {
                Some(u64::from_ne_bytes(*bytes[8..].first_chunk()?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    // Handles that ext4, xfs, btrfs and tmpfs of Linux 6.18 gave.
    fn handle(kind: i32, hex: &str) -> Handle {
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        Handle { kind, bytes }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn handles_of_another_inode_are_those_the_kernel_gives() {
        let root = handle(1, "0200000000000000");
        let file = handle(1, "03800000ad64a6ac");
        assert_eq!(root.of_inode(0x8003, 0xaca6_64ad).unwrap(), file);
        assert_eq!(file.generation(), Some(0xaca6_64ad));
        assert_eq!(root.of_inode(1 << 32, 1), None);

        let root = handle(0x81, "800000000000000000000000");
        let file = handle(0x81, "81000400000000000af3e9a0");
        assert_eq!(root.of_inode(0x4_0081, 0xa0e9_f30a).unwrap(), file);

        let root = handle(0x4d, "0001000000000000050000000000000003000000");
        let file = handle(0x4d, "0301000000000000050000000000000007000000");
        assert_eq!(root.of_inode(0x103, 7).unwrap(), file);
        assert_eq!(file.subvolume(), Some(5));
        assert_eq!(file.generation(), Some(7));
    }

    #[test]
    fn handles_of_unknown_layout_are_left_alone() {
        let tmpfs = handle(1, "fd704fd30100000000000000");
        assert_eq!(tmpfs.of_inode(1, 1), None);
        assert_eq!(tmpfs.generation(), None);
        assert_eq!(handle(0xfe, "0000000000000000").of_inode(1, 1), None);
    }
}
