//! Helpers shared by the integration tests: files on a real disk, their page
//! cache, and programs that end with the test. They panic with a sentence
//! where something is not as a test needs it.
//!
//! `cargo xtask test` runs the tests, as root and one at a time.

pub mod cgroup;
pub mod containers;
pub mod fault;
pub mod gauge;
pub mod mapped;
pub mod module;
pub mod mount;
pub mod random;
pub mod reader;
pub mod score;
pub mod steps;
pub mod strace;
pub mod testhost;
pub mod track;
pub mod warm;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use random::Random;

/// Bytes of a page on the machines that the tests run on; [`resident`] checks
/// it against the kernel's.
pub const PAGE_SIZE: usize = 4096;

/// The migrator to test, with the eBPF object inside: `MIGRATOR_BIN`.
///
/// # Panics
/// When the variable is not set or does not name a program.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("MIGRATOR_BIN")
        .map(PathBuf::from)
        .expect("MIGRATOR_BIN must name the migrator to test: run `cargo xtask test`");
    let runs = fs::metadata(&path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    assert!(
        runs,
        "MIGRATOR_BIN names {}, which is not a program: run `cargo xtask build`",
        path.display()
    );
    path
}

/// Ends the test unless it runs as root.
///
/// # Panics
/// When it does not.
pub fn require_root() {
    assert!(
        geteuid().is_root(),
        "this test loads programs into the kernel and needs root: run `cargo xtask test` as root"
    );
}

/// A size, divided by `MIGRATOR_TEST_SCALE` where that is set: in a guest that
/// is translated the same cases have smaller files.
///
/// # Panics
/// When the variable is no number from 1 on.
pub fn scaled(size: u64) -> u64 {
    let Some(scale) = std::env::var_os("MIGRATOR_TEST_SCALE") else {
        return size;
    };
    let divisor = scale.to_str().and_then(|text| text.parse::<u64>().ok());
    match divisor.filter(|it| *it > 0) {
        Some(divisor) => size / divisor,
        None => panic!("MIGRATOR_TEST_SCALE is {}, and no number", scale.display()),
    }
}

/// A directory on a disk, removed with everything in it when dropped. Files
/// on tmpfs are page cache and can't be evicted, so it is never there.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Makes a directory in `MIGRATOR_TEST_DIR`, where that is set; otherwise
    /// in `target` of the source tree or in `/var/tmp`, whichever is on a
    /// file system of its own rather than an overlay of two.
    ///
    /// # Panics
    /// When no such place is on a disk, or the directory can't be made.
    pub fn new() -> Self {
        let places = match std::env::var_os("MIGRATOR_TEST_DIR") {
            Some(place) => vec![PathBuf::from(place)],
            None => vec![
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                "/var/tmp".into(),
            ],
        };
        let on = |place: &Path| statfs(place).map(|system| system.filesystem_type());
        let usable = |place: &&PathBuf| on(place).is_ok_and(|system| system != TMPFS_MAGIC);
        let place = places
            .iter()
            .filter(usable)
            // False, "not an overlay", comes first.
            .min_by_key(|place| on(place) == Ok(OVERLAYFS_SUPER_MAGIC))
            .unwrap_or_else(|| {
                panic!("none of {places:?} is on a disk: set MIGRATOR_TEST_DIR to one that is")
            });
        Self::in_place(place)
    }

    /// Makes a directory in a place of one's own.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn in_place(place: &Path) -> Self {
        let place = place
            .canonicalize()
            .unwrap_or_else(|error| panic!("failed to resolve {}: {error}", place.display()));
        let directory = tempfile::Builder::new()
            .prefix("migrator-test-")
            .tempdir_in(&place)
            .unwrap_or_else(|error| {
                panic!("failed to make a directory in {}: {error}", place.display())
            });
        Self { directory }
    }

    /// The directory: absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a file of so many pages, each filled with its [`page`], and
    /// waits until it is on the disk. Its pages are then resident.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn file(&self, name: &str, pages: u64) -> PathBuf {
        let path = self.path().join(name);
        let write = || -> std::io::Result<()> {
            let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(&path)?);
            for index in 0..pages {
                file.write_all(&page(index))?;
            }
            file.into_inner()?.sync_all()
        };
        write().unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// What a page of a [`Scratch::file`] holds: the same in every run, another
/// at every page index, and nothing that a file system could compress.
pub fn page(index: u64) -> [u8; PAGE_SIZE] {
    // Begun at a place of its own for every page: the numbers of one page
    // never meet those of another.
    let mut numbers = Random::new(index.wrapping_mul((PAGE_SIZE / 8) as u64));
    let mut bytes = [0; PAGE_SIZE];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
    bytes
}

