//! A guest on its own: it boots a kernel, does what its script says, reports,
//! and powers off. Nothing talks to it, so that it needs no network, no ssh
//! and next to nothing of its kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::machine::{Accelerator, Disk, Machine, Plan, Threads};
use super::{image, lock};
use crate::packages;
use crate::workspace::Workspace;

/// The pagevec window is one between two processors.
const PROCESSORS: u32 = 2;

/// MiB.
const MEMORY: u32 = 1536;

/// Where guests are made.
#[derive(Debug)]
pub(crate) struct Lab {
    guests: PathBuf,
    cache: PathBuf,
    directory: PathBuf,
    root: PathBuf,
    // The files of `target/vm` are the test hosts', too.
    _lock: File,
}

/// What came of a guest.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What it wrote to its second serial port.
    pub(crate) report: String,
    /// Why it did not come to its end in peace, with the end of its console.
    pub(crate) fault: Option<String>,
    /// From its start to its end.
    pub(crate) time: Duration,
}

impl Lab {
    /// Makes what all guests share: their root.
    ///
    /// # Errors
    /// When something can't be fetched or made.
    pub(crate) fn open(workspace: &Workspace) -> Result<Self> {
        packages::install_for_hosts()?;
        let cache = workspace.target().join("vm");
        fs::create_dir_all(&cache)
            .with_context(|| format!("failed to create {}", cache.display()))?;
        let lock = lock(&cache)?;
        let directory = cache.join("run");
        image::remove(&directory)?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        Ok(Self {
            root: image::root(&cache)?,
            guests: workspace.guests(),
            cache,
            directory,
            _lock: lock,
        })
    }

    /// A Debian kernel, by the names of `cargo xtask vm --kernel`.
    ///
    /// # Errors
    /// When it can't be fetched.
    pub(crate) fn debian(&self, name: &str) -> Result<Kernel> {
        Kernel::get(name, &self.cache)
    }

    /// A kernel of the user's, which has built in what it needs to boot: PCI,
    /// virtio-blk, ext4, devtmpfs, a serial console.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn own(&self, image: &Path) -> Result<Kernel> {
        Kernel::of_image(image, &self.cache, &self.directory.join("kernel"))
    }

    /// Boots a kernel and waits for the end of its script, `init` in the tree
    /// that the guest finds at `/vm`. It reports on `/dev/ttyS1`, says
    /// `migrator-vm: NAME is done` on the console and waits. `limit` is for all of
    /// it under KVM.
    ///
    /// # Errors
    /// When it can't be started. What goes wrong inside is in the outcome.
    pub(crate) fn run(
        &self,
        name: &str,
        kernel: &Kernel,
        tree: &Path,
        threads: Threads,
        limit: Duration,
    ) -> Result<Outcome> {
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        let initrd = directory.join("initrd");
        kernel.initrd(&self.guests.join("initrd"), &initrd)?;
        let accelerator = Accelerator::find(&self.cache, &directory, &kernel.image(), &initrd)?;
        let orders = directory.join("vm.img");
        image::ext4(tree, &orders, "1G")?;
        let disks = [
            (self.root.clone(), true),
            (kernel.modules(), false),
            (orders, false),
        ]
        .map(|(image, writable)| Disk { image, writable });
        // A port that every kernel drives, apart from the console, where the
        // kernel would talk in between.
        let port = [
            "-chardev",
            "file,id=report,path=report",
            "-serial",
            "chardev:report",
        ];
        let start = std::time::Instant::now();
        let machine = Machine::start(&Plan {
            name,
            directory: &directory,
            kernel: &kernel.image(),
            initrd: &initrd,
            parameters: "",
            disks: &disks,
            devices: &port.map(str::to_owned),
            processors: PROCESSORS,
            threads,
            memory: MEMORY,
            accelerator,
        })?;
        let ended = machine
            .wait_for(&format!("{name} is done"), limit * accelerator.slowness())
            // A complaint may come with the last thing it did.
            .and_then(|()| machine.check());
        let time = start.elapsed();
        machine.kill()?;
        let report = fs::read(directory.join("report")).unwrap_or_default();
        Ok(Outcome {
            report: String::from_utf8_lossy(&report).replace('\r', ""),
            fault: ended.err().map(|error| format!("{error:#}")),
            time,
        })
    }

    /// A directory for what a guest shall find at `/vm`, empty.
    ///
    /// # Errors
    /// When it can't be made.
    pub(crate) fn tree(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() || name.contains(['/', ',', ' ']) {
            bail!("{name:?} is no name for a guest");
        }
        let tree = self.directory.join(name).join("vm");
        image::remove(&tree)?;
        fs::create_dir_all(&tree)
            .with_context(|| format!("failed to create {}", tree.display()))?;
        Ok(tree)
    }
}
