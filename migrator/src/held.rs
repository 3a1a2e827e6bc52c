//! A program that is held before its first instruction until it is observed.
//!
//! A child of this program connects to a socket and waits there. When it is observed, a
//! byte lets it become the program (execve(2)), which closes the socket; if that fails,
//! the error comes back instead. Should this process die first, the child ends: nothing
//! is left behind, and the program inherits no descriptor.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use crate::child;
use crate::exit::NotStarted;
use crate::signals::Signals;

/// Poll interval for the child to connect, and for the program to end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The program, held or running.
#[derive(Debug)]
pub struct Held {
    program: PathBuf,
    child: Child,
    /// Where it waits.
    stream: UnixStream,
}

impl Held {
    /// Starts a child that waits to become `command`.
    ///
    /// # Errors
    /// It can't be started, or ends at once.
    pub fn start(command: &[OsString]) -> anyhow::Result<Self> {
        let program = command.first().context("there is no command to start")?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.unwrap_or_default().as_nanos();
        let name = format!("migrator-held-{}-{time}", std::process::id());
        let listener = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixListener::bind_addr(&address));
        let listener = listener.context("failed to make a socket")?;
        listener
            .set_nonblocking(true)
            .context("failed to wait at a socket")?;
        let mut held = Command::new("/proc/self/exe");
        held.arg("hold").arg(name).arg("--").args(command);
        let mut child = child::spawn(&mut held).context("failed to start a child")?;
        match accept(&listener, &mut child) {
            Ok(stream) => Ok(Self {
                program: program.into(),
                child,
                stream,
            }),
            Err(error) => {
                child::kill(&mut child);
                Err(error)
            }
        }
    }

    /// Returns its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Lets it become the program.
    ///
    /// # Errors
    /// [`NotStarted`] if there is no such program, or it can't be executed.
    pub fn release(&mut self) -> anyhow::Result<()> {
        let mut answer = [0; size_of::<i32>()];
        let program = self.program.display();
        self.stream
            .write_all(&[1])
            .with_context(|| format!("{program} was ended before it began"))?;
        match self.stream.read_exact(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to start {program}")),
            Ok(()) => Err(NotStarted {
                program: self.program.clone(),
                source: io::Error::from_raw_os_error(i32::from_ne_bytes(answer)),
            }
            .into()),
        }
    }

    /// Waits until the program has ended. Returns its exit code, or 128 and the number
    /// of the signal that has killed it, as a shell does. Signals that another process
    /// sends to this one are passed on; Ctrl-C reaches the program by itself.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn wait(mut self, signals: &Signals) -> anyhow::Result<u8> {
        loop {
            if let Some(status) = self.child.try_wait().context("failed to wait")? {
                return Ok(code(status));
            }
            if let Some(signal) = signals.take_sent() {
                // One that has ended meanwhile needs none.
                _ = kill(Pid::from_raw(self.pid()), signal);
            }
            signals.wait(None, POLL_INTERVAL)?;
        }
    }
}

/// Waits for the child to connect. Others could, too: the name is no secret.
fn accept(listener: &UnixListener, child: &mut Child) -> anyhow::Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) if peer(&stream) == Some(child.id()) => {
                stream
                    .set_nonblocking(false)
                    .context("failed to wait at a socket")?;
                return Ok(stream);
            }
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("failed to wait at a socket"),
        }
        if let Some(status) = child.try_wait().context("failed to wait for a child")? {
            bail!("the child ended: {}", child::describe(status));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Returns which process is at the other end.
fn peer(stream: &UnixStream) -> Option<u32> {
    let credentials = getsockopt(stream, PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok()
}

fn code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Is the child: waits at the socket of this name, and becomes the program.
///
/// # Errors
/// Always: otherwise it does not come back. The parent knows an error of execve(2).
pub fn hold(name: &str, command: &[OsString]) -> anyhow::Result<std::convert::Infallible> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let mut stream = SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixStream::connect_addr(&address))
        .context("failed to connect to the parent")?;
    anyhow::ensure!(
        peer(&stream) == Some(parent_id()),
        "somebody else is at the parent's socket"
    );
    let mut byte = [0];
    // The parent has given up, and says why.
    if stream.read_exact(&mut byte).is_err() {
        std::process::exit(1);
    }
    let error = Command::new(Path::new(program)).args(arguments).exec();
    let number = error.raw_os_error().unwrap_or(nix::libc::EINVAL);
    _ = stream.write_all(&number.to_ne_bytes());
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_counts_as_in_a_shell() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(0)), 0);
        assert_eq!(code(ExitStatus::from_raw(nix::libc::SIGTERM)), 143);
    }
}
