//! Answers whoever asks a tracker, between two of its looks at the source.
//!
//! All of it is done by the thread that observes, in slices that end before the next
//! look is due. A connection that asks too slowly, or does not take its answer, is
//! closed; there are few at a time.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::{Deserialize, Serialize};

use super::answer::{self, Header, SCHEMA, Status};
use super::listing::Listing;
use super::request::{Request, Wanted};
use crate::tracker::Tracker;

/// How many connections there are at a time.
const MAX_CONNECTIONS: usize = 4;

/// How long a request may take to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);

/// How long an answer may take in all.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How many bytes are read from a connection at a time.
const READ_BYTES: usize = 64 << 10;

/// The socket that a tracker listens on.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the tracker runs.
    lock: Flock<File>,
    connections: Vec<Connection>,
    about: About,
    began: Instant,
    since: u64,
}

/// What a tracker says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// Where its accesses come from.
    pub source: &'static str,
    /// Whether it observes in windows.
    pub windows: bool,
}

/// Who holds the lock.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    since: u64,
}

/// Somebody who asks.
struct Connection {
    stream: UnixStream,
    deadline: Instant,
    stage: Stage,
    /// Bytes that are not sent yet.
    out: Vec<u8>,
    sent: usize,
}

enum Stage {
    /// As much of the request as has come.
    Asking(Vec<u8>),
    /// The list that is still being made.
    Answering(Option<Box<Listing>>),
}

