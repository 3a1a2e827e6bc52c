//! (device, inode) ↔ path, inside containers and mounts.
//!
//! The kernel's side of an access is an inode: `s_dev` of its superblock,
//! number, generation. What a page index list needs is a path on this host,
//! in our own mount namespace. There are four ways from the one to the other,
//! tried in this order; each ends with a look at the path (device, number,
//! generation), so that none can give a wrong file:
//!
//! 1. The file is or was open or mapped when [`Resolver::observe`] looked at
//!    the processes. The path inside the process' mount namespace gives the
//!    path inside the file system by its mount table, and ours gives a place
//!    where that shows on the host. overlayfs files stand for the file of the
//!    upper or lower layer, which owns the pages.
//! 2. [`by_number`]: the inode is opened by its number, which gives a path as
//!    long as a dentry is cached, as it is right after use. ext4, xfs, btrfs
//!    and others that use their kinds of handle.
//! 3. [`search`]: a bounded look through the directories of known files.
//! 4. Otherwise [`Unresolved`] says why not.
//!
//! What remains open: a file on NFS or FUSE, whose handles can't be made up,
//! that is opened, read and closed between two observations; and btrfs
//! snapshots, whose inodes have the same device, number *and* generation as
//! the original's: the one seen open is taken, else the first that exists.

pub mod by_number;
pub mod handle;
pub mod identity;
pub mod maps;
pub mod mountinfo;
pub mod open_files;
pub mod overlay;
mod resolver;
pub mod search;

use nix::sys::stat::{major, makedev, minor};

pub use identity::StatKey;
pub use resolver::{Observation, Resolver};

/// A device number as the kernel has it in `s_dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// 0 for file systems without a block device of their own.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// From `st_dev`.
    pub fn from_stat(device: u64) -> Self {
        // Both have less than 32 bits in the kernel's dev_t.
        Self {
            major: major(device) as u32,
            minor: minor(device) as u32,
        }
    }

    /// As `st_dev` would have it.
    pub fn to_stat(self) -> u64 {
        makedev(self.major.into(), self.minor.into())
    }

    /// `MAJOR:MINOR`, with digits of that radix.
    fn parse(text: &str, radix: u32) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self {
            major: u32::from_str_radix(major, radix).ok()?,
            minor: u32::from_str_radix(minor, radix).ok()?,
        })
    }
}

/// An inode as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeKey {
    /// `s_dev` of its superblock: major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// `i_ino`.
    pub inode: u64,
    /// `i_generation`: tells apart files that had the number one after the
    /// other. 0 where it is not known.
    pub generation: u32,
}

impl InodeKey {
    /// The file system it is of.
    pub fn device(&self) -> Device {
        Device {
            major: self.major,
            minor: self.minor,
        }
    }
}

/// Why an inode has no path on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Unresolved {
    /// No name leads to it any more.
    #[error("deleted")]
    Deleted,
    /// Memory with a file's face: memfd, shared memory, tmpfs. Its page cache
    /// is the data itself, which no disk gives back.
    #[error("memory (memfd, shared memory, tmpfs)")]
    Anonymous,
    /// Not a regular file of a disk or network: block device, proc, sysfs ...
    #[error("special (device, proc, sysfs and the like)")]
    Special,
    /// Only inside a container's mount namespace.
    #[error("not visible from the host's mounts")]
    NotVisible,
    /// Opening by handle needs CAP_DAC_READ_SEARCH, and nothing else led there.
    #[error("not permitted to look it up (run as root)")]
    NotPermitted,
    /// Never seen open, and neither handle nor search led to it.
    #[error("never seen open, and not found by its number")]
    Unknown,
}

/// Which files of a file system are left out, whatever they are called.
fn left_out(fs_type: &str) -> Option<Unresolved> {
    match fs_type {
        "tmpfs" | "ramfs" | "rootfs" | "devtmpfs" | "hugetlbfs" => Some(Unresolved::Anonymous),
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "debugfs" | "tracefs" | "securityfs"
        | "configfs" | "bpf" | "pstore" | "efivarfs" | "mqueue" | "devpts" | "nsfs" | "fusectl"
        | "selinuxfs" | "binfmt_misc" | "resctrl" | "autofs" | "rpc_pipefs" | "nfsd" => {
            Some(Unresolved::Special)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_the_way_through_stat() {
        for device in [
            Device {
                major: 254,
                minor: 0,
            },
            Device {
                major: 0,
                minor: 39,
            },
            Device {
                major: 0xfff,
                minor: 0xf_ffff,
            },
        ] {
            assert_eq!(Device::from_stat(device.to_stat()), device);
        }
        assert_eq!(
            Device::parse("fe:1f", 16),
            Some(Device {
                major: 254,
                minor: 31
            })
        );
        assert_eq!(Device::parse("8", 10), None);
    }
}
