//! Room for images on a disk that others use, too.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// What stays free for others: this part of the file system.
const RESERVE_PART: u64 = 20;

/// What images take beside the memory of a tree.
const OVERHEAD_BYTES: u64 = 4 << 20;

/// The step in which a reservation shrinks.
const STEP_BYTES: u64 = 8 << 20;

/// The name of the file that takes the room.
const RESERVED: &str = "reserved";

/// Returns how many bytes the images of so much memory may take, `copies` times.
/// A tenth is added for what the tree may still grow.
pub(super) fn needed(memory_bytes: u64, copies: u64) -> u64 {
    (memory_bytes + memory_bytes / 10 + OVERHEAD_BYTES).saturating_mul(copies)
}

/// Checks that a directory's file system has room for these bytes, and then a
/// twentieth of it for others.
///
/// # Errors
/// It has not, or can't be asked.
pub(super) fn check(directory: &Path, bytes: u64) -> anyhow::Result<()> {
    let stat = statvfs(directory)
        .with_context(|| format!("failed to learn what is free in {}", directory.display()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let reserve = stat.blocks() as u64 * stat.fragment_size() as u64 / RESERVE_PART;
    if free < bytes.saturating_add(reserve) {
        bail!(
            "the images may take {} and {} has {} free, of which {} stay for others: make room \
             there, or use --images-dir",
            size(bytes),
            directory.display(),
            size(free),
            size(reserve)
        );
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Room that is taken until images take it.
#[derive(Debug)]
pub(super) struct Reservation {
    /// `None` where the file system reserves nothing.
    file: Option<File>,
    left: u64,
    pending: u64,
}

impl Reservation {
    /// Takes room in a directory that is empty but for it.
    ///
    /// # Errors
    /// There is not enough.
    pub(super) fn take(directory: &Path, bytes: u64) -> anyhow::Result<Self> {
        check(directory, bytes)?;
        let path = directory.join(RESERVED);
        let failed = || format!("failed to reserve {} in {}", size(bytes), path.display());
        let file = File::create(&path).with_context(failed)?;
        let is_taken = match fallocate(&file, FallocateFlags::empty(), 0, bytes as i64) {
            Ok(()) => true,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => false,
            Err(error) => return Err(error).with_context(failed),
        };
        Ok(Self {
            file: is_taken.then_some(file),
            left: bytes,
            pending: 0,
        })
    }

    /// Releases room, as much as an image takes now.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub(super) fn release(&mut self, bytes: u64) -> io::Result<()> {
        self.pending += bytes;
        // Ahead of the images, which would find the disk full.
        if self.pending >= STEP_BYTES || self.left < 2 * STEP_BYTES {
            self.left = self.left.saturating_sub(self.pending + STEP_BYTES);
            self.pending = 0;
            if let Some(file) = &self.file {
                file.set_len(self.left)?;
            }
        }
        Ok(())
    }

    /// Releases all of it.
    pub(super) fn end(mut self) {
        if let Some(file) = self.file.take() {
            // The file goes with the session.
            _ = file.set_len(0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_as_images_take_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut room = Reservation::take(directory.path(), 20 << 20).unwrap();
        let reserved = || directory.path().join(RESERVED).metadata().unwrap().len();
        let taken = room.file.is_some();
        assert_eq!(reserved(), if taken { 20 << 20 } else { 0 });
        let mut before = reserved();
        for _ in 0..20 {
            room.release(1 << 20).unwrap();
            assert!(reserved() <= before);
            before = reserved();
        }
        assert_eq!(reserved(), 0, "the images are complete");
        room.end();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = check(directory.path(), u64::MAX / 2).unwrap_err();
        assert!(error.to_string().contains("stay for others"), "{error}");
        assert!(Reservation::take(directory.path(), u64::MAX / 2).is_err());
        assert!(needed(100 << 20, 2) > 200 << 20);
    }
}
