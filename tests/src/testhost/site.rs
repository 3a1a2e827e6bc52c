//! What the hosts of one test run share: programs, files, and the root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::host::{Host, Storage};
use super::relay::Relay;
use crate::Scratch;

/// The packages of a host's root.
const PACKAGES: &[&str] = &[
    "criu",
    "iproute2",
    "procps",
    "strace",
    "tini",
    "util-linux",
    "util-linux-extra",
];

/// The mount points that the root has for the hosts.
const MOUNT_POINTS: &[&str] = &[
    "mnt/shared",
    "mnt/link",
    "mnt/programs",
    "mnt/old",
    "var/lib/migrator",
];

/// Programs of the tests that run in the hosts.
const PROGRAMS: &[&str] = &["steps", "rsh", "unptraced"];

/// Directories of one test run, which all its hosts share.
#[derive(Debug)]
pub struct Site {
    /// The root of every host; never changed.
    pub(super) root: PathBuf,
    /// The relay's socket, mount points, logs.
    pub(super) link: PathBuf,
    /// migrator and the programs of the tests.
    pub(super) programs: PathBuf,
    /// The files of the trees, on a disk.
    pub(super) shared: PathBuf,
    scratch: Scratch,
    // On a tmpfs: what a host keeps over a power cut.
    disks: TempDir,
}

impl Site {
    /// Makes the directories, and the root and the programs if need be.
    /// `MIGRATOR_TEST_PROGRAMS` names a directory with the programs, which are built
    /// without it.
    ///
    /// # Errors
    /// Returns an error when something can't be fetched or made.
    pub fn new() -> Result<Arc<Self>> {
        let root = xtask::vm::debian(PACKAGES)?;
        for place in MOUNT_POINTS {
            fs::create_dir_all(root.join(place)).context("failed to make a mount point")?;
        }
        let scratch = Scratch::new();
        let [link, programs, shared] =
            ["link", "programs", "shared"].map(|name| scratch.path().join(name));
        for directory in [&link, &programs, &shared] {
            fs::create_dir(directory).context("failed to make a directory of the site")?;
        }
        for name in PROGRAMS {
            let built = match std::env::var_os("MIGRATOR_TEST_PROGRAMS") {
                Some(directory) => Path::new(&directory).join(name),
                None => xtask::vm::static_program(name)?,
            };
            fs::copy(&built, programs.join(name))
                .with_context(|| format!("failed to copy {}", built.display()))?;
        }
        let migrator = match std::env::var_os("MIGRATOR_BIN") {
            Some(_) => crate::binary(),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist/migrator"),
        };
        fs::copy(&migrator, programs.join("migrator"))
            .with_context(|| format!("failed to copy {}: is it built?", migrator.display()))?;
        Ok(Arc::new(Self {
            root,
            link,
            programs,
            shared,
            scratch,
            disks: tempfile::Builder::new()
                .prefix("migrator-test-")
                .tempdir_in("/dev/shm")
                .context("failed to make a directory in /dev/shm")?,
        }))
    }

    /// Returns a number that no site of this process has given before: tests may
    /// run at the same time.
    pub(super) fn number(&self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns a new directory that a host keeps over a power cut.
    pub(super) fn disk(&self, name: &str) -> Result<PathBuf> {
        let disk = self.disks.path().join(format!("{name}-{}", self.number()));
        fs::create_dir(&disk).context("failed to make a disk")?;
        Ok(disk)
    }

    /// Returns a path for a log that hosts and tests can write to; the host's
    /// name for it comes second.
    pub fn log(&self, name: &str) -> (PathBuf, String) {
        let name = format!("{name}-{}.log", self.number());
        (self.link.join(&name), format!("/mnt/link/{name}"))
    }

    /// Returns what `migrator move --help` says.
    ///
    /// # Errors
    /// Returns an error when it does not run.
    pub(super) fn help(&self) -> Result<String> {
        let help = std::process::Command::new(self.programs.join("migrator"))
            .args(["move", "--help"])
            .output()
            .context("failed to run migrator")?;
        Ok(String::from_utf8_lossy(&help.stdout).into_owned())
    }

    /// Returns the directory below which everything of the site is.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }
}

/// A source and a destination, and what is between them.
#[derive(Debug)]
pub struct Pair {
    /// Where the tree runs at first.
    pub source: Host,
    /// Where it is to go.
    pub destination: Host,
    /// A host that has never heard of a session, once it is needed.
    pub stranger: Option<Host>,
    /// The network.
    pub relay: Relay,
    /// What they share.
    pub site: Arc<Site>,
}

impl Pair {
    /// Boots both.
    ///
    /// # Errors
    /// Returns an error when one does not boot.
    pub fn boot(site: &Arc<Site>) -> Result<Self> {
        let relay = Relay::listen(&site.link.join("socket"))?;
        let [source, destination] =
            ["source", "destination"].map(|name| Host::boot(site, name, Storage::Kept));
        let (source, destination) = (source?, destination?);
        relay.serve(destination.handle());
        Ok(Self {
            source,
            destination,
            stranger: None,
            relay,
            site: Arc::clone(site),
        })
    }

    /// Has every connection from number `first` on (0 is the first) end in a host that
    /// has never heard of a session.
    ///
    /// # Errors
    /// Returns an error when that host does not boot.
    pub fn divert(&mut self, first: usize) -> Result<()> {
        let stranger = match self.stranger.take() {
            Some(stranger) => stranger,
            None => Host::boot(&self.site, "stranger", Storage::Kept)?,
        };
        self.relay.divert(first, stranger.handle());
        self.stranger = Some(stranger);
        Ok(())
    }

    /// Boots the destination again, after a power cut or with another disk.
    ///
    /// # Errors
    /// Returns an error when it does not boot.
    pub fn reboot_destination(&mut self, storage: Storage) -> Result<()> {
        self.destination.reboot(storage)?;
        self.relay.serve(self.destination.handle());
        Ok(())
    }

    /// Returns the hosts that run.
    pub fn hosts(&self) -> Vec<&Host> {
        let mut hosts = vec![&self.source, &self.destination];
        hosts.extend(&self.stranger);
        hosts
    }
}
