//! Test hosts: three virtual machines of Debian packages.
//!
//! `storage` serves files over NFS 4.2; `source` and `destination` mount them at
//! [`SHARED`] and have CRIU, podman, runc, crun and migrator. They see each
//! other on a network of their own, and nothing else.

mod console;
pub(crate) mod guest;
mod host;
mod image;
pub(crate) mod kernel;
mod machine;
mod network;
mod process;
pub(crate) mod programs;
mod smoke;

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use host::Host;
pub use machine::Threads;
pub use network::Link;

use crate::workspace::Workspace;
use crate::{build, command, packages};
use kernel::Kernel;
pub(crate) use kernel::suite;
use machine::{Accelerator, Disk, Machine, Plan};
use network::{DESTINATION, SOURCE, STORAGE, Seat};

/// Where the clients mount what the storage serves.
pub const SHARED: &str = "/mnt/shared";

/// Programs of the tests that run in the guests, in the crate of the
/// integration tests.
const PROGRAMS: &[&str] = &["steps"];

/// How long a guest may take to boot under KVM.
const BOOT: Duration = Duration::from_secs(60);

/// What the hosts shall be.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The guests' kernel: 5.10, 6.1, 6.12, newest, a Debian suite, or SUITE:PACKAGE
    #[arg(long, default_value = "6.12")]
    pub kernel: String,
    /// Memory of each guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1280)]
    pub memory: u32,
    /// The network between them.
    #[command(flatten)]
    pub link: Link,
    /// How the clients' processors are translated, where they are.
    #[arg(skip = Threads::Single)]
    pub threads: Threads,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kernel: "6.12".into(),
            memory: 1280,
            link: Link::default(),
            threads: Threads::Single,
        }
    }
}

/// Three running hosts. They end when this is dropped, and when the program
/// ends in whatever way.
#[derive(Debug)]
pub struct Hosts {
    /// The NFS server. Its machine holds the network's hub, too: the others
    /// are cut off from each other without it.
    pub storage: Host,
    /// Where the process runs.
    pub source: Host,
    /// Where it shall go.
    pub destination: Host,
    parts: Parts,
    link: Link,
    // One set of hosts at a time: they share the files of `target/vm`, and
    // two sets want more memory than many machines have.
    _lock: File,
}

/// Returns a directory with Debian and these packages, for tests that make hosts
/// of namespaces. Its files are not to be changed.
///
/// # Errors
/// Returns an error when the packages can't be installed; that needs root.
pub fn debian(packages: &[&str]) -> Result<PathBuf> {
    let cache = Workspace::find()?.target().join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("failed to create {}", cache.display()))?;
    let tree = image::directory(&cache, packages);
    if tree.exists() {
        return Ok(tree);
    }
    let _lock = lock(&cache)?;
    image::make_directory(&cache, packages)
}

/// Returns a program of the tests, linked statically.
///
/// # Errors
/// Returns an error when it does not compile.
pub fn static_program(name: &str) -> Result<PathBuf> {
    build::guest_program(&Workspace::find()?, name)
}

/// A host that uses the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

impl Hosts {
    /// Brings them up. `target/dist/migrator` must have been built.
    ///
    /// # Errors
    /// When something can't be fetched or made, or a guest does not come up.
    pub fn start(options: &Options) -> Result<Self> {
        let workspace = Workspace::find()?;
        packages::install_for_hosts()?;
        let cache = workspace.target().join("vm");
        fs::create_dir_all(&cache)
            .with_context(|| format!("failed to create {}", cache.display()))?;
        let lock = lock(&cache)?;
        let parts = Parts::get(&workspace, &cache, options)?;
        let storage = parts.boot(STORAGE)?;
        network::wait_for_hub(&parts.directory, || storage.check(), parts.limit())?;
        let source = parts.boot(SOURCE)?;
        let destination = parts.boot(DESTINATION)?;
        let hosts = Self {
            storage: parts.connect(storage)?,
            source: parts.connect(source)?,
            destination: parts.connect(destination)?,
            parts,
            link: options.link,
            _lock: lock,
        };
        if options.link != Link::default() {
            hosts.shape(options.link)?;
        }
        Ok(hosts)
    }

