//! Reaches the destination.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::LAST_WORDS;
use crate::child;
use crate::destination::{Destination, login};
use crate::exit::Usage;
use crate::protocol::{HELLO_TIME, PeerError};

/// How long ssh and its user may take to log in: what sshd gives them
/// (LoginGraceTime of sshd_config(5)).
const LOGIN_TIME: Duration = Duration::from_secs(120);

/// A way to the destination that was found; whether a migrator is at its end
/// is not known yet.
pub struct Connection {
    pub(super) input: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) output: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) far: Far,
    /// How long it may take to its hello.
    pub(super) hello_time: Duration,
}

/// What is at the other end, to be able to say what became of it.
#[derive(Debug)]
pub(super) struct Far {
    destination: Destination,
    login: Option<Login>,
}

/// The remote shell through which it was reached.
#[derive(Debug)]
struct Login {
    child: Child,
    rsh: String,
    remote_path: String,
}

/// Connects, or starts the remote shell. To be called within a tokio runtime.
///
/// # Errors
/// [`Usage`] for a --remote-path that is none; or why it can't be reached.
pub async fn open(
    destination: Destination,
    rsh: &[String],
    remote_path: &Path,
) -> anyhow::Result<Connection> {
    match &destination {
        Destination::Tcp(address) => {
            let stream = match timeout(HELLO_TIME, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => bail!(
                    "failed to connect to {destination}: nobody listens there; \
                     is `migrator receive --listen {address}` running?"
                ),
                Ok(Err(error)) => {
                    return Err(error)
                        .with_context(|| format!("failed to connect to {destination}"));
                }
                Err(_) => bail!(
                    "failed to connect to {destination}: no answer within {} s",
                    HELLO_TIME.as_secs()
                ),
            };
            let (input, output) = stream.into_split();
            Ok(Connection {
                input: Box::new(input),
                output: Box::new(output),
                far: Far {
                    destination,
                    login: None,
                },
                hello_time: HELLO_TIME,
            })
        }
        Destination::Ssh { user, host, port } => {
            let words = login(rsh, user.as_deref(), host, *port, remote_path).map_err(Usage)?;
            let mut child =
                spawn(&words).with_context(|| format!("failed to run --rsh {}", rsh[0]))?;
            let (Some(output), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
                bail!("failed to run --rsh {}: it has no pipes", rsh[0]);
            };
            Ok(Connection {
                input: Box::new(input),
                output: Box::new(output),
                far: Far {
                    destination,
                    login: Some(Login {
                        child,
                        rsh: rsh[0].clone(),
                        remote_path: remote_path.display().to_string(),
                    }),
                },
                hello_time: LOGIN_TIME,
            })
        }
    }
}

/// Starts the remote shell, whose stderr is ours.
fn spawn(words: &[std::ffi::OsString]) -> io::Result<Child> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    // ssh has to see Ctrl-C, so that it gives the terminal back as it was while
    // it asks for a password.
    child::unblocked(|| command.spawn())
}

impl Far {
    /// The sentence for what the other side did wrong. Where the remote shell
    /// has ended, it knows more than the connection.
    pub(super) async fn explain(&mut self, fault: PeerError, said_hello: bool) -> anyhow::Error {
        let status = match fault {
            PeerError::Closed | PeerError::Io(_) => self.end().await,
            _ => None,
        };
        let Some((login, status)) = self.login.as_ref().zip(status) else {
            return anyhow!("{self} {fault}");
        };
        let Login {
            rsh, remote_path, ..
        } = login;
        // 126 and 127 are what a shell says (POSIX, 2.8.2), 255 what ssh(1)
        // says of itself.
        match status.code() {
            Some(127) if !said_hello => anyhow!(
                "{self} has no program {remote_path}: install migrator there, or say where it is \
                 with --remote-path"
            ),
            Some(126) if !said_hello => {
                anyhow!("{self} can't run {remote_path}: it is there, but no program for that host")
            }
            Some(255) if !said_hello => {
                anyhow!("failed to reach {self}: {rsh} says why above ({status})")
            }
            Some(255) => anyhow!("{self} {fault}: {rsh} says why above ({status})"),
            _ if !said_hello => anyhow!(
                "{self} {fault} before it said hello: `{rsh} ... {remote_path} receive --stdio` \
                 ended ({status})"
            ),
            _ => anyhow!("{self} {fault}: `migrator receive` ended there ({status})"),
        }
    }

    /// Waits a little for the remote shell to end.
    pub(super) async fn end(&mut self) -> Option<ExitStatus> {
        let login = self.login.as_mut()?;
        timeout(LAST_WORDS, login.child.wait()).await.ok()?.ok()
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.destination.fmt(f)
    }
}

#[cfg(test)]
impl Connection {
    /// A connection to whatever is at the other end of a stream in memory.
    pub(super) fn over(stream: tokio::io::DuplexStream) -> Self {
        let (input, output) = tokio::io::split(stream);
        Self {
            input: Box::new(input),
            output: Box::new(output),
            far: Far {
                destination: Destination::Tcp(([127, 0, 0, 1], 1).into()),
                login: None,
            },
            hello_time: HELLO_TIME,
        }
    }
}
