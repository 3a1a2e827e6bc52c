//! A host: an init process in namespaces of its own, with a root, a `/run` and a
//! disk of its own.

use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::{CLOSE_RANGE_CLOEXEC, close_range};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::site::Site;

/// What the init process does before it is one.
const BOOT: &str = include_str!("boot.sh");

/// How long a host may take to boot or to end.
const BOOT_LIMIT: Duration = Duration::from_secs(20);

/// Where a host finds its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What `/var/lib/migrator` of a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A directory that stays over a power cut.
    Kept,
    /// An empty directory, which the next boots keep.
    New,
    /// A tmpfs of this size in KiB, which is lost with the power.
    Small(u32),
}

/// A host, which ends when this is dropped.
#[derive(Debug)]
pub struct Host {
    site: Arc<Site>,
    disk: PathBuf,
    handle: Handle,
    unshare: Child,
}

/// What finds and strikes the processes of a host, from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    name: String,
    /// The init process, as the tests see it.
    init: i32,
    /// The link that the pid namespace is known by.
    namespace: PathBuf,
    cgroup: PathBuf,
    /// Whether the power has been cut; the kernel takes a while to end everything.
    off: Arc<AtomicBool>,
}

/// A process of a host.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id, as the tests see it.
    pub pid: i32,
    /// Its id in the host.
    pub inner: i32,
    /// Its parent, as the tests see it.
    pub parent: i32,
    /// The name of its program, cut after 15 bytes.
    pub name: String,
    /// The file name of its program.
    pub program: String,
    /// Its arguments, with spaces between.
    pub args: String,
    /// The letter of its state; `T` and `t` stand still.
    pub state: char,
}

impl Host {
    /// Boots one.
    ///
    /// # Errors
    /// Returns an error when it does not boot.
    pub fn boot(site: &Arc<Site>, name: &str, storage: Storage) -> Result<Self> {
        let disk = site.disk(name)?;
        let (unshare, handle) = start(site, name, &disk, storage)?;
        Ok(Self {
            site: Arc::clone(site),
            disk,
            handle,
            unshare,
        })
    }

    /// Boots it again, with another boot id; what still runs loses its power.
    ///
    /// # Errors
    /// Returns an error when it does not boot.
    pub fn reboot(&mut self, storage: Storage) -> Result<()> {
        self.end();
        if storage == Storage::New {
            self.disk = self.site.disk(&self.handle.name)?;
        }
        let (unshare, handle) = start(&self.site, &self.handle.name, &self.disk, storage)?;
        (self.unshare, self.handle) = (unshare, handle);
        Ok(())
    }

    /// Returns what finds its processes.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a command of the shell to its end and returns its standard output.
    ///
    /// # Errors
    /// Returns an error when it does not succeed.
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.output(&["sh", "-c", command])?;
        ensure!(
            output.status.success(),
            "{}: `{command}` failed with {}: {}",
            self.handle.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// Returns an error when it can't be started.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        self.handle
            .enter(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("failed to enter {}", self.handle.name))
    }

    /// Pulls the plug and waits until everything of it has ended.
    pub fn end(&mut self) {
        self.handle.power_off();
        // unshare(1) ends with its child.
        _ = self.unshare.wait();
        let began = Instant::now();
        while !self.handle.processes().is_empty() && began.elapsed() < BOOT_LIMIT {
            thread::sleep(Duration::from_millis(2));
        }
        remove_cgroup(&self.handle.cgroup);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the init process, and waits until it has booted.
fn start(site: &Site, name: &str, disk: &Path, storage: Storage) -> Result<(Child, Handle)> {
    let number = site.number();
    let cgroup = cgroups()?.join(format!("testhost-{}-{number}", std::process::id()));
    fs::create_dir(&cgroup).with_context(|| format!("failed to make {}", cgroup.display()))?;
    let booted = site.link.join(format!("{name}.booted"));
    _ = fs::remove_file(&booted);
    let log = fs::File::create(site.link.join(format!("{name}.boot")))
        .context("failed to make the log of a boot")?;
    let mut unshare = in_cgroup(&cgroup);
    // A test that is killed takes its hosts along.
    let die_too = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { unshare.pre_exec(die_too) };
    let mut unshare = unshare
        .args(["unshare", "-m", "-p", "-n", "-u", "-i", "-C", "--fork"])
        .args(["--kill-child", "sh", "-c", BOOT])
        .current_dir("/")
        .env_clear()
        .envs([("PATH", PATH), ("NAME", name), ("HOME", "/root")])
        .env("ROOT", &site.root)
        .env("LINK", &site.link)
        .env("PROGRAMS", &site.programs)
        .env("SHARED", &site.shared)
        .env("BOOT_ID", boot_id()?)
        .env(
            "STORAGE",
            match storage {
                Storage::Small(size) => format!("{size}k").into(),
                Storage::Kept | Storage::New => disk.as_os_str().to_owned(),
            },
        )
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("failed to pass on a log")?)
        .stderr(log)
        .spawn()
        .context("failed to start unshare")?;
    let began = Instant::now();
    while !booted.exists() {
        let ended = unshare.try_wait().context("failed to wait for unshare")?;
        if ended.is_some() || began.elapsed() > BOOT_LIMIT {
            let log = fs::read_to_string(site.link.join(format!("{name}.boot")));
            _ = unshare.kill();
            _ = unshare.wait();
            remove_cgroup(&cgroup);
            bail!(
                "{name} does not boot ({ended:?}): {}",
                log.unwrap_or_default()
            );
        }
        thread::sleep(Duration::from_millis(2));
    }
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let init = fs::read_to_string(children)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .context("failed to find the init process")?;
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid"))
        .context("failed to find the namespace of a host")?;
    let handle = Handle {
        name: name.to_owned(),
        init,
        namespace,
        cgroup,
        off: Arc::default(),
    };
    Ok((unshare, handle))
}

/// Returns a boot id that no host has had.
fn boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context("failed to make an id")?;
    Ok(id.trim().to_owned())
}