/// Writes a file back and drops its pages from the page cache.
///
/// # Panics
/// When pages stay although it was asked several times: somebody maps the
/// file or reads it.
pub fn evict(path: &Path) {
    let file = open(path);
    // A page may be kept for a moment: by writeback that has just ended, or
    // by a batch of another CPU that holds a reference.
    for _ in 0..50 {
        file.sync_all()
            .unwrap_or_else(|error| panic!("failed to write back {}: {error}", path.display()));
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .unwrap_or_else(|error| panic!("failed to evict {}: {error}", path.display()));
        if resident(path).is_empty() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!(
        "failed to evict {}: {} pages stay resident; does a process map or read it?",
        path.display(),
        resident(path).len()
    );
}

/// The indexes of a file's pages that are in the page cache, as mincore(2)
/// tells its owner or root. It reads no page and leaves the cache as it is.
///
/// # Panics
/// When the file can't be opened or mapped.
pub fn resident(path: &Path) -> BTreeSet<u64> {
    let file = open(path);
    let bytes = file
        .metadata()
        .unwrap_or_else(|error| panic!("failed to stat {}: {error}", path.display()))
        .len();
    let Some(length) = usize::try_from(bytes).ok().and_then(NonZeroUsize::new) else {
        return BTreeSet::new();
    };
    let mut states = vec![0_u8; length.get().div_ceil(PAGE_SIZE)];
    // SAFETY: a new mapping at an address of the kernel's choice; nothing
    // reads or writes through it.
    let mapping = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED,
            &file,
            0,
        )
    }
    .unwrap_or_else(|error| panic!("failed to map {}: {error}", path.display()));
    // SAFETY: mincore writes a byte for each page of the mapping, and
    // `states` has one for each: a page of the kernel's is not smaller.
    let result =
        unsafe { nix::libc::mincore(mapping.as_ptr(), length.get(), states.as_mut_ptr().cast()) };
    let error = std::io::Error::last_os_error();
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { munmap(mapping, length.get()) }
        .unwrap_or_else(|error| panic!("failed to unmap {}: {error}", path.display()));
    assert_eq!(
        result,
        0,
        "failed to ask mincore about {}: {error}",
        path.display()
    );
    // Only the lowest bit has a meaning.
    (0_u64..)
        .zip(states)
        .filter_map(|(index, state)| (state & 1 == 1).then_some(index))
        .collect()
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("failed to open {}: {error}", path.display()))
}

/// A process that is killed when the guard is dropped, so that a test which
/// panics leaves none behind.
#[derive(Debug)]
pub struct Child {
    process: process::Child,
}

impl Child {
    /// Starts it.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(command: &mut Command) -> Self {
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
        Self { process }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// The process itself, for its pipes.
    pub fn process(&mut self) -> &mut process::Child {
        &mut self.process
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has been waited for already.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal)
            .unwrap_or_else(|error| panic!("failed to send {signal} to {}: {error}", self.pid()));
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn wait(&mut self) -> ExitStatus {
        self.process
            .wait()
            .unwrap_or_else(|error| panic!("failed to wait for {}: {error}", self.pid()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for: nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_new_file_is_resident_until_it_is_evicted() {
        let scratch = Scratch::new();
        let path = scratch.file("file", 300);
        assert_eq!(resident(&path), (0..300).collect());
        evict(&path);
        assert_eq!(resident(&path), BTreeSet::new());
    }

    #[test]
    fn a_page_that_is_read_is_resident() {
        let scratch = Scratch::new();
        let path = scratch.file("file", 300);
        evict(&path);
        let file = open(&path);
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advice");
        for index in [17, 200] {
            let mut bytes = [0; PAGE_SIZE];
            file.read_exact_at(&mut bytes, index * PAGE_SIZE as u64)
                .expect("a page");
            assert_eq!(bytes, page(index));
        }
        assert_eq!(resident(&path), [17, 200].into());
    }

    #[test]
    fn every_page_holds_something_else() {
        let pages: BTreeSet<_> = (0..1000).map(page).collect();
        assert_eq!(pages.len(), 1000);
    }

    #[test]
    fn a_child_ends_with_its_guard() {
        let child = Child::spawn(Command::new("sleep").arg("1000"));
        let pid = Pid::from_raw(child.pid());
        assert_eq!(kill(pid, None), Ok(()));
        drop(child);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
