//! The kernel module under test, and what the kernel says of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use migrator::source::kmod::{DEVICE, Module};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::libc;

/// Parts of lines of the kernel's log that tell of a fault.
const FAULTS: &[&str] = &[
    "BUG",
    "INFO: possible",
    "INFO: rcu",
    "INFO: suspicious",
    "INFO: task ",
    "Kernel panic",
    "Oops",
    "WARNING",
    "general protection fault",
    "inconsistent lock state",
    "kernel BUG at ",
    "possible circular locking",
    "self-detected stall",
    "sleeping function called",
    "suspicious RCU usage",
];

/// `hotpages`, loaded until the guard is dropped.
#[derive(Debug)]
pub struct Loaded(());

impl Loaded {
    /// Loads the module that `MIGRATOR_KMOD` names; one that is loaded already
    /// goes first.
    ///
    /// # Panics
    /// When the variable is not set, or the kernel refuses.
    pub fn new() -> Self {
        let path = std::env::var_os("MIGRATOR_KMOD").map(PathBuf::from).expect(
            "MIGRATOR_KMOD must name hotpages.ko for this kernel: \
             run `cargo xtask build --kernel TREE`",
        );
        if Path::new("/sys/module/hotpages").exists() {
            unload().expect("the module that was loaded is not in use");
        }
        let file = File::open(&path)
            .unwrap_or_else(|error| panic!("failed to open {}: {error}", path.display()));
        finit_module(file, c"", ModuleInitFlags::empty())
            .unwrap_or_else(|error| panic!("failed to load {}: {error}", path.display()));
        assert!(Path::new(DEVICE).exists(), "{DEVICE} is not there");
        Self(())
    }

    /// Opens its device.
    ///
    /// # Panics
    /// When that fails.
    pub fn open(&self) -> Module {
        Module::open(Path::new(DEVICE)).unwrap_or_else(|error| {
            let source = std::error::Error::source(&error);
            panic!("{error}: {source:?}")
        })
    }
}

impl Default for Loaded {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // A test that fails may have the device open still.
        if let Err(error) = unload() {
            eprintln!("failed to unload hotpages: {error}");
        }
    }
}

/// Unloads the module, or says why it can't be.
///
/// # Errors
/// `EWOULDBLOCK` while it is in use.
pub fn unload() -> nix::Result<()> {
    delete_module(c"hotpages", DeleteModuleFlags::O_NONBLOCK)
}

/// The kernel's log from some moment on.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// From now on.
    ///
    /// # Panics
    /// When /dev/kmsg can't be read.
    pub fn now() -> Self {
        let mut log = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .expect("the kernel's log");
        log.seek(SeekFrom::End(0)).expect("its end");
        Self(log)
    }

    /// Ends the test when the kernel has complained.
    ///
    /// # Panics
    /// When it has, with what it said.
    pub fn assert_no_fault(mut self) {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(bytes) => lines.push(String::from_utf8_lossy(&record[..bytes]).into_owned()),
                // Overwritten meanwhile; the next is read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("failed to read the kernel's log: {error}"),
            }
        }
        let fault = lines
            .iter()
            .find(|line| FAULTS.iter().any(|fault| line.contains(fault)));
        assert!(
            fault.is_none(),
            "the kernel complains:\n{}",
            lines.concat().trim_end()
        );
    }
}

/// Which LRU the kernel uses, until the guard is dropped.
#[derive(Debug)]
pub struct LruGen {
    before: Option<String>,
}

const LRU_GEN: &str = "/sys/kernel/mm/lru_gen/enabled";

impl LruGen {
    /// Switches the multi-generational LRU on (`y`) or off (`n`). A kernel that
    /// does not have it has it switched off.
    ///
    /// # Errors
    /// The kernel does not have it, or refuses.
    pub fn switch(on: bool) -> io::Result<Self> {
        let before = match fs::read_to_string(LRU_GEN) {
            Ok(before) => before,
            Err(error) if error.kind() == ErrorKind::NotFound && !on => {
                return Ok(Self { before: None });
            }
            Err(error) => return Err(error),
        };
        fs::write(LRU_GEN, if on { "y" } else { "n" })?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for LruGen {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(LRU_GEN, before.trim())
        {
            eprintln!("failed to write {LRU_GEN}: {error}");
        }
    }
}

/// The number of an error that the module has answered.
pub fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let error = error.source()?.downcast_ref::<io::Error>()?;
    error.raw_os_error().map(Errno::from_raw)
}