/// Returns where the machine has its cgroup2.
fn cgroups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .map(|words| PathBuf::from(words[1]))
        .context("no cgroup2 is mounted")
}

/// Returns a command that enters a cgroup and becomes what its arguments say.
fn in_cgroup(cgroup: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup);
    // What cargo has left open, its job server above all, would be seen as the other
    // end of a pipe of the tree.
    let close = || {
        // SAFETY: it marks descriptors, and none is used behind it but those of the
        // standard library, which are marked already.
        let closed = unsafe { close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC as i32) };
        match closed {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(close) };
    command
}

/// Removes an empty cgroup and those below it.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let began = Instant::now();
    // The kernel may take a moment to see that it is empty.
    while fs::remove_dir(cgroup).is_err() && cgroup.exists() && began.elapsed().as_secs() < 2 {
        thread::sleep(Duration::from_millis(5));
    }
}

impl Handle {
    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a command that becomes these words in the host.
    pub fn enter(&self, words: &[&str]) -> Command {
        let mut command = in_cgroup(&self.cgroup);
        command
            .args(["nsenter", "-t", &self.init.to_string()])
            .args(["-m", "-p", "-n", "-u", "-i", "-C", "--"])
            .args(words)
            .current_dir("/")
            .env_clear()
            .envs([("PATH", PATH), ("HOME", "/root"), ("LC_ALL", "C")]);
        command
    }

    /// Whether it has power.
    pub fn is_up(&self) -> bool {
        !self.off.load(Ordering::SeqCst)
            && fs::read_link(format!("/proc/{}/ns/pid", self.init))
                .is_ok_and(|it| it == self.namespace)
    }

    /// Ends all its processes at once.
    pub fn power_off(&self) {
        if self.is_up() {
            self.off.store(true, Ordering::SeqCst);
            _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
            self.signal_entrances(Signal::SIGKILL);
        }
    }

    /// Sends a signal to each nsenter(1) that waits for a process of the host. One that
    /// was stopped with its process goes on only when it is signalled, and the namespace
    /// does not end before it has.
    pub fn signal_entrances(&self, signal: Signal) {
        let words = format!("nsenter\0-t\0{}\0", self.init);
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok())
                && fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|it| it.starts_with(words.as_bytes()))
            {
                _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Returns a path of the host as the tests reach it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Returns the directory of its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Returns its processes, without the init process.
    pub fn processes(&self) -> Vec<Seen> {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != self.init)
            .filter(|pid| {
                fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|it| it == self.namespace)
            })
            .filter_map(Seen::of)
            .collect()
    }

    /// Returns those of a program with these words among their arguments.
    pub fn find(&self, program: &str, words: &str) -> Vec<Seen> {
        let mut all = self.processes();
        all.retain(|process| process.program == program && process.args.contains(words));
        all
    }
}

impl Seen {
    /// Reads about a process; nothing when it has ended.
    pub fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let args = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args = String::from_utf8_lossy(&args).replace('\0', " ");
        Some(Self {
            pid,
            inner: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
            parent: field("PPid:")?.parse().ok()?,
            name: field("Name:")?,
            program: program.trim_end_matches(" (deleted)").to_owned(),
            args: args.trim_end().to_owned(),
            state: field("State:")?.chars().next()?,
        })
    }

    /// Whether it stands still or has ended.
    pub fn is_still(&self) -> bool {
        matches!(self.state, 'T' | 't' | 'Z' | 'X')
    }

    /// Returns the mask of the signals that its main thread blocks, as proc(5) has it.
    pub fn blocked_signals(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    }

    /// Sends it a signal; none is needed when it has ended.
    pub fn signal(&self, signal: Signal) {
        _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// Returns the exit code as a shell has it, of a program below nsenter(1), which
/// ends by the signal that ended the program.
pub(super) fn code(status: std::process::ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Writes a file into a host, with the mode of a program.
///
/// # Errors
/// Returns an error when it can't be written.
pub(super) fn write_program(handle: &Handle, path: &str, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(handle.path(path))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("failed to write {path} in {}", handle.name))
}
