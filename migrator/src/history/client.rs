//! Asks the tracker of this host for what it knows.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};

use super::answer::{HEAD_BYTES, Header, Status};
use super::request::{Request, Wanted};
use crate::format::{self, read_list};
use crate::heat::FileId;
use crate::kernel;
use crate::pagelist::{Heat, PageIndexList};

/// How long an answer may take that somebody waits for.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How many bytes a list may have: those of all pages that a tracker can know, and of
/// as many paths.
const MAX_LIST: u64 = 256 << 20;

/// What a tracker knows.
#[derive(Debug)]
pub struct History {
    /// The tracker.
    pub status: Status,
    /// The pages, hottest file first; nothing if only the status was asked for.
    pub list: PageIndexList,
}

/// Asks for these files, with pages of at least some heat. `None` if no tracker runs.
///
/// # Errors
/// One runs and did not answer in time, or not as it should.
pub fn ask_for(
    socket: &Path,
    files: &[FileId],
    min_heat: Heat,
    time: Duration,
) -> anyhow::Result<Option<History>> {
    let wanted = Wanted::Files(files.to_vec());
    ask(socket, Request { min_heat, wanted }, time)
}

/// Asks a tracker. `None` if none runs.
///
/// # Errors
/// One runs and did not answer in time, or not as it should.
pub fn ask(socket: &Path, request: Request, time: Duration) -> anyhow::Result<Option<History>> {
    let asked = open(socket, Instant::now() + time).and_then(|connection| {
        connection
            .map(|connection| answer(connection, &request))
            .transpose()
    });
    asked.with_context(|| format!("failed to ask the tracker at {}", socket.display()))
}

fn answer(mut connection: Connection, request: &Request) -> anyhow::Result<History> {
    connection.write_all(&request.encode())?;
    let mut input = BufReader::with_capacity(1 << 16, connection);
    let mut head = [0; HEAD_BYTES];
    input.read_exact(&mut head)?;
    let (kind, length) = Header::decode_head(head)?;
    let mut text = vec![0; length];
    input.read_exact(&mut text)?;
    let status = match Header::decode_text(kind, &text)? {
        Header::Status(status) => status,
        Header::Refused(why) => bail!("it refused: {why}"),
    };
    let page_size = kernel::page_size();
    let list = match request.wanted {
        Wanted::Status => PageIndexList {
            page_size,
            files: Vec::new(),
        },
        _ => read_list(input.take(MAX_LIST))?,
    };
    format::check_page_size(list.page_size, page_size)?;
    Ok(History { status, list })
}

/// A connection on which everything ends at a moment.
struct Connection {
    stream: UnixStream,
    deadline: Instant,
}

/// Connects. `None` if nobody listens there.
fn open(path: &Path, deadline: Instant) -> anyhow::Result<Option<Connection>> {
    let kind = SockType::Stream;
    // A queue that is full is no reason to wait.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, kind, flags, None)?;
    match connect(stream.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {}
        Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::EACCES) => bail!("not permitted: only root may ask"),
        Err(error) => return Err(error.into()),
    }
    // What follows goes into lists that root prefetches.
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() != 0 {
        bail!(
            "it is run by user {}, and only root is believed",
            peer.uid()
        );
    }
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(Some(Connection { stream, deadline }))
}

impl Connection {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(late()),
            false => Ok(left),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(timely)
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer).map_err(timely)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn timely(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => late(),
        _ => error,
    }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn status(socket: &Path, time: Duration) -> anyhow::Result<Option<History>> {
        let wanted = Wanted::Status;
        ask(
            socket,
            Request {
                min_heat: 1,
                wanted,
            },
            time,
        )
    }

    #[test]
    fn without_a_tracker_there_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(status(&path, PATIENCE).unwrap().is_none());
        // One that has died leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        assert!(status(&path, PATIENCE).unwrap().is_none());
        let below = path.join("socket");
        assert!(status(&below, PATIENCE).unwrap().is_none());
    }

    #[test]
    fn one_that_says_nothing_or_nonsense_is_an_error() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let error = status(&path, SHORT).unwrap_err();
        assert!(
            format!("{error:#}").contains("no answer in time"),
            "{error:#}"
        );
        let (silent, _) = listener.accept().unwrap();
        thread::spawn(move || {
            for answer in [&b"GARBAGE GARBAGE GARBAGE"[..], b""] {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(answer).unwrap();
            }
        });
        for _ in 0..2 {
            status(&path, PATIENCE).unwrap_err();
        }
        drop(silent);
    }
}