    /// Pulls the plug of a client, if it still runs, and boots it again: with
    /// its disk as it was at the first boot, and the link as it was at the
    /// start.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self, client: Client) -> Result<()> {
        let (host, seat) = match client {
            Client::Source => (&mut self.source, SOURCE),
            Client::Destination => (&mut self.destination, DESTINATION),
        };
        host.kill()?;
        self.parts.forget(seat)?;
        *host = self.parts.connect(self.parts.boot(seat)?)?;
        if self.link != Link::default() {
            self.link.shape(host)?;
        }
        Ok(())
    }

    /// All of them.
    pub fn all(&self) -> [&Host; 3] {
        [&self.storage, &self.source, &self.destination]
    }

    /// Makes the link of each host so.
    ///
    /// # Errors
    /// When a guest can't.
    pub fn shape(&self, link: Link) -> Result<()> {
        self.all().iter().try_for_each(|host| link.shape(host))
    }

    /// Ends them, after making sure that each still answers and no kernel has
    /// complained. Dropping them asks nothing.
    ///
    /// # Errors
    /// When one does not, or has, with its console.
    pub fn finish(self) -> Result<()> {
        self.all().iter().try_for_each(|host| host.check())
    }
}

/// What machines are made of, to make them again.
#[derive(Debug)]
struct Parts {
    directory: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    disks: [Disk; 3],
    memory: u32,
    threads: Threads,
    accelerator: Accelerator,
}

impl Parts {
    /// From the cache, or fetched and made.
    fn get(workspace: &Workspace, cache: &Path, options: &Options) -> Result<Self> {
        let kernel = Kernel::get(&options.kernel, cache)?;
        let root = image::root(cache)?;
        let directory = cache.join("run");
        image::remove(&directory)?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        let initrd = directory.join("initrd");
        kernel.initrd(&workspace.guests().join("initrd"), &initrd)?;
        let accelerator = Accelerator::find(cache, &directory, &kernel.image(), &initrd)?;
        let orders = orders(workspace, &directory)?;
        Ok(Self {
            disks: [(root, true), (kernel.modules(), false), (orders, false)]
                .map(|(image, writable)| Disk { image, writable }),
            kernel: kernel.image(),
            memory: options.memory,
            threads: options.threads,
            directory,
            initrd,
            accelerator,
        })
    }

    /// Starts a machine.
    fn boot(&self, seat: Seat) -> Result<Machine> {
        let port = network::free_port()?;
        let note = self.directory.join(format!("{}.port", seat.name));
        fs::write(&note, port.to_string())
            .with_context(|| format!("failed to write {}", note.display()))?;
        // In this order: the guests know the first card as eth0.
        let cards = [network::arguments(seat), network::control(port)].concat();
        Machine::start(&Plan {
            name: seat.name,
            directory: &self.directory,
            kernel: &self.kernel,
            initrd: &self.initrd,
            parameters: "",
            disks: &self.disks,
            devices: &cards,
            processors: if seat.name == STORAGE.name { 1 } else { 2 },
            threads: self.threads,
            memory: self.memory,
            accelerator: self.accelerator,
        })
    }

    /// Waits until it has booted, and connects to it.
    fn connect(&self, machine: Machine) -> Result<Host> {
        machine.wait_for(&format!("{} is ready", machine.name), self.limit())?;
        Host::connect(machine, &self.directory, self.limit())
    }

