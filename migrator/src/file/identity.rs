//! Whether a path leads to the inode that is meant.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::handle::Handle;
use super::mountinfo::MountTable;
use super::{Device, InodeKey};
use crate::pagelist::FileIdentity;

/// A file as stat(2) names it, whatever mount namespace it was opened in.
///
/// stat(2) has other numbers for a merged file of overlayfs than for the file
/// of its layer, which owns the pages and stands in lists:
/// [`Resolver::locate_open`](super::Resolver::locate_open) leads from the one
/// to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatKey {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

impl From<&FileIdentity> for StatKey {
    fn from(identity: &FileIdentity) -> Self {
        Self {
            device: identity.device,
            inode: identity.inode,
        }
    }
}

impl From<&Metadata> for StatKey {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// What is at `path` now, if it is a regular file and this inode. `host` are
/// our own mounts.
///
/// The generation is compared where the file system has handles that tell it:
/// a file that got the number of a deleted one is another file.
pub fn of(host: &MountTable, path: &Path, key: InodeKey) -> Option<FileIdentity> {
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.ino() != key.inode {
        return None;
    }
    if device_of(host, path, &meta)? != key.device() {
        return None;
    }
    if key.generation != 0
        && let Ok((handle, _)) = Handle::of_path(path)
        && handle.generation().is_some_and(|it| it != key.generation)
    {
        return None;
    }
    Some(FileIdentity {
        path: path.to_owned(),
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        mtime_ns: mtime_ns(&meta),
    })
}

/// Returns the file with size and mtime as they are now, if it is still at its path.
pub fn now(file: &FileIdentity) -> Option<FileIdentity> {
    let meta = fs::symlink_metadata(&file.path).ok()?;
    let is_it = meta.is_file() && (meta.dev(), meta.ino()) == (file.device, file.inode);
    is_it.then(|| FileIdentity {
        size: meta.len(),
        mtime_ns: mtime_ns(&meta),
        ..file.clone()
    })
}

/// As in [`FileIdentity::mtime_ns`].
pub fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}

/// `s_dev` of a file of ours. It is `st_dev`, but for file systems that give
/// each subvolume a device number of its own, which no mount has (btrfs).
pub fn device_of(host: &MountTable, path: &Path, meta: &Metadata) -> Option<Device> {
    let device = Device::from_stat(meta.dev());
    if host.iter().any(|mount| mount.device == device) {
        return Some(device);
    }
    match Handle::of_path(path) {
        Ok((_, mount)) => Some(host.by_id(mount)?.device),
        Err(_) => Some(host.covering(path)?.device),
    }
}
