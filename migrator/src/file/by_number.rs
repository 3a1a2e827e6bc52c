//! Opens an inode by its number, and asks the kernel where it is.
//!
//! Measured on Linux 6.18, on ext4, xfs and btrfs alike: as long as a dentry
//! of the file is cached, the path is right, also when the file was renamed.
//! When it is evicted, or lies outside of what the mount shows, the path is
//! `/`, which is not the file. A deleted file's inode that is still in use
//! opens with a link count of 0; else the answer is `ESTALE`, as for another
//! generation. ext4 takes generation 0 for any, xfs does not.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::handle::Handle;
use super::mountinfo::{Mount, MountTable};
use super::{InodeKey, Unresolved, identity};
use crate::pagelist::FileIdentity;

/// Handles met on a file system that numbers inodes anew in each subvolume, by
/// subvolume: one of each is a pattern for the others. Elsewhere it is empty.
pub type Subvolumes = HashMap<u64, Handle>;

/// Where the inode is. `Ok(None)`: its number leads nowhere that we know of.
///
/// # Errors
/// [`Unresolved::Deleted`] and [`Unresolved::NotPermitted`].
pub fn find(
    host: &MountTable,
    key: InodeKey,
    subvolumes: &mut Subvolumes,
) -> Result<Option<FileIdentity>, Unresolved> {
    for mount in host.of_device(key.device()) {
        let Some(root) = open_mount(mount) else {
            continue;
        };
        let Ok((pattern, _)) = Handle::of_file(root.as_fd()) else {
            continue;
        };
        let patterns = match pattern.subvolume() {
            Some(subvolume) => {
                subvolumes.insert(subvolume, pattern);
                subvolumes.values().cloned().collect()
            }
            None => vec![pattern],
        };
        for pattern in patterns {
            if let Some(found) = on_mount(host, &root, &pattern, key)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Where an open file shows on the host: asks for the same inode on mounts of
/// our own. `link` is a magic link to it.
pub fn places<'a>(
    host: &'a MountTable,
    device: super::Device,
    handle: &'a Handle,
) -> impl Iterator<Item = PathBuf> + 'a {
    host.of_device(device).into_iter().filter_map(|mount| {
        let found = handle.open(open_mount(mount)?.as_fd()).ok()?;
        path_of(&found)
    })
}

fn on_mount(
    host: &MountTable,
    root: &File,
    pattern: &Handle,
    key: InodeKey,
) -> Result<Option<FileIdentity>, Unresolved> {
    let Some(handle) = pattern.of_inode(key.inode, key.generation) else {
        return Ok(None);
    };
    // In another subvolume, the number may be that of another file.
    let conclusive = pattern.subvolume().is_none();
    let found = match handle.open(root.as_fd()) {
        Ok(found) => found,
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => return Err(Unresolved::NotPermitted),
            // Without a generation, the kernel may refuse every number.
            Some(Errno::ESTALE) if conclusive && key.generation != 0 => {
                return Err(Unresolved::Deleted);
            }
            _ => return Ok(None),
        },
    };
    match found.metadata() {
        Ok(meta) if meta.ino() == key.inode => {
            if meta.nlink() == 0 && conclusive {
                return Err(Unresolved::Deleted);
            }
        }
        _ => return Ok(None),
    }
    Ok(path_of(&found).and_then(|path| identity::of(host, &path, key)))
}

/// Opens the root of a mount, unless something else lies on top of it. It is
/// closed right after use: an open file would keep the user from unmounting.
fn open_mount(mount: &Mount) -> Option<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&mount.mount_point)
        .ok()?;
    let (_, id) = Handle::of_file(root.as_fd()).ok()?;
    (id == mount.id).then_some(root)
}

/// Where an open file is, as far as the kernel knows.
fn path_of(file: &File) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}
