//! Who observes while work is done: migrator, and what it is compared with.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use migrator::btf::Btf;
use migrator::source::hooks;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Watcher {
    /// A program that does nothing, at the same hooks: the floor
    Empty,
    /// One that counts in a hash, as scripts for bcc do
    Hash,
    /// migrator, all that the process does
    Full,
    /// migrator, all that another cgroup does
    Bystander,
    /// migrator, what the process does, in windows
    Windows,
    /// migrator, what another cgroup does, in windows
    WindowsBystander,
}

/// What watchers are made of.
#[derive(Debug, clap::Args)]
pub struct Tools {
    /// The migrator that observes
    #[arg(long)]
    pub migrator: PathBuf,
    /// The object of what it is compared with
    #[arg(long)]
    pub programs: PathBuf,
    /// How long an epoch, and so a window, is
    #[arg(long, value_parser = |text: &str| text.parse().map(Duration::from_millis), default_value = "100")]
    pub epoch: Duration,
}

/// One at work, until it is dropped.
#[derive(Debug)]
pub enum Watching {
    /// Programs of our own.
    Programs(Box<Ebpf>),
    /// A tracker.
    Tracker(Tracker),
}

/// `migrator track`, until it is dropped.
#[derive(Debug)]
pub struct Tracker {
    child: Child,
    /// The cgroup that it observes, which was made for it.
    cgroup: Option<PathBuf>,
    /// What it sees, in its own words.
    pub sees: String,
    /// Keeps the pipe open into which it says what else there is.
    log: BufReader<ChildStderr>,
}

impl Watcher {
    /// Whether it watches only now and then, so that a trial takes longer and all
    /// of it counts.
    pub fn is_in_windows(self) -> bool {
        matches!(self, Self::Windows | Self::WindowsBystander)
    }

    /// Begins to watch this process, or, as a bystander, an empty cgroup.
    ///
    /// # Errors
    /// When it can't; it takes root.
    pub fn begin(self, tools: &Tools) -> Result<Watching> {
        match self {
            Self::Empty => attach(&tools.programs, "empty"),
            Self::Hash => attach(&tools.programs, "count"),
            _ => Tracker::start(self, tools).map(Watching::Tracker),
        }
    }
}

/// Loads and attaches the programs whose names begin so: for reads at the first
/// hook that this kernel lets us use, in the product's order.
fn attach(object: &Path, prefix: &str) -> Result<Watching> {
    let vmlinux = Path::new("/sys/kernel/btf/vmlinux");
    let config = hooks::config(&Btf::read(vmlinux)?)?;
    let types = aya::Btf::from_sys_fs()?;
    let mut ebpf = EbpfLoader::new()
        .override_global("CONFIG", &config, false)
        .load_file(object)
        .with_context(|| format!("failed to load {}", object.display()))?;
    let exit = |ebpf: &mut Ebpf| -> Result<(), ProgramError> {
        let program = ebpf.program_mut(&format!("{prefix}_read"));
        let Some(Program::FExit(program)) = program else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        program.load("filemap_read", &types)?;
        program.attach().map(drop)
    };
    let mut points = vec!["map_pages", "fault"];
    if exit(&mut ebpf).is_err() {
        points.push("get_pages");
    }
    for point in points {
        let program = ebpf.program_mut(&format!("{prefix}_{point}"));
        let Some(Program::BtfTracePoint(program)) = program else {
            bail!("there is no program {prefix}_{point}");
        };
        let name = format!("mm_filemap_{point}");
        program
            .load(&name, &types)
            .and_then(|()| program.attach().map(drop))
            .with_context(|| format!("failed to attach to {name}, which takes root"))?;
    }
    Ok(Watching::Programs(Box::new(ebpf)))
}

impl Tracker {
    fn start(who: Watcher, tools: &Tools) -> Result<Self> {
        let bystander = matches!(who, Watcher::Bystander | Watcher::WindowsBystander);
        let windows = if who.is_in_windows() {
            "always"
        } else {
            "never"
        };
        let mut command = Command::new(&tools.migrator);
        command.args(["track", "--source", "ebpf", "--json", "--windows", windows]);
        if who.is_in_windows() {
            command.arg(format!("--interval={}ms", tools.epoch.as_millis()));
        }
        let cgroup = if bystander { Some(cgroup()?) } else { None };
        match &cgroup {
            Some(path) => command.arg("--cgroup").arg(path),
            None => command.arg(format!("--pid={}", std::process::id())),
        };
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", tools.migrator.display()))?;
        let log = child.stderr.take().context("no pipe")?;
        // What it says later has room in the pipe. A thread that read it would make
        // each read of the work dearer: where files are shared by threads, the
        // kernel counts references to them.
        let mut tracker = Self {
            child,
            cgroup,
            sees: String::new(),
            log: BufReader::new(log),
        };
        let mut said = String::new();
        loop {
            let mut line = String::new();
            tracker
                .log
                .read_line(&mut line)
                .context("failed to listen")?;
            ensure!(!line.is_empty(), "the tracker has ended: {said}");
            if let Some((_, sees)) = line.split_once("observing with source ebpf: ") {
                sees.trim().clone_into(&mut tracker.sees);
                return Ok(tracker);
            }
            said += &line;
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // It fails only when the tracker has ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT);
        let _ = self.child.wait();
        if let Some(path) = &self.cgroup {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Makes an empty cgroup of version 2.
fn cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    let mount = mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then_some(place)
        })
        .context("no cgroup2 is mounted here")?;
    let path = Path::new(mount).join(format!("migrator-bench-{}", std::process::id()));
    fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
    Ok(path)
}
