//! CRIU at work for us: it is asked over a socket (`criu swrk`, as libcriu does),
//! and asks back at each stage. An action script would be started at each of them
//! while the tree stands still, which takes longer than all of the rest of it.
//!
//! The messages are CRIU's `images/rpc.proto`, as far as they are needed. A CRIU
//! whose question is not answered, because we have died, ends a restored tree and
//! lets a dumped one go on (`send_criu_rpc_script` in `criu/cr-service.c`). The crate
//! rust-criu speaks the same, but keeps to itself which process CRIU is, which a
//! guard must know when we have died, and calls back to a function of no session.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, bail};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;

use super::Passed;
use crate::handover::{Session, gate};

/// More than any of its messages: the longest brings the first line of an error.
const LONGEST: usize = 64 << 10;

/// `criu_req_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Notify = 6,
}

/// `criu_opts`; the numbers of descriptors are this process's.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(int32, required, tag = "1")]
    images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pid: Option<i32>,
    #[prost(bool, optional, tag = "5")]
    tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    file_locks: Option<bool>,
    #[prost(string, optional, tag = "10")]
    log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    notify_scripts: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    link_remap: Option<bool>,
}

/// `criu_req`
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

/// `criu_resp`
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notify>,
}

/// `criu_notify`
#[derive(Clone, PartialEq, Message)]
struct Notify {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
    /// Of the restored root.
    #[prost(int32, optional, tag = "2")]
    pid: Option<i32>,
}

/// What CRIU shall do.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) session: &'a Session,
    pub(super) images: &'a Path,
    /// The root of the tree to dump; none for a restore.
    pub(super) root: Option<i32>,
    pub(super) passed: Passed,
}

impl Order<'_> {
    /// Starts CRIU, which ends when it has done as ordered or has failed. At the
    /// session's gates a thread answers it.
    ///
    /// # Errors
    /// It can't be run.
    pub(super) fn start(&self, program: &Path) -> anyhow::Result<Child> {
        let (ours, its) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("failed to make a socket for CRIU")?;
        let child = Command::new(program)
            .args(["swrk", "0"])
            .current_dir("/")
            .stdin(its)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for us to hear and for CRIU not to.
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to run {}", program.display()))?;

        let open = |path: &Path| {
            File::open(path).with_context(|| format!("failed to open {}", path.display()))
        };
        let (images, work) = (open(self.images)?, open(self.session.storage())?);
        let what = if self.root.is_some() {
            "dump"
        } else {
            "restore"
        };
        let request = Request {
            kind: match self.root {
                Some(_) => Kind::Dump,
                None => Kind::Restore,
            }
            .into(),
            options: Some(Options {
                images_dir_fd: images.as_raw_fd(),
                pid: self.root,
                tcp_established: Some(self.passed.tcp_established),
                file_locks: Some(true),
                log_file: Some(format!("{what}.log")),
                notify_scripts: Some(true),
                work_dir_fd: Some(work.as_raw_fd()),
                // Files that are open and deleted get a name for the way.
                link_remap: self.root.map(|_| true),
            }),
            notify_success: None,
        };
        say(&ours, &request)?;
        let session = self.session.clone();
        thread::Builder::new()
            .name("criu".into())
            .spawn(move || {
                // CRIU opens them through this process.
                let _open = (images, work);
                if let Err(error) = answer(&ours, &session) {
                    eprintln!("migrator: {error:#}");
                }
            })
            .context("failed to start a thread")?;
        Ok(child)
    }
}

/// Answers CRIU until it has ended, or has done what it was asked to.
fn answer(socket: &OwnedFd, session: &Session) -> anyhow::Result<()> {
    while let Some(response) = hear(socket)? {
        if response.kind() != Kind::Notify {
            // Its exit status and its log tell the rest.
            return Ok(());
        }
        let notify = response.notify.unwrap_or_default();
        let passes = gate::tell(session, notify.script(), notify.pid);
        let answer = Request {
            kind: Kind::Notify.into(),
            options: None,
            notify_success: Some(*passes.as_ref().unwrap_or(&false)),
        };
        say(socket, &answer)?;
        passes?;
    }
    Ok(())
}

/// Says something to a CRIU that may have ended; its exit status tells why.
fn say(socket: &OwnedFd, request: &Request) -> anyhow::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL;
    match send(socket.as_raw_fd(), &request.encode_to_vec(), flags) {
        Ok(_) | Err(nix::Error::EPIPE) => Ok(()),
        Err(error) => Err(error).context("failed to talk to CRIU"),
    }
}

/// Its next message; none when it has ended.
fn hear(socket: &OwnedFd) -> anyhow::Result<Option<Response>> {
    let mut bytes = vec![0; LONGEST];
    loop {
        return match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            // What it says when it is killed while something waits to be read.
            Ok(0) | Err(nix::Error::ECONNRESET) => Ok(None),
            Ok(length) => match Response::decode(&bytes[..length]) {
                Ok(response) => Ok(Some(response)),
                Err(error) => bail!("CRIU says what makes no sense: {error}"),
            },
            Err(error) => Err(error).context("failed to hear CRIU"),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The bytes are what `protoc --encode` (3.21) makes of CRIU 4.1's rpc.proto.
    #[test]
    fn messages_are_those_of_the_protocol() {
        let request = Request {
            kind: Kind::Dump.into(),
            options: Some(Options {
                images_dir_fd: 7,
                pid: Some(300),
                tcp_established: Some(false),
                file_locks: Some(true),
                log_file: Some("dump.log".into()),
                notify_scripts: Some(true),
                work_dir_fd: Some(8),
                link_remap: Some(true),
            }),
            notify_success: None,
        };
        let bytes = b"\x08\x01\x12\x1b\x08\x07\x10\xac\x02\x28\x00\x40\x01\x52\x08dump.log\x60\x01\x88\x01\x08\x90\x01\x01";
        assert_eq!(request.encode_to_vec(), bytes);

        let bytes = b"\x08\x06\x10\x01\x2a\x10\x0a\x0cpost-restore\x10\x2a";
        let response = Response::decode(&bytes[..]).unwrap();
        let notify = response.notify.clone().unwrap();
        assert_eq!(response.kind(), Kind::Notify);
        assert_eq!((notify.script(), notify.pid), ("post-restore", Some(42)));
    }

    #[test]
    fn what_criu_asks_is_answered_until_it_ends() {
        let pair = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
        };
        let session = Session::named("0123456789abcdef").unwrap();
        let (ours, its) = pair();
        let notify = |script: &str| Response {
            kind: Kind::Notify.into(),
            success: true,
            notify: Some(Notify {
                script: Some(script.into()),
                pid: None,
            }),
        };
        // Where no session is, nothing passes its gates.
        for script in ["pre-dump", "network-lock", "post-dump"] {
            let bytes = notify(script).encode_to_vec();
            send(its.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
        }
        let answered = answer(&ours, &session);
        assert!(answered.is_err());
        for success in [true, true, false] {
            let mut bytes = [0; 100];
            let length = recv(its.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            let request = Request::decode(&bytes[..length]).unwrap();
            assert_eq!(request.kind(), Kind::Notify);
            assert_eq!(request.notify_success, Some(success));
        }
        drop(its);
        assert!(answer(&ours, &session).is_ok(), "it has ended");

        let (ours, its) = pair();
        send(its.as_raw_fd(), b"\xff\xff", MsgFlags::empty()).unwrap();
        assert!(answer(&ours, &session).is_err());
    }
}