impl Server {
    /// Listens at `path`, with a lock beside it that only one tracker can have.
    ///
    /// # Errors
    /// Another tracker has it, or the file system says why not.
    pub fn listen(path: &Path, about: About) -> anyhow::Result<Self> {
        if path == Path::new(super::SOCKET)
            && let Some(directory) = path.parent()
        {
            let made = DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory);
            made.with_context(|| format!("failed to create {}", directory.display()))?;
        }
        let lock = lock(path)?;
        let listening = || -> io::Result<UnixListener> {
            match fs::symlink_metadata(path) {
                // Of a tracker that has died: the lock was free.
                Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
                Ok(_) => return Err(io::Error::other("there is something that is no socket")),
                Err(_) => {}
            }
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener =
            listening().with_context(|| format!("failed to listen at {}", path.display()))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            lock,
            connections: Vec::new(),
            about,
            began: Instant::now(),
            since: now(),
        })
    }

    /// What there is to wait for.
    pub fn events(&self) -> Vec<PollFd<'_>> {
        let mut events = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        events.extend(self.connections.iter().map(|connection| {
            let flags = match connection.stage {
                Stage::Asking(_) => PollFlags::POLLIN,
                Stage::Answering(_) => PollFlags::POLLOUT,
            };
            PollFd::new(connection.stream.as_fd(), flags)
        }));
        events
    }

    /// When a connection is to be closed.
    pub fn deadline(&self) -> Option<Instant> {
        self.connections.iter().map(|it| it.deadline).min()
    }

    /// Goes on with all connections, until about a moment.
    pub fn work(&mut self, tracker: &mut Tracker, until: Instant) {
        self.accept();
        let mut connections = std::mem::take(&mut self.connections);
        let mut left = connections.len() as u32;
        connections.retain_mut(|connection| {
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left.max(1);
            left -= 1;
            now < connection.deadline
                && connection
                    .advance(tracker, now + share, |tracker| self.status(tracker))
                    .unwrap_or(false)
        });
        self.connections = connections;
    }

    fn status(&self, tracker: &Tracker) -> Status {
        let (files, pages) = tracker.heat().totals();
        Status {
            schema: SCHEMA.into(),
            pid: std::process::id().cast_signed(),
            since: self.since,
            version: env!("CARGO_PKG_VERSION").into(),
            source: self.about.source.into(),
            windows: self.about.windows,
            seconds: self.began.elapsed().as_secs_f64(),
            observed_seconds: tracker.observed().as_secs_f64(),
            files,
            pages,
            lost: (&tracker.lost()).into(),
        }
    }

    fn accept(&mut self) {
        // What can't be accepted now may be the next time.
        while let Ok((stream, _)) = self.listener.accept() {
            let is_root = getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if !is_root {
                refuse(&stream, "only root may ask");
                continue;
            }
            if self.connections.len() == MAX_CONNECTIONS {
                // Whoever has not asked yet is the first to go.
                let is_asking = |it: &Connection| matches!(it.stage, Stage::Asking(_));
                let Some(oldest) = self.connections.iter().position(is_asking) else {
                    refuse(&stream, "too many ask at once");
                    continue;
                };
                self.connections.remove(oldest);
            }
            self.connections.push(Connection {
                stream,
                deadline: Instant::now() + REQUEST_LIMIT,
                stage: Stage::Asking(Vec::new()),
                out: Vec::new(),
                sent: 0,
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The lock is still held; without it the socket may be another's.
        _ = fs::remove_file(&self.path);
        _ = self.lock.set_len(0);
    }
}

/// Says why there is no answer, as far as that fits at once.
fn refuse(mut stream: &UnixStream, why: &str) {
    _ = stream.write(&Header::Refused(why.into()).encode());
}

impl Connection {
    /// Goes on until about a moment. Returns whether there will be more.
    fn advance(
        &mut self,
        tracker: &mut Tracker,
        until: Instant,
        status: impl FnOnce(&Tracker) -> Status,
    ) -> anyhow::Result<bool> {
        if let Stage::Asking(request) = &mut self.stage {
            let is_open = receive(&mut self.stream, request)?;
            let request = match Request::decode(request) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(is_open),
                Err(error) => {
                    refuse(&self.stream, &error.to_string());
                    return Ok(false);
                }
            };
            self.out = Header::Status(status(tracker)).encode();
            self.deadline = Instant::now() + ANSWER_LIMIT;
            let Request { min_heat, wanted } = request;
            self.stage = Stage::Answering(match wanted {
                Wanted::Status => None,
                wanted => Some(Box::new(Listing::new(tracker, wanted, min_heat)?)),
            });
        }
        loop {
            if self.sent == self.out.len() {
                self.sent = 0;
                self.out.clear();
                let Stage::Answering(listing) = &mut self.stage else {
                    return Ok(true);
                };
                let Some(mut unfinished) = listing.take() else {
                    return Ok(false);
                };
                if unfinished.step(tracker, until)? {
                    self.out = unfinished.finish(None)?;
                } else {
                    self.out = unfinished.take();
                    *listing = Some(unfinished);
                }
                if self.out.is_empty() {
                    return Ok(true);
                }
            }
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Ok(false),
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            let is_done = self.sent == self.out.len();
            match &self.stage {
                Stage::Answering(None) if is_done => return Ok(false),
                _ if is_done && Instant::now() >= until => return Ok(true),
                _ => {}
            }
        }
    }
}

/// Takes what has come of a request. Returns whether more may come.
fn receive(stream: &mut UnixStream, request: &mut Vec<u8>) -> io::Result<bool> {
    let before = request.len();
    let read = stream
        .take(READ_BYTES as u64)
        .read_to_end(request)
        .map(|_| ());
    match read {
        // As much as is read at a time, or the end.
        Ok(()) => Ok(request.len() - before == READ_BYTES),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Takes the lock of the tracker that listens at `socket`.
fn lock(socket: &Path) -> anyhow::Result<Flock<File>> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = Path::new(&path);
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
    };
    let file = open().with_context(|| format!("failed to open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let holder = Holder {
                pid: std::process::id(),
                since: now(),
            };
            let written = lock.set_len(0).and_then(|()| {
                lock.rewind()?;
                serde_json::to_writer(&*lock, &holder).map_err(io::Error::from)
            });
            written.with_context(|| format!("failed to write {}", path.display()))?;
            Ok(lock)
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut text = Vec::new();
            _ = file.take(4096).read_to_end(&mut text);
            match serde_json::from_slice::<Holder>(&text) {
                Ok(Holder { pid, since }) => bail!(
                    "a tracker serves at {} already: process {pid}, since {}",
                    socket.display(),
                    answer::at(since)
                ),
                Err(_) => bail!("a tracker serves at {} already", socket.display()),
            }
        }
        Err((_, error)) => Err(error).with_context(|| format!("failed to lock {}", path.display())),
    }
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn listen(path: &Path) -> anyhow::Result<Server> {
        let about = About {
            source: "ebpf",
            windows: true,
        };
        Server::listen(path, about)
    }

    #[test]
    fn there_is_one_tracker_and_the_next_takes_over_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        let first = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = format!("{:#}", listen(&path).err().unwrap());
        let pid = format!("process {}, since 2", std::process::id());
        assert!(error.contains(&pid), "{error}");
        drop(first);
        assert!(!path.exists());
        // One that was killed leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        listen(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        fs::write(&path, "mine").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_request_is_received_as_it_comes() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut request = Vec::new();
        assert!(receive(&mut other, &mut request).unwrap());
        one.write_all(b"ab").unwrap();
        assert!(receive(&mut other, &mut request).unwrap());
        one.write_all(&[b'c'; 100]).unwrap();
        drop(one);
        assert!(!receive(&mut other, &mut request).unwrap());
        assert_eq!(request.len(), 102);
    }
}