    /// Puts away what a machine has left: its console says that it is ready,
    /// and its sockets are there.
    fn forget(&self, seat: Seat) -> Result<()> {
        let file = |ending: &str| self.directory.join(format!("{}.{ending}", seat.name));
        image::remove(&file("ssh"))?;
        fs::rename(file("console"), file("console.before"))
            .with_context(|| format!("failed to rename {}", file("console").display()))
    }

    fn limit(&self) -> Duration {
        BOOT * self.accelerator.slowness()
    }
}

/// What to do with the hosts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Try NFS, CRIU and migrator on them, then end them
    #[arg(long)]
    smoke: bool,
}

/// Builds migrator, brings up the hosts, and tries them or takes orders.
///
/// # Errors
/// When they don't come up, or something on them does not work.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    build::run(workspace)?;
    let start = Instant::now();
    let hosts = Hosts::start(&args.options)?;
    println!(
        "{} are up after {:.1} s; link: {}",
        hosts.all().map(Host::name).join(", "),
        start.elapsed().as_secs_f64(),
        args.options.link,
    );
    if args.smoke {
        smoke::run(&hosts)?;
    } else {
        take_orders(&hosts)?;
    }
    hosts.finish()
}

/// Reads `HOST` or `HOST COMMAND` line by line until the end of the input.
fn take_orders(hosts: &Hosts) -> Result<()> {
    println!("HOST opens a shell, HOST COMMAND runs it, the end of the input ends the hosts.");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("> ");
        io::stdout().flush().context("failed to write the prompt")?;
        let Some(line) = lines.next().transpose().context("failed to read")? else {
            println!();
            return Ok(());
        };
        let line = line.trim();
        let (name, order) = match line.split_once(char::is_whitespace) {
            Some((name, order)) => (name, Some(order.trim())),
            None => (line, None),
        };
        match hosts.all().into_iter().find(|host| host.name() == name) {
            Some(host) => host.interact(order)?,
            None if name.is_empty() => {}
            None => println!("There are {}.", hosts.all().map(Host::name).join(", ")),
        }
    }
}

/// Makes the disk that tells the guests what to do and has migrator on it.
fn orders(workspace: &Workspace, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("vm");
    let dist = tree.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("failed to create {}", dist.display()))?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))
    };
    let migrator = workspace.dist().join("migrator");
    if !migrator.exists() {
        bail!(
            "there is no {}: run `cargo xtask build`",
            migrator.display()
        );
    }
    copy(&migrator, &dist.join("migrator"))?;
    // Another build, to compare with.
    if let Some(baseline) = std::env::var_os("MIGRATOR_BASELINE") {
        copy(Path::new(&baseline), &tree.join("baseline"))?;
    }
    for program in PROGRAMS {
        copy(
            &build::guest_program(workspace, program)?,
            &tree.join(program),
        )?;
    }
    let guests = workspace.guests();
    for entry in
        fs::read_dir(&guests).with_context(|| format!("failed to read {}", guests.display()))?
    {
        let entry = entry?;
        copy(&entry.path(), &tree.join(entry.file_name()))?;
    }
    fs::write(tree.join("hosts"), network::hosts_file()).context("failed to write hosts")?;
    // One key for everything, as good as none: the hosts see nobody else, and
    // it is as short-lived as they are.
    command::output(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "migrator-vm", "-f"])
            .arg(directory.join("key")),
    )?;
    copy(&directory.join("key"), &tree.join("key"))?;
    copy(&directory.join("key.pub"), &tree.join("key.pub"))?;
    fs::write(directory.join("ssh_config"), host::SSH_CONFIG)
        .context("failed to write ssh's configuration")?;
    let disk = directory.join("vm.img");
    image::ext4(&tree, &disk, "256M")?;
    Ok(disk)
}

/// Keeps others from the cache until the file is closed.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let open = || -> io::Result<File> {
        let file = File::create(&path)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            println!("Waiting for the hosts of another `cargo xtask`");
        }
        file.lock()?;
        Ok(file)
    };
    open().with_context(|| format!("failed to lock {}", path.display()))
}
