//! A running guest, and how it is told what to do.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::process::Process;

/// How long a command may take where nothing else is said.
const LIMIT: Duration = Duration::from_secs(300);

/// What timeout(1) exits with when it had to stop the command.
const TIMED_OUT: i32 = 124;

/// What ssh exits with when there is no connection, or no longer.
const CONNECTION_LOST: i32 = 255;

/// A guest that is ready. Commands are run by its shell, as root, over ssh on
/// a card of its own: no network has to work for it, neither this host's
/// nor the guests' own. Any number may run at the same time.
#[derive(Debug)]
pub struct Host {
    machine: Machine,
    directory: PathBuf,
    // The connection that all commands share.
    _connection: Process,
}

/// ssh's configuration for the host's side. Paths are relative to the
/// directory, where ssh is started.
pub(super) const SSH_CONFIG: &str = "\
# From this directory, while the hosts run: ssh -F ssh_config source
Host storage source destination
    User root
    IdentityFile key
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ControlPath ./%n.ssh
    ProxyCommand socat - TCP:127.0.0.1:$(cat %n.port)
";

impl Host {
    /// Connects to a machine that has said it is ready.
    pub(super) fn connect(machine: Machine, directory: &Path, limit: Duration) -> Result<Self> {
        let mut ssh = ssh(directory);
        ssh.args(["-M", "-N", &machine.name]);
        let host = Self {
            _connection: Process::start(&ssh, machine.console.path())?,
            directory: directory.to_owned(),
            machine,
        };
        let socket = directory.join(format!("{}.ssh", host.name()));
        let start = Instant::now();
        while !socket.exists() {
            host.machine.check()?;
            if let Some(status) = host._connection.exited()? {
                bail!("ssh to {} ended: {status}", host.name());
            }
            if start.elapsed() > limit {
                bail!("failed to connect to {} within {limit:?}", host.name());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(host)
    }

    /// `storage`, `source` or `destination`; the other guests know it so, too.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Runs a shell command and gives what it wrote to standard output.
    ///
    /// # Errors
    /// When it fails (with what it wrote to standard error), or the guest
    /// does (with its console).
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.output(command, LIMIT)?;
        if !output.status.success() {
            bail!(
                "failed to run `{command}` on {}: {}\n{}{}",
                self.name(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr).trim_end(),
            );
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("failed to read the output of `{command}`"))
    }

    /// Runs a shell command to its end, whether it fails or not.
    ///
    /// # Errors
    /// When it takes longer than the limit, or the guest fails.
    pub fn output(&self, command: &str, limit: Duration) -> Result<Output> {
        let start = Instant::now();
        let output = self
            .limited("ssh", limit)
            .args([self.name(), command])
            .output()
            .context("failed to start ssh")?;
        self.check_after(command, &output, start.elapsed() < limit)?;
        Ok(output)
    }

    /// Starts a shell command with its input and outputs connected to pipes.
    /// Dropping the child leaves the command running; ending it closes the
    /// pipes.
    ///
    /// # Errors
    /// When ssh can't be started.
    pub fn spawn(&self, command: &str) -> Result<Child> {
        ssh(&self.directory)
            .args([self.name(), command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start ssh")
    }

    /// A person's shell, or command, on our terminal.
    ///
    /// # Errors
    /// When ssh can't be started. How the shell ends is the person's business.
    pub fn interact(&self, command: Option<&str>) -> Result<()> {
        let mut ssh = ssh(&self.directory);
        if io::stdin().is_terminal() {
            ssh.arg("-t");
        } else {
            // The rest of our input is the next orders.
            ssh.stdin(Stdio::null());
        }
        ssh.arg(self.name())
            .args(command)
            .status()
            .context("failed to start ssh")?;
        Ok(())
    }

    /// Copies a file or directory into the guest.
    ///
    /// # Errors
    /// When it can't be read or written, or the guest fails.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        self.copy(&local(from)?, &format!("{}:{to}", self.name()))
    }

    /// Copies a file or directory out of the guest.
    ///
    /// # Errors
    /// As `put`.
    pub fn get(&self, from: &str, to: &Path) -> Result<()> {
        self.copy(&format!("{}:{from}", self.name()), &local(to)?)
    }

    /// Makes sure that the guest still answers and its kernel has not
    /// complained.
    ///
    /// # Errors
    /// When it does not, or has, with its console.
    pub fn check(&self) -> Result<()> {
        self.run("true")?;
        self.machine.check()
    }

    /// Ends the guest as a power cut would.
    ///
    /// # Errors
    /// When QEMU can't be killed.
    pub fn kill(&self) -> Result<()> {
        self.machine.kill()
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let start = Instant::now();
        let output = self
            .limited("scp", LIMIT)
            .args(["-rpq", from, to])
            .output()
            .context("failed to start scp")?;
        let what = format!("scp {from} {to}");
        self.check_after(&what, &output, start.elapsed() < LIMIT)?;
        if !output.status.success() {
            bail!(
                "failed to run `{what}`: {}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(())
    }

    /// ssh or scp, stopped at the limit.
    fn limited(&self, program: &str, limit: Duration) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", &format!("{}", limit.as_secs_f64())])
            .args([program, "-F", "ssh_config"])
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        command
    }

    /// Tells a command that failed from a guest that did.
    fn check_after(&self, command: &str, output: &Output, in_time: bool) -> Result<()> {
        if output.status.code() == Some(TIMED_OUT) && !in_time {
            self.machine.check()?;
            bail!(
                "`{command}` on {} took too long; {}",
                self.name(),
                self.machine.console.excerpt(),
            );
        }
        if output.status.code() == Some(CONNECTION_LOST) {
            // QEMU may need a moment to end after its kernel.
            thread::sleep(Duration::from_millis(500));
        }
        self.machine
            .check()
            .with_context(|| format!("failed to run `{command}`"))
    }
}

fn ssh(directory: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-F", "ssh_config"]).current_dir(directory);
    command
}

/// A path that does not depend on the directory where scp is started, nor
/// looks like one on another host.
fn local(path: &Path) -> Result<String> {
    Ok(std::path::absolute(path)
        .with_context(|| format!("failed to find {}", path.display()))?
        .to_string_lossy()
        .into_owned())
}
